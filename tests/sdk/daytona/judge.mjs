// Daytona's own client against whatever DAYTONA_API_URL names. Prints one line a fact and ends with 1 at the first
// that does not hold. Started by tests/tests/providers/daytona_sdk.rs from the folder where the client is installed.
import assert from 'node:assert/strict';
import { Daytona, DaytonaTimeoutError } from '@daytonaio/sdk';

const passed = fact => console.log('ok', fact);
const until = async (what, condition) => {
  const end = Date.now() + 10_000;
  while (!condition()) {
    assert.ok(Date.now() < end, `not within 10 s: ${what}`);
    await new Promise(resolve => setTimeout(resolve, 5));
  }
};

const sandbox = await new Daytona().create({ language: 'python', labels: { kind: 'judged' } }, { timeout: 20 });
assert.equal(sandbox.state, 'started');
const home = await sandbox.getWorkDir();
passed('a created sandbox is started');

const ran = await sandbox.process.executeCommand('echo out; echo err >&2; echo $X; exit 3', home, { X: 'value' }, 10);
assert.deepEqual([ran.exitCode, ran.result], [3, 'out\nerr\nvalue\n']);
passed('a command gives its exit code and both outputs as one');

await assert.rejects(
  sandbox.process.executeCommand('sleep 600', undefined, undefined, 1),
  error => error instanceof DaytonaTimeoutError && error.statusCode === 408,
);
passed('a command over its time is a 408');

await sandbox.process.createSession('s1');
const script = 'echo one; printf two >&2; echo; echo end';
const started = await sandbox.process.executeSessionCommand('s1', { command: script, runAsync: true });
const [stdout, stderr] = [[], []];
await sandbox.process.getSessionCommandLogs('s1', started.cmdId, text => stdout.push(text), text => stderr.push(text));
assert.deepEqual([stdout.join(''), stderr.join('')], ['one\n\nend\n', 'two\n']);
assert.equal((await sandbox.process.getSessionCommand('s1', started.cmdId)).exitCode, 0);
await sandbox.process.deleteSession('s1');
passed('a followed log is taken apart into both outputs');

const received = [];
const seen = () => Buffer.concat(received);
const onData = bytes => received.push(Buffer.from(bytes));
const terminal = await sandbox.process.createPty({ id: 'p1', cols: 120, rows: 30, cwd: home, onData });
await terminal.waitForConnection();
await terminal.sendInput("stty raw -echo; printf '%s%s' MARK ER; exec cat\r");
await until('the terminal is raw', () => seen().includes('MARKER'));
received.length = 0;
const bytes = Buffer.from(Array.from({ length: 65536 }, (_, index) => index & 255));
for (let at = 0; at < bytes.length; at += 32768) await terminal.sendInput(bytes.subarray(at, at + 32768));
await until('64 KiB are echoed', () => seen().length >= bytes.length);
assert.ok(seen().equals(bytes));
passed('a raw terminal echoes 64 KiB of all byte values');

await terminal.kill();
assert.equal((await terminal.wait()).exitCode, 137);
passed('a killed terminal ends with 137');

const content = Buffer.from([0, 255, 10, 13, 1, 1, 1]);
await sandbox.fs.createFolder('judged', '755');
await sandbox.fs.uploadFile(content, 'judged/a.bin');
await sandbox.fs.moveFiles('judged/a.bin', 'judged/b.bin');
assert.ok((await sandbox.fs.downloadFile('judged/b.bin')).equals(content));
await sandbox.fs.setFilePermissions('judged/b.bin', { mode: '600' });
assert.equal((await sandbox.fs.getFileDetails('judged/b.bin')).size, content.length);
await sandbox.fs.deleteFile('judged/b.bin');
assert.deepEqual(await sandbox.fs.listFiles('judged'), []);
passed('files go up, move, come down and are deleted');

await sandbox.stop(20);
assert.equal(sandbox.state, 'stopped');
await sandbox.start(20);
assert.equal(sandbox.state, 'started');
await sandbox.setAutostopInterval(30);
passed('a sandbox stops and starts');

await sandbox.delete(20);
passed('a sandbox is deleted');
process.exit(0);
