// Who is admitted: signed requests, check by check and in their order, and bearer tokens by mode.

import assert from 'node:assert/strict';
import { createHash, randomBytes, webcrypto } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { call, hmac, lines, PREFIX, send, signedCall, signedHeaders } from './caller.mjs';
import { KEY, startWorld, TOKEN } from './world.mjs';
import { signReply } from '../src/envelope.js';

const OTHER = Buffer.alloc(32, 7);
const VECTOR_TIME = 1_767_225_600;
const HOST = 'bridge.example.workers.dev';
const KEYS = {
  k1: { key: KEY.toString('base64'), notAfter: null },
  k2: { key: OTHER.toString('base64') },
  old: { key: OTHER.toString('base64'), notAfter: VECTOR_TIME },
  coming: { key: OTHER.toString('base64'), notBefore: '2100-01-01T00:00:00Z' },
};

let world;
before(async () => {
  world = await startWorld({ BRIDGE_AUTH_MODE: 'signed', BRIDGE_HMAC_KEYS: JSON.stringify(KEYS), BRIDGE_ALLOWED_HOSTS: HOST });
});
after(() => world?.stop());

const verdict = ({ status, json }) => [status, json?.error ?? 'ok'];
const at = (seconds) => ({ 'x-test-now': String(seconds * 1000) });

test('the published vectors are the signatures of their requests', () => {
  const vectors = [
    ['7f4fb1a764b44227de238840151c859c4be82f06144add72daff1953567ce775', { timestamp: VECTOR_TIME, nonce: 'AAECAwQFBgcICQoLDA0ODw', method: 'GET', target: `${PREFIX}/health`, host: 'Bridge.Example.workers.dev' }],
    ['3bd693ff3615ae236aed086d601fa700d4dfddd4c1225d294fcb414286be60c3', { timestamp: VECTOR_TIME, nonce: 'EBESExQVFhcYGRobHB0eHw', method: 'POST', target: `${PREFIX}/exec`, host: HOST, contentType: 'application/json', context: { 'environment-id': 'env 1', 'run-id': 'r1' }, body: '{"providerLeaseId":"pc-r1-ab12cd34","command":"sh","args":["-c","echo é"]}' }],
    ['68c9f0ccd85897b5c88aee4c916f7442f3c6ef4d95fb278b88648233866c814c', { keyId: 'k2', timestamp: VECTOR_TIME + 1, nonce: 'ICEiIyQlJicoKSorLC0uLw', method: 'DELETE', target: `${PREFIX}/leases/pc%2fenv%20x?b=2&a=%7e&a=&c`, host: '127.0.0.1:8787' }],
  ];
  for (const [signature, ask] of vectors) assert.equal(hmac(KEY, lines(ask).join('\n')), signature);
});

test('the runtime admits the first published vector, byte by byte', async () => {
  const headers = {
    host: 'Bridge.Example.workers.dev',
    authorization: `Bearer ${TOKEN}`,
    'x-paperclip-key-id': 'k1',
    'x-paperclip-timestamp': String(VECTOR_TIME),
    'x-paperclip-nonce': 'AAECAwQFBgcICQoLDA0ODw',
    'x-paperclip-content-sha256': 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
    'x-paperclip-signature': 'v1=7f4fb1a764b44227de238840151c859c4be82f06144add72daff1953567ce775',
    ...at(VECTOR_TIME),
  };

  const answer = await send(world.url, { target: `${PREFIX}/health`, headers });

  assert.deepEqual(verdict(answer), [200, 'ok']);
  assert.deepEqual(answer.json.auth, ['pcs1']);
});

test('the second and third vectors pass every check of the envelope', async () => {
  const body = '{"providerLeaseId":"pc-r1-ab12cd34","command":"sh","args":["-c","echo é"]}';
  const exec = { method: 'POST', path: '/exec', host: HOST, contentType: 'application/json', context: { 'environment-id': 'env 1', 'run-id': 'r1' }, body, timestamp: VECTOR_TIME, nonce: 'EBESExQVFhcYGRobHB0eHw' };
  const gone = { method: 'DELETE', path: '/leases/pc%2fenv%20x?b=2&a=%7e&a=&c', host: HOST, keyId: 'k2', key: OTHER };

  // What is refused is the lease, which nobody holds, and an id that no sandbox can have.
  assert.deepEqual(verdict(await signedCall(world, exec, (headers) => ({ ...headers, ...at(VECTOR_TIME) }))), [409, 'sandbox_state_lost']);
  assert.deepEqual(verdict(await signedCall(world, gone)), [400, 'invalid_request']);
});

