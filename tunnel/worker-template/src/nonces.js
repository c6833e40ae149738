// Nonces of signed requests: one Durable Object for each key id.
//
// Here: taking a nonce once, and forgetting it when its time has passed. A nonce is stored before the reply leaves: the
// runtime holds replies back until writes are safe.

import { DurableObject } from 'cloudflare:workers';

/** Longer than both halves of the time window together, so that no timestamp outlives its nonce. */
const KEPT_MS = 660_000;
/** How often the store is swept at most. */
const PRUNE_MS = 60_000;

export class BridgeNonces extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec('CREATE TABLE IF NOT EXISTS nonces (nonce TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID');
    this.sql.exec('CREATE INDEX IF NOT EXISTS by_until ON nonces (until)');
  }

  /** Whether the nonce was not there; it is now. */
  async take(nonce) {
    const known = this.sql.exec('SELECT 1 FROM nonces WHERE nonce = ?', nonce).toArray();
    if (known.length > 0) return false;
    const until = Date.now() + KEPT_MS;
    this.sql.exec('INSERT INTO nonces VALUES (?, ?)', nonce, until);
    if ((await this.ctx.storage.getAlarm()) === null) await this.ctx.storage.setAlarm(until);
    return true;
  }

  async alarm() {
    this.sql.exec('DELETE FROM nonces WHERE until <= ?', Date.now());
    const [next] = this.sql.exec('SELECT min(until) AS until FROM nonces').toArray();
    if (next.until !== null) await this.ctx.storage.setAlarm(Math.max(next.until, Date.now() + PRUNE_MS));
  }
}
