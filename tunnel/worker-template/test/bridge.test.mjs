// The bridge API: health, probe, leases, commands plain and streamed.

import assert from 'node:assert/strict';
import { createHash, randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { after, before, test } from 'node:test';

import { call, hmac, PREFIX, send, signedCall, signedHeaders } from './caller.mjs';
import { KEY, startWorld, TOKEN } from './world.mjs';

let world;
before(async () => {
  world = await startWorld({ TEST_KEEP_ALIVE_MS: '50', BRIDGE_MAX_OUTPUT_BYTES: '100000', BRIDGE_MAX_BODY_BYTES: '1000000' });
});
after(() => world?.stop());

const verdict = ({ status, json }) => [status, json?.error ?? 'ok'];
const post = (path, fields) => call(world, 'POST', path, fields);
const sentinel = (cwd) => `${cwd}/.paperclip-lease.json`;

async function leased(fields = {}) {
  const requestedCwd = world.workspace();
  const answer = await post('/leases/acquire', { environmentId: randomUUID(), runId: randomUUID(), requestedCwd, ...fields });
  assert.equal(answer.status, 200, answer.text);
  return { cwd: requestedCwd, providerLeaseId: answer.json.providerLeaseId, metadata: answer.json.metadata };
}

const exec = async ({ providerLeaseId }, fields) => (await post('/exec', { providerLeaseId, ...fields })).json;
const shell = (script, fields = {}) => ({ command: 'sh', args: ['-c', script], ...fields });

/** Events of a whole stream. */
function eventsOf(text) {
  const frames = text.split('\n\n').filter((frame) => frame.startsWith('event: '));
  return frames.map((frame) => {
    const [event, data] = frame.split('\n');
    return [event.slice('event: '.length), JSON.parse(data.slice('data: '.length))];
  });
}

/** Waits for what a process or a file shows. */
async function until(what, condition) {
  for (const deadline = Date.now() + 20_000; ; ) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < deadline, `not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Whether any process has this text among its arguments. */
async function isRunning(mark) {
  const pids = (await readdir('/proc')).filter((name) => /^[0-9]+$/.test(name) && name !== String(process.pid));
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')));
  return lines.some((line) => line.includes(mark));
}

test('health tells who answers and what it can do', async () => {
  const { json, status } = await call(world, 'GET', '/health/');

  assert.equal(status, 200);
  const { ok, provider, bridgeVersion, capabilities, auth } = json;
  assert.deepEqual([ok, provider, bridgeVersion, auth], [true, 'cloudflare', '0.1.0', ['pcs1']]);
  assert.deepEqual([capabilities.reuseLease, capabilities.namedSessions, capabilities.previewUrls], [true, true, false]);
  const { stdinBase64, requestId, acquireRequestId, relay } = capabilities;
  assert.deepEqual([stdinBase64, requestId, acquireRequestId, relay], [true, true, true, true]);
});

test('the bearer token is checked before anything else', async () => {
  for (const [method, path] of [['GET', '/health'], ['POST', '/exec'], ['GET', '/nowhere']]) {
    assert.deepEqual(verdict(await send(world.url, { method, target: PREFIX + path })), [401, 'unauthorized'], path);
  }
});

test('only unknown calls are answered with 404', async () => {
  for (const [method, path] of [['GET', '/'], ['GET', '/nowhere'], ['POST', '/health'], ['GET', '/exec'], ['DELETE', '/leases/'], ['PUT', '/leases/a']]) {
    assert.deepEqual(verdict(await call(world, method, path)), [404, 'not_found'], `${method} ${path}`);
  }
  const outside = await send(world.url, { target: '/', headers: { authorization: `Bearer ${TOKEN}` } });
  assert.deepEqual(verdict(outside), [404, 'not_found']);
});

test('a body that is no JSON object, or too large, is refused', async () => {
  const headers = { authorization: `Bearer ${TOKEN}` };
  for (const body of ['', '{', '[]', 'null', '"x"', Buffer.from([0x7b, 0xff, 0x7d])]) {
    assert.deepEqual(verdict(await send(world.url, { method: 'POST', target: `${PREFIX}/exec`, headers, body })), [400, 'invalid_request']);
  }
  const large = Buffer.alloc(1_000_001, 'x');
  assert.deepEqual(verdict(await send(world.url, { method: 'POST', target: `${PREFIX}/exec`, headers, body: large })), [413, 'body_too_large']);
  assert.deepEqual(verdict(await signedCall(world, { method: 'POST', path: '/exec', body: large })), [401, 'content_hash_mismatch']);
});

test('a probe runs a command in a sandbox of its own and leaves nothing behind', async () => {
  const cwd = world.workspace();

  const { json } = await post('/probe', { requestedCwd: cwd });

  assert.equal(json.ok, true, json.summary);
  assert.deepEqual(json.metadata, { provider: 'cloudflare', remoteCwd: cwd, namedSessions: true, stdout: `${cwd}\n` });
  assert.ok(!existsSync(cwd));
});

test('a probe that fails says so and leaves nothing behind', async () => {
  const cwd = world.workspace();
  await post('/leases/acquire', { environmentId: 'e', runId: 'r', requestedCwd: cwd });
  await writeFile(`${cwd}/file`, '');

  const { status, json } = await post('/probe', { requestedCwd: `${cwd}/file` });

  assert.deepEqual([status, json.ok], [200, false]);
  assert.match(json.summary, /the sandbox failed/);
});

test('acquire answers with the lease and writes its sentinel', async () => {
  const lease = await leased({ keepAlive: true, sleepAfter: '1h', sessionId: 'mine' });

  assert.deepEqual(lease.metadata, {
    provider: 'cloudflare',
    remoteCwd: lease.cwd,
    sandboxId: lease.providerLeaseId,
    sessionStrategy: 'named',
    sessionId: 'mine',
    keepAlive: true,
    sleepAfter: '1h',
    normalizeId: true,
    resumedLease: false,
  });
  const written = JSON.parse(await readFile(sentinel(lease.cwd), 'utf8'));
  assert.equal(written.providerLeaseId, lease.providerLeaseId);
  assert.ok(!Number.isNaN(Date.parse(written.updatedAt)));
});

test('a lease without wishes gets the defaults', async () => {
  const { json } = await post('/leases/acquire', { environmentId: 'e', runId: 'r', keepAlive: 'yes', sessionStrategy: 'other' });

  const { sessionStrategy, sessionId, keepAlive, sleepAfter, normalizeId } = json.metadata;
  assert.deepEqual([sessionStrategy, sessionId, keepAlive, sleepAfter, normalizeId], ['named', 'paperclip', false, '10m', true]);
});

test('sandbox ids are normalised, and two environments never meet in one', async () => {
  const idOf = async (fields) => (await leased(fields)).providerLeaseId;
  const environment = (environmentId, fields = {}) => idOf({ environmentId, reuseLease: true, ...fields });
  const tail = (raw) => createHash('sha256').update(raw).digest('hex').slice(0, 8);

  assert.equal(await environment('a-b'), 'pc-env-a-b');
  assert.equal(await environment('A_b'), `pc-env-a-b-${tail('pc-env-A_b')}`);
  assert.equal(await environment('a--b'), `pc-env-a-b-${tail('pc-env-a--b')}`);
  const long = 'x'.repeat(100);
  assert.equal(await environment(long), `pc-env-${'x'.repeat(47)}-${tail(`pc-env-${long}`)}`);
  assert.notEqual(await environment(long), await environment(`${long}y`));
  assert.match(await environment('日本'), /^pc-env-[0-9a-f]{8}$/);
  assert.match(await idOf({ runId: 'r1' }), /^pc-r1-[0-9a-f]{8}$/);
  assert.notEqual(await idOf({ runId: 'r1' }), await idOf({ runId: 'r1' }));
  const raw = await post('/leases/acquire', { environmentId: 'A_b', runId: 'r', reuseLease: true, normalizeId: false });
  assert.deepEqual(verdict(raw), [400, 'invalid_request']);
});

test('the same acquire has the same lease, another request another, and none once it was given back', async () => {
  const fields = { environmentId: 'e', runId: randomUUID(), requestId: 'first', requestedCwd: world.workspace() };
  const acquire = (changes = {}) => post('/leases/acquire', { ...fields, ...changes });
  const { providerLeaseId } = (await acquire()).json;
  await writeFile(`${fields.requestedCwd}/file`, 'kept');

  const [again, at, once] = await Promise.all([acquire(), acquire(), acquire({ requestId: 'second', requestedCwd: world.workspace() })]);

  assert.deepEqual([again.json.providerLeaseId, at.json.providerLeaseId], [providerLeaseId, providerLeaseId]);
  assert.notEqual(once.json.providerLeaseId, providerLeaseId);
  assert.equal(await readFile(`${fields.requestedCwd}/file`, 'utf8'), 'kept');
  assert.equal((await call(world, 'DELETE', `/leases/${providerLeaseId}`)).status, 200);
  assert.deepEqual(verdict(await acquire()), [409, 'sandbox_state_lost']);
  assert.ok(!existsSync(fields.requestedCwd));
  assert.deepEqual(verdict(await acquire({ requestId: 'a b' })), [400, 'invalid_request']);
});

test('an environment that is used again is had again under the same request', async () => {
  const fields = { environmentId: randomUUID(), runId: 'r', reuseLease: true, requestId: 'one', requestedCwd: world.workspace() };
  const { providerLeaseId } = (await post('/leases/acquire', fields)).json;
  await call(world, 'DELETE', `/leases/${providerLeaseId}`);

  assert.equal((await post('/leases/acquire', fields)).json.providerLeaseId, providerLeaseId);
});

test('what acquire needs is asked for', async () => {
  for (const fields of [{ runId: 'r' }, { environmentId: 'e' }, { environmentId: 'e', runId: 7 }, { environmentId: 'e', runId: 'r', requestedCwd: 'here' }, { environmentId: 'e', runId: 'r', timeoutMs: 0 }]) {
    assert.deepEqual(verdict(await post('/leases/acquire', fields)), [400, 'invalid_request'], JSON.stringify(fields));
  }
});

test('an acquire that fails destroys its sandbox, but never one that is used again', async () => {
  const kept = await leased({ environmentId: 'kept', reuseLease: true });
  const blocked = `${kept.cwd}/file`;
  await writeFile(blocked, '');

  const fresh = await post('/leases/acquire', { environmentId: 'other', runId: 'doomed', requestedCwd: `${blocked}/below` });
  const again = await post('/leases/acquire', { environmentId: 'kept', runId: 'r', reuseLease: true, requestedCwd: `${blocked}/below` });

  assert.deepEqual([verdict(fresh), verdict(again)], [[502, 'sandbox_failed'], [502, 'sandbox_failed']]);
  assert.ok(existsSync(sentinel(kept.cwd)), 'the sandbox of the environment is still there');
  const homes = await readdir(`${kept.cwd}/../../sandboxes`);
  assert.ok(!homes.some((name) => name.startsWith('pc-doomed-')), `left behind: ${homes}`);
});

test('resume goes on with the lease of before', async () => {
  const lease = await leased();

  const { status, json } = await post('/leases/resume', { providerLeaseId: lease.providerLeaseId, requestedCwd: lease.cwd });

  assert.equal(status, 200);
  assert.deepEqual([json.providerLeaseId, json.metadata.resumedLease], [lease.providerLeaseId, true]);
  assert.equal(JSON.parse(await readFile(sentinel(lease.cwd), 'utf8')).resumedLease, true);
});

test('a lease whose sentinel is lost, empty, broken or of another lease is lost, and its sandbox stays', async () => {
  const spoils = [
    (path) => rm(path),
    (path) => writeFile(path, ''),
    (path) => writeFile(path, '{'),
    (path) => writeFile(path, 'null'),
    (path) => writeFile(path, '{"providerLeaseId":"another"}'),
  ];
  for (const spoil of spoils) {
    const lease = await leased();
    await spoil(sentinel(lease.cwd));
    const { providerLeaseId } = lease;
    const streamed = { providerLeaseId, ...shell('true', { streamOutput: true }) };

    assert.deepEqual(verdict(await post('/leases/resume', { providerLeaseId, requestedCwd: lease.cwd })), [409, 'sandbox_state_lost']);
    assert.deepEqual(verdict(await post('/exec', { providerLeaseId, ...shell('true') })), [409, 'sandbox_state_lost']);
    assert.deepEqual(verdict(await post('/exec', streamed)), [409, 'sandbox_state_lost']);
    assert.ok(existsSync(lease.cwd));
  }
});

test('nothing runs under a lease that nobody holds', async () => {
  const never = await post('/exec', { providerLeaseId: 'pc-never', command: 'true' });
  const lease = await leased();
  await post('/leases/release', { providerLeaseId: lease.providerLeaseId });
  const released = await post('/exec', { providerLeaseId: lease.providerLeaseId, command: 'true' });

  assert.deepEqual([verdict(never), verdict(released)], [[409, 'sandbox_state_lost'], [409, 'sandbox_state_lost']]);
});

test('release keeps what is used again and destroys the rest', async () => {
  const kept = await leased({ reuseLease: true });
  const once = await leased();

  const answers = [
    await post('/leases/release', { providerLeaseId: kept.providerLeaseId, reuseLease: true, keepAlive: true }),
    await post('/leases/release', { providerLeaseId: once.providerLeaseId, reuseLease: false, keepAlive: false }),
    await post('/leases/release', {}),
  ];

  assert.deepEqual(answers.map(({ status, json }) => [status, json.ok]), Array(3).fill([200, true]));
  assert.deepEqual([existsSync(kept.cwd), existsSync(once.cwd)], [true, false]);
});

test('a lease is deleted once, and may be deleted again', async () => {
  const lease = await leased();
  const path = `/leases/${encodeURIComponent(lease.providerLeaseId)}`;

  assert.deepEqual([(await call(world, 'DELETE', path)).status, (await call(world, 'DELETE', path)).status], [200, 200]);

  assert.ok(!existsSync(lease.cwd));
  for (const id of ['a%2Fb', '%2e%2e', 'www', '-a', '%zz', 'x'.repeat(64)]) {
    assert.deepEqual(verdict(await call(world, 'DELETE', `/leases/${id}`)), [400, 'invalid_request'], id);
  }
});

test('what still runs in a sandbox ends with it', async () => {
  const lease = await leased();
  const mark = `run-of-${lease.providerLeaseId}`;
  await exec(lease, shell(`sh -c 'while :; do sleep 1; done' ${mark} >/dev/null 2>&1 & setsid sh -c 'while :; do sleep 1; done' ${mark} >/dev/null 2>&1 & true`));
  assert.ok(await isRunning(mark));

  await call(world, 'DELETE', `/leases/${lease.providerLeaseId}`);

  await until('its processes have ended', async () => !(await isRunning(mark)));
});

test('a command gives its exit code and both outputs', async () => {
  const lease = await leased();

  const ended = await exec(lease, shell('printf out; printf err >&2; exit 7', { cwd: lease.cwd }));

  assert.deepEqual(ended, { exitCode: 7, signal: null, timedOut: false, stdout: 'out', stderr: 'err' });
  assert.equal((await exec(lease, shell('kill -9 $$'))).exitCode, 137);
  assert.equal((await exec(lease, { command: 'no-such-command' })).exitCode, 127);
  assert.equal((await exec(lease, { command: 'true', cwd: `${lease.cwd}/nowhere` })).exitCode, 1);
});

test('arguments, environment, folder and standard input arrive as they are', async () => {
  const lease = await leased();
  const odd = `a 'b' "c" $d \`e\` \\f\n*é`;

  const said = await exec(lease, shell('printf "%s|%s|%s|" "$0" "$V" "$PWD"; cat', { args: ['-c', 'printf "%s|%s|%s|" "$0" "$V" "$PWD"; cat', odd, 7], env: { V: odd }, cwd: lease.cwd, stdin: odd }));

  assert.equal(said.stdout, `${odd}|${odd}|${lease.cwd}|${odd}`);
  assert.equal((await exec(lease, { command: 'cat' })).stdout, '');
});