test('each of the lines is covered by the signature', async () => {
  const ask = { method: 'POST', path: '/leases/release?a=1', body: '{}', contentType: 'application/json', context: { 'run-id': 'r1' } };
  const good = await signedCall(world, ask);
  assert.deepEqual(verdict(good), [200, 'ok']);
  const change = (name, value) => (headers) => ({ ...headers, [name]: value });
  const digestOf = (body) => signedHeaders({ method: 'GET', target: '/', host: 'h', body })['x-paperclip-content-sha256'];
  const changes = {
    'key id': signedCall(world, ask, change('x-paperclip-key-id', 'k2')),
    timestamp: signedCall(world, ask, (headers) => ({ ...headers, 'x-paperclip-timestamp': String(Number(headers['x-paperclip-timestamp']) + 1) })),
    nonce: signedCall(world, ask, change('x-paperclip-nonce', randomBytes(16).toString('base64url'))),
    path: signedCall(world, { ...ask, sentTarget: `${PREFIX}/leases/acquire?a=1` }),
    query: signedCall(world, { ...ask, sentTarget: `${PREFIX}/leases/release?a=2` }),
    host: signedCall(world, { ...ask, sentHost: HOST }),
    'content type': signedCall(world, ask, change('content-type', 'text/plain')),
    context: signedCall(world, ask, change('x-paperclip-run-id', 'r2')),
    'context that was added': signedCall(world, ask, change('x-paperclip-issue-id', 'i1')),
    'digest and body': signedCall(world, { ...ask, sentBody: '{ }' }, change('x-paperclip-content-sha256', digestOf('{ }'))),
  };
  for (const [name, answer] of Object.entries(changes)) assert.deepEqual(verdict(await answer), [401, 'signature_invalid'], name);

  // The method and the first line, which no header holds.
  const { host } = new URL(world.url);
  const asGet = signedHeaders({ method: 'GET', target: `${PREFIX}/health`, host });
  assert.deepEqual(verdict(await send(world.url, { method: 'POST', target: `${PREFIX}/health`, headers: { ...asGet, host } })), [401, 'signature_invalid']);
  const signed = lines({ method: 'GET', target: `${PREFIX}/health`, host, timestamp: asGet['x-paperclip-timestamp'], nonce: asGet['x-paperclip-nonce'] });
  const otherScheme = hmac(KEY, ['PCS2-HMAC-SHA256', ...signed.slice(1)].join('\n'));
  assert.deepEqual(verdict(await send(world.url, { target: `${PREFIX}/health`, headers: { ...asGet, host, 'x-paperclip-signature': `v1=${otherScheme}` } })), [401, 'signature_invalid']);
});

test('the case of the host does not matter, its name does', async () => {
  assert.deepEqual(verdict(await signedCall(world, { host: HOST, sentHost: HOST.toUpperCase() })), [200, 'ok']);
  for (const host of ['evil.example', `${HOST}.`, `${HOST}:8080`, `x.${HOST}`, '127.0.0.1']) {
    assert.deepEqual(verdict(await signedCall(world, { host })), [421, 'host_mismatch'], host);
  }
});

test('the clock may be off by 300 seconds, not by 301', async () => {
  const now = VECTOR_TIME + 100_000;
  for (const [off, expected] of [[-300, [200, 'ok']], [300, [200, 'ok']], [-301, [401, 'timestamp_out_of_window']], [301, [401, 'timestamp_out_of_window']]]) {
    const answer = await signedCall(world, { timestamp: now + off }, (headers) => ({ ...headers, ...at(now) }));
    assert.deepEqual(verdict(answer), expected, `${off} s`);
  }
});

test('a refusal for its time tells the Worker\'s', async () => {
  const late = await signedCall(world, { timestamp: VECTOR_TIME }, (headers) => ({ ...headers, ...at(VECTOR_TIME + 412) }));

  assert.deepEqual([late.status, late.headers['x-paperclip-time']], [401, String(VECTOR_TIME + 412)]);
});

