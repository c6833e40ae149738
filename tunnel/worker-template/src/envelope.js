// The signed request envelope, PCS1: what is signed, and the checks in their order.
//
// Here: canonical forms, the string to sign, verification, signatures of replies. Not here: the Host check, which comes
// first of all (core.js), and where nonces are kept (nonces.js).

import { invalid, unauthorized, unavailable } from './answers.js';
import { equal, hex, readBody, sha256, unhex, utf8 } from './bytes.js';

/** How far a caller's clock may be off, in seconds, either way. */
export const WINDOW_SECONDS = 300;

const KEY_ID = /^[A-Za-z0-9._-]{1,64}$/;
const TIMESTAMP = /^(?:0|[1-9][0-9]{0,11})$/;
// 16 bytes: the last of 22 characters holds only two bits.
const NONCE = /^[A-Za-z0-9_-]{21}[AQgw]$/;
const DIGEST = /^[0-9a-f]{64}$/;
// One header with up to three values. A second header arrives joined by a comma and a space, and is refused by that.
const SIGNATURES = /^v1=[0-9a-f]{64}(?:,v1=[0-9a-f]{64}){0,2}$/;
// Another reader may take what is not here for something else: a URL parser turns a backslash into a slash.
const TARGET = /^[!-~]*$/;
const LONGEST_TARGET = 16 * 1024;
const CONTEXT = ['environment-id', 'issue-id', 'run-id'];
const HEADERS = ['key-id', 'timestamp', 'nonce', 'content-sha256', 'signature'];

/** Whether any header of the envelope is there. */
export const isSigned = (request) => HEADERS.some((name) => request.headers.has(`x-paperclip-${name}`));

/**
 * Verifies a request whose Host was found to be ours.
 *
 * @param {Request} request
 * @param {{host: string, path: string, query: string}} target
 * @param {import('./settings.js').Settings} settings
 * @param {number} now milliseconds
 * @param {(keyId: string, nonce: string) => Promise<boolean>} takeNonce false where the nonce was used before
 * @returns {Promise<{body: Uint8Array, proof: Proof}>} rejects with a {@link Refusal}
 *
 * @typedef {{key: CryptoKey, nonce: string, signature: string}} Proof what a reply's signature is bound to
 */
export async function verify(request, target, settings, now, takeNonce) {
  const envelope = read(request, target);
  const seconds = Math.floor(now / 1000);
  if (Math.abs(seconds - envelope.timestamp) > WINDOW_SECONDS) {
    const clock = { 'x-paperclip-time': String(seconds) };
    throw unauthorized('timestamp_out_of_window', `the timestamp is more than ${WINDOW_SECONDS} s away from this clock`, clock);
  }
  const key = settings.keys.get(envelope.keyId);
  if (!key || now < key.notBefore || now > key.notAfter) {
    // As much work as for a known key, so that the time does not tell which ids exist.
    const any = await crypto.subtle.importKey('raw', new Uint8Array(32), { name: 'HMAC', hash: 'SHA-256' }, false, ['verify']);
    await crypto.subtle.verify('HMAC', any, new Uint8Array(32), utf8(envelope.lines.join('\n')));
    throw unauthorized('unknown_key', 'the key id is unknown, or its time has not come or is over');
  }
  const body = await readBody(request.body, settings.maxBodyBytes);
  if (body === null || (await sha256(body)) !== envelope.digest) {
    throw unauthorized('content_hash_mismatch', `the body is not the one that was signed, or over ${settings.maxBodyBytes} bytes`);
  }
  const signature = await matching(key.sign, envelope);
  if (signature === null) throw unauthorized('signature_invalid', 'no signature is that of this request');
  await checkBearer(request, settings);
  await checkNonce(envelope, takeNonce);
  return { body, proof: { key: key.sign, nonce: envelope.nonce, signature } };
}

/** Refuses a request without the bearer token. */
export async function checkBearer(request, settings) {
  const given = /^Bearer ([^\s]+)$/i.exec(request.headers.get('authorization') ?? '')?.[1];
  if (given === undefined || !(await equal(given, settings.token))) {
    throw unauthorized('unauthorized', 'the bearer token is missing or wrong');
  }
}

async function checkNonce(envelope, takeNonce) {
  let fresh;
  try {
    fresh = await takeNonce(envelope.keyId, envelope.nonce);
  } catch {
    throw unavailable('nonce_store_unavailable', 'the store of nonces does not answer; nothing was done');
  }
  if (!fresh) throw unauthorized('nonce_replayed', 'this nonce was used before');
}

