// The relay: an agent's callback to the daemon's socket and back.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { request } from 'node:http';
import { createConnection } from 'node:net';
import { after, before, test } from 'node:test';

import * as frames from '../src/relay/frames.js';
import { callback, PREFIX, relayToken, send, signedHeaders } from './caller.mjs';
import { connectDaemon } from './daemon.mjs';
import { startWorld } from './world.mjs';

const MIB = 1024 * 1024;
const soon = () => Math.floor(Date.now() / 1000) + 600;

let world;
let bridges = 0;
before(async () => {
  world = await startWorld({ BRIDGE_RELAY_MAX_BODY_BYTES: String(12 * MIB) });
});
after(() => world?.stop());

/** A daemon of a bridge of its own, and the way to call it. */
async function bridge(context, onCall, options = {}) {
  bridges += 1;
  const bridgeId = options.bridgeId ?? `bridge-${bridges}`;
  const at = options.world ?? world;
  const daemon = await connectDaemon(at, { ...options, bridgeId, onCall });
  context.after(() => daemon.socket.terminate());
  const ask = (more = {}) => callback(at, { token: relayToken({ bridgeId }), ...more });
  return { bridgeId, daemon, ask };
}

const verdict = ({ status, json }) => [status, json?.code, json?.decided_by, json?.retryable];
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

test('a callback arrives as it was sent, without what concerns one hop or the Worker', async (context) => {
  const asked = [];
  const { ask } = await bridge(context, async (call) => {
    asked.push([call.request, String(await call.body)]);
    await call.answer(201, 'made', [['x-paperclip-bridge-request-id', 'q1'], ['x-odd', 'Ã©'], ['connection', 'x-dropped'], ['x-dropped', '1'], ['set-cookie', 'a=b']]);
  });
  const dropped = { cookie: 'a=b', connection: 'close, x-hop', 'x-hop': '1', te: 'trailers', 'cf-ray': '1', 'x-forwarded-for': '1.2.3.4', 'x-paperclip-nonce': 'n', 'x-paperclip-relay': '{}' };
  const kept = { 'content-type': 'text/plain', 'x-odd': 'Ã©', 'x-request-id': 'r1', 'x-paperclip-run-id': 'run-1' };

  const answer = await ask({ method: 'PATCH', target: '/api/a%2Fb/../c?x=%20&y', body: 'body', headers: { ...kept, ...dropped } });

  assert.deepEqual([answer.status, answer.text], [201, 'made']);
  assert.deepEqual([answer.headers['x-paperclip-bridge-request-id'], answer.headers['x-odd'], answer.headers['content-length']], ['q1', 'Ã©', '4']);
  assert.deepEqual([answer.headers['x-dropped'], answer.headers['set-cookie']], [undefined, undefined]);
  const [[{ headers, received, deadline, ...head }, body]] = asked;
  assert.deepEqual(head, { method: 'PATCH', path: '/api/a%2Fb/../c', query: 'x=%20&y', host: new URL(world.relayUrl).host, run: 'run-1' });
  assert.equal(body, 'body');
  assert.equal(deadline - received, 30_000);
  assert.deepEqual(Object.fromEntries(headers), { ...kept, authorization: 'Bearer session-token', 'content-length': '4' });
});

test('the path form serves the same bridge at the Worker\'s own host', async (context) => {
  const { bridgeId, daemon } = await bridge(context, (call) => call.answer(200, `${call.request.path}?${call.request.query}`));
  const token = relayToken({ bridgeId });
  const at = (path, more = {}) => send(world.url, { target: `${PREFIX}/relay/${path}`, headers: { authorization: `Bearer ${token}` }, ...more });

  assert.equal((await at(`${bridgeId}/p/api/x?a=1`)).text, '/api/x?a=1');
  assert.equal((await at(`${bridgeId}/p`)).text, '/?');
  assert.deepEqual(verdict(await at('another/p/api/x')), [401, 'invalid_token', 'bridge', false]);
  assert.equal((await at(`${bridgeId}/q`)).status, 401, 'that is a call of the bridge API');
  assert.equal(daemon.calls.size, 2);
});

