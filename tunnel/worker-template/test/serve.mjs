// The world for other programs: settings in, addresses out, one JSON object a line.
//
// On standard input first the Worker's variables as an object, then the words `kill`, `restart` or `workspace`; each is
// answered by a line. It ends, with all that it started, when its standard input does.

import { createInterface } from 'node:readline';

import { startWorld } from './world.mjs';

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
let world = null;
try {
  for await (const line of createInterface({ input: process.stdin })) {
    if (world === null) {
      world = await startWorld(JSON.parse(line));
    } else if (line === 'kill') {
      await world.kill();
    } else if (line === 'restart') {
      await world.restart();
    } else if (line !== 'workspace') {
      throw new Error(`no such word: ${line}`);
    }
    say({ url: world.url, relayUrl: world.relayUrl, pid: world.pid ?? null, workspace: world.workspace() });
  }
} catch (error) {
  say({ error: error.stack });
  process.exitCode = 1;
} finally {
  await world?.stop();
}
