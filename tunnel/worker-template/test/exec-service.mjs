// A sandbox that is played: real processes in private folders, over HTTP on loopback.
//
// Here: create on first use, files, commands with streamed output, sessions, and ending all of it. For tests only: it
// runs whatever it is told to. Node and nothing else. Not here: the Worker's side of it (entry.js).

import { spawn } from 'node:child_process';
import { mkdir, readdir, readFile, rm, unlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { StringDecoder } from 'node:string_decoder';

/** How long a command's pipes may stay open after it has ended, since a child of it may hold them. */
const LINGER_MS = 100;

/**
 * Starts the service.
 *
 * @param {string} root a folder that is its own
 * @returns {Promise<{port: number, stop: () => Promise<void>}>}
 */
export async function startExecService(root) {
  const sandboxes = new Map();
  const sandboxOf = async (id) => {
    if (!sandboxes.has(id)) sandboxes.set(id, { folder: join(root, 'sandboxes', id), groups: new Map(), made: new Set() });
    const sandbox = sandboxes.get(id);
    await mkdir(sandbox.folder, { recursive: true });
    return sandbox;
  };
  const destroy = async (id) => {
    const sandbox = sandboxes.get(id);
    if (!sandbox) return;
    sandboxes.delete(id);
    for (const groups of sandbox.groups.values()) groups.forEach(killGroup);
    await killByHome(sandbox.folder);
    const gone = [sandbox.folder, ...sandbox.made].map((path) => rm(path, { recursive: true, force: true }));
    await Promise.all(gone);
  };
  const calls = {
    mkdir: async ({ sandbox, path }) => {
      const { made } = await sandboxOf(sandbox);
      await mkdir(path, { recursive: true });
      if (path.startsWith(root)) made.add(path);
      return {};
    },
    read: async ({ sandbox, path }) => {
      await sandboxOf(sandbox);
      return { content: await readFile(path, 'utf8').catch(() => null) };
    },
    write: async ({ sandbox, path, content, encoding }) => {
      await sandboxOf(sandbox);
      await writeFile(path, content, { encoding, mode: 0o600 });
      return {};
    },
    remove: async ({ path }) => {
      await unlink(path);
      return {};
    },
    'delete-session': async ({ sandbox, session }) => {
      const { groups } = await sandboxOf(sandbox);
      groups.get(session)?.forEach(killGroup);
      groups.delete(session);
      return {};
    },
    destroy: async ({ sandbox }) => {
      await destroy(sandbox);
      return {};
    },
  };

  const server = createServer(async (request, response) => {
    try {
      const ask = JSON.parse(await text(request));
      const name = request.url.slice(1);
      if (name === 'run') return await run(await sandboxOf(ask.sandbox), ask, response);
      if (!Object.hasOwn(calls, name)) throw new Error(`no such call: ${name}`);
      response.end(JSON.stringify(await calls[name](ask)));
    } catch (error) {
      response.statusCode = 500;
      response.end(JSON.stringify({ error: error.message }));
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: server.address().port,
    async stop() {
      server.close();
      server.closeAllConnections();
      await Promise.all([...sandboxes.keys()].map(destroy));
    },
  };
}

/** Runs a command line; its output, then its exit code, leave as lines of JSON. */
async function run(sandbox, { session, command }, response) {
  const env = { PATH: process.env.PATH, HOME: sandbox.folder, LANG: 'C.UTF-8' };
  const child = spawn('/bin/sh', ['-c', command], { cwd: sandbox.folder, env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  const groups = sandbox.groups.get(session) ?? new Set();
  sandbox.groups.set(session, groups);
  const line = (value) => response.write(`${JSON.stringify(value)}\n`);
  response.on('close', () => killGroupUnlessEnded(child));
  for (const stream of ['stdout', 'stderr']) {
    const decoder = new StringDecoder('utf8');
    child[stream].on('data', (bytes) => {
      if (line({ stream, data: decoder.write(bytes) })) return;
      child[stream].pause();
      response.once('drain', () => child[stream].resume());
    });
    child[stream].on('end', () => line({ stream, data: decoder.end() }));
  }
  child.on('error', (error) => response.end(`${JSON.stringify({ error: error.message })}\n`));
  if (child.pid === undefined) return;
  groups.add(child.pid);
  const closed = new Promise((resolve) => child.on('close', resolve));
  const [code, signal] = await new Promise((resolve) => child.on('exit', (...ended) => resolve(ended)));
  await drained(child, closed);
  const exitCode = code ?? 128 + (SIGNALS[signal] ?? 0);
  response.end(`${JSON.stringify({ exitCode })}\n`);
}

/** Waits for all output; for a child that keeps the pipes, only until they have been silent for a while. */
async function drained(child, closed) {
  let over = false;
  closed.then(() => {
    over = true;
  });
  while (!over) {
    const before = child.stdout.bytesRead + child.stderr.bytesRead;
    await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, LINGER_MS))]);
    const flowing = child.stdout.isPaused() || child.stderr.isPaused();
    if (!flowing && child.stdout.bytesRead + child.stderr.bytesRead === before) break;
  }
  child.stdout.destroy();
  child.stderr.destroy();
}

const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGABRT: 6, SIGKILL: 9, SIGSEGV: 11, SIGPIPE: 13, SIGTERM: 15 };

function killGroupUnlessEnded(child) {
  if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) killGroup(child.pid);
}

function killGroup(pid) {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended already.
  }
}

/** Ends what left its group: its environment still tells whose it is. */
async function killByHome(folder) {
  for (const pid of (await readdir('/proc')).filter((name) => /^[0-9]+$/.test(name))) {
    const env = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
    if (!env.split('\0').includes(`HOME=${folder}`)) continue;
    try {
      process.kill(Number(pid), 'SIGKILL');
    } catch {
      // It has ended already.
    }
  }
}

async function text(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}
