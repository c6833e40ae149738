// One daemon's socket without a runtime: what is kept with it while the Durable Object sleeps.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as frames from '../src/relay/frames.js';
import { Link } from '../src/relay/link.js';

/** A socket that writes down what is sent, and keeps its attachment as the runtime does. */
function recorder() {
  const sent = [];
  return {
    sent,
    attachment: null,
    send(message) {
      sent.push(...frames.framesOf(message.buffer));
    },
    close(code) {
      this.closed = code;
    },
    serializeAttachment(value) {
      this.attachment = structuredClone(value);
    },
  };
}

const owner = () => ({ beatMs: 60_000, ready: () => {}, ended: () => {} });
const message = (...args) => frames.frame(...args).buffer;
const HELLO = { v: 1, bridgeId: 'b', epoch: 7, maxFrame: 1000, window: 2000, connWindow: 3000 };

/** A daemon that has greeted. */
function greeted(socket) {
  const link = new Link(socket, null, owner());
  link.greet('b', 7);
  link.receive(message(frames.HELLO, 0, 0, frames.jsonPayload(HELLO)));
  return link;
}

const call = { data: () => {}, lost: () => {}, refused: () => {}, window: () => {} };
const plenty = () => Infinity;

test('a link that slept goes on with its streams, its limits and its credit', async () => {
  const socket = recorder();
  const before = greeted(socket);
  const [first, second] = [before.open(call, new Uint8Array(0), true), before.open(call, new Uint8Array(0), true)];
  assert.equal(await before.credit(1200, plenty), 1200);
  before.receive(message(frames.DATA, 0, first, new Uint8Array(500)));
  before.used(500);
  before.forget(first);
  before.forget(second);
  // Credit that comes while nothing is open is kept, too.
  before.receive(message(frames.WINDOW, 0, 0, frames.numberPayload(200)));

  const after = new Link(socket, socket.attachment, owner());

  assert.deepEqual([after.isReady, after.takesCalls, after.epoch], [true, true, 7]);
  assert.deepEqual(after.theirs, { maxFrame: 1000, window: 2000, connWindow: 3000 });
  assert.equal(after.open(call, new Uint8Array(0), true), second + 1);
  assert.equal(await after.credit(10_000, plenty), 2000);
  // 500 bytes were used up before it slept: half the window is reached that much earlier.
  after.receive(message(frames.DATA, 0, second + 1, new Uint8Array(1)));
  after.used(frames.LIMITS.connWindow / 2 - 500);
  const window = socket.sent.at(-1);
  assert.deepEqual([window.type, window.stream, frames.numberOf(window.payload, true)], [frames.WINDOW, 0, frames.LIMITS.connWindow / 2]);
  after.close(4000, 'the test is over');
});

test('a link that slept after a goodbye takes no callback', () => {
  const socket = recorder();
  greeted(socket).receive(message(frames.GOAWAY, 0, 0, new Uint8Array(8)));

  assert.equal(new Link(socket, socket.attachment, owner()).takesCalls, false);
});

test('more than the connection has credit for ends it', () => {
  const socket = recorder();
  const link = greeted(socket);
  const stream = link.open(call, new Uint8Array(0), true);
  const piece = message(frames.DATA, 0, stream, new Uint8Array(frames.LIMITS.maxFrame));

  for (let sent = 0; sent < frames.LIMITS.connWindow; sent += frames.LIMITS.maxFrame) link.receive(piece);
  assert.equal(socket.closed, undefined);
  link.receive(piece);

  assert.equal(socket.closed, 4400);
});

test('a daemon is sent no more than the connection has credit for', async () => {
  const link = greeted(recorder());
  link.open(call, new Uint8Array(0), true);

  assert.equal(await link.credit(5000, () => 2500), 2500);
  assert.equal(await link.credit(5000, plenty), 500);
  const waiting = link.credit(5000, plenty);
  link.receive(message(frames.WINDOW, 0, 0, frames.numberPayload(10)));

  assert.equal(await waiting, 10);
  link.close(4000, 'the test is over');
});
