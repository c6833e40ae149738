// Writes the peer's gateway script into a folder: `node script.mjs PACKAGE FOLDER`. Prints its path.

import { copyFile } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [release, folder] = process.argv.slice(2);
const bridge = await import(pathToFileURL(path.join(release, "dist", "sandbox-callback-bridge.js")).href);
const asset = await bridge.createSandboxCallbackBridgeAsset();
const target = path.join(folder, "paperclip-bridge-server.mjs");
await copyFile(asset.entrypoint, target);
await asset.cleanup();
process.stdout.write(`${target}\n`);
