// One request to the Worker: which host it names, who asks, and who answers.
//
// Here: the order of the checks and the routes of the bridge API. Not here: the checks themselves (envelope.js), what a
// call does (lease.js, exec.js), and the relay of callbacks to the daemon (relay/).

import { invalid, Refusal, reply } from './answers.js';
import { readBody, sha256 } from './bytes.js';
import { checkBearer, isSigned, signReply, verify } from './envelope.js';
import { exec } from './exec.js';
import { acquire, destroy, probe, release, resume } from './lease.js';
import { connect } from './relay/connect.js';
import { relayed } from './relay/callback.js';
import { settingsOf } from './settings.js';
import { targetOf } from './target.js';

export const PREFIX = '/api/paperclip-sandbox/v1';
const VERSION = '0.1.0';
const RELAY = new RegExp(`^${PREFIX}/relay/([A-Za-z0-9_-]{1,64})/(connect/*$|p(/.*)?$)`, 's');

/**
 * The Worker's handler.
 *
 * @param {object} parts
 * @param {(env: object, id: string, options: import('./sandbox.js').OpenOptions) => import('./sandbox.js').Sandbox} parts.open
 * @param {(request: Request) => number} [parts.now] milliseconds
 * @param {number} [parts.keepAliveMs] how long an event stream may be silent
 */
export function createBridge({ open, now = () => Date.now(), keepAliveMs = 15_000 }) {
  return {
    async fetch(request, env, ctx) {
      const bridge = { request, env, ctx, keepAliveMs, now: now(request), open: (id, options) => open(env, id, options) };
      try {
        return await serve(bridge);
      } catch (error) {
        if (error instanceof Refusal) return error.reply();
        console.error('the bridge failed', error);
        return new Refusal(500, 'internal_error', 'the bridge failed; its log says why').reply();
      }
    },
  };
}

async function serve(bridge) {
  const { request, env } = bridge;
  const settings = await settingsOf(env).catch((error) => {
    throw new Refusal(503, 'misconfigured', error.message);
  });
  const target = targetOf(request);
  bridge.settings = settings;
  bridge.target = target;
  if (settings.relayHosts.has(target.host)) return relayed(bridge, null, target.path);
  if (!settings.allowedHosts.has(target.host)) {
    throw new Refusal(421, 'host_mismatch', 'this Host is not one of this Worker: see BRIDGE_ALLOWED_HOSTS');
  }
  const [, bridgeId, kind, path] = RELAY.exec(target.path) ?? [];
  if (kind?.startsWith('p')) return relayed(bridge, bridgeId, path || '/');
  const { body, proof } = await admit(bridge);
  try {
    if (kind?.startsWith('connect')) return await connect(bridge, bridgeId);
    return await signed(await answer(bridge, body, proof), proof);
  } catch (error) {
    if (error instanceof Refusal) return signed(error.reply(), proof);
    throw error;
  }
}

/** Who asks: by signature and bearer token, or by bearer token alone where the mode allows that. */
async function admit({ request, env, settings, target, now }) {
  if (settings.mode === 'signed' || (settings.mode === 'either' && isSigned(request))) {
    const take = (keyId, nonce) => env.BRIDGE_NONCES.get(env.BRIDGE_NONCES.idFromName(keyId)).take(nonce);
    return verify(request, target, settings, now, take);
  }
  await checkBearer(request, settings);
  const body = await readBody(request.body, settings.maxBodyBytes);
  if (body === null) throw new Refusal(413, 'body_too_large', `the body is over ${settings.maxBodyBytes} bytes`);
  return { body, proof: null };
}

async function answer(bridge, body, proof) {
  const { method } = bridge.request;
  const path = bridge.target.path.replace(/\/+$/, '');
  if (!path.startsWith(`${PREFIX}/`)) throw noRoute(method, path);
  const route = `${method} ${path.slice(PREFIX.length)}`;
  if (route === 'GET /health') return reply(200, health(bridge));
  const leaseId = /^DELETE \/leases\/([^/]+)$/.exec(route)?.[1];
  if (leaseId !== undefined) return reply(200, await destroy(bridge, unescaped(leaseId)));
  const calls = { 'POST /probe': probe, 'POST /leases/acquire': acquire, 'POST /leases/resume': resume, 'POST /leases/release': release };
  if (Object.hasOwn(calls, route)) return reply(200, await calls[route](bridge, fields(body)));
  if (route === 'POST /exec') return exec(bridge, fields(body), await sha256(body), proof);
  throw noRoute(method, path);
}

const noRoute = (method, path) => new Refusal(404, 'not_found', `no such call: ${method} ${path}`);

function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('the lease id is not percent-encoded UTF-8');
  }
}

function fields(body) {
  let value;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body));
  } catch {
    throw invalid('the body is not JSON');
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw invalid('the body is not a JSON object');
  return value;
}

function health({ settings }) {
  return {
    ok: true,
    provider: 'cloudflare',
    bridgeVersion: VERSION,
    capabilities: {
      reuseLease: true,
      namedSessions: true,
      previewUrls: false,
      stdinBase64: true,
      requestId: true,
      acquireRequestId: true,
      relay: settings.keys.size > 0,
    },
    auth: settings.mode === 'bearer' ? [] : ['pcs1'],
    authMode: settings.mode,
  };
}

/** Signs a reply for a caller who signed. An event stream signs itself as it goes. */
async function signed(response, proof) {
  if (proof === null || response.headers.get('content-type') === 'text/event-stream') return response;
  const body = await response.arrayBuffer();
  const headers = new Headers(response.headers);
  const signature = await signReply(proof, response.status, headers.get('content-type') ?? '', await sha256(body));
  headers.set('x-paperclip-response-signature', signature);
  return new Response(body, { status: response.status, headers });
}
