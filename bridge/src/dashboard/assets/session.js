// One session: how it is reached, what it uses, and what it does.

import { ask } from "./api.js";
import { gauge, h, say } from "./dom.js";
import { follow } from "./live.js";
import { bytes, clock, count, duration, mark, since, span, whole } from "./words.js";

export function session(id) {
  const page = { title: "Session" };
  const feed = follow({ session: id, run: "", route: "", denied: false }, 60);
  const measured = { text: null, under_way: false };
  const again = () => page.again?.();
  // The list changes by itself, and is not drawn again.
  const calls = h("section", { "aria-labelledby": "callbacks", key: "callbacks", keeps: true },
    h("div", { class: "head" }, h("h2", { id: "callbacks" }, "Callbacks"), feed.standing), feed.told, feed.list, feed.empty);
  page.draw = async () => draw(await ask(`sessions/${encodeURIComponent(id)}`), measured, again, calls);
  page.end = feed.end;
  return page;
}

function draw(told, measured, again, calls) {
  const s = told.session;
  const open = s.state !== "ended" && s.state !== "draining";
  return h("div", { class: "page" },
    h("p", {}, h("a", { href: "#/" }, "← Overview")),
    h("div", { class: "head" },
      h("h1", {}, h("span", { class: "dim" }, "Run "), h("span", { class: "id" }, s.run_id)),
      h("p", {}, mark(s.state), s.reason && ` · ${s.reason}`, h("span", { class: "dim" }, ` for ${since(s.since)}`))),
    s.detail && h("p", { class: "notice" }, s.detail),
    s.warnings.map((warning) => h("p", { class: "notice warn" }, mark("degraded", warning.code), ` ${warning.detail}`)),
    s.state === "ready" && s.traffic.callbacks === 0 && h("div", { class: "notice warn" },
      h("p", {}, mark("degraded", `No call yet, for ${since(s.since)}.`), " The run could call, and has not. Look whether its process was given what this prints, and the token that was shown when the session was made:"),
      h("p", {}, h("code", {}, `paperclip-bridge sessions env ${s.session}`))),
    actions(told, open, again),
    h("div", { class: "two" }, tunnel(s, measured, open, again), limits(told, open)),
    about(told),
    calls);
}

function actions({ session: s, audit }, open, again) {
  const askFirst = () => {
    document.getElementById("revoke").showModal();
    document.getElementById("keep").focus();
  };
  const revoke = async () => {
    document.getElementById("revoke").close();
    try {
      await ask(`sessions/${s.session}/revoke`, { method: "POST" });
      say("Revoked: its token is void and its callers are cut.");
    } catch (fault) {
      say(fault.message);
    }
    again();
  };
  return h("div", { class: "actions" },
    open && h("button", { type: "button", class: "grave", key: "ask", onclick: askFirst }, "Revoke …"),
    audit ? h("a", { class: "button", key: "har", href: `/dashboard/api/sessions/${s.session}/har`, download: `session-${s.session}.har` }, "Export as HAR") :
      h("span", { class: "dim", key: "har" }, "No HAR: the audit is off."),
    h("a", { class: "button", key: "live", href: `#/live?session=${s.session}` }, "Filter live"),
    h("dialog", { id: "revoke", key: "dialog", keeps: true, "aria-labelledby": "revoke-title" },
      h("h2", { id: "revoke-title" }, "Revoke this session?"),
      h("p", {}, "The token is void and callers are cut at once. A write that was sent runs on to its deadline, so that its outcome becomes known. This cannot be undone."),
      h("p", { class: "actions" }, h("button", { type: "button", class: "grave", onclick: revoke }, "Revoke"),
        h("button", { type: "button", id: "keep", onclick: () => document.getElementById("revoke").close() }, "Keep it"))));
}

