// The daemon at a glance.

import { ask, query } from "./api.js";
import { h } from "./dom.js";
import { count, duration, mark, rate, since, span, whole } from "./words.js";

const STATES = ["starting", "ready", "degraded", "reconnecting", "draining"];

export function overview() {
  const page = { title: "Overview" };
  const wanted = { find: "", ended: false };
  const again = () => page.again?.();
  page.draw = async () => {
    const [told, listed] = await Promise.all([ask("overview"), ask(`sessions${query(wanted)}`)]);
    return draw(told, listed, wanted, again);
  };
  return page;
}

function draw(told, listed, wanted, again) {
  const { status } = told;
  return h("div", { class: "page" },
    h("div", { class: "head" },
      h("h1", {}, "Overview"),
      h("p", { class: "dim" },
        status.draining ? mark("draining", "ending; takes no new sessions") : mark("ready", "serving"),
        ` · up ${since(status.started_at)} · process ${status.pid} · `, audit(told.audit))),
    readouts(told),
    course(told),
    h("div", { class: "two" }, upstreams(told.upstreams), places(told)),
    sessions(told, listed, wanted, again));
}

function audit(told) {
  if (told.state === "writes") return "audit writes";
  if (told.state === "off") return mark("degraded", "audit off");
  return mark("deny", `audit cannot be written: ${told.detail}`);
}

function readouts({ status: { recent, wrong_channel, open_outcomes }, total }) {
  const minute = recent.seconds < 50 ? `last ${recent.seconds} s` : "last minute";
  const cells = [
    ["Rate", `${rate(recent.per_second)}`, "/s", `${whole(recent.callbacks)} in the ${minute}`],
    ["p50", ...unit(recent.p50_us), minute],
    ["p95", ...unit(recent.p95_us), minute],
    ["Denied", whole(recent.denied), "", `${whole(total.denied)} since start`, recent.denied && "bad",
      wrong_channel ? `${count(wrong_channel, "token", "tokens")} astray` : null],
    ["Throttled", whole(recent.throttled), "", `${whole(total.throttled)} since start`, recent.throttled && "warn"],
    ["No answer", whole(recent.failed), "", `${whole(total.failed)} since start`, recent.failed && "warn"],
    ["Indeterminate", whole(recent.indeterminate), "", `${whole(total.indeterminate)} since start`, total.indeterminate && "warn",
      open_outcomes ? `${whole(open_outcomes)} open now` : null],
  ];
  return h("dl", { class: "readouts", "aria-label": "Callbacks" }, cells.map(([name, value, of, below, kind, more]) =>
    h("div", { class: kind || null }, h("dt", {}, kind && h("span", { "aria-hidden": "true" }, kind === "bad" ? "✕ " : "▲ "), name),
      h("dd", { class: "figure" }, value, of && h("span", { class: "unit" }, ` ${of}`)),
      h("dd", { class: "dim" }, below, more && h("span", { class: "also" }, ` · ${more}`)))));
}

function unit(us) {
  const text = duration(us);
  const gap = text.indexOf(" ");
  return gap < 0 ? [text, ""] : [text.slice(0, gap), text.slice(gap + 1)];
}

function course({ course, step_seconds }) {
  const most = Math.max(1, ...course.map(([all]) => all));
  const all = course.reduce((sum, [n]) => sum + n, 0);
  const denied = course.reduce((sum, [, n]) => sum + n, 0);
  const minutes = (course.length * step_seconds) / 60;
  const words = `${count(all, "callback", "callbacks")} in the last ${minutes} minutes, ${whole(denied)} denied`;
  const step = 100 / course.length;
  return h("figure", { class: "course" },
    h("svg", { role: "img", "aria-label": words, preserveAspectRatio: "none", viewBox: "0 0 100 40" },
      course.map(([n, no], index) => [
        h("rect", { class: "slot", x: index * step, width: step * 0.72, y: 39.4, height: 0.6 }),
        n && h("rect", { class: "calls", x: index * step, width: step * 0.72, y: 40 - (n / most) * 38, height: (n / most) * 38 }),
        no && h("rect", { class: "no", x: index * step, width: step * 0.72, y: 40 - (no / most) * 38, height: (no / most) * 38 }),
      ])),
    h("figcaption", { class: "dim" },
      h("span", {}, `${minutes} min ago`),
      h("span", {}, h("span", { class: "swatch calls", "aria-hidden": "true" }), "callbacks ", h("span", { class: "swatch no", "aria-hidden": "true" }), `denied · ${step_seconds} s a bar, tallest ${whole(most)}`),
      h("span", {}, "now")));
}

