// Goes through the dashboard as an operator does, in a headless Chromium, and looks at what an operator would.
//
// Told by its environment: PEERS (the folder of what is installed), WORLD (JSON: where the daemon is, and its sessions'
// agents), SHOTS (where pictures go). DASHBOARD_ASSETS names a folder whose files stand in for those of the program, so
// that a change of the page can be looked at without building. Prints `ok …` for each step, and fails at the first
// that does not hold.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(`${process.env.PEERS}/package.json`);
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const world = JSON.parse(process.env.WORLD);
const { busy, silent, doomed, laddered } = world.agents;
const shots = process.env.SHOTS;
const SOON = 60_000;

const profile = mkdtempSync(join(tmpdir(), "dashboard-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: world.chromium,
  headless: true,
  viewport: { width: 1280, height: 900 },
  colorScheme: "light",
  permissions: ["clipboard-read", "clipboard-write"],
  acceptDownloads: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
context.setDefaultTimeout(SOON);
const assets = process.env.DASHBOARD_ASSETS;
if (assets) {
  await context.route(/\/dashboard\/[a-z]+\.(js|css|svg)$/, async (route) => {
    const name = new URL(route.request().url()).pathname.slice("/dashboard/".length);
    const answer = await route.fetch();
    await route.fulfill({ response: answer, body: answer.status() === 200 ? readFileSync(join(assets, name), "utf8") : undefined });
  });
}
const page = context.pages()[0] ?? (await context.newPage());

// What the browser complains of, and what it was asked to fetch from elsewhere.
const complaints = [];
let expected = [];
page.on("console", (message) => {
  if (message.type() !== "error" && message.type() !== "warning") return;
  if (!expected.some((text) => message.text().includes(text))) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => {
  if (!request.url().startsWith(world.base) && !request.url().startsWith("blob:")) complaints.push(`asked for ${request.url()}`);
});

const step = async (name, act) => {
  const began = performance.now();
  await act();
  console.log(`ok ${name} (${Math.round(performance.now() - began)} ms)`);
};

const shot = (name, fullPage = true) => page.screenshot({ path: join(shots, `${name}.png`), fullPage });

// One call of an agent.
const call = (agent, method, path, body) => fetch(agent.url + path, {
  method, body, headers: { authorization: `Bearer ${agent.token}`, ...(body ? { "content-type": "application/json" } : {}) },
}).then((answer) => answer.arrayBuffer().then(() => answer.status));

// Nothing that axe finds, and nothing wider than the window.
const EVERYTHING = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
async function sound(what, rules = EVERYTHING) {
  await page.evaluate(AXE);
  const found = await page.evaluate((runOnly) => globalThis.axe.run(document, { runOnly }), rules);
  const faults = found.violations.map((fault) => `${fault.id}: ${fault.nodes.map((node) => `${node.target} ${node.failureSummary}`).join(" | ")}`);
  assert.deepEqual(faults, [], `${what}: accessibility`);
  const { wide, window: width } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth, window: innerWidth }));
  assert.ok(wide <= width, `${what}: ${wide} px wide in a window of ${width}`);
}

const go = async (hash) => {
  await page.goto(`${world.base}/dashboard/${hash}`);
};