test('only a token with a good code wakes the bridge', async (context) => {
  const { bridgeId, daemon, ask } = await bridge(context, (call) => call.answer(200, 'ok'));
  const good = relayToken({ bridgeId });
  const [, , expires, code] = good.split('.');
  const bad = {
    none: '',
    'another key': relayToken({ bridgeId, key: randomBytes(32) }),
    expired: relayToken({ bridgeId, expires: Math.floor(Date.now() / 1000) - 1 }),
    'another bridge': good.replace(bridgeId, 'other'),
    'another time': good.replace(expires, String(Number(expires) + 1)),
    'a code that is cut': good.replace(code, code.slice(1)),
    'a code that is padded': good.replace(code, `${code}=`),
    'no session': good.slice(0, good.lastIndexOf('.') + 1),
    'an odd session': `${good} x`,
    'another version': good.replace('prt1', 'prt2'),
  };
  for (const [name, token] of Object.entries(bad)) assert.deepEqual(verdict(await ask({ token })), [401, 'invalid_token', 'bridge', false], name);
  assert.equal(daemon.calls.size, 0);

  assert.equal((await ask({ token: relayToken({ bridgeId, session: 'a.b-c_d~e+f/g=' }) })).status, 200);
  assert.equal(daemon.calls.get(1).request.headers.find(([name]) => name === 'authorization')[1], 'Bearer a.b-c_d~e+f/g=');
});

