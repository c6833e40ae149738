// One daemon's socket: greeting, frames in both directions, credit of the connection, and its end.
//
// Here: what either side may send when, and what is kept while the object sleeps. Not here: one callback (call.js).

import {
  DATA,
  FrameFault,
  frame,
  framesOf,
  GOAWAY,
  HELLO,
  jsonOf,
  jsonPayload,
  LIMITS,
  MESSAGE_BYTES,
  numberOf,
  numberPayload,
  PING,
  PONG,
  REQ_HEAD,
  RESET,
  RESP_HEAD,
  WINDOW,
} from './frames.js';

const STREAMS = 256;
const LAST_STREAM = 0xffff_ffff;
/** How long a daemon may take to greet. */
const HELLO_MS = 10_000;
/** How many silent beats a daemon is given while callbacks are open. */
const BEATS = 2;
const LARGEST_CREDIT = 0x7fff_ffff;

export class Link {
  #socket;
  #owner;
  #calls = new Map();
  #waiting = new Set();
  #heard = 0;
  #beats = null;
  #asked = null;
  #greeting = null;
  #over = false;
  #state;

  /**
   * @param {WebSocket} socket
   * @param {object|null} saved what an earlier life of this object left with the socket
   * @param {{beatMs: number, ready: (link: Link) => void, ended: () => void}} owner
   */
  constructor(socket, saved, owner) {
    this.#socket = socket;
    this.#owner = owner;
    this.#state = saved ?? { bridgeId: '', epoch: 0, ready: false, leaving: false, next: 1, credit: 0, owed: 0, theirs: { ...LIMITS } };
  }

  get epoch() {
    return this.#state.epoch;
  }

  /** Whether the daemon has greeted. */
  get isReady() {
    return this.#state.ready && !this.#over;
  }

  get takesCalls() {
    return this.isReady && !this.#state.leaving;
  }

  get isFull() {
    return this.#calls.size >= STREAMS;
  }

  /** What the daemon takes at once. */
  get theirs() {
    return this.#state.theirs;
  }

