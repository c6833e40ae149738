// Callers of the Worker as tests need them: signed requests, chosen Hosts, relay tokens.
//
// Here: the signature made with Node's crypto, so that the Worker's own code does not judge itself, and a client that
// sends headers exactly as told, which `fetch` does not. Not here: any test.

import { createHash, createHmac, randomBytes } from 'node:crypto';
import { request } from 'node:http';

import { KEY, TOKEN } from './world.mjs';

export const PREFIX = '/api/paperclip-sandbox/v1';
const CONTEXT = ['environment-id', 'issue-id', 'run-id'];

const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`);
const encodeAgain = (text) => encode(decodeURIComponent(text));
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** The eleven lines of a request. */
export function lines({ keyId = 'k1', timestamp, nonce, method, target, host, contentType = '', context = {}, body = '' }) {
  const [path, query = ''] = target.split('?');
  const items = query.split('&').filter(Boolean).map((item) => {
    const [key, ...value] = item.split('=');
    return [encodeAgain(key), encodeAgain(value.join('='))];
  });
  items.sort(([k1, v1], [k2, v2]) => compare(k1, k2) || compare(v1, v2));
  return [
    'PCS1-HMAC-SHA256',
    keyId,
    String(timestamp),
    nonce,
    method,
    path.split('/').map(encodeAgain).join('/'),
    items.map((item) => item.join('=')).join('&'),
    host.toLowerCase(),
    contentType.trim().toLowerCase(),
    CONTEXT.filter((name) => context[name]).map((name) => `${name}=${encode(context[name])}`).join(';'),
    createHash('sha256').update(body).digest('hex'),
  ];
}

export const hmac = (key, text) => createHmac('sha256', key).update(text).digest('hex');

/** The header fields of a signed request, the bearer token with them. */
export function signedHeaders({ key = KEY, token = TOKEN, ...ask }) {
  const { keyId = 'k1', timestamp = Math.floor(Date.now() / 1000), nonce = randomBytes(16).toString('base64url') } = ask;
  const signed = lines({ ...ask, keyId, timestamp, nonce });
  const headers = {
    authorization: `Bearer ${token}`,
    'x-paperclip-key-id': keyId,
    'x-paperclip-timestamp': String(timestamp),
    'x-paperclip-nonce': nonce,
    'x-paperclip-content-sha256': signed[10],
    'x-paperclip-signature': `v1=${hmac(key, signed.join('\n'))}`,
  };
  if (ask.contentType) headers['content-type'] = ask.contentType;
  for (const [name, value] of Object.entries(ask.context ?? {})) headers[`x-paperclip-${name}`] = value;
  return headers;
}

/**
 * One request, exactly as told.
 *
 * @param {string} url of the server; only its address is used
 * @param {{method?: string, target: string, headers?: object|string[], body?: string|Buffer}} ask
 * @returns {Promise<{status: number, headers: object, body: Buffer, text: string, json: any, complete: boolean}>}
 */
export function send(url, { method = 'GET', target, headers = {}, body = '' }) {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const asked = request({ hostname, port, method, path: target, headers, agent: false, setHost: !('host' in headers) }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      const done = () => resolve(answerOf(response, Buffer.concat(chunks)));
      response.on('end', done);
      response.on('error', done);
    });
    asked.on('error', reject);
    asked.end(body);
  });
}

function answerOf(response, body) {
  const text = body.toString('utf8');
  const isJson = response.headers['content-type']?.startsWith('application/json') && response.complete;
  return { status: response.statusCode, headers: response.headers, body, text, json: isJson && text ? JSON.parse(text) : null, complete: response.complete };
}

/** A call of the bridge API with the bearer token alone. */
export function call(world, method, path, fields, headers = {}) {
  const body = fields === undefined ? '' : JSON.stringify(fields);
  const all = { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json', ...headers };
  return send(world.url, { method, target: PREFIX + path, headers: all, body });
}

/** A call of the bridge API with a signature. `change` may spoil the headers. */
export function signedCall(world, ask, change = (headers) => headers) {
  const { method = 'GET', path = '/health', body = '', host = new URL(world.url).host, sentHost = host, ...rest } = ask;
  const target = PREFIX + path;
  const headers = { ...signedHeaders({ method, target, host, body, ...rest }), host: sentHost };
  return send(world.url, { method, target: ask.sentTarget ?? target, headers: change(headers), body: ask.sentBody ?? body });
}

/** What an agent gets as its API key. */
export function relayToken({ bridgeId = 'b1', expires = Math.floor(Date.now() / 1000) + 600, key = KEY, session = 'session-token' } = {}) {
  const minted = `prt1.${bridgeId}.${expires}`;
  const subkey = createHmac('sha256', key).update('paperclip-bridge relay v1').digest();
  return `${minted}.${createHmac('sha256', subkey).update(minted).digest('base64url')}.${session}`;
}

/** A callback of an agent, at the relay's own host. */
export function callback(world, ask = {}) {
  const { method = 'GET', target = '/api/health', headers = {}, body = '', token = relayToken() } = ask;
  return send(world.relayUrl, { method, target, headers: { authorization: `Bearer ${token}`, ...headers }, body });
}
