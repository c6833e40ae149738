// Leases of sandboxes: probe, acquire, resume, release, destroy.
//
// Here: what each call does, and the sentinel file by which a sandbox that came back empty is told from the one that was
// leased. Not here: commands (exec.js), what is remembered of a lease (leases.js).

import { invalid, lost, Refusal } from './answers.js';
import { randomHex } from './bytes.js';
import { quote, run } from './command.js';
import { normalised, sandboxId, sandboxName, sentinelPath } from './names.js';

const PROVIDER = 'cloudflare';
export const DEFAULT_TIMEOUT_MS = 300_000;
const LONGEST_TIMEOUT_MS = 86_400_000;
const REQUEST_ID = /^[\x21-\x7e]{1,128}$/;

/** Makes a sandbox, uses it and always destroys it. */
export async function probe(bridge, fields) {
  const wish = wishes(bridge, fields);
  const sandbox = bridge.open(`pc-probe-${randomHex(8)}`, openOptions(wish));
  const metadata = { provider: PROVIDER, remoteCwd: wish.remoteCwd, namedSessions: true };
  try {
    await sandbox.mkdir(wish.remoteCwd);
    const session = await sandbox.session(wish.sessionStrategy === 'named' ? wish.sessionId : null);
    const ended = await run(session, `cd ${quote(wish.remoteCwd)} && pwd`, wish.timeoutMs, bridge.settings.maxOutputBytes);
    const ok = ended.exitCode === 0;
    const summary = ok ? 'a sandbox was made, ran a command and was destroyed' : `pwd failed: ${ended.stderr}`;
    return { ok, summary, metadata: { ...metadata, stdout: ended.stdout } };
  } catch (error) {
    return { ok: false, summary: `the sandbox failed: ${error.message}`, metadata: { ...metadata, stdout: '' } };
  } finally {
    await sandbox.destroy().catch((error) => console.error('the probe left a sandbox behind', error));
  }
}

/**
 * Makes a sandbox, or takes the environment's; nothing is left behind by a failure. The name of a sandbox that is made
 * under a request id comes from that, so that the same request has the same lease; once that was given back, it has none.
 */
export async function acquire(bridge, fields) {
  const wish = wishes(bridge, fields);
  const reuseLease = flag(fields, 'reuseLease', false);
  const requestId = requestIdOf(fields);
  const raw = await sandboxName({ reuseLease, environmentId: required(fields, 'environmentId'), runId: required(fields, 'runId'), requestId });
  const id = wish.normalizeId ? await normalised(raw) : sandboxId(raw);
  const once = requestId !== null && !reuseLease;
  if (once && (await leaseOf(bridge, id).isClosed())) throw givenBack(id);
  const sandbox = bridge.open(id, openOptions(wish));
  try {
    return await take(bridge, sandbox, id, wish, false, once);
  } catch (error) {
    if (!reuseLease) await sandbox.destroy().catch((fault) => console.error('a failed acquire left its sandbox behind', fault));
    throw failed(error);
  }
}

/** Goes on with a lease. A sandbox without its sentinel is lost; it is never destroyed here. */
export async function resume(bridge, fields) {
  const wish = wishes(bridge, fields);
  const id = sandboxId(required(fields, 'providerLeaseId'));
  const sandbox = bridge.open(id, openOptions(wish));
  try {
    if (!(await hasSentinel(sandbox, wish.remoteCwd, id))) throw lost(`the sandbox of lease ${id} is gone or was made anew`);
    return await take(bridge, sandbox, id, wish, true);
  } catch (error) {
    throw failed(error);
  }
}

/** Destroys the sandbox unless it is to be used again. */
export async function release(bridge, fields) {
  const id = fields.providerLeaseId;
  if (id === undefined || id === null || id === '') return { ok: true };
  if (typeof id !== 'string') throw invalid('providerLeaseId must be a text');
  return flag(fields, 'reuseLease', false) ? { ok: true } : destroy(bridge, id);
}

/** Destroys the sandbox; also if it is gone. */
export async function destroy(bridge, id) {
  try {
    // Closed first: a request for it that is still under way finds that, and ends what it made.
    await leaseOf(bridge, sandboxId(id)).closed();
    await bridge.open(id, {}).destroy();
  } catch (error) {
    throw failed(error);
  }
  return { ok: true };
}

