// Bytes and their spellings.
//
// Here: hex, base64, base64url, digests, comparison in constant time. Not here: what is signed (envelope.js).

const encoder = new TextEncoder();

/** UTF-8 of a text. */
export const utf8 = (text) => encoder.encode(text);

/** Lower-case hex. */
export const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, '0')).join('');

/** Bytes of a hex text of even length. */
export const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

/** Bytes of standard base64; throws where it is not exactly that. */
export function base64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  // `atob` forgives white space and missing padding.
  if (btoa(String.fromCharCode(...bytes)) !== text) throw new Error('not base64');
  return bytes;
}

/** Base64url without padding. */
export const base64url = (bytes) =>
  btoa(String.fromCharCode(...new Uint8Array(bytes)))
    .replaceAll('+', '-')
    .replaceAll('/', '_')
    .replaceAll('=', '');

/** SHA-256 in lower-case hex. */
export const sha256 = async (bytes) => hex(await crypto.subtle.digest('SHA-256', bytes));

/** Whether two texts are equal, in a time that tells nothing of where they differ. */
export async function equal(one, other) {
  const [a, b] = await Promise.all([one, other].map((text) => crypto.subtle.digest('SHA-256', utf8(text))));
  return crypto.subtle.timingSafeEqual(a, b);
}

/** `count` random bytes in hex. */
export const randomHex = (count) => hex(crypto.getRandomValues(new Uint8Array(count)));

/** All of a body, or null once it is longer than `limit` bytes. */
export async function readBody(body, limit) {
  if (!body) return new Uint8Array(0);
  const chunks = [];
  let total = 0;
  for await (const chunk of body) {
    total += chunk.byteLength;
    if (total > limit) return null;
    chunks.push(chunk);
  }
  const whole = new Uint8Array(total);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.byteLength;
  }
  return whole;
}
