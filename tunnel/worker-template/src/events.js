// A command's output as server-sent events.
//
// Here: writing `stdout`, `stderr`, `complete` and `error` events, comments that keep a silent stream alive, and the
// signature in the last event. Not here: running the command (exec.js).

import { hex, utf8 } from './bytes.js';
import { signReply } from './envelope.js';

const TYPE = 'text/event-stream';

/**
 * Streams one command.
 *
 * @param {object} bridge
 * @param {import('./envelope.js').Proof|null} proof of a signed request; its last event is signed, too
 * @param {object|null} known the result of an earlier, equal request
 * @param {(onOutput: Function, signal: AbortSignal) => Promise<object>} work
 */
export function eventStream({ ctx, keepAliveMs }, proof, known, work) {
  const { readable, writable } = new IdentityTransformStream();
  const gone = new AbortController();
  const events = new Events(writable.getWriter(), proof !== null);
  const alive = setInterval(() => events.comment().catch(() => gone.abort(new Error('the caller has gone'))), keepAliveMs);
  const onOutput = (stream, data) => events.event(stream, { data }).catch(() => gone.abort(new Error('the caller has gone')));
  const all = async () => {
    try {
      if (known) await repeat(known, onOutput);
      const result = known ?? (await work(onOutput, gone.signal));
      clearInterval(alive);
      if (result.fault) return await events.event('error', { error: result.fault.message, code: result.fault.code });
      const signature = proof ? { signature: await signReply(proof, 200, TYPE, await events.digest()) } : {};
      await events.event('complete', { ...result, ...signature });
    } finally {
      clearInterval(alive);
      await events.close();
    }
  };
  ctx.waitUntil(all().catch((error) => console.error('an event stream ended early', error.message)));
  return new Response(readable, { headers: { 'content-type': TYPE, 'cache-control': 'no-store' } });
}

async function repeat(result, onOutput) {
  for (const stream of ['stdout', 'stderr']) {
    if (result[stream]) await onOutput(stream, result[stream]);
  }
}

class Events {
  #writer;
  #hash;

  constructor(writer, hashed) {
    this.#writer = writer;
    this.#hash = hashed ? new crypto.DigestStream('SHA-256') : null;
    this.hashing = this.#hash?.getWriter();
  }

  event(name, data) {
    return this.#write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  comment() {
    return this.#write(': alive\n\n');
  }

  /** SHA-256 of everything so far. Nothing is hashed after it. */
  async digest() {
    const { hashing } = this;
    this.hashing = undefined;
    await hashing.close();
    return hex(await this.#hash.digest);
  }

  async close() {
    this.hashing?.abort().catch(() => {});
    this.#hash?.digest.catch(() => {});
    await this.#writer.close().catch(() => {});
  }

  async #write(text) {
    const bytes = utf8(text);
    // Both in one turn, so that the digest has them in the order in which they leave.
    const hashed = this.hashing?.write(bytes);
    await Promise.all([this.#writer.write(bytes), hashed]);
  }
}