function upstreams(list) {
  return h("section", { "aria-labelledby": "upstreams" },
    h("h2", { id: "upstreams" }, "Upstream"),
    list.length === 0 ? h("p", { class: "dim" }, "None yet: a session brings its own, or the configuration names some.") :
      h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Origin"), h("th", { scope: "col" }, "State"), h("th", { scope: "col", class: "n" }, "Sessions"))),
        h("tbody", {}, list.map((upstream) => [h("tr", { key: upstream.origin, class: upstream.detail ? "goes-on" : null },
          h("th", { scope: "row" }, h("span", { class: "id" }, upstream.origin), upstream.name && h("span", { class: "dim nw" }, ` ${upstream.name}`)),
          h("td", {}, mark(upstream.state), upstream.connect_us != null && h("span", { class: "dim nw" }, ` ${duration(upstream.connect_us)}`)),
          h("td", { class: "n" }, whole(upstream.sessions))),
          upstream.detail && h("tr", { key: `${upstream.origin} why` }, h("td", { colspan: "3", class: "why" }, upstream.detail))]))));
}

function places({ places, more_places }) {
  return h("section", { "aria-labelledby": "places" },
    h("h2", { id: "places" }, "Sessions by target and tunnel"),
    places.length === 0 ? h("p", { class: "dim" }, "No session is open.") : [
      h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Target"), h("th", { scope: "col" }, "Tunnel"), h("th", { scope: "col" }, "States"), h("th", { scope: "col", class: "n" }, "Sessions"))),
        h("tbody", {}, places.map((place) => h("tr", { key: `${place.target} ${place.tunnel}` },
          h("th", { scope: "row", class: "id" }, place.target),
          h("td", { class: "id nw" }, place.tunnel),
          h("td", {}, h("span", { class: "states" }, STATES.filter((state) => place.states[state]).map((state) => mark(state, `${whole(place.states[state])} ${state}`)))),
          h("td", { class: "n" }, whole(place.sessions)))))),
      more_places > 0 && h("p", { class: "dim" }, `and ${whole(more_places)} more`)]);
}

function sessions(told, listed, wanted, again) {
  const changed = () => again();
  return h("section", { "aria-labelledby": "sessions" },
    h("div", { class: "head" },
      h("h2", { id: "sessions" }, "Sessions"),
      told.silent > 0 && h("p", { class: "dim" }, mark("degraded", `${count(told.silent, "run has", "runs have")} made no call yet`))),
    h("form", { class: "filters", role: "search", "aria-label": "Sessions", onsubmit: (event) => event.preventDefault() },
      h("label", {}, h("span", {}, "Find"), h("input", { type: "search", name: "find", placeholder: "run, issue, agent, target, state", value: wanted.find,
        oninput: (event) => { wanted.find = event.target.value; changed(); } })),
      h("label", { class: "tick" }, h("input", { type: "checkbox", checked: wanted.ended, onchange: (event) => { wanted.ended = event.target.checked; changed(); } }), "ended, too")),
    listed.sessions.length === 0 ? h("p", { class: "dim" }, wanted.find ? "None is like that." : "None.", !wanted.find && h("code", {}, " paperclip-bridge sessions new TARGET")) :
      h("table", { class: "wide" },
        h("thead", {}, h("tr", {}, ["Run", "State", "Target", "Tunnel", "Issue"].map((name, index) => h("th", { scope: "col", class: index > 1 ? `low${index}` : null }, name)),
          h("th", { scope: "col", class: "n" }, "Calls"), h("th", { scope: "col", class: "n" }, "Denied"), h("th", { scope: "col", class: "n low5" }, "p95"), h("th", { scope: "col", class: "n low6" }, "Left"))),
        h("tbody", {}, listed.sessions.map(row))),
    listed.more > 0 && h("p", { class: "dim" }, `and ${whole(listed.more)} more: find narrows it down`));
}

function row(s) {
  const left = (Date.parse(s.expires_at) - Date.now()) / 1000;
  return h("tr", { key: s.session },
    h("th", { scope: "row", class: "run" }, h("a", { class: "id", href: `#/session/${s.session}` }, s.run_id), s.agent_id && h("span", { class: "dim" }, ` ${s.agent_id}`)),
    h("td", {}, mark(s.state), s.reason && h("span", { class: "dim" }, ` ${s.reason}`)),
    h("td", { class: "id low2" }, s.target),
    h("td", { class: "id nw low3" }, s.tunnel ?? "–", s.ladder.length > 0 && h("span", { class: "dim" }, ` after ${s.ladder.length}`)),
    h("td", { class: "nw low4" }, s.issue_id ?? "–"),
    h("td", { class: "n" }, s.traffic.callbacks === 0 && s.state === "ready" ? mark("degraded", "none") : whole(s.traffic.callbacks)),
    h("td", { class: `n ${s.traffic.denied ? "bad" : ""}` }, s.traffic.denied > 0 && h("span", { "aria-hidden": "true" }, "✕ "), whole(s.traffic.denied)),
    h("td", { class: "n low5" }, duration(s.traffic.p95_us)),
    h("td", { class: "n low6" }, s.state === "ended" ? "–" : span(left)));
}
