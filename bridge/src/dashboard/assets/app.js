// Which page is shown, and asking again every few seconds. Each page is a function that returns what is shown and,
// where it has something to end, how.

import { Fault, ask, toLogin, whoami } from "./api.js";
import { h, morph, say } from "./dom.js";
import { live } from "./live.js";
import { overview } from "./overview.js";
import { session } from "./session.js";

const EVERY = 2000;
const main = document.getElementById("main");
const link = document.getElementById("link");
let shown = null;

function linked(fault) {
  const text = fault ? `✕ ${fault}` : "";
  if (link.textContent !== text) link.textContent = text;
  link.classList.toggle("bad", Boolean(fault));
}

// Asks, draws, and goes on until another page is shown.
async function keep(page, place) {
  while (shown === page) {
    if (!document.hidden) {
      try {
        const drawn = await page.draw();
        if (shown !== page) return;
        linked(null);
        if (drawn) morph(place.firstChild, drawn);
      } catch (fault) {
        if (shown !== page) return;
        linked(fault instanceof Fault ? fault.message : "this page has failed");
        if (!(fault instanceof Fault)) console.error(fault);
        if (place.firstChild?.dataset?.empty) {
          morph(place.firstChild, h("div", { "data-empty": "1" }, h("h1", {}, "Not shown"), h("p", { class: "notice" }, fault.message)));
        }
      }
    }
    await Promise.race([
      new Promise((done) => setTimeout(done, EVERY)),
      new Promise((done) => { page.again = done; }),
    ]);
  }
}

function route() {
  const [path, search] = location.hash.replace(/^#/, "").split("?");
  const words = new URLSearchParams(search);
  if (path.startsWith("/session/")) return ["", session(path.slice("/session/".length))];
  if (path === "/live") return ["live", live(words)];
  return ["overview", overview()];
}

function show(first) {
  // A link to the content is none to a page.
  if (location.hash === "#main") return;
  shown?.end?.();
  const [name, page] = route();
  shown = page;
  for (const entry of document.querySelectorAll("nav a")) {
    if (entry.dataset.page === name) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  }
  document.title = `${page.title} · paperclip-bridge`;
  main.replaceChildren(page.first?.() ?? h("div", { "data-empty": "1" }, h("h1", {}, page.title)));
  if (!first) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  keep(page, main);
}

document.getElementById("logout").addEventListener("click", async () => {
  try {
    await ask("logout", { method: "POST" });
    toLogin();
  } catch (fault) {
    say(fault.message);
  }
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => show(false));
document.addEventListener("visibilitychange", () => { if (!document.hidden) shown?.again?.(); });

try {
  const me = await whoami();
  document.getElementById("version").textContent = me.version;
  show(true);
} catch (fault) {
  main.replaceChildren(h("h1", {}, "Not shown"), h("p", { class: "notice" }, fault.message));
}
