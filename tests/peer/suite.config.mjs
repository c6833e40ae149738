// How the peer's published tests are run: `SUITE_ROOT` is their folder, `SUITE_REPORT` the file for the results.
// With `SUITE_NODE`, that program stands for `node`, also where a test starts its own interpreter.

export default {
    test: {
        root: process.env.SUITE_ROOT,
        include: ["sandbox-callback-bridge.test.js", "execution-target-sandbox.test.js"],
        // They live below node_modules and dist, which are left out otherwise.
        exclude: [],
        setupFiles: process.env.SUITE_NODE ? [new URL("suite.setup.mjs", import.meta.url).pathname] : [],
        testTimeout: 60_000,
        hookTimeout: 60_000,
        reporters: [["json", { outputFile: process.env.SUITE_REPORT }]],
        server: { deps: { inline: [/adapter-utils/] } },
    },
};
