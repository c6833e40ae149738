// The Worker in the real runtime, with all that it talks to, on loopback.
//
// Here: writing the runtime's configuration, starting, killing and restarting it, and ending everything by process id.
// Not here: any test. `WORKER_PEERS` names the folder where tests/worker/package.json was installed.

import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

import { startExecService } from './exec-service.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const MODULES = [
  'answers', 'bytes', 'command', 'core', 'envelope', 'events', 'exec', 'lease', 'leases', 'names', 'nonces', 'settings', 'target',
  'relay/call', 'relay/callback', 'relay/connect', 'relay/frames', 'relay/headers', 'relay/link', 'relay/object', 'relay/problem',
];
const OBJECTS = { BRIDGE_LEASES: 'BridgeLeases', BRIDGE_NONCES: 'BridgeNonces', BRIDGE_RELAY: 'BridgeRelay' };
const START_MS = 30_000;
/** Kills what it started once its standard input ends, also when that is because this process was killed. */
const KEEPER = '"$@" & runtime=$!; exec 3>&-; read -r _; kill -9 "$runtime"; wait "$runtime"';

/** The key of the published test vectors: bytes 0 to 31. */
export const KEY = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
export const TOKEN = 'bridge-token-of-the-tests';

/** The folder of the installed packages. */
export function peers() {
  const folder = process.env.WORKER_PEERS;
  if (!folder) throw new Error('WORKER_PEERS must name the folder where tests/worker/package.json was installed');
  return folder;
}

/**
 * Starts the Worker.
 *
 * @param {Record<string, string>} [variables] of the Worker; hosts default to the addresses that it listens on
 */
export async function startWorld(variables = {}) {
  const root = await mkdtemp(join(tmpdir(), 'worker-'));
  await mkdir(join(root, 'storage'));
  const exec = await startExecService(root);
  const world = new World(root, exec, variables);
  try {
    await world.start();
  } catch (error) {
    await world.stop();
    throw error;
  }
  return world;
}

class World {
  #root;
  #exec;
  #variables;
  #child = null;
  #log = '';
  #workspaces = 0;

  constructor(root, exec, variables) {
    this.#root = root;
    this.#exec = exec;
    this.#variables = variables;
    this.port = 0;
    this.relayPort = 0;
  }

  /** Where the bridge API is. */
  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Where the relay is served at `/`. */
  get relayUrl() {
    return `http://127.0.0.1:${this.relayPort}`;
  }

  get pid() {
    return this.#child?.pid;
  }

  /** What the runtime wrote. */
  get log() {
    return this.#log;
  }

  /** A working directory that goes with its sandbox. */
  workspace() {
    this.#workspaces += 1;
    return join(this.#root, 'work', String(this.#workspaces));
  }

  /** Starts the runtime; on the ports of before if it ran before. */
  async start() {
    // Between looking for a free port and taking it, somebody else may take it.
    for (let attempt = 1; ; attempt += 1) {
      if (this.port === 0 || attempt > 1) [this.port, this.relayPort] = await freePorts(2);
      const config = join(this.#root, 'worker.capnp');
      await writeFile(config, this.#config());
      try {
        return await this.#serve(config);
      } catch (error) {
        if (attempt === 3) throw error;
      }
    }
  }

  async #serve(config) {
    const program = join(peers(), 'node_modules/@cloudflare/workerd-linux-64/bin/workerd');
    const command = ['-c', KEEPER, 'keeper', program, 'serve', '--control-fd=3', config];
    const child = spawn('/bin/sh', command, { stdio: ['pipe', 'pipe', 'pipe', 'pipe'], env: {} });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (bytes) => {
        this.#log = (this.#log + bytes).slice(-65_536);
      });
    }
    let told = '';
    const listening = new Promise((resolve, reject) => {
      child.stdio[3].on('data', (bytes) => {
        told += bytes;
        if (told.split('"event":"listen"').length > 2) resolve();
      });
      child.stdio[3].on('end', () => reject(new Error(`workerd has ended: ${this.#log}`)));
      child.on('error', reject);
      setTimeout(() => reject(new Error(`workerd did not listen in time: ${this.#log}`)), START_MS).unref();
    });
    await listening;
  }

  /** Kills the runtime as a crash does; what it stored stays. */
  async kill() {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.on('exit', resolve));
    child.stdin.end();
    await ended;
  }

  /** Kills and starts it. */
  async restart() {
    await this.kill();
    await this.start();
  }

  /** Ends everything. */
  async stop() {
    await this.kill();
    await this.#exec.stop();
    await rm(this.#root, { recursive: true, force: true });
  }

  #config() {
    const keys = { k1: { key: KEY.toString('base64'), notAfter: null } };
    const variables = {
      BRIDGE_AUTH_MODE: 'either',
      BRIDGE_AUTH_TOKEN: TOKEN,
      BRIDGE_HMAC_KEYS: JSON.stringify(keys),
      BRIDGE_DEFAULT_CWD: join(this.#root, 'work/default'),
      TEST_KEEP_ALIVE_MS: '15000',
      ...this.#variables,
    };
    // Hosts of a test's own stand beside the addresses that are known only now.
    variables.BRIDGE_ALLOWED_HOSTS = [`127.0.0.1:${this.port}`, variables.BRIDGE_ALLOWED_HOSTS ?? ''].join();
    variables.BRIDGE_RELAY_HOSTS = [`127.0.0.1:${this.relayPort}`, variables.BRIDGE_RELAY_HOSTS ?? ''].join();
    const source = (path) => JSON.stringify(relative(this.#root, join(HERE, '..', path)));
    const modules = ['test/entry', ...MODULES.map((name) => `src/${name}`)].map((name) => `(name = "${name}.js", esModule = embed ${source(`${name}.js`)})`);
    const objects = Object.entries(OBJECTS);
    const bindings = [
      ...Object.entries(variables).map(([name, value]) => `(name = "${name}", text = ${JSON.stringify(value)})`),
      ...objects.map(([name, type]) => `(name = "${name}", durableObjectNamespace = "${type}")`),
      '(name = "EXEC", service = "exec")',
      ...(variables.TEST_UPSTREAM ? ['(name = "UPSTREAM", service = "upstream")'] : []),
    ];
    return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "worker", worker = (
      modules = [${modules.join(',\n        ')}],
      compatibilityDate = "2026-06-01",
      compatibilityFlags = ["enable_request_signal", "request_signal_passthrough"],
      durableObjectNamespaces = [${objects.map(([, type]) => `(className = "${type}", uniqueKey = "${type}", enableSql = true)`).join(', ')}],
      durableObjectStorage = (localDisk = "storage"),
      bindings = [${bindings.join(',\n        ')}])),
    (name = "storage", disk = (path = ${JSON.stringify(join(this.#root, 'storage'))}, writable = true)),
    (name = "exec", external = (address = "127.0.0.1:${this.#exec.port}", http = ())),
${variables.TEST_UPSTREAM ? `    (name = "upstream", external = (address = "${variables.TEST_UPSTREAM}", http = ())),\n` : ''}  ],
  sockets = [
    (name = "bridge", address = "127.0.0.1:${this.port}", http = (), service = "worker"),
    (name = "relay", address = "127.0.0.1:${this.relayPort}", http = (), service = "worker"),
  ],
);
`;
  }
}

async function freePorts(count) {
  const servers = Array.from({ length: count }, () => createServer());
  await Promise.all(servers.map((server) => new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))));
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