  /** Says hello, and gives the daemon some time for its own. */
  greet(bridgeId, epoch) {
    Object.assign(this.#state, { bridgeId, epoch });
    this.#save();
    this.#greeting = setTimeout(() => this.close(4408, 'no hello in time'), HELLO_MS);
    this.send(frame(HELLO, 0, 0, jsonPayload({ v: 1, bridgeId, epoch, ...LIMITS })));
  }

  /** Opens a stream; its id. */
  open(call, head, end) {
    if (this.#state.next >= LAST_STREAM) this.#state.leaving = true;
    const stream = this.#state.next;
    this.#state.next += 1;
    this.#calls.set(stream, call);
    this.#beats ??= setInterval(() => this.#beat(), this.#owner.beatMs);
    this.send(frame(REQ_HEAD, end ? 1 : 0, stream, head));
    return stream;
  }

  /** Forgets a stream that is over on both sides, or was reset. */
  forget(stream) {
    if (!this.#calls.delete(stream) || this.#calls.size > 0) return;
    clearInterval(this.#beats);
    this.#beats = null;
    this.#asked = null;
    // Only now can the object fall asleep.
    this.#save();
  }

  /** Waits until some of `wanted` bytes may be sent; `room` is what the stream has, and below 0 where it is over. */
  async credit(wanted, room) {
    for (;;) {
      const granted = Math.min(wanted, room(), this.#state.credit);
      if (granted !== 0) {
        this.#state.credit -= Math.max(granted, 0);
        return granted;
      }
      await new Promise((resolve) => this.#waiting.add(resolve));
    }
  }

  /** Lets all who wait for credit look again. */
  wake() {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }

  /** Bytes of bodies were used up, or dropped: the daemon may send as many again. */
  used(bytes) {
    this.#state.owed += bytes;
    if (this.#state.owed < LIMITS.connWindow / 2) return;
    this.send(frame(WINDOW, 0, 0, numberPayload(this.#state.owed)));
    this.#state.owed = 0;
  }

  send(message) {
    if (this.#over) return;
    try {
      this.#socket.send(message);
    } catch (error) {
      this.ended(`the socket failed: ${error.message}`);
    }
  }

  /** When anything came last, in milliseconds. */
  get heard() {
    return this.#heard;
  }

  receive(message) {
    if (this.#over) return;
    this.#heard = Date.now();
    this.#asked = null;
    if (typeof message === 'string') {
      if (message !== 'pong') this.close(4400, 'a text that is not ping');
      return;
    }
    if (message.byteLength > MESSAGE_BYTES) return this.close(1009, `a message is over ${MESSAGE_BYTES} bytes`);
    try {
      for (const one of framesOf(message)) {
        this.#take(one);
        if (this.#over) return;
      }
    } catch (error) {
      if (!(error instanceof FrameFault)) throw error;
      this.close(4400, error.message);
    }
  }

  /** Closes the socket; what is open on it is lost. */
  close(code, reason) {
    if (this.#over) return;
    try {
      this.#socket.close(code, reason);
    } catch (error) {
      console.error('a socket did not close', error);
    }
    this.ended(reason);
  }

  /** The socket is gone. */
  ended(reason) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#greeting);
    clearInterval(this.#beats);
    this.#owner.ended();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.lost(reason);
    this.wake();
  }

  #take({ type, end, stream, payload }) {
    if (type === HELLO) return this.#greeted(stream, jsonOf(payload));
    if (!this.#state.ready) throw new FrameFault('the first frame is not HELLO');
    switch (type) {
      case DATA:
        return this.#data(stream, payload, end);
      case RESP_HEAD:
        return this.#callOf(stream)?.head(jsonOf(payload), end);
      case RESET:
        return this.#callOf(stream)?.reset(numberOf(payload, false));
      case WINDOW:
        return this.#window(stream, numberOf(payload, true));
      case PING:
        if (stream !== 0 || payload.byteLength !== 8) throw new FrameFault('PING is not of its form');
        return this.send(frame(PONG, 0, 0, payload));
      case PONG:
        return undefined;
      case GOAWAY:
        return this.#goAway(numberOf(payload, false));
      default:
        throw new FrameFault(`a frame of the unknown type ${type}`);
    }
  }

  #greeted(stream, hello) {
    if (this.#state.ready || stream !== 0) throw new FrameFault('HELLO comes once, and first');
    const { v, bridgeId, epoch, maxFrame, window, connWindow } = hello ?? {};
    if (v !== 1) throw new FrameFault('HELLO is not of version 1');
    if (bridgeId !== this.#state.bridgeId) throw new FrameFault('HELLO names another bridge');
    if (!Number.isSafeInteger(epoch) || epoch < 0) throw new FrameFault('HELLO has no epoch');
    if (![maxFrame, window, connWindow].every((limit) => Number.isInteger(limit) && limit > 0 && limit <= LARGEST_CREDIT)) {
      throw new FrameFault('HELLO has no limits');
    }
    const theirs = { maxFrame: Math.min(maxFrame, LIMITS.maxFrame), window, connWindow };
    Object.assign(this.#state, { epoch, ready: true, credit: connWindow, theirs });
    clearTimeout(this.#greeting);
    this.#save();
    this.#owner.ready(this);
  }

  #data(stream, payload, end) {
    const call = this.#callOf(stream);
    // A stream that was reset here may still have bytes on the way; they count, and are given back at once.
    if (call) call.data(payload, end);
    else this.used(payload.byteLength);
  }

  #window(stream, credit) {
    if (credit === 0) throw new FrameFault('WINDOW of 0');
    if (stream === 0) {
      this.#state.credit += credit;
      if (this.#state.credit > LARGEST_CREDIT) throw new FrameFault('more credit than a connection can have');
      if (this.#calls.size === 0) this.#save();
    } else {
      this.#callOf(stream)?.window(credit);
    }
    this.wake();
  }

  #goAway(last) {
    this.#state.leaving = true;
    this.#save();
    for (const [stream, call] of [...this.#calls]) {
      if (stream > last) call.refused();
    }
  }

  /** The stream's callback, or nothing where it is over already. */
  #callOf(stream) {
    if (stream === 0 || stream >= this.#state.next) throw new FrameFault('a stream that was never opened');
    return this.#calls.get(stream);
  }

  /** Asks for a sign of life while callbacks are open. */
  #beat() {
    const now = Date.now();
    if (this.#asked !== null && now - this.#asked >= BEATS * this.#owner.beatMs) return this.close(4408, 'the daemon is silent');
    this.#asked ??= now;
    this.send(frame(PING, 0, 0, crypto.getRandomValues(new Uint8Array(8))));
  }

  #save() {
    if (!this.#over) this.#socket.serializeAttachment(this.#state);
  }
}