async function matching(key, envelope) {
  const data = utf8(envelope.lines.join('\n'));
  let found = null;
  for (const signature of envelope.signatures) {
    if (await crypto.subtle.verify('HMAC', key, unhex(signature), data)) found ??= signature;
  }
  return found;
}

/** The envelope's parts, all of their form, and the lines to sign. */
function read(request, target) {
  const { headers, method } = request;
  if (headers.has('content-encoding')) throw invalid('a signed request has no Content-Encoding');
  if (method !== method.toUpperCase()) throw invalid('the method must be in upper case');
  const whole = `${target.path}?${target.query}`;
  if (whole.length > LONGEST_TARGET || !TARGET.test(whole) || whole.includes('\\')) {
    throw invalid('the target is over 16 KiB, or has a character that must be percent-encoded');
  }
  const keyId = formed(headers, 'key-id', KEY_ID);
  const timestamp = formed(headers, 'timestamp', TIMESTAMP);
  const nonce = formed(headers, 'nonce', NONCE);
  const digest = formed(headers, 'content-sha256', DIGEST);
  const signatures = formed(headers, 'signature', SIGNATURES).split(',').map((one) => one.slice('v1='.length));
  const lines = [
    'PCS1-HMAC-SHA256',
    keyId,
    timestamp,
    nonce,
    method,
    canonicalPath(target.path),
    canonicalQuery(target.query),
    target.host,
    single(headers, 'content-type').trim().toLowerCase(),
    canonicalContext(headers),
    digest,
  ];
  return { keyId, timestamp: Number(timestamp), nonce, digest, signatures, lines };
}

function formed(headers, name, form) {
  const value = headers.get(`x-paperclip-${name}`) ?? '';
  if (!form.test(value)) throw invalid(`X-Paperclip-${name} is missing, repeated or malformed`);
  return value;
}

/** One value or none: a second header arrives joined by a comma and a space. */
function single(headers, name) {
  const value = headers.get(name) ?? '';
  if (value.includes(', ')) throw invalid(`${name} may stand only once`);
  return value;
}

function canonicalContext(headers) {
  const present = CONTEXT.filter((name) => headers.has(`x-paperclip-${name}`));
  return present
    .map((name) => {
      const value = single(headers, `x-paperclip-${name}`);
      if (!/^[\x20-\x7e]+$/.test(value)) throw invalid(`X-Paperclip-${name} must be visible ASCII`);
      return `${name}=${encode(value)}`;
    })
    .join(';');
}

/** Each segment decoded once and encoded again; a path that a URL parser would change is refused. */
export function canonicalPath(path) {
  if (!path.startsWith('/')) throw invalid('the path does not start with a slash');
  const segments = path.split('/').map(decode);
  if (segments.some((segment) => segment === '.' || segment === '..')) throw invalid('the path has a dot segment');
  return segments.map(encode).join('/');
}

/** Items decoded, encoded and sorted by key, then by value, bytewise. */
export function canonicalQuery(query) {
  const items = query.split('&').filter((item) => item !== '');
  const pairs = items.map((item) => {
    const at = item.indexOf('=');
    const [key, value] = at < 0 ? [item, ''] : [item.slice(0, at), item.slice(at + 1)];
    return [encode(decode(key)), encode(decode(value))];
  });
  // The encoded form is ASCII, where code units are bytes.
  pairs.sort(([k1, v1], [k2, v2]) => (k1 < k2 ? -1 : k1 > k2 ? 1 : v1 < v2 ? -1 : v1 > v2 ? 1 : 0));
  return pairs.map(([key, value]) => `${key}=${value}`).join('&');
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('the request target has an escape that is not UTF-8');
  }
}

function encode(text) {
  const escaped = (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
  return encodeURIComponent(text).replace(/[!'()*]/g, escaped);
}

/**
 * `X-Paperclip-Response-Signature` of a reply to a verified request.
 *
 * @param {Proof} proof
 * @param {number} status
 * @param {string} contentType with `;part=N` behind it for a part of an event stream
 * @param {string} digest of the body; of the part; at the end of an event stream, of every byte before its last event
 */
export async function signReply(proof, status, contentType, digest) {
  const lines = ['PCS1-HMAC-SHA256-RESPONSE', proof.nonce, proof.signature, String(status), contentType.trim().toLowerCase(), digest];
  return `v1=${hex(await crypto.subtle.sign('HMAC', proof.key, utf8(lines.join('\n'))))}`;
}