test('binary standard input arrives byte by byte', async () => {
  const lease = await leased();
  const bytes = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256));

  const { stdout } = await exec(lease, { command: 'sha256sum', stdinBase64: bytes.toString('base64') });

  assert.ok(stdout.startsWith(createHash('sha256').update(bytes).digest('hex')));
  for (const fields of [{ stdinBase64: 'no base64' }, { stdinBase64: 'AA' }, { stdinBase64: 'AAAA', stdin: '' }]) {
    assert.deepEqual(verdict(await post('/exec', { providerLeaseId: lease.providerLeaseId, command: 'cat', ...fields })), [400, 'invalid_request']);
  }
});

test('nothing of a standard input is left behind', async () => {
  const lease = await leased();

  const { stdout } = await exec(lease, shell('readlink /proc/self/fd/0', { stdin: 'x' }));

  assert.match(stdout, /^\/tmp\/\.paperclip-bridge-stdin-[0-9a-f]{32}\n$/);
  assert.ok(!existsSync(stdout.trim()));
});

test('keys of the environment that a shell could run are refused', async () => {
  const { providerLeaseId } = await leased();
  for (const env of [{ 'A B': '' }, { '1A': '' }, { 'A;id': '' }, { '': '' }, { É: '' }, { A: 7 }, []]) {
    assert.deepEqual(verdict(await post('/exec', { providerLeaseId, command: 'true', env })), [400, 'invalid_request'], JSON.stringify(env));
  }
});

