// One command line in a session of a sandbox, to its end or its time-out.
//
// Here: the deadline, the bound of what is held of its output, and quoting for the shell. Not here: which command
// (exec.js, lease.js).

/**
 * Runs one command line to its end or its time-out.
 *
 * @param {import('./sandbox.js').Session} session
 * @param {string} line
 * @param {number} timeoutMs
 * @param {number} maxBytes of each output that the result holds
 * @param {((stream: string, text: string) => Promise<void>)|null} [onOutput]
 * @param {AbortSignal} [signal]
 */
export async function run(session, line, timeoutMs, maxBytes, onOutput = null, signal = undefined) {
  const held = { stdout: capped(maxBytes), stderr: capped(maxBytes) };
  const late = AbortSignal.timeout(timeoutMs);
  const options = {
    timeoutMs,
    signal: signal ? AbortSignal.any([late, signal]) : late,
    onOutput: async (stream, chunk) => {
      held[stream].add(chunk);
      await onOutput?.(stream, chunk);
    },
  };
  const result = (exitCode, timedOut, note) => {
    const truncated = held.stdout.cut || held.stderr.cut ? { truncated: true } : {};
    return { exitCode, signal: null, timedOut, stdout: held.stdout.text(), stderr: held.stderr.text() + note, ...truncated };
  };
  try {
    return result(await Promise.race([session.run(line, options), rejection(late)]), false, '');
  } catch (error) {
    if (!late.aborted && !/time(?:d )?-?out/i.test(error.message ?? '')) throw error;
    return result(null, true, `the command timed out after ${timeoutMs} ms\n`);
  }
}

const rejection = (signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

/** Text up to a limit; what comes after is dropped, and said so. */
function capped(limit) {
  const chunks = [];
  let total = 0;
  return {
    cut: false,
    add(chunk) {
      if (this.cut) return;
      total += chunk.length;
      this.cut = total > limit;
      if (!this.cut) chunks.push(chunk);
    },
    text: () => chunks.join(''),
  };
}

/** A word for a POSIX shell. */
export const quote = (word) => `'${word.replaceAll("'", String.raw`'\''`)}'`;
