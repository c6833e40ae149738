// One callback on its way through the relay.
//
// Here: its body under the daemon's credit, its answer under ours, its deadline, and an honest end: what did not come
// whole is never ended as if it had. Not here: the socket (link.js).

import { DATA, END, frame, FrameFault, LIMITS, numberPayload, RESET, RESET_CODES, WINDOW } from './frames.js';
import { answerHeaders } from './headers.js';
import { cut, late, lost, refused, tooLarge } from './problem.js';

const WITHOUT_BODY = [204, 205, 304];

export class Call {
  #link;
  #method;
  #limits;
  #settle;
  #stream = 0;
  #opened = Date.now();
  #timer = null;
  /** Nothing more is sent to the daemon or taken from it. */
  #over = false;
  /** The request: what is read from, whether all of it is sent, and what may be sent at once. */
  #reader = null;
  #uploaded = false;
  #room = 0;
  /** The answer: its head is here; all of it is here; where it goes; what waits to go there. */
  #headed = false;
  #ended = false;
  #writer = null;
  #queue = [];
  #draining = false;
  #allowed = LIMITS.window;
  #owed = 0;

  /**
   * @param {import('./link.js').Link} link
   * @param {string} method
   * @param {{headMs: number, bodyBytes: number}} limits
   */
  constructor(link, method, limits) {
    this.#link = link;
    this.#method = method;
    this.#limits = limits;
    /** @type {Promise<Response>} never rejects */
    this.answer = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  /** Sends the head, then the body. */
  start(head, body) {
    this.#room = this.#link.theirs.window;
    this.#uploaded = body === null;
    this.#stream = this.#link.open(this, head, this.#uploaded);
    this.#waitForHead();
    if (body !== null) this.#upload(body).catch((error) => this.cancel(`the body broke: ${error.message}`));
  }

  /** The daemon answers. */
  head(head, end) {
    if (this.#headed) throw new FrameFault('a second RESP_HEAD');
    this.#headed = true;
    clearTimeout(this.#timer);
    let response;
    try {
      response = this.#respond(head, end);
    } catch {
      this.#abandon(RESET_CODES.internal, 'the head of the answer is malformed', lost(this.#method));
      return;
    }
    this.#settle(response);
    this.#ended = end;
    if (end && this.#writer === null) this.#finish();
  }

  /** A piece of the answer's body. */
  data(bytes, end) {
    if (!this.#headed || this.#ended) throw new FrameFault('DATA before RESP_HEAD or after its end');
    this.#allowed -= bytes.byteLength;
    if (this.#allowed < 0) {
      this.#link.used(bytes.byteLength);
      this.#abandon(RESET_CODES.flow, 'more than there was credit for', lost(this.#method));
      return;
    }
    this.#ended = end;
    if (this.#writer === null) {
      // An answer without a body, such as one to HEAD, may still be sent with one.
      this.#used(bytes.byteLength);
      if (end) this.#finish();
      return;
    }
    if (bytes.byteLength > 0) this.#queue.push(bytes);
    this.#drain();
  }

  /** So many more bytes of the body may be sent. */
  window(credit) {
    this.#room += credit;
  }

  /** The daemon gives the stream up. */
  reset(code) {
    const replies = { [RESET_CODES.timeout]: late, [RESET_CODES.refused]: refused };
    this.#close((replies[code] ?? lost)(this.#method), `the daemon reset the stream with ${code}`);
  }

  /** The daemon goes away and has not looked at it. */
  refused() {
    this.#close(refused(), 'the daemon goes away');
  }

  /** The socket is gone. What has come whole is still handed over. */
  lost(reason) {
    if (!this.#ended) this.#close(lost(this.#method), reason);
  }

  /** The caller has gone, or its body is broken. */
  cancel(reason) {
    this.#abandon(RESET_CODES.cancel, reason, cut());
  }

  async #upload(body) {
    this.#reader = body.getReader();
    let total = 0;
    for (;;) {
      const { done, value } = await this.#reader.read();
      if (this.#over) return;
      if (done) break;
      total += value.byteLength;
      if (total > this.#limits.bodyBytes) {
        this.#abandon(RESET_CODES.cancel, 'the body is too large', tooLarge(this.#limits.bodyBytes));
        return;
      }
      await this.#send(value);
      if (this.#over) return;
      // A long body is no slow answer.
      if (!this.#headed) this.#waitForHead();
    }
    this.#uploaded = true;
    this.#link.send(frame(DATA, END, this.#stream));
  }

  async #send(bytes) {
    for (let at = 0; at < bytes.byteLength; ) {
      const wanted = Math.min(bytes.byteLength - at, this.#link.theirs.maxFrame);
      const granted = await this.#link.credit(wanted, () => (this.#over ? -1 : this.#room));
      if (granted < 0) return;
      this.#room -= granted;
      this.#link.send(frame(DATA, 0, this.#stream, bytes.subarray(at, at + granted)));
      at += granted;
    }
  }

  #waitForHead() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#late(), this.#limits.headMs);
  }

  #late() {
    const silent = this.#link.heard < this.#opened;
    this.#abandon(RESET_CODES.timeout, 'no answer in time', late(this.#method));
    if (silent) this.#link.close(4408, 'the daemon is silent');
  }

  /** The reply to the caller; throws where the daemon's head is not of its form. */
  #respond({ status, headers: fields }, end) {
    if (!Number.isInteger(status) || status < 200 || status > 599) throw new Error('no status');
    const headers = answerHeaders(fields);
    if (this.#method === 'HEAD' || WITHOUT_BODY.includes(status)) return new Response(null, { status, headers });
    const length = headers.get('content-length');
    headers.delete('content-length');
    if (end && (length === null || length === '0')) return new Response(null, { status, headers });
    if (length !== null && (end || !/^[0-9]{1,15}$/.test(length))) throw new Error('the length is not that of the body');
    // Of known length, so that the caller can tell a cut answer from a whole one.
    const { readable, writable } = length === null ? new IdentityTransformStream() : new FixedLengthStream(Number(length));
    this.#writer = writable.getWriter();
    // Seen where it is written to.
    this.#writer.closed.catch(() => {});
    // The daemon has encoded it already.
    return new Response(readable, { status, headers, encodeBody: headers.has('content-encoding') ? 'manual' : 'automatic' });
  }

  /** Hands over what waits, as fast as the caller takes it. */
  async #drain() {
    if (this.#draining) return;
    this.#draining = true;
    try {
      while (this.#queue.length > 0) {
        await this.#writer.write(this.#queue[0]);
        const bytes = this.#queue.shift();
        if (bytes !== undefined) this.#used(bytes.byteLength);
      }
      if (this.#ended && !this.#over) {
        await this.#writer.close();
        this.#finish();
      }
    } catch (error) {
      this.cancel(`the answer cannot be handed over: ${error.message}`);
    } finally {
      this.#draining = false;
    }
  }

  /** Bytes of the answer were handed over: the daemon may send as many again. */
  #used(bytes) {
    this.#link.used(bytes);
    if (this.#over || this.#ended) return;
    this.#owed += bytes;
    if (this.#owed < LIMITS.window / 2) return;
    this.#allowed += this.#owed;
    this.#link.send(frame(WINDOW, 0, this.#stream, numberPayload(this.#owed)));
    this.#owed = 0;
  }

  /** The answer is whole. What is left of the request is of no use any more. */
  #finish() {
    if (this.#over) return;
    if (!this.#uploaded) this.#link.send(frame(RESET, 0, this.#stream, numberPayload(RESET_CODES.cancel, 'answered')));
    this.#end();
  }

  #abandon(code, text, reply) {
    if (this.#over) return;
    this.#link.send(frame(RESET, 0, this.#stream, numberPayload(code, text)));
    this.#close(reply, text);
  }

  /** Not whole: a reply where there was none, else the cut of the one that has begun. */
  #close(reply, reason) {
    if (this.#over) return;
    this.#end();
    this.#settle(reply);
    this.#writer?.abort(new Error(reason)).catch(() => {});
    const dropped = this.#queue.splice(0).reduce((sum, bytes) => sum + bytes.byteLength, 0);
    if (dropped > 0) this.#link.used(dropped);
  }

  #end() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#reader?.cancel().catch(() => {});
    this.#link.forget(this.#stream);
    this.#link.wake();
  }
}