test('a command of the callback channel runs in a session of its own, and does not see the variable', async () => {
  const lease = await leased();
  const mark = `agent-of-${lease.providerLeaseId}`;
  const agent = exec(lease, shell(': ; while :; do sleep 1; done', { args: ['-c', ': ; while :; do sleep 1; done', mark] }));
  await until('the agent runs', () => isRunning(mark));

  const channel = shell('printenv PAPERCLIP_SANDBOX_EXEC_CHANNEL; sleep 600', { env: { PAPERCLIP_SANDBOX_EXEC_CHANNEL: 'bridge' }, timeoutMs: 300 });
  const ended = await exec(lease, channel);

  assert.deepEqual([ended.timedOut, ended.stdout], [true, '']);
  // The time-out has ended the channel's session, and not that of the agent.
  assert.ok(await isRunning(mark));
  await call(world, 'DELETE', `/leases/${lease.providerLeaseId}`);
  assert.equal((await agent).exitCode, 137);
});

test('a time-out says so and ends what ran', async () => {
  const lease = await leased();
  const mark = `late-of-${lease.providerLeaseId}`;

  const ended = await exec(lease, shell('printf before; while :; do sleep 1; done', { args: ['-c', 'printf before; while :; do sleep 1; done', mark], stdin: 'x', timeoutMs: 500 }));

  assert.deepEqual([ended.exitCode, ended.signal, ended.timedOut, ended.stdout], [null, null, true, 'before']);
  assert.match(ended.stderr, /timed out after 500 ms/);
  await until('it has ended', async () => !(await isRunning(mark)));
  assert.equal((await exec(lease, shell('printf after'))).stdout, 'after', 'the lease is still good');
});

