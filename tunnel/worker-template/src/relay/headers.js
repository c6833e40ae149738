// Which header fields travel.
//
// Here: dropping what concerns one hop, what the platform adds, cookies, and what signed requests carry. Not here: the
// bearer token, which is exchanged in callback.js.

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
  return [...headers].filter(([name]) => !dropped.has(name) && !OF_PLATFORM.some((prefix) => name.startsWith(prefix)));
}

/** Fields of the daemon's answer as they go to the caller; throws where one is malformed. */
export function answerHeaders(fields) {
  const headers = new Headers();
  for (const [name, value] of fields) headers.append(name, value);
  for (const name of [...OF_ANSWERS, ...named(headers)]) headers.delete(name);
  return headers;
}

/** Fields that `Connection` names. */
const named = (headers) => (headers.get('connection') ?? '').toLowerCase().split(',').map((name) => name.trim()).filter((name) => name !== '');