test('a daemon is admitted by its signature only', async () => {
  const target = `${PREFIX}/relay/b/connect?epoch=1`;
  const { host } = new URL(world.url);
  const upgrade = { host, connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': randomBytes(16).toString('base64') };
  const signed = (change) => ({ ...upgrade, ...signedHeaders({ method: 'GET', target, host, ...change }) });

  assert.equal((await send(world.url, { target, headers: upgrade })).status, 401);
  assert.equal((await send(world.url, { target, headers: signed({ key: randomBytes(32) }) })).json.error, 'signature_invalid');
  const { upgrade: _, ...plain } = signed({});
  assert.deepEqual((await send(world.url, { target, headers: { ...plain, connection: 'close' } })).json.error, 'upgrade_required');
  const odd = `${PREFIX}/relay/b/connect?epoch=x`;
  const oddHeaders = { ...upgrade, ...signedHeaders({ method: 'GET', target: odd, host }) };
  assert.equal((await send(world.url, { target: odd, headers: oddHeaders })).status, 400);
});

test('without a daemon a callback is refused at once, and may be sent again', async () => {
  const answer = await callback(world, { token: relayToken({ bridgeId: 'nobody' }) });

  assert.deepEqual(verdict(answer), [503, 'relay_offline', 'bridge', true]);
  assert.equal(answer.headers['retry-after'], '2');
  assert.equal(answer.headers['x-paperclip-bridge-request-id'], answer.json.request_id);
});

test('answers of the upstream pass as they are, also those that the bridge API may not use', async (context) => {
  const { ask } = await bridge(context, (call) => call.answer(Number(call.request.path.slice(1)), '{"error":"x"}', [['content-type', 'application/json']]));

  for (const status of [200, 400, 401, 404, 409, 418, 500, 599]) {
    const answer = await ask({ target: `/${status}` });
    assert.deepEqual([answer.status, answer.text], [status, '{"error":"x"}']);
  }
});

test('answers without a body keep their heads', async (context) => {
  const replies = { '/head': [200, [['content-length', '1234']]], '/204': [204, []], '/304': [304, [['etag', '"x"']]], '/empty': [200, [['content-length', '0']]] };
  const { ask } = await bridge(context, (call) => call.head(...replies[call.request.path], true));

  const head = await ask({ method: 'HEAD', target: '/head' });
  assert.deepEqual([head.status, head.headers['content-length'], head.body.length], [200, '1234', 0]);
  assert.equal((await ask({ target: '/204' })).status, 204);
  assert.deepEqual([(await ask({ target: '/304' })).headers.etag, (await ask({ target: '/304' })).status], ['"x"', 304]);
  assert.deepEqual([(await ask({ target: '/empty' })).status, (await ask({ target: '/empty' })).text], [200, '']);
});

test('an answer that is encoded passes byte by byte', async (context) => {
  const bytes = Buffer.from('1f8b0800', 'hex');
  const { ask } = await bridge(context, (call) => call.answer(200, bytes, [['content-encoding', 'gzip']]));

  const answer = await ask({ headers: { 'accept-encoding': 'gzip' } });

  assert.deepEqual([answer.headers['content-encoding'], answer.body.toString('hex')], ['gzip', '1f8b0800']);
});

test('10 MiB pass both ways unchanged', async (context) => {
  const bytes = randomBytes(10 * MIB);
  const { ask } = await bridge(context, async (call) => call.answer(200, await call.body));

  const answer = await ask({ method: 'POST', body: bytes });

  assert.equal(sha256(answer.body), sha256(bytes));
});

test('64 callbacks at once are answered each with its own', async (context) => {
  const open = [];
  const { ask } = await bridge(context, (call) => {
    open.push(call);
    // All of them are open before the first is answered.
    if (open.length === 64) for (const one of open) one.body.then((body) => one.answer(200, body));
  });

  const bodies = Array.from({ length: 64 }, (_, index) => `${index}:${'x'.repeat(index * 100)}`);
  const answers = await Promise.all(bodies.map((body) => ask({ method: 'POST', body })));

  assert.deepEqual(answers.map(({ text }) => text), bodies);
});

test('a daemon that reads slowly is sent no more than it gave credit for, and others go on', async (context) => {
  let slow;
  const { ask } = await bridge(context, (call) => {
    if (call.request.path === '/quick') return call.answer(200, 'quick');
    slow = call;
    call.reading = false;
  });
  const bytes = randomBytes(2 * MIB);

  const asked = ask({ method: 'POST', target: '/slow', body: bytes });
  const quick = await ask({ target: '/quick' });
  while (!slow || slow.received < 262_144) await new Promise(setImmediate);
  // A round trip later nothing more has come.
  await ask({ target: '/quick' });
  assert.equal(slow.received, 262_144);
  slow.reading = true;
  slow.daemon.send(frames.WINDOW, 0, 0, frames.numberPayload(262_144));
  slow.daemon.send(frames.WINDOW, 0, slow.stream, frames.numberPayload(262_144));
  const whole = await slow.body;
  await slow.answer(200, 'ok');

  assert.equal(quick.text, 'quick');
  assert.equal(sha256(whole), sha256(bytes));
  assert.equal((await asked).text, 'ok');
});

test('a caller that reads slowly holds up its own answer only', async (context) => {
  const { daemon, ask } = await bridge(context, (call) => (call.request.path === '/quick' ? call.answer(200, 'quick') : call.answer(200, Buffer.alloc(40 * MIB, 'z'))));
  const { hostname, port } = new URL(world.relayUrl);
  const socket = createConnection(Number(port), hostname);
  context.after(() => socket.destroy());
  socket.pause();
  socket.write(`GET /slow HTTP/1.1\r\nhost: ${hostname}:${port}\r\nauthorization: Bearer ${relayToken({ bridgeId: `bridge-${bridges}` })}\r\nconnection: close\r\n\r\n`);
  while (!daemon.calls.has(1) || daemon.calls.get(1).credit > 0) await new Promise(setImmediate);

  for (let round = 0; round < 5; round += 1) assert.equal((await ask({ target: '/quick' })).text, 'quick');

  let received = 0;
  socket.on('data', (bytes) => {
    received += bytes.length;
  });
  socket.resume();
  await new Promise((resolve) => socket.on('end', resolve));
  assert.ok(received > 40 * MIB, `${received} bytes`);
});

/** A Worker that gives daemons little time. */
async function impatient(context) {
  const world = await startWorld({ BRIDGE_RELAY_TIMEOUT_MS: '1000' });
  context.after(() => world.stop());
  return world;
}

test('a daemon that answers too late is told so, and its caller too', async (context) => {
  const { daemon, ask } = await bridge(context, () => {}, { world: await impatient(context) });

  const [get, post] = await Promise.all([ask(), ask({ method: 'POST', body: 'x' })]);

  assert.deepEqual([verdict(get), verdict(post)], [[504, 'relay_timeout', 'bridge', true], [504, 'relay_timeout', 'bridge', false]]);
  const resets = await Promise.all([...daemon.calls.values()].map((call) => call.reset));
  assert.deepEqual(resets, [2, 2]);
});

test('a daemon that is silent is given up', async (context) => {
  const { daemon, ask } = await bridge(context, () => {}, { world: await impatient(context) });
  // It does not even answer a PING.
  daemon.send = () => {};

  assert.deepEqual(verdict(await ask()), [504, 'relay_timeout', 'bridge', true]);

  assert.equal((await daemon.closed).code, 4408);
  assert.equal((await ask()).status, 503);
});

test('a callback that the daemon gives up ends as its reason says', async (context) => {
  const { ask } = await bridge(context, (call) => call.giveUp(Number(call.request.path.slice(1))));
  const expected = {
    1: [502, 'relay_lost', 'bridge', false],
    2: [504, 'relay_timeout', 'bridge', false],
    3: [503, 'relay_refused', 'bridge', true],
    4: [502, 'relay_lost', 'bridge', false],
    5: [502, 'relay_lost', 'bridge', false],
  };
  for (const [code, verdicts] of Object.entries(expected)) {
    assert.deepEqual(verdict(await ask({ method: 'POST', target: `/${code}` })), verdicts);
  }
});

test('a daemon that is lost before it answers leaves an unknown outcome', async (context) => {
  const { ask } = await bridge(context, (call) => call.daemon.socket.terminate());

  assert.deepEqual(verdict(await ask({ method: 'POST' })), [502, 'relay_lost', 'bridge', false]);
  assert.equal((await ask()).status, 503);
});

test('an answer that is lost midway is cut, never ended as if it were whole', async (context) => {
  const ends = {
    '/length': async (call) => {
      call.head(200, [['content-length', '1000']]);
      await call.data(Buffer.alloc(500, 'x'));
    },
    '/chunked': async (call) => {
      call.head(200, []);
      await call.data(Buffer.alloc(500, 'x'));
    },
  };
  const breaks = [(call) => call.giveUp(4), (call) => call.daemon.socket.terminate()];
  for (const [target, begin] of Object.entries(ends)) {
    for (const lose of breaks) {
      let open;
      const { bridgeId } = await bridge(context, async (call) => {
        await begin(call);
        open = call;
      });
      const seen = await partly(target, relayToken({ bridgeId }), () => lose(open));
      assert.deepEqual([seen.status, seen.complete, seen.length], [200, false, 500], target);
    }
  }
});

/** Reads an answer, and does something once 500 bytes of it are here. */
function partly(target, token, then) {
  const { hostname, port } = new URL(world.relayUrl);
  return new Promise((resolve, reject) => {
    const asked = request({ hostname, port, path: target, headers: { authorization: `Bearer ${token}` }, agent: false }, (response) => {
      let length = 0;
      const done = () => resolve({ status: response.statusCode, complete: response.complete, length });
      response.on('data', (chunk) => {
        length += chunk.length;
        if (length === 500) then();
      });
      response.on('end', done);
      response.on('error', done);
    });
    asked.on('error', reject);
    asked.end();
  });
}

test('an answer that is shorter or longer than it says is cut', async (context) => {
  const { ask } = await bridge(context, async (call) => {
    call.head(200, [['content-length', '1000']]);
    await call.data(Buffer.alloc(Number(call.request.path.slice(1)), 'x'), true);
  });

  // Where the fault is seen before the head has left, there is no answer at all.
  const none = () => ({ complete: false });
  assert.equal((await ask({ target: '/999' }).catch(none)).complete, false);
  assert.equal((await ask({ target: '/1001' }).catch(none)).complete, false);
  assert.equal((await ask({ target: '/1000' })).complete, true);
});

test('a caller that goes midway is a callback that is given up', async (context) => {
  const { bridgeId, daemon } = await bridge(context, async (call) => {
    call.head(200, []);
    await call.data(Buffer.from('x'));
  });
  const asked = request(`${world.relayUrl}/x`, { headers: { authorization: `Bearer ${relayToken({ bridgeId })}` }, agent: false });
  asked.on('error', () => {});
  asked.end();
  const response = await new Promise((resolve) => asked.on('response', resolve));
  response.on('error', () => {});
  const call = daemon.calls.get(1);

  asked.destroy();
  call.data(Buffer.alloc(MIB, 'x'));

  assert.equal(await call.reset, 1);
});

test('an answer before the whole body ends the upload', async (context) => {
  const { daemon, ask } = await bridge(context, (call) => {
    call.reading = false;
    return call.answer(413, 'too large');
  });

  const answer = await ask({ method: 'POST', body: Buffer.alloc(MIB, 'x') });

  assert.deepEqual([answer.status, answer.text], [413, 'too large']);
  assert.equal(await daemon.calls.get(1).reset, 1);
});

test('bodies over the limit are refused, with and without a declared length', async (context) => {
  const { daemon, ask } = await bridge(context, (call) => call.body.then(() => call.answer(200, 'ok')));
  const body = Buffer.alloc(12 * MIB + 1);

  assert.deepEqual(verdict(await ask({ method: 'POST', body })), [413, 'body_too_large', 'bridge', false]);
  assert.equal(daemon.calls.size, 0, 'nothing was sent');
  assert.deepEqual(verdict(await ask({ method: 'POST', body, headers: { 'transfer-encoding': 'chunked' } })), [413, 'body_too_large', 'bridge', false]);
  assert.equal(await daemon.calls.get(1).reset, 1);
});

test('more than 256 open callbacks are refused, and may be sent again', async (context) => {
  const { daemon, ask } = await bridge(context, () => {});
  const open = Array.from({ length: 256 }, () => ask());
  while (daemon.calls.size < 256) await new Promise(setImmediate);

  assert.deepEqual(verdict(await ask()), [503, 'relay_busy', 'bridge', true]);

  for (const call of daemon.calls.values()) call.answer(200, 'ok');
  assert.ok((await Promise.all(open)).every(({ text }) => text === 'ok'));
});

test('a second daemon supersedes the first, unless its epoch is lower', async (context) => {
  const { bridgeId, daemon: first, ask } = await bridge(context, (call) => call.answer(200, 'first'), { epoch: 5 });

  const { daemon: second } = await bridge(context, (call) => call.answer(200, 'second'), { bridgeId, epoch: 5 });
  assert.equal((await first.closed).code, 4001);
  assert.equal((await ask()).text, 'second');

  const { daemon: older } = await bridge(context, (call) => call.answer(200, 'older'), { bridgeId, epoch: 4 });
  assert.equal((await older.closed).code, 4001);
  assert.equal((await ask()).text, 'second');

  await bridge(context, (call) => call.answer(200, 'newer'), { bridgeId, epoch: 6 });
  assert.equal((await second.closed).code, 4001);
  assert.equal((await ask()).text, 'newer');
});

test('what is open on a superseded daemon is lost', async (context) => {
  const { bridgeId, daemon, ask } = await bridge(context, () => {});
  const open = ask({ method: 'POST' });
  while (daemon.calls.size === 0) await new Promise(setImmediate);

  await bridge(context, () => {}, { bridgeId, epoch: 2 });

  assert.deepEqual(verdict(await open), [502, 'relay_lost', 'bridge', false]);
});

test('a daemon that says goodbye finishes what is open and gets nothing new', async (context) => {
  const { daemon, ask } = await bridge(context, () => {});
  const open = [ask({ target: '/1' }), ask({ target: '/2' })];
  while (daemon.calls.size < 2) await new Promise(setImmediate);

  daemon.send(frames.GOAWAY, 0, 0, Buffer.concat([frames.numberPayload(1), frames.numberPayload(0)]));
  const refused = await Promise.race(open);
  await daemon.calls.get(1).answer(200, 'done');

  assert.deepEqual(verdict(refused), [503, 'relay_refused', 'bridge', true]);
  assert.ok((await Promise.all(open)).some(({ text }) => text === 'done'));
  assert.deepEqual(verdict(await ask()), [503, 'relay_offline', 'bridge', true]);
});

test('a message that is too big ends the connection', async (context) => {
  const { daemon } = await bridge(context, () => {});

  daemon.socket.send(Buffer.alloc(4 * MIB + 1));

  assert.equal((await daemon.closed).code, 1009);
});

test('frames that are not of their form end the connection', async (context) => {
  const { frame, numberPayload, jsonPayload } = frames;
  const spoiled = (change) => {
    const bytes = frame(frames.PING, 0, 0, new Uint8Array(8));
    change(new DataView(bytes.buffer));
    return bytes;
  };
  const broken = {
    nothing: Buffer.alloc(0),
    'half a header': Buffer.alloc(11),
    'half a payload': spoiled((view) => view.setUint32(8, 9)),
    'an unknown type': frame(99, 0, 0),
    'unknown flags': spoiled((view) => view.setUint8(1, 2)),
    'a reserved field': spoiled((view) => view.setUint16(2, 1)),
    'a long frame': frame(frames.DATA, 0, 1, new Uint8Array(65_537)),
    'a second HELLO': frame(frames.HELLO, 0, 0, jsonPayload({ v: 1 })),
    'a stream that was never opened': frame(frames.DATA, 0, 7, new Uint8Array(1)),
    'stream 0 with data': frame(frames.DATA, 0, 0, new Uint8Array(1)),
    'a window of nothing': frame(frames.WINDOW, 0, 0, numberPayload(0)),
    'a window that is too wide': frame(frames.WINDOW, 0, 0, numberPayload(0x7fff_ffff)),
    'a short PING': frame(frames.PING, 0, 0, new Uint8Array(7)),
    'a text': 'hello',
  };
  for (const [name, message] of Object.entries(broken)) {
    const { daemon } = await bridge(context, () => {});
    daemon.socket.send(message);
    assert.equal((await daemon.closed).code, 4400, name);
  }
});

test('a HELLO that does not fit ends the connection', async (context) => {
  const hellos = [{ v: 2 }, { bridgeId: 'other' }, { epoch: -1 }, { epoch: 'x' }, { window: 0 }, { maxFrame: 1.5 }, { connWindow: 2 ** 40 }];
  for (const hello of hellos) {
    const { daemon } = await bridge(context, () => {}, { hello });
    assert.equal((await daemon.closed).code, 4400, JSON.stringify(hello));
  }
});

test('heads and bodies that break the rules of a stream end the stream or the connection', async (context) => {
  const { ask, daemon } = await bridge(context, (call) => {
    if (call.request.path === '/status') call.head(99);
    if (call.request.path === '/fields') call.head(200, [['bad name', 'x']]);
    if (call.request.path === '/early') call.daemon.send(frames.DATA, 0, call.stream, new Uint8Array(1));
  });

  assert.deepEqual(verdict(await ask({ target: '/status' })), [502, 'relay_lost', 'bridge', true]);
  assert.deepEqual(verdict(await ask({ target: '/fields' })), [502, 'relay_lost', 'bridge', true]);
  assert.equal(await daemon.calls.get(1).reset, 4);
  assert.deepEqual(verdict(await ask({ target: '/early' })), [502, 'relay_lost', 'bridge', true]);
  assert.equal((await daemon.closed).code, 4400);
});

test('more than the credit of a stream resets it with a code of its own', async (context) => {
  const { bridgeId } = await bridge(context, async (call) => {
    call.head(200, []);
    resolveReset(call.reset);
    // Its caller does not read, and this is more than the sockets between hold.
    call.credit = 64 * MIB;
    await call.data(Buffer.alloc(32 * MIB));
  });
  let resolveReset;
  const reset = new Promise((resolve) => {
    resolveReset = resolve;
  });
  const { hostname, port } = new URL(world.relayUrl);
  const socket = createConnection(Number(port), hostname);
  context.after(() => socket.destroy());
  socket.on('error', () => {});
  socket.pause();
  socket.write(`GET / HTTP/1.1\r\nhost: ${hostname}:${port}\r\nauthorization: Bearer ${relayToken({ bridgeId, expires: soon() })}\r\n\r\n`);

  assert.equal(await reset, 5);
});

test('the runtime answers the text ping', async (context) => {
  const { daemon } = await bridge(context, () => {});
  const pong = new Promise((resolve) => daemon.socket.on('message', (message, binary) => !binary && resolve(String(message))));

  daemon.socket.send('ping');

  assert.equal(await pong, 'pong');
});

test('a PING is answered with its own bytes', async (context) => {
  const { daemon } = await bridge(context, () => {});
  const bytes = randomBytes(8);

  daemon.send(frames.PING, 0, 0, bytes);
  while (!daemon.seen.some(({ type }) => type === frames.PONG)) await new Promise(setImmediate);

  assert.deepEqual(Buffer.from(daemon.seen.find(({ type }) => type === frames.PONG).payload), bytes);
});

test('a relay that the runtime put to sleep goes on with its socket', async (context) => {
  const fresh = await startWorld();
  context.after(() => fresh.stop());
  const closed = [];
  const { daemon, ask } = await bridge(context, (call) => call.answer(200, 'awake'), { world: fresh });
  daemon.socket.on('close', () => closed.push(true));
  const wakes = () => fresh.log.split('a relay wakes').length - 1;
  assert.deepEqual([(await ask()).text, wakes()], ['awake', 1]);

  // Ten seconds without a word are its bedtime; each look wakes it, so the waits grow.
  for (let seconds = 11; wakes() < 2; seconds += 4) {
    assert.ok(seconds < 40, 'the runtime puts it to sleep');
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    assert.equal((await ask()).text, 'awake');
  }

  assert.deepEqual([closed, (await ask()).text], [[], 'awake']);
});

test('when the Worker is killed midway its callers see a cut, and the daemon connects again', async (context) => {
  const { bridgeId, daemon, ask } = await bridge(context, () => {});
  const open = ask({ method: 'POST' }).then(() => 'answered', () => 'cut');
  while (daemon.calls.size === 0) await new Promise(setImmediate);

  await world.kill();
  assert.equal(await open, 'cut');
  await daemon.closed;
  await world.start();

  assert.deepEqual(verdict(await ask()), [503, 'relay_offline', 'bridge', true]);
  await bridge(context, (call) => call.answer(200, 'again'), { bridgeId, epoch: 2 });
  assert.equal((await ask()).text, 'again');
});