test('a time-out in the default session ends the whole sandbox', async () => {
  const lease = await leased({ sessionStrategy: 'default' });

  const ended = await exec(lease, shell('sleep 600', { sessionStrategy: 'default', timeoutMs: 300 }));

  assert.equal(ended.timedOut, true);
  assert.ok(!existsSync(lease.cwd));
  assert.deepEqual(verdict(await post('/exec', { providerLeaseId: lease.providerLeaseId, command: 'true' })), [409, 'sandbox_state_lost']);
});

test('what a result holds is bounded, and says so', async () => {
  const lease = await leased();

  const ended = await exec(lease, shell('head -c 200000 /dev/zero | tr "\\0" x; printf err >&2'));

  assert.equal(ended.truncated, true);
  assert.ok(ended.stdout.length <= 100_000);
  assert.deepEqual([ended.exitCode, ended.stderr], [0, 'err']);
});

test('output is streamed while a command runs, and a silent stream is kept alive', async () => {
  const lease = await leased();
  const gate = `${lease.cwd}/gate`;
  const fields = shell(`printf one; printf two >&2; while [ ! -e gate ]; do sleep 0.05; done; printf three`, { cwd: lease.cwd, streamOutput: true });

  const { hostname, port } = new URL(world.url);
  const headers = { authorization: `Bearer ${TOKEN}` };
  const seen = await new Promise((resolve, reject) => {
    const asked = request({ hostname, port, method: 'POST', path: `${PREFIX}/exec`, headers }, (response) => {
      let text = '';
      response.on('data', async (chunk) => {
        text += chunk;
        // The command goes on only once all of this is here.
        if (text.includes('one') && text.includes('two') && text.includes('\n\n: alive\n\n')) await writeFile(gate, '');
      });
      response.on('end', () => resolve({ text, type: response.headers['content-type'] }));
      response.on('error', reject);
    });
    asked.on('error', reject);
    asked.end(JSON.stringify({ providerLeaseId: lease.providerLeaseId, ...fields }));
  });

  assert.equal(seen.type, 'text/event-stream');
  const events = eventsOf(seen.text);
  const of = (stream) => events.filter(([event]) => event === stream).map(([, { data }]) => data).join('');
  assert.deepEqual([of('stdout'), of('stderr')], ['onethree', 'two']);
  assert.deepEqual(events.at(-1), ['complete', { exitCode: 0, signal: null, timedOut: false, stdout: 'onethree', stderr: 'two' }]);
});

