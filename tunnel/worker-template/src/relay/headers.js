// Which header fields travel.
//
// Here: dropping what concerns one hop, what the platform adds, cookies, and what signed requests carry. Not here: the
// bearer token, which is exchanged in callback.js. Between the Worker and the daemon a value is one character a byte, as
// HTTP has it; the runtime reads and writes values as UTF-8.

import { utf8 } from '../bytes.js';

const ONE_HOP = ['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade'];
const OF_REQUESTS = [
  ...ONE_HOP,
  'authorization',
  'cdn-loop',
  'cookie',
  'expect',
  'forwarded',
  'host',
  'true-client-ip',
  'x-paperclip-content-sha256',
  'x-paperclip-key-id',
  'x-paperclip-nonce',
  'x-paperclip-signature',
  'x-paperclip-timestamp',
  'x-real-ip',
];
const OF_PLATFORM = ['cf-', 'x-forwarded-'];
const OF_ANSWERS = [...ONE_HOP, 'set-cookie'];

/** Fields of a caller's request as they go to the daemon, without the bearer token. */
export function requestFields(headers) {
  const dropped = new Set([...OF_REQUESTS, ...named(headers)]);
  const stays = ([name]) => !dropped.has(name) && !OF_PLATFORM.some((prefix) => name.startsWith(prefix));
  return [...headers].filter(stays);
}

/** The same as the daemon gets them. */
export const toDaemon = (fields) => fields.map(([name, value]) => [name, bytewise(value)]);

/** Fields of the daemon's answer as they go to the caller; throws where one is malformed. */
export function answerHeaders(fields) {
  const headers = new Headers();
  for (const [name, value] of fields) headers.append(name, unbytewise(value));
  for (const name of [...OF_ANSWERS, ...named(headers)]) headers.delete(name);
  return headers;
}

const PLAIN = /^[\x00-\x7f]*$/;
const decoder = new TextDecoder('utf-8', { fatal: true });

const bytewise = (text) => (PLAIN.test(text) ? text : String.fromCharCode(...utf8(text)));

function unbytewise(text) {
  if (PLAIN.test(text)) return text;
  try {
    return decoder.decode(Uint8Array.from(text, (character) => character.charCodeAt(0)));
  } catch {
    // No UTF-8: the runtime cannot send these bytes; it sends the same characters.
    return text;
  }
}

/** Fields that `Connection` names. */
const named = (headers) => (headers.get('connection') ?? '').toLowerCase().split(',').map((name) => name.trim()).filter((name) => name !== '');
