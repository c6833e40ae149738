// The Worker as it is tested: the same bridge, with a sandbox played on loopback behind it.
//
// Here: the interface of src/sandbox.js over test/exec-service.mjs, and what only tests may ask for by headers: another
// clock, a store of nonces that is down, when the relay wakes, and what a benchmark holds the relay against.

import { createBridge } from '../src/core.js';
import { BridgeRelay as Relay } from '../src/relay/object.js';

export { BridgeLeases } from '../src/leases.js';
export { BridgeNonces } from '../src/nonces.js';

/** Says in the runtime's log each time it comes into being: the first time, and whenever it slept. */
export class BridgeRelay extends Relay {
  constructor(ctx, env) {
    super(ctx, env);
    console.log(`a relay wakes: ${ctx.id}`);
  }
}

const open = (env, sandbox) => {
  const call = async (name, ask) => {
    const response = await env.EXEC.fetch(`http://exec/${name}`, { method: 'POST', body: JSON.stringify({ sandbox, ...ask }) });
    const reply = await response.json();
    if (reply.error !== undefined) throw new Error(reply.error);
    return reply;
  };
  const session = (id) => ({
    async run(command, { signal, onOutput }) {
      const body = JSON.stringify({ sandbox, session: id, command });
      const response = await env.EXEC.fetch('http://exec/run', { method: 'POST', body, signal });
      for await (const event of lines(response.body)) {
        if (event.error !== undefined) throw new Error(event.error);
        if (event.exitCode !== undefined) return event.exitCode;
        if (event.data !== '') await onOutput(event.stream, event.data);
      }
      throw new Error('the sandbox ended without a result');
    },
  });
  return {
    session: async (id) => session(id ?? ''),
    deleteSession: (id) => call('delete-session', { session: id }),
    mkdir: (path) => call('mkdir', { path }),
    read: async (path) => (await call('read', { path })).content,
    write: (path, content, encoding) => call('write', { path, content, encoding }),
    remove: (path) => call('remove', { path }),
    destroy: () => call('destroy', {}),
  };
};

async function* lines(body) {
  let rest = '';
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    const whole = (rest + chunk).split('\n');
    rest = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

/** The clock of a test, in milliseconds, where it names one or how far it is off. */
const clock = (env) => (request) => Number(request.headers.get('x-test-now') ?? Date.now() + Number(env.TEST_CLOCK_OFF_MS ?? 0));

/** A store that is down, where a test asks for that. */
const down = {
  idFromName: () => null,
  get: () => ({ take: () => Promise.reject(new Error('the store is down')) }),
};

/** The Worker asks the API itself, where a benchmark has named one. */
const direct = (request, env) => {
  const { pathname, search } = new URL(request.url);
  return env.UPSTREAM.fetch(`http://upstream${pathname}${search}`, { headers: JSON.parse(env.TEST_UPSTREAM_HEADERS) });
};

export default {
  async fetch(request, env, ctx) {
    if (env.UPSTREAM && request.headers.get('authorization') === 'Bearer direct') return direct(request, env);
    const bridge = createBridge({ open, now: clock(env), keepAliveMs: Number(env.TEST_KEEP_ALIVE_MS) });
    const bindings = request.headers.get('x-test-nonces') === 'down' ? { ...env, BRIDGE_NONCES: down } : env;
    return bridge.fetch(request, bindings, ctx);
  },
};
