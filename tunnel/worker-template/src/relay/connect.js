// The daemon's way in: an upgrade that was admitted as every call of the bridge API is.
//
// Here: handing it to the Durable Object of the bridge id. Not here: what the socket carries (object.js, link.js).

import { invalid, Refusal, unavailable } from '../answers.js';

/** The header by which the Worker tells the Durable Object what is asked; a caller's own is overwritten. */
export const ERRAND = 'x-paperclip-relay';

/** Hands the upgrade over. */
export async function connect({ request, env, target }, bridgeId) {
  if (request.method !== 'GET') throw invalid('a daemon connects with GET');
  if (request.headers.get('upgrade')?.toLowerCase() !== 'websocket') {
    throw new Refusal(426, 'upgrade_required', 'a daemon connects by WebSocket', { upgrade: 'websocket' });
  }
  const epoch = new URLSearchParams(target.query).get('epoch') ?? '0';
  if (!/^(?:0|[1-9][0-9]{0,15})$/.test(epoch)) throw invalid('epoch must be a whole number');
  const headers = new Headers({ upgrade: 'websocket', [ERRAND]: JSON.stringify({ connect: bridgeId, epoch: Number(epoch) }) });
  try {
    return await relayOf(env, bridgeId).fetch('https://relay/connect', { headers });
  } catch (error) {
    console.error('the relay failed', error);
    throw unavailable('relay_unavailable', 'the relay does not answer');
  }
}

/** The Durable Object that relays for a bridge. */
export const relayOf = (env, bridgeId) => env.BRIDGE_RELAY.get(env.BRIDGE_RELAY.idFromName(`relay:${bridgeId}`));
