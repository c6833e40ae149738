// The sandbox as the bridge needs it, and how `@cloudflare/sandbox` provides it.
//
// Here: the interface, as types, and `cloudflare`, which takes `getSandbox` as an argument so that this file, like all
// others but index.js, loads without the package. Tests bind an interface of their own (test/entry.js).

/**
 * @typedef {object} Sandbox
 * @property {(id: string|null) => Promise<Session>} session got or created; null is the sandbox's default one
 * @property {(id: string) => Promise<void>} deleteSession ends what runs in it
 * @property {(path: string) => Promise<void>} mkdir with its parents
 * @property {(path: string) => Promise<string|null>} read null where there is no such file
 * @property {(path: string, content: string, encoding: 'utf8'|'base64') => Promise<void>} write
 * @property {(path: string) => Promise<void>} remove
 * @property {() => Promise<void>} destroy ends the sandbox with all that runs in it
 *
 * @typedef {object} Session
 * @property {(command: string, options: RunOptions) => Promise<number>} run gives the exit code
 *
 * @typedef {object} RunOptions
 * @property {number} timeoutMs
 * @property {AbortSignal} signal ends the command where the platform can
 * @property {(stream: 'stdout'|'stderr', text: string) => Promise<void>} onOutput
 *
 * @typedef {object} OpenOptions
 * @property {boolean} [keepAlive]
 * @property {string} [sleepAfter]
 * @property {boolean} [normalizeId]
 */

/**
 * Opens sandboxes of Cloudflare's containers.
 *
 * @param {Function} getSandbox of `@cloudflare/sandbox`
 * @param {Function} parseSSEStream of the same
 */
export const cloudflare = (getSandbox, parseSSEStream) => (env, id, options) => {
  const sandbox = getSandbox(env.Sandbox, id, options);
  return {
    session: async (name) => session(name === null ? sandbox : await sessionOf(sandbox, name), parseSSEStream),
    deleteSession: (name) => sandbox.deleteSession(name),
    mkdir: (path) => sandbox.mkdir(path, { recursive: true }),
    read: async (path) => ((await sandbox.exists(path)).exists ? (await sandbox.readFile(path)).content : null),
    write: (path, content, encoding) => sandbox.writeFile(path, content, { encoding }),
    remove: (path) => sandbox.deleteFile(path),
    destroy: () => sandbox.destroy(),
  };
};

async function sessionOf(sandbox, id) {
  try {
    return await sandbox.createSession({ id });
  } catch (error) {
    // It is there from an earlier call; any other fault shows again here.
    return await sandbox.getSession(id).catch(() => Promise.reject(error));
  }
}

const session = (target, parseSSEStream) => ({
  async run(command, { timeoutMs, signal, onOutput }) {
    const stream = await target.execStream(command, { timeout: timeoutMs, signal });
    for await (const event of parseSSEStream(stream, signal)) {
      if (event.type === 'stdout' || event.type === 'stderr') await onOutput(event.type, event.data ?? '');
      if (event.type === 'error') throw new Error(event.error ?? 'the command failed');
      if (event.type === 'complete') return event.exitCode ?? event.result?.exitCode ?? 0;
    }
    throw new Error('the sandbox ended the stream of events without a result');
  },
});
