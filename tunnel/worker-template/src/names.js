// Names of sandboxes and of what is written into them.
//
// Here: ids as the container platform takes them, and never two environments under one id. Not here: what a lease is
// (lease.js).

import { invalid } from './answers.js';
import { randomHex, sha256, utf8 } from './bytes.js';

const LONGEST = 63;
const TAIL = 8;
const RESERVED = ['www', 'api', 'admin', 'root', 'system', 'cloudflare', 'workers'];
const FORM = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** The sandbox of an environment that is used again, that of a request for a run, or a fresh one. */
export async function sandboxName({ reuseLease, environmentId, runId, requestId }) {
  if (reuseLease) return `pc-env-${environmentId}`;
  return `pc-${runId}-${requestId === null ? randomHex(4) : (await sha256(utf8(`acquire\n${requestId}`))).slice(0, 16)}`;
}

/**
 * An id of `[a-z0-9-]`, at most 63 long. Where the raw id had to be changed or cut, it ends in a digest of it: two raw
 * ids never meet in one sandbox.
 */
export async function normalised(raw) {
  const plain = raw
    .trim()
    .toLowerCase()
    .replace(/[^a-z0-9-]+/g, '-')
    .replace(/-{2,}/g, '-')
    .replace(/^-+|-+$/g, '');
  if (plain === raw && plain.length <= LONGEST && !RESERVED.includes(plain)) return plain;
  const tail = (await sha256(utf8(raw))).slice(0, TAIL);
  const front = plain.slice(0, LONGEST - TAIL - 1).replace(/-+$/, '');
  return front === '' ? `pc-${tail}` : `${front}-${tail}`;
}

/** The id itself if a sandbox may have it. */
export function sandboxId(id) {
  if (!FORM.test(id) || RESERVED.includes(id.toLowerCase())) {
    throw invalid('a lease id is 1 to 63 of A-Z a-z 0-9 -, begins and ends with none of - and is no reserved name');
  }
  return id;
}

/** What tells a sandbox that was leased from a fresh one under the same id. */
export const sentinelPath = (remoteCwd) => `${remoteCwd.replace(/\/+$/, '')}/.paperclip-lease.json`;

/** A name for one command's standard input. */
export const stdinPath = () => `/tmp/.paperclip-bridge-stdin-${randomHex(16)}`;