test('keys are known by their id and live in their time', async () => {
  assert.deepEqual(verdict(await signedCall(world, { keyId: 'k2', key: OTHER })), [200, 'ok']);
  assert.deepEqual(verdict(await signedCall(world, { keyId: 'k9' })), [401, 'unknown_key']);
  assert.deepEqual(verdict(await signedCall(world, { keyId: 'old', key: OTHER })), [401, 'unknown_key']);
  assert.deepEqual(verdict(await signedCall(world, { keyId: 'coming', key: OTHER })), [401, 'unknown_key']);
  const before = (headers) => ({ ...headers, ...at(VECTOR_TIME) });
  assert.deepEqual(verdict(await signedCall(world, { keyId: 'old', key: OTHER, timestamp: VECTOR_TIME }, before)), [200, 'ok']);
});

test('a body that was changed by one byte is not the one that was signed', async () => {
  const ask = { method: 'POST', path: '/leases/release', body: '{}', sentBody: '[}' };

  assert.deepEqual(verdict(await signedCall(world, ask)), [401, 'content_hash_mismatch']);
});

test('headers that are missing, malformed or there twice are refused', async () => {
  const names = ['key-id', 'timestamp', 'nonce', 'content-sha256', 'signature'].map((name) => `x-paperclip-${name}`);
  for (const name of names) {
    const without = ({ [name]: _, ...rest }) => rest;
    assert.deepEqual(verdict(await signedCall(world, {}, without)), [400, 'invalid_request'], `no ${name}`);
    const twice = (headers) => ({ ...headers, [name]: [headers[name], headers[name]] });
    assert.deepEqual(verdict(await signedCall(world, {}, twice)), [400, 'invalid_request'], `${name} twice`);
  }
  const malformed = {
    'x-paperclip-key-id': ['', 'a b', 'é'.normalize('NFD'), 'x'.repeat(65)],
    'x-paperclip-timestamp': ['-1', '+1', '01', '1.5', '1e9', 'now', '9'.repeat(13)],
    'x-paperclip-nonce': ['', 'AAECAwQFBgcICQoLDA0ODw==', 'AAECAwQFBgcICQoLDA0ODx', 'AAECAwQFBgcICQoLDA0OD', 'AAECAwQFBgcICQoLDA0O+/'],
    'x-paperclip-content-sha256': ['E'.repeat(64), 'e'.repeat(63), 'g'.repeat(64)],
    'x-paperclip-signature': ['v1=', `v2=${'0'.repeat(64)}`, `v1=${'A'.repeat(64)}`, Array(4).fill(`v1=${'0'.repeat(64)}`).join(), '0'.repeat(64)],
  };
  for (const [name, values] of Object.entries(malformed)) {
    for (const value of values) {
      const spoil = (headers) => ({ ...headers, [name]: Buffer.from(value, 'utf8').toString('latin1') });
      assert.deepEqual(verdict(await signedCall(world, {}, spoil)), [400, 'invalid_request'], `${name}: ${value}`);
    }
  }
  const encoded = (headers) => ({ ...headers, 'content-encoding': 'identity' });
  assert.deepEqual(verdict(await signedCall(world, {}, encoded)), [400, 'invalid_request']);
});

test('a path that a parser would change is refused', async () => {
  for (const path of ['/x/../health', '/x/%2e%2e/health', '/x/%2E./health', '/./health', '/%zz', '/%ff']) {
    const answer = await signedCall(world, { sentTarget: PREFIX + path });
    assert.deepEqual(verdict(answer), [400, 'invalid_request'], path);
  }
});

test('one of several signatures is enough while keys are rotated', async () => {
  const zeros = `v1=${'0'.repeat(64)}`;
  const listed = (headers) => ({ ...headers, 'x-paperclip-signature': `${zeros},${headers['x-paperclip-signature']},${zeros}` });

  assert.deepEqual(verdict(await signedCall(world, {}, listed)), [200, 'ok']);
});

