// Commands in a leased sandbox.
//
// Here: the script that is run, its standard input, time-outs that clean up, and results that are kept for a repeated
// request. Not here: how output is streamed (events.js), leases (lease.js).

import { invalid, lost, Refusal, reply } from './answers.js';
import { quote, run } from './command.js';
import { eventStream } from './events.js';
import { failed, hasSentinel, leaseOf, requestIdOf, required, sessionOf, text, timeout } from './lease.js';
import { sandboxId, stdinPath } from './names.js';

const ENV_KEY = /^[A-Za-z_][A-Za-z0-9_]*$/;
/** Commands that carry callbacks run beside the agent's own: a session takes one at a time. */
const CHANNEL = 'PAPERCLIP_SANDBOX_EXEC_CHANNEL';

/** `POST /exec`: a result, or a stream of events that ends with it. */
export async function exec(bridge, fields, digest, proof) {
  const ask = asked(fields);
  const lease = leaseOf(bridge, ask.leaseId);
  const begun = await begin(lease, ask, digest);
  const work = begun.result ? null : (onOutput, signal) => finished(bridge, lease, ask, begun.remoteCwd, onOutput, signal);
  if (!ask.streamOutput) {
    const result = begun.result ?? (await kept(bridge, ask, work(null, undefined)));
    if (result.fault) throw new Refusal(result.fault.status, result.fault.code, result.fault.message);
    return reply(200, result);
  }
  // What can be refused is refused before the head of the stream leaves.
  if (work) await checkSentinel(bridge, lease, ask, begun.remoteCwd);
  return eventStream(bridge, proof, begun.result ?? null, (onOutput, signal) => kept(bridge, ask, work(onOutput, ask.requestId ? undefined : signal)));
}

/** What is asked, checked. */
function asked(fields) {
  const env = fields.env ?? {};
  if (typeof env !== 'object' || Array.isArray(env)) throw invalid('env must be an object of texts');
  for (const [key, value] of Object.entries(env)) {
    if (!ENV_KEY.test(key)) throw invalid(`env: ${JSON.stringify(key)} is no name of a variable`);
    if (typeof value !== 'string') throw invalid(`env: ${key} must be a text`);
  }
  const { [CHANNEL]: channel, ...rest } = env;
  const session = sessionOf(fields);
  const requestId = requestIdOf(fields);
  return {
    leaseId: sandboxId(required(fields, 'providerLeaseId')),
    command: required(fields, 'command'),
    // The published bridge drops what is no text, and its callers may rely on that.
    args: Array.isArray(fields.args) ? fields.args.filter((one) => typeof one === 'string') : [],
    cwd: text(fields, 'cwd', null),
    env: rest,
    stdin: stdinOf(fields),
    timeoutMs: timeout(fields),
    streamOutput: fields.streamOutput === true,
    sessionStrategy: session.sessionStrategy,
    sessionId: channel === 'bridge' ? `${session.sessionId}-bridge` : session.sessionId,
    requestId,
  };
}

function stdinOf(fields) {
  const base64 = text(fields, 'stdinBase64', null);
  const plain = typeof fields.stdin === 'string' ? fields.stdin : null;
  if (base64 === null) return plain === null ? null : { content: plain, encoding: 'utf8' };
  if (plain !== null) throw invalid('stdin and stdinBase64 exclude each other');
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(base64)) throw invalid('stdinBase64 is not base64');
  return { content: base64, encoding: 'base64' };
}

/** Whether it may run, or has run before. */
async function begin(lease, ask, digest) {
  const begun = ask.requestId === null ? { state: 'new', remoteCwd: await lease.remoteCwd() } : await lease.begin(ask.requestId, digest, ask.timeoutMs);
  switch (begun.state) {
    case 'finished':
      return begun;
    case 'running':
      throw new Refusal(425, 'in_progress', 'this request runs, or what became of it is unknown; ask again', { 'retry-after': '1' });
    case 'other':
      throw invalid('this requestId belongs to another request');
    case 'dropped':
      throw new Refusal(410, 'result_not_kept', 'this request has run; its result was too large to be kept');
    default:
      if (begun.remoteCwd === null) throw lost(`no lease ${ask.leaseId} is held`);
      return begun;
  }
}

async function checkSentinel(bridge, lease, ask, remoteCwd) {
  try {
    if (await hasSentinel(bridge.open(ask.leaseId, {}), remoteCwd, ask.leaseId)) return;
    throw lost(`the sandbox of lease ${ask.leaseId} is gone or was made anew`);
  } catch (error) {
    if (ask.requestId !== null) await lease.forget(ask.requestId);
    throw failed(error);
  }
}

/** A command with a request id goes on when its caller has gone. */
function kept({ ctx }, ask, work) {
  if (ask.requestId !== null) ctx.waitUntil(work.catch(() => {}));
  return work;
}

/** Runs it and keeps the result, or the fault. */
async function finished(bridge, lease, ask, remoteCwd, onOutput, signal) {
  let result;
  try {
    if (!ask.streamOutput) await checkSentinel(bridge, lease, ask, remoteCwd);
    result = await once(bridge, lease, ask, onOutput, signal);
  } catch (error) {
    const { status, code, message } = failed(error);
    result = { fault: { status, code, message } };
    // It did not begin, and `checkSentinel` has forgotten it.
    if (code === 'sandbox_state_lost') return result;
  }
  if (ask.requestId !== null) await lease.finish(ask.requestId, result);
  return result;
}

async function once(bridge, lease, ask, onOutput, signal) {
  const sandbox = bridge.open(ask.leaseId, {});
  const session = await sandbox.session(ask.sessionStrategy === 'named' ? ask.sessionId : null);
  const input = ask.stdin === null ? null : stdinPath();
  if (input !== null) await sandbox.write(input, ask.stdin.content, ask.stdin.encoding);
  const { maxOutputBytes } = bridge.settings;
  const ended = await run(session, script(ask, input), ask.timeoutMs, maxOutputBytes, onOutput, signal);
  if (ended.timedOut) await cleanUp(sandbox, lease, ask);
  if (input !== null && !(ended.timedOut && ask.sessionStrategy === 'default')) {
    await sandbox.remove(input).catch((error) => console.error('a standard input was left behind', error));
  }
  return ended;
}

/** What timed out still runs: ends the session with it, or the whole sandbox where it has no session of its own. */
async function cleanUp(sandbox, lease, ask) {
  try {
    if (ask.sessionStrategy === 'named') return await sandbox.deleteSession(ask.sessionId);
    await sandbox.destroy();
    await lease.closed();
  } catch (error) {
    console.error('what timed out could not be ended', error);
  }
}

/** A login shell that finds what the user's profile sets up, then becomes the command. */
function script(ask, input) {
  const lines = ['[ -s "${NVM_DIR:-$HOME/.nvm}/nvm.sh" ] && . "${NVM_DIR:-$HOME/.nvm}/nvm.sh" >/dev/null 2>&1'];
  if (ask.cwd !== null) lines.push(`cd ${quote(ask.cwd)} || exit 1`);
  const assignments = Object.entries(ask.env).map(([key, value]) => `${key}=${quote(value)}`);
  const words = ['exec', 'env', ...assignments, quote(ask.command), ...ask.args.map(quote), '<', quote(input ?? '/dev/null')];
  return `sh -lc ${quote([...lines, words.join(' ')].join('\n'))}`;
}
