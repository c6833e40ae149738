// One callback at length: every check, every rule whose path fits, and the same call as a curl command.

import { ask, query } from "./api.js";
import { h, say } from "./dom.js";
import { bytes, duration, mark, quoted } from "./words.js";

export async function explained(callback) {
  const { session, method, path, verdict, code } = callback;
  const told = await ask(`explain${query({ session, method, path, verdict })}&${new URLSearchParams({ code })}${path ? "" : "&path="}`);
  return h("div", { class: "explained" },
    facts(callback),
    h("div", { class: "two" }, checks(told.steps), rules(told)),
    path && curl(callback));
}

function facts(c) {
  const list = [
    ["Request", h("span", { class: "id" }, c.request_id)],
    ["Session", h("a", { class: "id", href: `#/session/${c.session}` }, c.run_id)],
    ["Rule", c.rule ? h("span", { class: "id" }, c.rule) : "none allowed it"],
    ["Answer", `${c.status || "caller had gone"}${c.code ? ` ${c.code}` : ", the upstream's"} · ${bytes(c.answer_bytes)} · ${duration(c.duration_us)}`],
  ];
  return h("dl", { class: "facts" }, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function checks(steps) {
  return h("section", {},
    h("h3", {}, "Checks, in their order"),
    h("ol", { class: "checks" }, steps.map((step) => h("li", { class: step.state },
      mark(step.state, step.name), h("span", { class: "dim" }, step.state === "stopped" ? `stopped here: ${step.asks}` : step.state === "not_reached" ? "not reached" : step.state === "not_needed" ? "not needed: asked of the bridge itself" : step.asks)))));
}

function rules({ policy, note }) {
  return h("section", {},
    h("h3", {}, "Rules"),
    note && h("p", { class: "notice" }, note),
    policy && [
      h("p", {}, mark(policy.verdict === "allow" ? "allow" : "deny", policy.verdict === "allow" ? "allowed" : "denied"), `: ${policy.why}`, policy.reason === "deny_rule" && ", and wins over any that allows"),
      policy.considered.length === 0 ? h("p", { class: "dim" }, "No rule has a path that fits.") :
        h("ol", { class: "rules" }, policy.considered.map((rule) => h("li", { class: rule.applies ? "applies" : "" },
          h("span", { class: "effect" }, rule.effect === "allow" ? "allow" : "deny"), " ", h("span", { class: "id" }, rule.rule),
          h("span", { class: rule.applies ? "" : "dim" }, rule.applies ? " applies" : ` does not apply: ${rule.but}`),
          rule.expiry && h("span", { class: "dim" }, `, ${rule.expiry}`),
          rule.reason && h("p", { class: "dim" }, `“${rule.reason}”`)))),
      policy.hint && h("p", {}, h("span", { class: "dim" }, "The caller was told: "), policy.hint),
    ],
    !policy && !note && h("p", { class: "dim" }, "No rule was asked."));
}

function curl(c) {
  const words = ["curl -i"];
  if (c.method !== "GET") words.push(`-X ${c.method}`);
  words.push(`"$PAPERCLIP_API_URL"${quoted(c.path)}`, `-H "Authorization: Bearer $PAPERCLIP_API_KEY"`);
  if (["POST", "PUT", "PATCH"].includes(c.method)) words.push("-H 'Content-Type: application/json'", "--data @body.json");
  const text = words.join(" ");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied. It has no token in it.");
    } catch {
      say("The browser did not let it be copied.");
    }
  };
  return h("div", { class: "curl" },
    h("pre", { tabindex: "0", "aria-label": "As curl" }, h("code", {}, text)),
    h("button", { type: "button", onclick: copy }, "Copy as curl"),
    h("p", { class: "dim" }, "Without the token, the query and the body, which are written down nowhere."));
}
