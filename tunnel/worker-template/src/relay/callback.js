// An agent's way in: a URL and a bearer token are all that it has.
//
// Here: checking the relay's part of the token, without state, so that strangers neither wake nor fill the Durable
// Object; and handing the callback over. The session's own token goes on to the daemon, which checks it.

import { base64url, equal, utf8 } from '../bytes.js';
import { ERRAND, relayOf } from './connect.js';
import { requestFields } from './headers.js';
import { invalidToken, lost, problem } from './problem.js';

const TOKEN = /^Bearer (prt1\.([A-Za-z0-9_-]{1,64})\.([1-9][0-9]{0,11}))\.([A-Za-z0-9_-]{43})\.([\x21-\x7e]{1,4096})$/i;

/**
 * Relays one callback.
 *
 * @param {object} bridge
 * @param {string|null} bridgeId of the path, or null where the host serves the relay at `/`
 * @param {string} path below the relay's own
 */
export async function relayed({ request, env, settings, target, now }, bridgeId, path) {
  if (settings.keys.size === 0) return problem(503, 'relay_not_configured', 'the relay needs a key in BRIDGE_HMAC_KEYS');
  const token = await tokenOf(request, settings, now);
  if (token === null || (bridgeId !== null && bridgeId !== token.bridgeId)) return invalidToken();
  const { method, headers, body, signal } = request;
  const fields = [...requestFields(headers), ['authorization', `Bearer ${token.session}`]];
  const errand = { method, path, query: target.query, host: headers.get('host') ?? target.host, run: headers.get('x-paperclip-run-id') };
  try {
    const handed = { method, body, signal, headers: handedHeaders(fields, errand), redirect: 'manual' };
    return await relayOf(env, token.bridgeId).fetch('https://relay/callback', handed);
  } catch (error) {
    console.error('the relay failed', error);
    return lost(method);
  }
}

function handedHeaders(fields, errand) {
  const headers = new Headers(fields);
  headers.set(ERRAND, JSON.stringify(errand));
  return headers;
}

async function tokenOf(request, settings, now) {
  const match = TOKEN.exec(request.headers.get('authorization') ?? '');
  if (!match) return null;
  const [, minted, bridgeId, expires, mac, session] = match;
  if (Number(expires) * 1000 <= now) return null;
  for (const key of settings.keys.values()) {
    if (now < key.notBefore || now > key.notAfter) continue;
    const expected = base64url(await crypto.subtle.sign('HMAC', key.relay, utf8(minted)));
    if (await equal(mac, expected)) return { bridgeId, session };
  }
  return null;
}
