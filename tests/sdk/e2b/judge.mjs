// The provider's own client for Node, driven through what our runner relies on. Fails with the first surprise.
// Reads E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL itself.
import assert from 'node:assert/strict';
import { CommandExitError, NotFoundError, Sandbox, TimeoutError } from 'e2b';

const said = name => console.log(`ok ${name}`);

const sandbox = await Sandbox.create('base', {
  timeoutMs: 60_000,
  metadata: { judge: 'node' },
  envs: { GLOBAL: 'everywhere' },
});
assert.equal(await sandbox.isRunning(), true);
said('create');

const run = await sandbox.commands.run('echo out; echo err >&2; echo "$X $GLOBAL"; pwd', { envs: { X: 'val' }, cwd: '/tmp' });
assert.deepEqual([run.exitCode, run.stdout, run.stderr], [0, 'out\nval everywhere\n/tmp\n', 'err\n']);
await assert.rejects(sandbox.commands.run('exit 7'), error => error instanceof CommandExitError && error.exitCode === 7);
const chunks = [];
await sandbox.commands.run('echo one; echo two >&2', { onStdout: text => chunks.push(text), onStderr: text => chunks.push(text) });
assert.deepEqual(chunks.sort(), ['one\n', 'two\n']);
said('run');

const cat = await sandbox.commands.run('cat', { background: true, stdin: true, timeoutMs: 10_000 });
await sandbox.commands.sendStdin(cat.pid, 'hello stdin');
await sandbox.commands.closeStdin(cat.pid);
assert.equal((await cat.wait()).stdout, 'hello stdin');
said('stdin');

await assert.rejects(sandbox.commands.run('sleep 30', { timeoutMs: 500 }), TimeoutError);
said('time out');

const long = await sandbox.commands.run('sleep 20', { background: true, timeoutMs: 20_000 });
assert.ok((await sandbox.commands.list()).some(one => one.pid === long.pid));
const attached = await sandbox.commands.connect(long.pid, { timeoutMs: 10_000 });
assert.equal(await sandbox.commands.kill(long.pid), true);
await assert.rejects(attached.wait(), CommandExitError);
assert.equal(await sandbox.commands.kill(long.pid), false);
said('kill a command');

await sandbox.files.write('folder/file.txt', 'text');
assert.equal(await sandbox.files.read('folder/file.txt'), 'text');
await sandbox.files.write('bytes.bin', new Uint8Array([0, 255, 10, 13]).buffer);
assert.deepEqual([...(await sandbox.files.read('bytes.bin', { format: 'bytes' }))], [0, 255, 10, 13]);
assert.deepEqual((await sandbox.files.list('folder')).map(entry => entry.name), ['file.txt']);
await sandbox.files.rename('folder/file.txt', 'folder/moved.txt');
assert.equal(await sandbox.files.exists('folder/file.txt'), false);
assert.equal((await sandbox.files.getInfo('folder/moved.txt')).size, 4);
assert.equal(await sandbox.files.makeDir('folder/inner'), true);
await sandbox.files.remove('folder');
await assert.rejects(sandbox.files.read('folder/moved.txt'), NotFoundError);
said('files');

let screen = '';
const decoder = new TextDecoder();
const pty = await sandbox.pty.create({ cols: 91, rows: 33, timeoutMs: 10_000, onData: data => { screen += decoder.decode(data); } });
await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('stty size\n'));
await sandbox.pty.resize(pty.pid, { cols: 92, rows: 34 });
await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('stty size; exit 0\n'));
await pty.wait();
assert.match(screen, /34 92/);
said('pty');

const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 });
await again.setTimeout(90_000);
assert.equal((await again.getInfo()).state, 'running');
said('connect');

await again.pause();
assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused');
const resumed = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 });
assert.equal((await resumed.commands.run('echo back')).stdout, 'back\n');
said('pause and resume');

const listed = await Sandbox.list({ query: { metadata: { judge: 'node' } }, limit: 1 }).nextItems();
assert.deepEqual(listed.map(one => one.sandboxId), [sandbox.sandboxId]);
said('list');

assert.equal(await resumed.kill(), true);
assert.equal(await Sandbox.kill(sandbox.sandboxId), false);
await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError);
said('kill');
process.exit(0);
