// How the peer's host reaches a "sandbox": a shell on this machine, or one behind a real SSH server.
//
// Here: the two seams that the peer's host asks for, `execute` and `openDuplexChannel`. Not here: what is run.

import { spawn } from "node:child_process";

/** Runs commands on this machine, with `environment` as the sandbox's own. */
export function localRunner(environment) {
    return {
        execute: (input) => execute(input, environment),
        openDuplexChannel: async ({ command }) => duplex(spawn(command[0], command.slice(1), { env: environment })),
    };
}

/** As the given SSH runner, with a duplex channel made of one more `ssh` (its arguments before the command). */
export function sshRunner(runner, sshArguments, quote) {
    return {
        execute: (input) => runner.execute(input),
        openDuplexChannel: async ({ command }) =>
            duplex(spawn("ssh", [...sshArguments, command.map(quote).join(" ")], { stdio: "pipe" })),
    };
}

function execute(input, environment) {
    const startedAt = new Date().toISOString();
    return new Promise((resolve) => {
        const child = spawn(input.command, input.args ?? [], {
            cwd: input.cwd,
            env: { ...environment, ...input.env },
            stdio: "pipe",
        });
        const output = { stdout: [], stderr: [] };
        let timedOut = false;
        const limit = setTimeout(() => {
            timedOut = true;
            child.kill("SIGKILL");
        }, input.timeoutMs ?? 30_000);
        for (const stream of ["stdout", "stderr"]) {
            child[stream].on("data", (chunk) => {
                output[stream].push(chunk);
                void input.onLog?.(stream, chunk.toString("utf8"));
            });
        }
        let ended = false;
        const end = (exitCode, signal) => {
            if (ended) return;
            ended = true;
            clearTimeout(limit);
            const text = (chunks) => Buffer.concat(chunks).toString("utf8");
            resolve({
                exitCode,
                signal,
                timedOut,
                stdout: text(output.stdout),
                stderr: text(output.stderr),
                pid: child.pid ?? null,
                startedAt,
            });
        };
        child.once("error", () => end(127, null));
        child.once("close", end);
        // A command that reads nothing may close its input first.
        child.stdin.on("error", () => undefined);
        child.stdin.end(input.stdin ?? "");
    });
}

function duplex(child) {
    child.stdin.on("error", () => undefined);
    child.stderr.on("data", (chunk) => process.stderr.write(chunk));
    const ended = new Promise((resolve) => {
        child.once("close", (exitCode) => resolve({ exitCode }));
        child.once("error", () => resolve({ exitCode: 127 }));
    });
    return {
        pid: child.pid,
        write: (bytes) => void child.stdin.write(bytes),
        onData: (listener) => void child.stdout.on("data", listener),
        onExit: (listener) => void ended.then(listener),
        stop: () => void child.kill("SIGTERM"),
        close: async () => {
            child.stdin.end();
            // The peer's gateway does not end with its input; a provider ends the process.
            const limit = setTimeout(() => child.kill("SIGTERM"), 500);
            await ended;
            clearTimeout(limit);
        },
    };
}
