// A command's output as server-sent events.
//
// Here: writing `stdout`, `stderr`, `complete` and `error` events, comments that keep a silent stream alive, and for a
// caller who signed the signatures in between and at the end. Not here: running the command (exec.js).
//
// A signed stream has two kinds of events more. `proof` signs what came since the proof before it, no later than half a
// second after its first output: a command may have ended though something holds its output, and its caller need not
// believe that unsigned. `result` says what the last event says without the output that it repeats, since the
// signature in the last event covers everything in front of it, and not itself.

import { hex, utf8 } from './bytes.js';
import { signReply } from './envelope.js';

const TYPE = 'text/event-stream';
/** Output is unsigned for so long at most while the command runs. */
const PROOF_MS = 500;

/**
 * Streams one command.
 *
 * @param {object} bridge
 * @param {import('./envelope.js').Proof|null} proof of a signed request; its stream is signed, too
 * @param {object|null} known the result of an earlier, equal request
 * @param {(onOutput: Function, signal: AbortSignal) => Promise<object>} work
 */
export function eventStream({ ctx, keepAliveMs }, proof, known, work) {
  const { readable, writable } = new IdentityTransformStream();
  const gone = new AbortController();
  const events = new Events(writable.getWriter(), proof);
  const left = () => gone.abort(new Error('the caller has gone'));
  const alive = setInterval(() => events.comment().catch(left), keepAliveMs);
  const onOutput = (stream, data) => events.output(stream, data, left).catch(left);
  const all = async () => {
    try {
      if (known) await repeat(known, onOutput);
      const result = known ?? (await work(onOutput, gone.signal));
      clearInterval(alive);
      await events.end(result);
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
  #proof;
  /** Of everything so far, and of everything since the last proof. */
  #whole = null;
  #part = null;
  #parts = 0;
  #timer = null;
  #turn = Promise.resolve();

  constructor(writer, proof) {
    this.#writer = writer;
    this.#proof = proof;
    if (proof === null) return;
    this.#whole = new Digest();
    this.#part = new Digest();
  }

  output(name, data, left) {
    if (this.#proof !== null) this.#timer ??= setTimeout(() => this.#prove().catch(left), PROOF_MS);
    return this.#inTurn(() => this.#write(event(name, { data })));
  }

  comment() {
    return this.#inTurn(() => this.#write(': alive\n\n'));
  }

  /** The last event: what became of the command. */
  end(result) {
    clearTimeout(this.#timer);
    const { fault } = result;
    const [name, data] = fault ? ['error', { error: fault.message, code: fault.code }] : ['complete', result];
    return this.#inTurn(async () => {
      if (this.#proof === null) return this.#write(event(name, data));
      const { stdout, stderr, ...told } = data;
      await this.#write(event('result', { event: name, ...told }));
      const signature = await signReply(this.#proof, 200, TYPE, await this.#whole.end());
      this.#whole = null;
      // In front, where it is read also of an event that is longer than its reader takes.
      return this.#write(event(name, { signature, ...data }));
    });
  }

  async close() {
    clearTimeout(this.#timer);
    this.#whole?.drop();
    this.#part?.drop();
    await this.#writer.close().catch(() => {});
  }

  #prove() {
    return this.#inTurn(async () => {
      this.#timer = null;
      if (this.#whole === null) return;
      this.#parts += 1;
      const signature = await signReply(this.#proof, 200, `${TYPE};part=${this.#parts}`, await this.#part.end());
      this.#part = null;
      await this.#write(event('proof', { signature }));
      this.#part = new Digest();
    });
  }

  /** One after the other: what is signed is what was written before. */
  #inTurn(work) {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }

  async #write(text) {
    const bytes = utf8(text);
    await Promise.all([this.#writer.write(bytes), this.#whole?.write(bytes), this.#part?.write(bytes)]);
  }
}

const event = (name, data) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

/** SHA-256 of bytes as they come. */
class Digest {
  #stream = new crypto.DigestStream('SHA-256');
  #writer = this.#stream.getWriter();

  write(bytes) {
    return this.#writer.write(bytes);
  }

  /** Its lower-case hex. Nothing is written after it. */
  async end() {
    await this.#writer.close();
    return hex(await this.#stream.digest);
  }

  drop() {
    this.#writer.abort().catch(() => {});
    this.#stream.digest.catch(() => {});
  }
}
