// Figures and times as they are read.

import { h } from "./dom.js";

export function duration(us) {
  if (us == null) return "–";
  if (us < 1000) return `${us} µs`;
  if (us < 10_000) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 1_000_000) return `${Math.round(us / 1000)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

export function span(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  const hours = Math.floor(s / 3600);
  const minutes = Math.floor((s % 3600) / 60);
  if (hours < 48) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return `${Math.round(hours / 24)} d`;
}

export const since = (at) => span((Date.now() - Date.parse(at)) / 1000);

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  if (count < 1024 * 1024) return `${(count / 1024).toFixed(1)} KiB`;
  return `${(count / 1024 / 1024).toFixed(count % (1024 * 1024) ? 1 : 0)} MiB`;
}

export const whole = (count) => Number(count ?? 0).toLocaleString("en");

export function rate(perSecond) {
  if (!perSecond) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : whole(Math.round(perSecond));
}

export function clock(at) {
  const time = new Date(at);
  const text = Number.isNaN(time.getTime()) ? "" : time.toTimeString().slice(0, 8);
  return h("time", { datetime: at, title: at }, text);
}

export const count = (n, one, many) => `${whole(n)} ${n === 1 ? one : many}`;

// A word that matters at a glance: its mark differs as well as its colour.
const MARKS = {
  ready: ["●", "good"], starting: ["◔", ""], degraded: ["▲", "warn"], reconnecting: ["↻", "warn"],
  draining: ["◑", "warn"], ended: ["○", "dim"],
  allow: ["✓", "good"], own: ["·", "dim"], deny: ["✕", "bad"],
  answers: ["●", "good"], unreachable: ["✕", "bad"], unused: ["○", "dim"], not_tried: ["◔", "dim"],
  taken: ["✓", "good"], skipped: ["✕", "warn"],
  passed: ["✓", "good"], stopped: ["✕", "bad"], not_reached: ["○", "dim"], not_needed: ["·", "dim"],
};

export function mark(state, words) {
  const [sign, kind] = MARKS[state] ?? ["·", ""];
  return h("span", { class: `mark-of ${kind}` }, h("span", { class: "sign", "aria-hidden": "true" }, sign), words ?? state.replace("_", " "));
}

// What a shell reads as one word.
export const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
