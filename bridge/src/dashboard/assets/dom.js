// Making and changing elements. Text is always text: nothing here reads markup.

const DRAWN = new Set(["svg", "rect", "line", "path", "g"]);
const SVG = "http://www.w3.org/2000/svg";

// h("p", { class: "dim", onclick: act }, "text", child, …)
export function h(tag, props, ...children) {
  const element = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) {
      element[name] = value;
      (element.acts ??= []).push(name);
    } else if (name === "key") element.key = String(value);
    // What changes by itself: it stays as it was made.
    else if (name === "keeps") element.keeps = true;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== 0));
  return element;
}

// Makes what stands there like what shall stand there, and leaves alone what is so already: focus, selection and
// what somebody has typed stay.
export function morph(there, wanted) {
  if (there.nodeType !== wanted.nodeType || there.nodeName !== wanted.nodeName || there.key !== wanted.key) {
    there.replaceWith(wanted);
    return;
  }
  if (there.nodeType === Node.TEXT_NODE) {
    if (there.data !== wanted.data) there.data = wanted.data;
    return;
  }
  if (there.keeps) return;
  for (const { name } of [...there.attributes]) if (!wanted.hasAttribute(name)) there.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
  for (const act of wanted.acts ?? []) there[act] = wanted[act];
  const keyed = new Map([...there.childNodes].filter((node) => node.key).map((node) => [node.key, node]));
  let at = there.firstChild;
  for (const child of [...wanted.childNodes]) {
    const known = child.key && keyed.get(child.key);
    if (known) {
      if (known !== at) there.insertBefore(known, at);
      else at = at.nextSibling;
      morph(known, child);
    } else if (at && !at.key && !child.key) {
      const next = at.nextSibling;
      morph(at, child);
      at = next;
    } else there.insertBefore(child, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// Said once, to those who listen and to those who look.
export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  said.classList.add("shown");
  clearTimeout(say.later);
  say.later = setTimeout(() => said.classList.remove("shown"), 4000);
}

// A share of a whole as a thin line.
export function gauge(share) {
  const width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("svg", { class: share > 0.8 ? "gauge high" : "gauge", "aria-hidden": "true" },
    h("rect", { class: "all", width: "100%", height: "100%" }),
    h("rect", { class: "part", width, height: "100%" }));
}