test('a streamed command that fails or times out ends its stream with a result or an error', async () => {
  const lease = await leased();
  const streamed = async (fields) => eventsOf((await post('/exec', { providerLeaseId: lease.providerLeaseId, streamOutput: true, ...fields })).text);

  assert.equal((await streamed(shell('exit 3'))).at(-1)[1].exitCode, 3);
  const late = (await streamed(shell('printf x; sleep 600', { timeoutMs: 300 }))).at(-1);
  assert.deepEqual([late[0], late[1].exitCode, late[1].timedOut, late[1].stdout], ['complete', null, true, 'x']);
});

test('a caller that goes takes its streamed command with it', async () => {
  const lease = await leased();
  const mark = `gone-of-${lease.providerLeaseId}`;
  const { hostname, port } = new URL(world.url);
  const fields = shell('', { args: ['-c', 'echo up; while :; do sleep 1; done', mark], streamOutput: true });
  const asked = request({ hostname, port, method: 'POST', path: `${PREFIX}/exec`, headers: { authorization: `Bearer ${TOKEN}` } });
  asked.on('error', () => {});
  asked.end(JSON.stringify({ providerLeaseId: lease.providerLeaseId, ...fields }));
  const response = await new Promise((resolve) => asked.on('response', resolve));
  response.on('error', () => {});
  response.resume();
  await until('it runs', () => isRunning(mark));

  asked.destroy();

  await until('it has ended', async () => !(await isRunning(mark)));
});