async function main() {
  await step("a wrong token is refused in words", async () => {
    expected = ["401"];
    await page.goto(`${world.base}/dashboard/`);
    assert.match(page.url(), /\/dashboard\/login$/);
    await page.getByLabel("Token").fill("pbd_wrong");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: "works once" }).waitFor();
    await sound("login");
    await shot("login-light");
    expected = [];
  });

  await step("a good one opens the page and does not stay in its address", async () => {
    await page.goto(world.login);
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    assert.equal(page.url(), `${world.base}/dashboard/`);
    assert.ok((await page.evaluate(() => document.cookie)) === "", "a script sees the cookie");
  });

  await step("the overview shows the upstream and every session", async () => {
    for (const agent of Object.values(world.agents)) await page.getByRole("link", { name: agent.run }).waitFor();
    await page.getByText("answers").first().waitFor();
    await page.getByText(/runs have made no call yet/).waitFor();
  });

  await step("the callback that an agent makes is seen live", async () => {
    await page.getByRole("link", { name: "Live" }).click();
    await page.getByText("Callbacks appear here").waitFor();
    assert.equal(await call(busy, "GET", "/api/agents/me"), 200);
    await page.getByRole("button", { name: /allow 200 GET \/api\/agents\/me/ }).waitFor();
  });

  await step("a denied one is explained, check by check and rule by rule, by keyboard", async () => {
    assert.equal(await call(busy, "POST", "/api/issues/PAP-1/comments", '{"body":"x"}'), 403);
    assert.equal(await call(busy, "POST", "/agents/me", "{}"), 403);
    assert.equal(await call({ ...busy, token: "pcb_nobody" }, "GET", "/api/agents/me"), 401);
    const row = page.getByRole("button", { name: /deny 403 POST \/api\/issues\/PAP-1\/comments/ });
    await row.focus();
    await page.keyboard.press("Enter");
    await page.getByText("stopped here: a rule that allows it").waitFor();
    await page.getByText("quiet applies").waitFor();
    await page.getByText("comments are made by people").first().waitFor();
    assert.equal(await row.getAttribute("aria-expanded"), "true");
  });

  await step("it is copied as curl, without the token", async () => {
    await page.getByRole("button", { name: "Copy as curl" }).click();
    await page.getByText("Copied.").waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(copied.startsWith(`curl -i -X POST "$PAPERCLIP_API_URL"'/api/issues/PAP-1/comments'`), copied);
    assert.ok(!copied.includes(busy.token) && copied.includes("$PAPERCLIP_API_KEY"), copied);
  });

  await step("the live view is sound in the light, in the dark and on a phone", async () => {
    for (let n = 0; n < 16; n += 1) await call(n % 3 ? busy : doomed, "GET", `/api/issues/PAP-${n % 5}`);
    await call(busy, "GET", "/_bridge/whoami");
    await looked("live");
  });

  await step("a filter leaves what was asked for, also in the address", async () => {
    await page.getByLabel("denied only").check();
    await page.getByRole("button", { name: / allow \d/ }).first().waitFor({ state: "detached" });
    await page.getByRole("button", { name: /deny 403 POST \/agents\/me/ }).waitFor();
    await page.getByLabel("Route").fill("comments post");
    await page.getByRole("button", { name: /\/agents\/me/ }).first().waitFor({ state: "detached" });
    await page.getByRole("button", { name: /deny 403 POST \/api\/issues\/PAP-1\/comments/ }).waitFor();
    assert.match(page.url(), /#\/live\?route=comments\+post&denied=1$/);
    await page.getByLabel("Run").fill("nobody");
    await page.getByText("Nothing yet.").waitFor();
  });

  await step("the overview is sound in the light, in the dark and on a phone", async () => {
    await go("#/");
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    await page.getByText("answers").first().waitFor();
    await page.waitForFunction(() => [...document.querySelectorAll(".readouts .figure")].some((figure) => figure.textContent === "3"));
    await looked("overview");
  });

  await step("a session is found, and a run that made no call is warned of", async () => {
    await page.getByLabel("Find").fill(silent.run);
    await page.getByRole("link", { name: busy.run }).waitFor({ state: "detached" });
    await page.getByRole("link", { name: silent.run }).click();
    await page.getByText(/No call yet/).waitFor();
    await page.getByText(`paperclip-bridge sessions env ${silent.session}`).waitFor();
    await sound("a silent session");
    await shot("silent-light");
  });

  if (laddered) {
    await step("a session says which tunnels it did not get, and why", async () => {
      await go(`#/session/${laddered.session}`);
      await page.getByText("forwarding_refused").waitFor();
      await page.getByText("http2_v1 taken").waitFor();
      if (world.other_logins) await page.getByText(/can log in on the target/).waitFor();
      await page.getByRole("button", { name: "Measure" }).click();
      await page.getByText(/^[\d.]+ (µs|ms|s)/).first().waitFor();
      await looked("session");
    });
  }

  await step("its callbacks are exported as HAR", async () => {
    await go(`#/session/${busy.session}`);
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Export as HAR" }).click()]);
    const har = JSON.parse(readFileSync(await download.path(), "utf8"));
    assert.ok(har.log.entries.length >= 12, `${har.log.entries.length} entries`);
    assert.ok(har.log.entries.some((entry) => entry.response.status === 403));
    assert.ok(!JSON.stringify(har).includes(busy.token));
  });

  await step("a session is revoked by keyboard, after a question", async () => {
    await go(`#/session/${doomed.session}`);
    await page.getByRole("button", { name: "Revoke …" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog", { name: "Revoke this session?" }).waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "hidden" });
    assert.equal(await call(doomed, "GET", "/api/agents/me"), 200);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await sound("the question");
    await shot("revoke-light", false);
    // Drawn anew around it, twice, and it stays.
    for (let n = 0; n < 2; n += 1) await page.waitForResponse((answer) => answer.url().endsWith(`/sessions/${doomed.session}`));
    // What cannot be undone is not what the next key does.
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Keep it");
    await page.keyboard.press("Shift+Tab");
    await page.keyboard.press("Enter");
    await page.getByText("ended · revoked").waitFor();
    await assert.rejects(call(doomed, "GET", "/api/agents/me"));
  });

  await step("the browser had nothing to complain of", async () => {
    assert.deepEqual(complaints, []);
  });

  await step("whoever logs out is out", async () => {
    expected = ["401"];
    await page.getByRole("button", { name: "Log out" }).click();
    await page.waitForURL(/\/dashboard\/login$/);
    await page.goto(`${world.base}/dashboard/`);
    assert.match(page.url(), /\/dashboard\/login$/);
  });
}

// The same page by day, by night and on a phone.
async function looked(name) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    // Only colours differ by night.
    await sound(`${name}, ${scheme}`, scheme === "light" ? EVERYTHING : ["color-contrast"]);
    await shot(`${name}-${scheme}`);
  }
  await page.setViewportSize({ width: 360, height: 740 });
  await sound(`${name}, 360 px`, ["target-size", "scrollable-region-focusable", "meta-viewport"]);
  await shot(`${name}-phone`);
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: "light" });
}

try {
  await main();
} catch (error) {
  await shot("failed").catch(() => {});
  console.error(error, complaints);
  process.exitCode = 1;
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