function tunnel(s, measured, open, again) {
  const measure = async () => {
    if (measured.under_way) return;
    measured.under_way = true;
    again();
    try {
      measured.text = duration((await ask(`sessions/${s.session}/round-trip`, { method: "POST" })).us);
    } catch (fault) {
      measured.text = fault.message;
    }
    measured.under_way = false;
    again();
  };
  return h("section", { "aria-labelledby": "tunnel" },
    h("h2", { id: "tunnel" }, "Tunnel"),
    h("ol", { class: "ladder" },
      s.ladder.map((rung) => h("li", {}, mark("skipped", rung.tunnel), h("span", { class: "dim" }, ` not taken after ${rung.ms} ms: `), h("span", { class: "id" }, rung.reason), h("p", { class: "dim" }, rung.detail))),
      h("li", {}, s.tunnel ? [mark("taken", s.tunnel), h("span", { class: "dim" }, s.ladder.length ? " taken" : " taken; the first that was tried")] : mark("starting", "none yet"))),
    h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "Round trip"), h("dd", { "aria-live": "polite" }, measured.text ?? h("span", { class: "dim" }, "not measured"), " ",
        open && h("button", { type: "button", class: "small", onclick: measure, title: "Runs `true` on the target" }, measured.under_way ? "…" : "Measure"))),
      h("div", {}, h("dt", {}, "Callbacks"), h("dd", {}, `p50 ${duration(s.traffic.p50_us)} · p95 ${duration(s.traffic.p95_us)}`)),
      h("div", {}, h("dt", {}, "Last one"), h("dd", {}, s.last_callback_at ? [clock(s.last_callback_at), h("span", { class: "dim" }, ` ${since(s.last_callback_at)} ago`)] : "–"))));
}

function limits({ session: s, used, heard_seconds, seconds_left }, open) {
  const life = (Date.parse(s.expires_at) - Date.parse(s.created_at)) / 1000;
  const t = s.traffic;
  const lines = [
    open && seconds_left != null && ["Time to live", `${span(seconds_left)} left of ${span(life)}`, life > 0 ? 1 - seconds_left / life : null],
    open && s.heartbeat_ms && ["Heartbeat", `heard ${span(heard_seconds)} ago; ends after ${span((3 * s.heartbeat_ms) / 1000)}`, heard_seconds / ((3 * s.heartbeat_ms) / 1000)],
    open && !s.heartbeat_ms && ["Heartbeat", "none asked for", null],
    used && ["Under way", `${whole(used.under_way)} of ${whole(used.most_under_way)}`, used.under_way / used.most_under_way],
    used && ["Bodies held", `${bytes(used.body_bytes)} of ${bytes(used.most_body_bytes)}; each at most ${bytes(used.max_body_bytes)}`, used.body_bytes / used.most_body_bytes],
    used && ["Rates", used.rates.length ? used.rates.map((rate) => `${rate.scope}, ${rate.class}: ${rate.rate}`).join("; ") : "no limit set", null],
  ].filter(Boolean);
  return h("section", { "aria-labelledby": "limits" },
    h("h2", { id: "limits" }, "Limits and use"),
    h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "Calls"), h("dd", {}, `${count(t.callbacks, "call", "calls")}, `, h("span", { class: t.denied ? "bad" : "" }, `${whole(t.denied)} denied`), `, ${whole(t.throttled)} throttled, `,
        h("span", { class: t.indeterminate ? "warn" : "" }, `${whole(t.indeterminate)} indeterminate`), s.open_outcomes ? `, ${whole(s.open_outcomes)} open now` : "")),
      lines.map(([name, text, share]) => h("div", {}, h("dt", {}, name), h("dd", {}, text, share != null && gauge(share))))));
}

function about({ session: s, upstream }) {
  const list = [
    ["Session", s.session], ["Target", s.target], ["URL for the agent", s.url], ["Upstream", upstream], ["Lease", s.lease],
    ["Agent", s.agent_id], ["Company", s.company_id], ["Issue", s.issue_id], ["Environment", s.environment_id],
    ["Asked for", s.created_at, `by user ${s.uid}`], ["Ends", s.expires_at],
  ].filter(([, value]) => value);
  return h("section", { "aria-labelledby": "about" },
    h("h2", { id: "about" }, "About it"),
    h("dl", { class: "facts many" }, list.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "id" }, value), more && h("span", { class: "dim" }, ` ${more}`))))));
}
