// A daemon that is played: the other end of the relay's socket, in a test's hands.
//
// Here: connecting with a signature, the frames, credit, and callbacks as objects that a test answers as it likes. Not
// here: any test.

import { createRequire } from 'node:module';
import { join } from 'node:path';

import * as frames from '../src/relay/frames.js';
import { signedHeaders } from './caller.mjs';
import { peers } from './world.mjs';

const { WebSocket } = createRequire(join(peers(), 'package.json'))('ws');
const PREFIX = '/api/paperclip-sandbox/v1';

/** Everything that one side may send before it is given credit. */
const LIMITS = { maxFrame: 65_536, window: 262_144, connWindow: 4_194_304 };

/**
 * Connects, greets and waits for the Worker's greeting.
 *
 * @param {import('./world.mjs').World} world
 * @param {{bridgeId?: string, epoch?: number, onCall?: (call: Callback) => void, hello?: object}} [options]
 */
export async function connectDaemon(world, { bridgeId = 'b1', epoch = 1, onCall = () => {}, hello = {} } = {}) {
  const target = `${PREFIX}/relay/${bridgeId}/connect?epoch=${epoch}`;
  const headers = signedHeaders({ method: 'GET', target, host: new URL(world.url).host });
  const socket = new WebSocket(world.url.replace('http', 'ws') + target, { headers, perMessageDeflate: false, maxPayload: 2 ** 26 });
  const daemon = new Daemon(socket, onCall);
  await new Promise((resolve, reject) => {
    socket.on('open', resolve);
    socket.on('error', reject);
    socket.on('unexpected-response', (_, response) => reject(new Error(`refused with ${response.statusCode}`)));
  });
  socket.on('error', () => {});
  daemon.send(frames.HELLO, 0, 0, frames.jsonPayload({ v: 1, bridgeId, epoch, ...LIMITS, ...hello }));
  await daemon.greeted;
  return daemon;
}

class Daemon {
  constructor(socket, onCall) {
    this.socket = socket;
    this.onCall = onCall;
    this.calls = new Map();
    /** Frames that came, in order, for tests that look at them. */
    this.seen = [];
    this.credit = LIMITS.connWindow;
    this.waiting = new Set();
    this.closed = new Promise((resolve) => socket.on('close', (code, reason) => resolve({ code, reason: String(reason) })));
    this.greeted = new Promise((resolve) => {
      this.greet = resolve;
    });
    socket.on('message', (message, binary) => binary && this.#receive(message));
  }

  send(type, flags, stream, payload) {
    this.socket.send(frames.frame(type, flags, stream, payload));
  }

  /** Closes the socket and waits until it is closed. */
  async close(code = 4000) {
    this.socket.close(code);
    return this.closed;
  }

  #receive(message) {
    const bytes = message.buffer.slice(message.byteOffset, message.byteOffset + message.byteLength);
    for (const { type, end, stream, payload } of frames.framesOf(bytes)) {
      this.seen.push({ type, end, stream, payload });
      if (type === frames.HELLO) this.greet(frames.jsonOf(payload));
      if (type === frames.PING) this.send(frames.PONG, 0, 0, payload);
      if (type === frames.REQ_HEAD) this.#opened(stream, frames.jsonOf(payload), end);
      if (type === frames.DATA) this.calls.get(stream)?.take(payload, end);
      if (type === frames.RESET) this.calls.get(stream)?.wasReset(frames.numberOf(payload, false));
      if (type === frames.WINDOW) this.#credit(stream, frames.numberOf(payload, true));
    }
  }

  #opened(stream, head, end) {
    const call = new Callback(this, stream, head);
    this.calls.set(stream, call);
    if (end) call.take(new Uint8Array(0), true);
    this.onCall(call);
  }

  #credit(stream, credit) {
    if (stream === 0) this.credit += credit;
    else if (this.calls.has(stream)) this.calls.get(stream).credit += credit;
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }
}

export class Callback {
  #chunks = [];
  #ended;
  #reset;

  constructor(daemon, stream, head) {
    this.daemon = daemon;
    this.stream = stream;
    this.request = head;
    this.credit = LIMITS.window;
    /** Whether credit is given back for what comes. */
    this.reading = true;
    this.received = 0;
    /** The whole body. */
    this.body = new Promise((resolve) => {
      this.#ended = resolve;
    });
    /** The code with which the Worker gave it up. */
    this.reset = new Promise((resolve) => {
      this.#reset = resolve;
    });
  }

  take(payload, end) {
    this.#chunks.push(Buffer.from(payload));
    this.received += payload.byteLength;
    if (this.reading && payload.byteLength > 0) {
      this.daemon.send(frames.WINDOW, 0, 0, frames.numberPayload(payload.byteLength));
      this.daemon.send(frames.WINDOW, 0, this.stream, frames.numberPayload(payload.byteLength));
    }
    if (end) this.#ended(Buffer.concat(this.#chunks));
  }

  wasReset(code) {
    this.over = true;
    this.#reset(code);
    for (const resolve of this.daemon.waiting) resolve();
  }

  head(status, headers = [], end = false) {
    this.daemon.send(frames.RESP_HEAD, end ? 1 : 0, this.stream, frames.jsonPayload({ status, headers }));
  }

  /** Sends bytes of the body as credit allows; gives up once the Worker has. */
  async data(bytes, end = false) {
    let at = 0;
    while (at < bytes.byteLength) {
      const now = Math.min(bytes.byteLength - at, LIMITS.maxFrame, this.credit, this.daemon.credit);
      if (this.over) return;
      if (now === 0) {
        await new Promise((resolve) => this.daemon.waiting.add(resolve));
        continue;
      }
      this.credit -= now;
      this.daemon.credit -= now;
      this.daemon.send(frames.DATA, 0, this.stream, bytes.subarray(at, at + now));
      at += now;
    }
    if (end) this.daemon.send(frames.DATA, 1, this.stream);
  }

  /** A whole answer. */
  async answer(status, body = '', headers = []) {
    const bytes = Buffer.from(body);
    this.head(status, [...headers, ['content-length', String(bytes.byteLength)]], bytes.byteLength === 0);
    if (bytes.byteLength > 0) await this.data(bytes, true);
  }

  giveUp(code) {
    this.daemon.send(frames.RESET, 0, this.stream, frames.numberPayload(code));
  }
}
