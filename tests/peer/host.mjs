// The peer's host for one session, as its server would start it.
//
// The first line of standard input is a JSON object: `package` (folder of the release), `transport`, `upstream`,
// `credential`, `runId`, `folder` (of the sandbox), `path` (PATH in the sandbox: its first `node` is the gateway)
// and perhaps `maxBodyBytes` and `ssh` ({spec, arguments}). One JSON line on standard output says how the agent
// finds it; the end of standard input ends it.

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

let runner;
if (wanted.ssh) {
    const { createSshCommandManagedRuntimeRunner, shellQuote } = await load("ssh.js");
    const base = createSshCommandManagedRuntimeRunner({ spec: wanted.ssh.spec, defaultCwd: wanted.folder });
    runner = sshRunner(base, wanted.ssh.arguments, shellQuote);
} else {
    const environment = { PATH: wanted.path, HOME: wanted.folder, LANG: "C.UTF-8" };
    runner = localRunner(environment);
}

const log = [];
const bridge = await startAdapterExecutionTargetPaperclipBridge({
    runId: wanted.runId,
    target: {
        kind: "remote",
        transport: "sandbox",
        providerKey: "daytona",
        remoteCwd: wanted.folder,
        timeoutMs: 30_000,
        runner,
        streamRunLogs: false,
        effectiveCapabilities: { duplexCommandStream: duplexWanted },
    },
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
