// How Cloudflare's containers stand behind the interface of src/sandbox.js, against a recorder in place of the package.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { cloudflare } from '../src/sandbox.js';

/** A sandbox that writes down what it is asked, and whose commands give these events. */
function recorded(events = []) {
  const calls = [];
  const say = (name, answer) => async (...args) => {
    calls.push([name, ...args]);
    return answer;
  };
  const sandbox = {
    execStream: say('execStream', events),
    deleteSession: say('deleteSession', { success: true }),
    mkdir: say('mkdir', { success: true }),
    exists: say('exists', { exists: true }),
    readFile: say('readFile', { content: 'text' }),
    writeFile: say('writeFile', { success: true }),
    deleteFile: say('deleteFile', { success: true }),
    destroy: say('destroy'),
  };
  const getSandbox = (...args) => {
    calls.push(['getSandbox', ...args]);
    return sandbox;
  };
  async function* parse(stream) {
    yield* stream;
  }
  return { calls, opened: cloudflare(getSandbox, parse)({ Sandbox: 'namespace' }, 'pc-1', { keepAlive: true }) };
}

async function outputOf(events, name = 'agent') {
  const { calls, opened } = recorded(events);
  const output = [];
  const onOutput = async (stream, data) => output.push([stream, data]);
  const session = await opened.session(name);
  const exitCode = await session.run('true', { timeoutMs: 5, signal: new AbortController().signal, onOutput });
  return { calls, exitCode, output };
}

test('a command runs in its session, with its time-out, and its output comes as it is', async () => {
  const events = [{ type: 'start' }, { type: 'stdout', data: 'a' }, { type: 'stderr', data: 'b' }, { type: 'complete', exitCode: 3 }];

  const { calls, exitCode, output } = await outputOf(events);

  assert.deepEqual(calls, [['getSandbox', 'namespace', 'pc-1', { keepAlive: true }], ['execStream', 'true', { timeout: 5, sessionId: 'agent' }]]);
  assert.deepEqual([exitCode, output], [3, [['stdout', 'a'], ['stderr', 'b']]]);
});

test('the default session is the one without a name', async () => {
  const { calls } = await outputOf([{ type: 'complete', exitCode: 0 }], null);

  assert.deepEqual(calls[1], ['execStream', 'true', { timeout: 5 }]);
});

test('an error, or an end without a result, is a failure', async () => {
  await assert.rejects(outputOf([{ type: 'error', error: 'Command timed out' }]), /timed out/);
  await assert.rejects(outputOf([{ type: 'stdout', data: 'a' }]), /without a result/);
});

test('files, sessions and the end are passed on', async () => {
  const { calls, opened } = recorded();

  await opened.mkdir('/w');
  assert.equal(await opened.read('/w/f'), 'text');
  await opened.write('/w/f', 'AA==', 'base64');
  await opened.remove('/w/f');
  await opened.deleteSession('agent');
  await opened.destroy();

  assert.deepEqual(calls.slice(1), [
    ['mkdir', '/w', { recursive: true }],
    ['exists', '/w/f'],
    ['readFile', '/w/f'],
    ['writeFile', '/w/f', 'AA==', { encoding: 'base64' }],
    ['deleteFile', '/w/f'],
    ['deleteSession', 'agent'],
    ['destroy'],
  ]);
});

test('a file that is not there is told by null', async () => {
  const missing = { exists: async () => ({ exists: false }) };

  const opened = cloudflare(() => missing, null)({}, 'pc-1', {});

  assert.equal(await opened.read('/w/f'), null);
});