test('the bearer token is checked too, after the signature', async () => {
  const none = ({ authorization: _, ...rest }) => rest;
  assert.deepEqual(verdict(await signedCall(world, {}, none)), [401, 'unauthorized']);
  assert.deepEqual(verdict(await signedCall(world, { token: 'wrong' })), [401, 'unauthorized']);
  assert.deepEqual(verdict(await signedCall(world, { token: 'wrong', key: OTHER })), [401, 'signature_invalid']);
});

test('of requests with one nonce exactly one passes, also at once and after a restart', async () => {
  const nonce = randomBytes(16).toString('base64url');
  assert.deepEqual(verdict(await signedCall(world, { nonce })), [200, 'ok']);
  assert.deepEqual(verdict(await signedCall(world, { nonce })), [401, 'nonce_replayed']);

  const shared = randomBytes(16).toString('base64url');
  const answers = await Promise.all(Array.from({ length: 8 }, () => signedCall(world, { nonce: shared })));
  const verdicts = answers.map((answer) => verdict(answer)[1]).sort();
  assert.deepEqual(verdicts, [...Array(7).fill('nonce_replayed'), 'ok']);

  await world.restart();
  assert.deepEqual(verdict(await signedCall(world, { nonce })), [401, 'nonce_replayed']);
});

test('a nonce is another one under another key, and is not used up by a request that fails', async () => {
  const nonce = randomBytes(16).toString('base64url');
  assert.deepEqual(verdict(await signedCall(world, { nonce, key: OTHER })), [401, 'signature_invalid']);
  assert.deepEqual(verdict(await signedCall(world, { nonce, token: 'wrong' })), [401, 'unauthorized']);
  assert.deepEqual(verdict(await signedCall(world, { nonce })), [200, 'ok']);
  assert.deepEqual(verdict(await signedCall(world, { nonce, keyId: 'k2', key: OTHER })), [200, 'ok']);
});

test('without the store of nonces nothing is admitted', async () => {
  const down = (headers) => ({ ...headers, 'x-test-nonces': 'down' });

  const answer = await signedCall(world, {}, down);

  assert.deepEqual(verdict(answer), [503, 'nonce_store_unavailable']);
  assert.equal(answer.headers['retry-after'], '2');
});

test('the first check that fails decides', async () => {
  const late = { timestamp: VECTOR_TIME };
  const body = { method: 'POST', path: '/leases/release', body: '{}', sentBody: '[]' };
  const used = randomBytes(16).toString('base64url');
  await signedCall(world, { nonce: used });
  const malformed = (headers) => ({ ...headers, 'x-paperclip-nonce': 'short' });
  const order = [
    [421, 'host_mismatch', signedCall(world, { ...late, host: 'evil.example' }, malformed)],
    [400, 'invalid_request', signedCall(world, late, malformed)],
    [401, 'timestamp_out_of_window', signedCall(world, { ...late, keyId: 'k9' })],
    [401, 'unknown_key', signedCall(world, { ...body, keyId: 'k9' })],
    [401, 'content_hash_mismatch', signedCall(world, { ...body, key: OTHER })],
    [401, 'signature_invalid', signedCall(world, { key: OTHER, token: 'wrong' })],
    [401, 'unauthorized', signedCall(world, { token: 'wrong', nonce: used })],
    [401, 'nonce_replayed', signedCall(world, { nonce: used, path: '/nowhere' })],
    [404, 'not_found', signedCall(world, { path: '/nowhere' })],
  ];
  for (const [status, code, answer] of order) assert.deepEqual(verdict(await answer), [status, code]);
});

test('a reply to a signed request is signed', async () => {
  const { host } = new URL(world.url);
  const headers = signedHeaders({ method: 'GET', target: `${PREFIX}/health`, host });

  const answer = await send(world.url, { target: `${PREFIX}/health`, headers: { ...headers, host } });

  const digest = createHash('sha256').update(answer.body).digest('hex');
  const signature = headers['x-paperclip-signature'].slice('v1='.length);
  const signed = ['PCS1-HMAC-SHA256-RESPONSE', headers['x-paperclip-nonce'], signature, '200', 'application/json', digest].join('\n');
  assert.equal(answer.headers['x-paperclip-response-signature'], `v1=${hmac(KEY, signed)}`);
});

