// The operator's settings, read from the Worker's variables and secrets, once for each `env`.
//
// Here: their names, defaults and checks. What is missing or wrong refuses every request; no default opens a door.
// README.md explains each to operators.

import { base64, utf8 } from './bytes.js';

const HMAC = { name: 'HMAC', hash: 'SHA-256' };
const MODES = ['bearer', 'either', 'signed'];
const KEY_ID = /^[A-Za-z0-9._-]{1,64}$/;
/** What a relay key is derived with; the same bytes on the daemon's side. */
const RELAY_PURPOSE = 'paperclip-bridge relay v1';

const read = new WeakMap();

/**
 * The settings of this `env`.
 *
 * @returns {Promise<Settings>} rejects with a sentence that names the variable and never its value
 */
export function settingsOf(env) {
  if (!read.has(env)) read.set(env, parse(env));
  return read.get(env);
}

/**
 * @typedef {object} Settings
 * @property {'bearer'|'either'|'signed'} mode
 * @property {string} token the bearer token
 * @property {Map<string, Key>} keys
 * @property {Set<string>} allowedHosts of the bridge API
 * @property {Set<string>} relayHosts that serve the relay at `/`
 * @property {number} maxBodyBytes of a request to the bridge API
 * @property {number} maxOutputBytes that one command's result holds
 * @property {string} defaultCwd
 *
 * @typedef {object} Key
 * @property {CryptoKey} sign
 * @property {CryptoKey} relay
 * @property {number} notBefore milliseconds
 * @property {number} notAfter milliseconds
 */

async function parse(env) {
  const mode = env.BRIDGE_AUTH_MODE ?? 'signed';
  if (!MODES.includes(mode)) throw new Error(`BRIDGE_AUTH_MODE must be one of ${MODES.join(', ')}`);
  const token = env.BRIDGE_AUTH_TOKEN ?? '';
  if (token === '') throw new Error('BRIDGE_AUTH_TOKEN is not set');
  const keys = await keysOf(env.BRIDGE_HMAC_KEYS);
  if (keys.size === 0 && mode !== 'bearer') throw new Error(`BRIDGE_HMAC_KEYS must hold a key in mode ${mode}`);
  const allowedHosts = hosts(env.BRIDGE_ALLOWED_HOSTS);
  if (allowedHosts.size === 0) throw new Error('BRIDGE_ALLOWED_HOSTS is empty: name the hosts of this Worker');
  const relayHosts = hosts(env.BRIDGE_RELAY_HOSTS);
  for (const host of relayHosts) {
    if (allowedHosts.has(host)) throw new Error('a host may stand in BRIDGE_ALLOWED_HOSTS or BRIDGE_RELAY_HOSTS, not both');
  }
  return {
    mode,
    token,
    keys,
    allowedHosts,
    relayHosts,
    maxBodyBytes: number(env, 'BRIDGE_MAX_BODY_BYTES', 16 * 1024 * 1024),
    maxOutputBytes: number(env, 'BRIDGE_MAX_OUTPUT_BYTES', 16 * 1024 * 1024),
    defaultCwd: cwd(env.BRIDGE_DEFAULT_CWD ?? '/workspace/paperclip'),
  };
}

async function keysOf(text) {
  if (text === undefined || text === '') return new Map();
  let listed;
  try {
    listed = JSON.parse(text);
  } catch {
    throw new Error('BRIDGE_HMAC_KEYS is not JSON');
  }
  if (listed === null || typeof listed !== 'object' || Array.isArray(listed)) {
    throw new Error('BRIDGE_HMAC_KEYS must be an object of keys by their ids');
  }
  const keys = await Promise.all(Object.entries(listed).map(async ([id, entry]) => [id, await keyOf(id, entry)]));
  return new Map(keys);
}

async function keyOf(id, entry) {
  if (!KEY_ID.test(id)) throw new Error('BRIDGE_HMAC_KEYS: a key id is 1 to 64 of A-Z a-z 0-9 . _ -');
  let bytes;
  try {
    bytes = base64(entry.key);
  } catch {
    throw new Error(`BRIDGE_HMAC_KEYS: the key of ${id} is not base64`);
  }
  if (bytes.byteLength < 32) throw new Error(`BRIDGE_HMAC_KEYS: the key of ${id} is shorter than 32 bytes`);
  const sign = await crypto.subtle.importKey('raw', bytes, HMAC, false, ['sign', 'verify']);
  const derived = await crypto.subtle.sign('HMAC', sign, utf8(RELAY_PURPOSE));
  return {
    sign,
    relay: await crypto.subtle.importKey('raw', derived, HMAC, false, ['sign', 'verify']),
    notBefore: moment(id, 'notBefore', entry.notBefore, -Infinity),
    notAfter: moment(id, 'notAfter', entry.notAfter, Infinity),
  };
}

/** Unix seconds, or a date and time of RFC 3339, in milliseconds. */
function moment(id, field, value, absent) {
  if (value === undefined || value === null) return absent;
  const at = typeof value === 'number' ? value * 1000 : Date.parse(value);
  if (Number.isNaN(at)) throw new Error(`BRIDGE_HMAC_KEYS: ${field} of ${id} is neither Unix seconds nor RFC 3339`);
  return at;
}

function hosts(text) {
  const names = (text ?? '').split(',').map((name) => name.trim());
  return new Set(names.filter((name) => name !== '').map((name) => name.toLowerCase()));
}

function number(env, name, absent) {
  const value = env[name] === undefined ? absent : Number(env[name]);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`${name} must be a whole number above 0`);
  return value;
}

function cwd(path) {
  if (!path.startsWith('/')) throw new Error('BRIDGE_DEFAULT_CWD must be an absolute path');
  return path;
}