/** The bytes of a signed stream and what its signatures must be. */
async function signedStream(lease, fields) {
  const body = JSON.stringify({ providerLeaseId: lease.providerLeaseId, streamOutput: true, ...fields });
  const { host } = new URL(world.url);
  const headers = { ...signedHeaders({ method: 'POST', target: `${PREFIX}/exec`, host, body }), host };
  const { text } = await send(world.url, { method: 'POST', target: `${PREFIX}/exec`, headers, body });
  const request = headers['x-paperclip-signature'].slice('v1='.length);
  const signature = (bytes, type) => {
    const digest = createHash('sha256').update(bytes).digest('hex');
    return `v1=${hmac(KEY, ['PCS1-HMAC-SHA256-RESPONSE', headers['x-paperclip-nonce'], request, '200', type, digest].join('\n'))}`;
  };
  return { text, signature };
}

test('the last event of a signed stream signs all before it, and its own words stand there', async () => {
  const lease = await leased();
  const rows = [
    [shell('echo a; echo b >&2; exit 3'), 'complete', { event: 'complete', exitCode: 3, signal: null, timedOut: false }],
    [shell('sleep 600', { timeoutMs: 200 }), 'complete', { event: 'complete', exitCode: null, signal: null, timedOut: true }],
  ];
  for (const [fields, name, result] of rows) {
    const { text, signature } = await signedStream(lease, fields);

    const before = text.slice(0, text.indexOf(`event: ${name}`));
    const [told, last] = eventsOf(text).slice(-2);
    assert.equal(last[1].signature, signature(before, 'text/event-stream'));
    assert.deepEqual([told, last[0]], [['result', result], name]);
  }
});

