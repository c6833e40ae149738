// Callbacks as they end, the newest first, with filters that the daemon applies.

import { ask, query } from "./api.js";
import { h } from "./dom.js";
import { explained } from "./explain.js";
import { clock, count, duration, mark, whole } from "./words.js";

const MOST = 300;
// Those who listen are told how many there were, and not each.
const TELL_EVERY = 10_000;
// Allowed, and not well all the same.
const TROUBLE = new Set(["rate_limited", "unavailable", "outcome_indeterminate", "upstream_unreachable", "upstream_failed", "upstream_timeout"]);

export function live(words) {
  const wanted = { session: words.get("session") ?? "", run: words.get("run") ?? "", route: words.get("route") ?? "", denied: words.has("denied") };
  const feed = follow(wanted);
  return {
    title: "Live",
    first: () => h("div", { class: "page" }, h("div", { class: "head" }, h("h1", {}, "Live"), feed.standing), filters(wanted, feed), h("section", {}, h("h2", { class: "hidden" }, "Callbacks"), feed.told, feed.list, feed.empty)),
    draw: async () => { await ask("me"); },
    end: feed.end,
  };
}

function filters(wanted, feed) {
  let later;
  const changed = () => {
    clearTimeout(later);
    later = setTimeout(() => {
      const { denied, ...text } = wanted;
      history.replaceState(null, "", `#/live${query({ ...text, denied: denied ? "1" : "" })}`);
      feed.begin();
    }, 250);
  };
  const field = (name, label, placeholder) => h("label", {}, h("span", {}, label),
    h("input", { type: "search", name, placeholder, value: wanted[name], spellcheck: "false", autocomplete: "off", oninput: (event) => { wanted[name] = event.target.value.trim(); changed(); } }));
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    feed.pause(paused);
  } }, "Pause");
  return h("form", { class: "filters", role: "search", "aria-label": "Callbacks", onsubmit: (event) => event.preventDefault() },
    field("run", "Run", "any"),
    field("route", "Route", "POST comments, /api/issues/…"),
    field("session", "Session", "its whole id"),
    h("label", { class: "tick" }, h("input", { type: "checkbox", name: "denied", checked: wanted.denied, onchange: (event) => { wanted.denied = event.target.checked; changed(); } }), "denied only"),
    pause);
}

// The list, and the stream that fills it.
export function follow(wanted, most = MOST) {
  const list = h("ol", { class: "feed", "aria-label": "Callbacks, the newest first" });
  const empty = h("p", { class: "dim" }, "Nothing yet.");
  const standing = h("p", { class: "dim" }, "connecting …");
  const told = h("p", { class: "hidden", role: "status" });
  let source = null, known = new Set(), held = [], paused = false, counted = [0, 0], isLive = false;

  const put = (callback) => {
    const id = callback.request_id ?? `${callback.at}${callback.owner}`;
    if (known.has(id)) return;
    known.add(id);
    if (isLive) {
      counted[0] += 1;
      if (callback.verdict === "deny") counted[1] += 1;
    }
    list.prepend(item(callback));
    empty.hidden = true;
    // What somebody is reading stays.
    while (list.children.length > most && !list.lastChild.querySelector("[aria-expanded=true]")) list.lastChild.remove();
    if (known.size > most * 8) known = new Set([...known].slice(-most * 4));
  };

  const begin = () => {
    source?.close();
    known.clear();
    held = [];
    isLive = false;
    list.replaceChildren();
    empty.hidden = false;
    empty.textContent = "Nothing yet.";
    const { session, ...rest } = wanted;
    const one = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(session);
    if (session && !one) {
      empty.textContent = "A session's id looks like 0199a1b2-…: 36 characters.";
      standing.textContent = "";
      return;
    }
    source = new EventSource(`/dashboard/api/events${query({ ...rest, session })}`);
    source.addEventListener("callback", (event) => {
      const callback = JSON.parse(event.data);
      if (paused) {
        held.push(callback);
        if (held.length > most) held.shift();
        standing.textContent = `paused, ${count(held.length, "callback waits", "callbacks wait")}`;
      } else put(callback);
    });
    source.addEventListener("live", () => {
      isLive = true;
      if (!paused) standing.replaceChildren(mark("ready", "live"));
      if (!list.children.length) empty.textContent = "Nothing yet. Callbacks appear here as they end.";
    });
    source.addEventListener("missed", (event) => {
      list.prepend(h("li", { class: "gap" }, `${whole(JSON.parse(event.data).missed)} were too fast for this page; the audit has them`));
    });
    source.onerror = () => {
      standing.replaceChildren(mark("reconnecting", "the stream broke; trying again"));
      isLive = false;
      ask("me").catch(() => {});
    };
  };

  const tell = setInterval(() => {
    if (!counted[0]) return;
    told.textContent = `${count(counted[0], "callback", "callbacks")}, ${whole(counted[1])} denied`;
    counted = [0, 0];
  }, TELL_EVERY);
  begin();
  return {
    list, empty, standing, told, begin,
    pause(now) {
      paused = now;
      if (paused) standing.textContent = "paused";
      else {
        held.splice(0).forEach(put);
        standing.replaceChildren(mark("ready", "live"));
      }
    },
    end() {
      clearInterval(tell);
      source?.close();
    },
  };
}

function item(callback) {
  if (callback.event === "wrong_channel") {
    return h("li", { class: "astray" }, clock(callback.at), mark("deny", "token astray"), h("span", { class: "what" }, "the token of ",
      h("a", { class: "id", href: `#/session/${callback.owner}` }, "one session"), " was shown on the channel of ", h("a", { class: "id", href: `#/session/${callback.session}` }, "another")));
  }
  const c = callback;
  const detail = h("div", { class: "detail", hidden: true });
  const toggle = async () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    detail.hidden = !open;
    if (!open || detail.firstChild) return;
    detail.textContent = "…";
    try {
      detail.replaceChildren(await explained(c));
    } catch (fault) {
      detail.textContent = fault.message;
    }
  };
  const button = h("button", { type: "button", class: "row", "aria-expanded": "false", onclick: toggle },
    clock(c.at), " ", mark(c.verdict), " ", h("span", { class: `status s${Math.floor(c.status / 100)}` }, c.status || "gone"), " ",
    h("span", { class: "what" }, h("span", { class: "method" }, c.method), " ", h("span", { class: "id" }, c.path || "(path not read)")), " ",
    h("span", { class: TROUBLE.has(c.code) ? "code warn" : "code" }, TROUBLE.has(c.code) && h("span", { "aria-hidden": "true" }, "▲ "), c.code), " ", h("span", { class: "run id dim" }, c.run_id), " ", h("span", { class: "took n" }, duration(c.duration_us)));
  return h("li", { class: c.verdict === "deny" ? "denied" : null }, button, detail);
}
