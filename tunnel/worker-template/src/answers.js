// What the bridge API answers by itself.
//
// Here: errors as values and as replies. Not here: which check fails with which of them (core.js, envelope.js).
// Paperclip reads 404 and 409 as "the lease is lost", so only `not_found` and `sandbox_state_lost` may use them.

/** A request that is not served: its status, a stable code, and a sentence for people. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message what is wrong and what to do; never holds a secret
   * @param {Record<string, string>} [headers]
   */
  constructor(status, code, message, headers = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }

  /** The reply of the bridge API. */
  reply() {
    return reply(this.status, { error: this.code, message: this.message }, this.headers);
  }
}

/** A JSON reply; `body` must be serialisable. */
export function reply(status, body, headers = {}) {
  return new Response(JSON.stringify(body), {
    status,
    headers: { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers },
  });
}

/** 400: the caller has to change its request. */
export const invalid = (message) => new Refusal(400, 'invalid_request', message);

/** 401 with the code of the check that failed. */
export const unauthorized = (code, message, headers = {}) => new Refusal(401, code, message, headers);

/** 503: try again; nothing was done. */
export const unavailable = (code, message) => new Refusal(503, code, message, { 'retry-after': '2' });

/** 409: the sandbox behind a lease is not the one that was leased. */
export const lost = (message) => new Refusal(409, 'sandbox_state_lost', message);
