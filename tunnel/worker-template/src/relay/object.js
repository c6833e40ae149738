// The Durable Object of a bridge: daemons' sockets on one side, callbacks on the other.
//
// Here: accepting sockets so that the object can sleep while they stay open, and which socket takes a callback. Not here:
// what happens on one socket (link.js), and one callback's life (call.js).

import { DurableObject } from 'cloudflare:workers';

import { Call } from './call.js';
import { ERRAND } from './connect.js';
import { HEAD_BYTES, jsonPayload } from './frames.js';
import { requestFields } from './headers.js';
import { Link } from './link.js';
import { busy, headTooLarge, offline, tooLarge } from './problem.js';

const HEAD_MS = 30_000;
const BODY_BYTES = 64 * 1024 * 1024;

export class BridgeRelay extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.headMs = Number(env.BRIDGE_RELAY_TIMEOUT_MS ?? HEAD_MS);
    this.bodyBytes = Number(env.BRIDGE_RELAY_MAX_BODY_BYTES ?? BODY_BYTES);
    // Answered by the runtime, without waking this object.
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair('ping', 'pong'));
    this.links = new Map();
    for (const socket of ctx.getWebSockets()) this.#link(socket, socket.deserializeAttachment());
  }

  async fetch(request) {
    const errand = JSON.parse(request.headers.get(ERRAND));
    return errand.connect === undefined ? this.#relay(request, errand) : this.#accept(errand);
  }

  #accept({ connect: bridgeId, epoch }) {
    const { 0: client, 1: server } = new WebSocketPair();
    this.ctx.acceptWebSocket(server);
    this.#link(server, null).greet(bridgeId, epoch);
    return new Response(null, { status: 101, webSocket: client });
  }

  #link(socket, saved) {
    const link = new Link(socket, saved, {
      beatMs: this.headMs / 2,
      ready: (ready) => this.#supersede(ready),
      ended: () => this.links.delete(socket),
    });
    this.links.set(socket, link);
    return link;
  }

  /** One daemon at a time: the higher epoch stays, of equal ones the newer. */
  #supersede(newest) {
    for (const link of [...this.links.values()]) {
      if (link === newest || !link.isReady) continue;
      const loser = link.epoch > newest.epoch ? newest : link;
      loser.close(4001, 'superseded by a newer daemon');
    }
  }

  async #relay(request, { method, path, query, host, run }) {
    const link = [...this.links.values()].find((one) => one.takesCalls);
    if (!link) return offline();
    if (link.isFull) return busy();
    const length = request.headers.get('content-length');
    if (length !== null && Number(length) > this.bodyBytes) return tooLarge(this.bodyBytes);
    const received = Date.now();
    const headers = requestFields(request.headers).filter(([name]) => name !== ERRAND);
    headers.push(['authorization', request.headers.get('authorization')]);
    const head = jsonPayload({ method, path, query, host, headers, received, deadline: received + this.headMs, run });
    if (head.byteLength > HEAD_BYTES) return headTooLarge(HEAD_BYTES);
    const call = new Call(link, method, { headMs: this.headMs, bodyBytes: this.bodyBytes });
    request.signal?.addEventListener('abort', () => call.cancel('the caller has gone'));
    call.start(head, request.body);
    return call.answer;
  }

  webSocketMessage(socket, message) {
    this.links.get(socket)?.receive(message);
  }

  webSocketClose(socket, code) {
    this.links.get(socket)?.ended(`the daemon closed the socket with ${code}`);
    // Older runtimes leave the answer to a Close to us; newer ones have sent it.
    try {
      socket.close(1000);
    } catch {
      return;
    }
  }

  webSocketError(socket, error) {
    this.links.get(socket)?.ended(`the socket failed: ${error}`);
  }
}
