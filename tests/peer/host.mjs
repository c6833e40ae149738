// The peer's host for one session, as its server would start it.
//
// The first line of standard input is a JSON object: `package` (folder of the release), `transport`, `upstream`,
// `credential`, `runId`, `folder` (of the sandbox), `path` (PATH in the sandbox: its first `node` is the gateway)
// and perhaps `maxBodyBytes` and `ssh` ({spec, arguments}; the peer's own SSH targets have the queue only, and the
// arguments are for the other transport). One JSON line on standard output says how the agent finds it; the end of
// standard input ends it.

import { createInterface } from "node:readline";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { localRunner, sshRunner } from "./runner.mjs";

const lines = createInterface({ input: process.stdin });
const first = await new Promise((resolve) => lines.once("line", resolve));
const closed = new Promise((resolve) => lines.once("close", resolve));
const wanted = JSON.parse(first);
const load = (file) => import(pathToFileURL(path.join(wanted.package, "dist", file)).href);

const { startAdapterExecutionTargetPaperclipBridge } = await load("execution-target.js");
const duplexWanted = wanted.transport === "http2_v1";

const target = { kind: "remote", remoteCwd: wanted.folder };
if (wanted.ssh && !duplexWanted) {
    Object.assign(target, { transport: "ssh", spec: wanted.ssh.spec });
} else {
    Object.assign(target, {
        transport: "sandbox",
        providerKey: "daytona",
        timeoutMs: 30_000,
        runner: await sandboxRunner(),
        streamRunLogs: false,
        effectiveCapabilities: { duplexCommandStream: duplexWanted },
    });
}

async function sandboxRunner() {
    if (!wanted.ssh) {
        return localRunner({ PATH: wanted.path, HOME: wanted.folder, LANG: "C.UTF-8" });
    }
    const { createSshCommandManagedRuntimeRunner, shellQuote } = await load("ssh.js");
    const base = createSshCommandManagedRuntimeRunner({ spec: wanted.ssh.spec, defaultCwd: wanted.folder });
    return sshRunner(base, wanted.ssh.arguments, shellQuote);
}

const log = [];
const bridge = await startAdapterExecutionTargetPaperclipBridge({
    runId: wanted.runId,
    target,
    runtimeRootDir: path.join(wanted.folder, "runtime"),
    adapterKey: "interop",
    hostApiToken: wanted.credential,
    hostApiUrl: wanted.upstream,
    maxBodyBytes: wanted.maxBodyBytes ?? null,
    enableSandboxDuplexBridge: duplexWanted,
    onLog: async (stream, text) => {
        log.push(text);
        process.stderr.write(text);
    },
});
const mode = bridge.env.PAPERCLIP_API_BRIDGE_MODE;
if (mode !== wanted.transport) {
    // It falls back in silence; a comparison with the wrong transport would prove nothing.
    await bridge.stop();
    throw new Error(`the peer's host took ${mode}: ${log.join("")}`);
}
const opened = { url: bridge.env.PAPERCLIP_API_URL, token: bridge.env.PAPERCLIP_API_KEY, mode };
process.stdout.write(`${JSON.stringify(opened)}\n`);

await closed;
await bridge.stop();
process.exit(0);
