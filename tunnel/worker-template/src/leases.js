// What the Worker remembers of a lease: one Durable Object for each.
//
// Here: whether the lease is open, where its sentinel is, and the results of commands that carry a request id, kept for
// ten minutes so that a repeated request is answered and never run again. Not here: the sandbox (lease.js, exec.js).

import { DurableObject } from 'cloudflare:workers';

const KEPT_MS = 600_000;
/** Rows stay under the limit of 2 MB that the platform sets. */
const PART_BYTES = 1024 * 1024;
const LONGEST_RESULT_BYTES = 8 * PART_BYTES;

export class BridgeLeases extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec('CREATE TABLE IF NOT EXISTS lease (one INTEGER PRIMARY KEY CHECK (one = 1), open INTEGER NOT NULL, remote_cwd TEXT NOT NULL)');
    this.sql.exec('CREATE TABLE IF NOT EXISTS calls (id TEXT PRIMARY KEY, digest TEXT NOT NULL, state TEXT NOT NULL, until INTEGER NOT NULL)');
    this.sql.exec('CREATE TABLE IF NOT EXISTS parts (id TEXT NOT NULL, n INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (id, n))');
  }

  /** The lease is held, and its sentinel is in this folder; false where it was given back and is had only `once`. */
  async opened(remoteCwd, once) {
    if (once && (await this.isClosed())) return false;
    this.sql.exec('INSERT OR REPLACE INTO lease VALUES (1, 1, ?)', remoteCwd);
    return true;
  }

  /** The sandbox is destroyed, also one that is being made. */
  async closed() {
    this.sql.exec("INSERT INTO lease VALUES (1, 0, '') ON CONFLICT (one) DO UPDATE SET open = 0");
  }

  /** Whether it was held, or asked for, and is no more. */
  async isClosed() {
    return this.sql.exec('SELECT 1 FROM lease WHERE open = 0').toArray().length > 0;
  }

  /** The folder of the sentinel, or null where the lease is not held. */
  async remoteCwd() {
    return this.#held();
  }

  /**
   * A command is about to run.
   *
   * @param {string} id of the request
   * @param {string} digest of the request's body
   * @param {number} limitMs how long it may run
   * @returns {Promise<{remoteCwd: string|null, state: 'new'|'running'|'other'|'dropped'|'finished', result?: object}>}
   */
  async begin(id, digest, limitMs) {
    const remoteCwd = this.#held();
    const [known] = this.sql.exec('SELECT digest, state FROM calls WHERE id = ?', id).toArray();
    if (known) {
      if (known.digest !== digest) return { remoteCwd, state: 'other' };
      return known.state === 'finished' ? { remoteCwd, state: 'finished', result: this.#result(id) } : { remoteCwd, state: known.state };
    }
    if (remoteCwd === null) return { remoteCwd, state: 'new' };
    // Where its Worker ends before it does, what became of it stays unknown: it is never run again.
    const until = Date.now() + limitMs + KEPT_MS;
    this.sql.exec("INSERT INTO calls VALUES (?, ?, 'running', ?)", id, digest, until);
    await this.#wakeAt(until);
    return { remoteCwd, state: 'new' };
  }

  /** A command has ended with this result. */
  async finish(id, result) {
    const bytes = new TextEncoder().encode(JSON.stringify(result));
    const kept = bytes.byteLength <= LONGEST_RESULT_BYTES;
    const until = Date.now() + KEPT_MS;
    this.sql.exec('UPDATE calls SET state = ?, until = ? WHERE id = ?', kept ? 'finished' : 'dropped', until, id);
    for (let n = 0; kept && n * PART_BYTES < bytes.byteLength; n += 1) {
      this.sql.exec('INSERT INTO parts VALUES (?, ?, ?)', id, n, bytes.slice(n * PART_BYTES, (n + 1) * PART_BYTES));
    }
    await this.#wakeAt(until);
  }

  /** A command did not begin: a repeat may. */
  async forget(id) {
    this.sql.exec("DELETE FROM calls WHERE id = ? AND state = 'running'", id);
  }

  async alarm() {
    this.sql.exec('DELETE FROM parts WHERE id IN (SELECT id FROM calls WHERE until <= ?)', Date.now());
    this.sql.exec('DELETE FROM calls WHERE until <= ?', Date.now());
    const [next] = this.sql.exec('SELECT min(until) AS until FROM calls').toArray();
    if (next.until !== null) await this.ctx.storage.setAlarm(Math.max(next.until, Date.now() + KEPT_MS / 10));
  }

  #held() {
    const [lease] = this.sql.exec('SELECT remote_cwd FROM lease WHERE open = 1').toArray();
    return lease ? lease.remote_cwd : null;
  }

  #result(id) {
    const rows = this.sql.exec('SELECT bytes FROM parts WHERE id = ? ORDER BY n', id).toArray();
    const decoder = new TextDecoder();
    const text = rows.map((row) => decoder.decode(row.bytes, { stream: true })).join('') + decoder.decode();
    return JSON.parse(text);
  }

  async #wakeAt(until) {
    const set = await this.ctx.storage.getAlarm();
    if (set === null || set > until) await this.ctx.storage.setAlarm(until);
  }
}