test('replies are signed as the table says that both sides share', async () => {
  const table = await readFile(new URL('../../../policy/cases/replies.toml', import.meta.url), 'utf8');
  const rows = table.split('\n').filter((line) => line.includes('{ name = ')).map((line) => {
    const fields = line.matchAll(/(\w+) = ("(?:[^"\\]|\\.)*"|\w+)/g);
    return Object.fromEntries(Array.from(fields, ([, name, value]) => [name, JSON.parse(value)]));
  });
  assert.ok(rows.length > 20);
  const key = await webcrypto.subtle.importKey('raw', KEY, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  for (const { name, good, nonce, signature, status, content_type: type, part, body, presented } of rows) {
    const digest = createHash('sha256').update(body).digest('hex');
    const trimmed = type.trim();

    const signed = await signReply({ key, nonce, signature }, status, part > 0 ? `${trimmed};part=${part}` : trimmed, digest);

    assert.equal(signed === presented, good, name);
  }
});

test('what is said before the nonce is taken is signed for nobody, and what is said after it is', async () => {
  const nonce = randomBytes(16).toString('base64url');
  const host = new URL(world.url).host;
  const header = async (answer) => (await answer).headers['x-paperclip-response-signature'];
  await signedCall(world, { nonce });

  for (const unsigned of [
    signedCall(world, { nonce }),
    signedCall(world, { token: 'wrong' }),
    signedCall(world, { timestamp: VECTOR_TIME }),
    signedCall(world, { keyId: 'nobody' }),
    signedCall(world, { key: OTHER }),
    signedCall(world, {}, (headers) => ({ ...headers, 'x-test-nonces': 'down' })),
    signedCall(world, { host: `other.${host}` }),
  ]) {
    assert.equal(await header(unsigned), undefined);
  }
  assert.match(await header(signedCall(world, { path: '/nowhere' })), /^v1=[0-9a-f]{64}$/);
});

test('a bearer token alone is not enough in mode signed', async () => {
  assert.deepEqual(verdict(await call(world, 'GET', '/health')), [400, 'invalid_request']);
});

test('in mode either a bearer token is enough, and a signature that is there must be right', async (context) => {
  const either = await startWorld({ BRIDGE_AUTH_MODE: 'either' });
  context.after(() => either.stop());

  assert.deepEqual(verdict(await call(either, 'GET', '/health')), [200, 'ok']);
  assert.deepEqual(verdict(await call(either, 'GET', '/health', undefined, { authorization: 'Bearer wrong' })), [401, 'unauthorized']);
  assert.deepEqual(verdict(await call(either, 'GET', '/nowhere', undefined, { authorization: 'Bearer wrong' })), [401, 'unauthorized']);
  assert.deepEqual(verdict(await signedCall(either, {})), [200, 'ok']);
  assert.deepEqual(verdict(await signedCall(either, { key: OTHER })), [401, 'signature_invalid']);
});

test('in mode bearer signatures are not looked at, and the Host still is', async (context) => {
  const bearer = await startWorld({ BRIDGE_AUTH_MODE: 'bearer', BRIDGE_HMAC_KEYS: '' });
  context.after(() => bearer.stop());

  const health = await signedCall(bearer, { key: OTHER });

  assert.deepEqual(verdict(health), [200, 'ok']);
  assert.deepEqual(health.json.auth, []);
  assert.deepEqual(verdict(await call(bearer, 'GET', '/health', undefined, { host: 'evil.example' })), [421, 'host_mismatch']);
});

test('settings that are missing or wrong refuse everything, and name the variable', async (context) => {
  const wrong = {
    BRIDGE_AUTH_MODE: 'open',
    BRIDGE_AUTH_TOKEN: '',
    BRIDGE_HMAC_KEYS: '{"k1":{"key":"c2hvcnQ="}}',
    BRIDGE_MAX_BODY_BYTES: '0',
    BRIDGE_DEFAULT_CWD: 'here',
    BRIDGE_RELAY_TIMEOUT_MS: 'soon',
  };
  for (const [name, value] of Object.entries(wrong)) {
    const broken = await startWorld({ [name]: value });
    context.after(() => broken.stop());
    const answer = await call(broken, 'GET', '/health');
    assert.deepEqual(verdict(answer), [503, 'misconfigured'], name);
    assert.match(answer.json.message, new RegExp(name));
    assert.ok(!answer.text.includes('c2hvcnQ='), 'no value of a key');
  }
});