/** What the Worker remembers of the lease. */
export const leaseOf = ({ env }, id) => env.BRIDGE_LEASES.get(env.BRIDGE_LEASES.idFromName(id));

/** Whether the sandbox is the one that was leased under this id. */
export async function hasSentinel(sandbox, remoteCwd, id) {
  const text = await sandbox.read(sentinelPath(remoteCwd));
  if (text === null || text === '') return false;
  try {
    return JSON.parse(text)?.providerLeaseId === id;
  } catch {
    return false;
  }
}

/** A fault of the sandbox as the caller sees it: never 404 or 409, which say that the lease is lost. */
export function failed(error) {
  if (error instanceof Refusal) return error;
  console.error('the sandbox failed', error);
  return new Refusal(502, 'sandbox_failed', `the sandbox failed: ${error.message}`);
}

const givenBack = (id) => lost(`lease ${id} of this request was given back`);

async function take(bridge, sandbox, id, wish, resumedLease, once = false) {
  await sandbox.mkdir(wish.remoteCwd);
  if (wish.sessionStrategy === 'named') await sandbox.session(wish.sessionId);
  const { remoteCwd, sessionStrategy, sessionId, keepAlive, sleepAfter, normalizeId } = wish;
  const shared = { provider: PROVIDER, remoteCwd, sessionStrategy, sessionId, keepAlive, sleepAfter, normalizeId, resumedLease };
  const sentinel = { ...shared, providerLeaseId: id, updatedAt: new Date(bridge.now).toISOString() };
  await sandbox.write(sentinelPath(remoteCwd), `${JSON.stringify(sentinel, null, 2)}\n`, 'utf8');
  if (!(await leaseOf(bridge, id).opened(remoteCwd, once))) throw givenBack(id);
  return { providerLeaseId: id, metadata: { ...shared, sandboxId: id } };
}

/** The fields that probe, acquire and resume share, with their defaults. */
function wishes({ settings }, fields) {
  const remoteCwd = text(fields, 'requestedCwd', settings.defaultCwd);
  if (!remoteCwd.startsWith('/')) throw invalid('requestedCwd must be an absolute path');
  return {
    remoteCwd,
    keepAlive: flag(fields, 'keepAlive', false),
    sleepAfter: text(fields, 'sleepAfter', '10m'),
    normalizeId: flag(fields, 'normalizeId', true),
    ...sessionOf(fields),
    timeoutMs: timeout(fields),
  };
}

const openOptions = ({ keepAlive, sleepAfter, normalizeId }) => ({ keepAlive, sleepAfter, normalizeId });

/** Which session commands run in: a named one, unless it is to be the default one. */
export function sessionOf(fields) {
  return { sessionStrategy: fields.sessionStrategy === 'default' ? 'default' : 'named', sessionId: text(fields, 'sessionId', 'paperclip') };
}

/** `timeoutMs`, 1 ms to a day. */
export function timeout(fields) {
  const value = fields.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  if (!Number.isInteger(value) || value < 1 || value > LONGEST_TIMEOUT_MS) {
    throw invalid(`timeoutMs must be a whole number from 1 to ${LONGEST_TIMEOUT_MS}`);
  }
  return value;
}

/** What tells a request that is sent again from another, or null. */
export function requestIdOf(fields) {
  const requestId = text(fields, 'requestId', null);
  if (requestId !== null && !REQUEST_ID.test(requestId)) throw invalid('requestId must be 1 to 128 of visible ASCII');
  return requestId;
}

/** A text that must be there. */
export function required(fields, name) {
  const value = fields[name];
  if (typeof value !== 'string' || value.trim() === '') throw invalid(`${name} is missing or no text`);
  return value;
}

/** A text, or `absent`. */
export function text(fields, name, absent) {
  const value = fields[name];
  if (value === undefined || value === null || value === '') return absent;
  if (typeof value !== 'string') throw invalid(`${name} must be a text`);
  return value;
}

const flag = (fields, name, absent) => (fields[name] === undefined ? absent : fields[name] === true);
