// Speaking to the daemon: JSON in and out, the header token on what changes something, and what to do when the login is over.

let me = null;

export class Fault extends Error {}

export function toLogin() {
  location.replace("/dashboard/login");
}

export async function ask(path, { method = "GET" } = {}) {
  const headers = {};
  if (method !== "GET") headers[me.header] = me.token;
  let answer;
  try {
    answer = await fetch(`/dashboard/api/${path}`, { method, headers });
  } catch {
    throw new Fault("the daemon does not answer");
  }
  if (answer.status === 401) {
    toLogin();
    throw new Fault("the login is over");
  }
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Fault(told.detail ?? `the daemon answered ${answer.status}`);
  return told;
}

export async function whoami() {
  me = await ask("me");
  return me;
}

// A query of what is set.
export function query(fields) {
  const set = Object.entries(fields).filter(([, value]) => value !== "" && value !== false && value != null);
  return set.length ? `?${new URLSearchParams(set)}` : "";
}