test('the output of a signed stream is signed while its command runs, part by part', async () => {
  const lease = await leased();

  const { text, signature } = await signedStream(lease, shell('for n in 1 2 3; do echo $n; sleep 0.8; done'));

  const parts = text.split(/event: proof\ndata: (.*)\n\n/);
  const proofs = parts.filter((_, at) => at % 2 === 1).map((data) => JSON.parse(data).signature);
  const signed = parts.filter((_, at) => at % 2 === 0).slice(0, -1);
  assert.ok(proofs.length >= 2, text);
  assert.deepEqual(proofs, signed.map((bytes, at) => signature(bytes, `text/event-stream;part=${at + 1}`)));
});

test('a request that is repeated is answered with its result and never run again', async () => {
  const lease = await leased();
  const fields = shell('echo x >> ran; cat ran', { cwd: lease.cwd, requestId: 'r-1' });

  const [first, second] = [await exec(lease, fields), await exec(lease, fields)];
  const streamed = shell('echo y; echo z >&2; exit 4', { requestId: 'r-2', streamOutput: true, providerLeaseId: lease.providerLeaseId });
  const [stream, again] = [(await post('/exec', streamed)).text, (await post('/exec', streamed)).text];
  await world.restart();
  const third = await exec(lease, fields);

  assert.equal(first.stdout, 'x\n');
  assert.deepEqual([second, third], [first, first]);
  const result = ['complete', { exitCode: 4, signal: null, timedOut: false, stdout: 'y\n', stderr: 'z\n' }];
  assert.deepEqual([eventsOf(stream).at(-1), eventsOf(again).at(-1)], [result, result]);
  assert.deepEqual(eventsOf(again).slice(0, -1), [['stdout', { data: 'y\n' }], ['stderr', { data: 'z\n' }]]);
  const other = { providerLeaseId: lease.providerLeaseId, ...fields, args: ['-c', 'true'] };
  assert.deepEqual(verdict(await post('/exec', other)), [400, 'invalid_request']);
});

test('a request that still runs is in progress, and its result is kept when its caller has gone', async () => {
  const lease = await leased();
  const fields = shell('touch began; while [ ! -e gate ]; do sleep 0.05; done; echo done', { cwd: lease.cwd, requestId: 'r-1', streamOutput: true, providerLeaseId: lease.providerLeaseId });
  const { hostname, port } = new URL(world.url);
  const asked = request({ hostname, port, method: 'POST', path: `${PREFIX}/exec`, headers: { authorization: `Bearer ${TOKEN}` } });
  asked.on('error', () => {});
  asked.end(JSON.stringify(fields));
  await until('it began', () => existsSync(`${lease.cwd}/began`));

  const early = await post('/exec', fields);
  assert.deepEqual(verdict(early), [425, 'in_progress']);
  assert.equal(early.headers['retry-after'], '1');
  asked.destroy();
  await writeFile(`${lease.cwd}/gate`, '');

  const late = await until('the result is there', async () => {
    const answer = await post('/exec', fields);
    return answer.status === 200 ? answer.text : null;
  });
  assert.equal(eventsOf(late).at(-1)[1].stdout, 'done\n');
});

test('what exec needs is asked for', async () => {
  const { providerLeaseId } = await leased();
  for (const fields of [{}, { providerLeaseId }, { command: 'true' }, { providerLeaseId: '../x', command: 'true' }, { providerLeaseId, command: 'true', timeoutMs: 86_400_001 }, { providerLeaseId, command: 'true', timeoutMs: '5' }, { providerLeaseId, command: 'true', requestId: 'a b' }]) {
    assert.deepEqual(verdict(await post('/exec', fields)), [400, 'invalid_request'], JSON.stringify(fields));
  }
});
