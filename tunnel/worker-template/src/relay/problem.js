// What the relay answers by itself, in the form in which the daemon answers callbacks.
//
// Here: its codes. Whether a caller may retry is said honestly: what may have had an effect is not retryable.

const SAFE = ['GET', 'HEAD', 'OPTIONS'];

/** A reply of the relay's own. */
export function problem(status, code, error, retryable = false, headers = {}) {
  const requestId = crypto.randomUUID();
  return new Response(JSON.stringify({ error, code, decided_by: 'bridge', retryable, request_id: requestId }), {
    status,
    headers: { 'content-type': 'application/json', 'cache-control': 'no-store', 'x-paperclip-bridge-request-id': requestId, ...headers },
  });
}

export const invalidToken = () => problem(401, 'invalid_token', 'the token is missing, malformed, expired or not of this Worker');
export const offline = () => problem(503, 'relay_offline', 'no daemon is connected; nothing was sent', true, { 'retry-after': '2' });
export const busy = () => problem(503, 'relay_busy', 'too many callbacks are open; nothing was sent', true, { 'retry-after': '1' });
export const refused = () => problem(503, 'relay_refused', 'the daemon refused the callback; it had no effect', true, { 'retry-after': '1' });
export const cut = () => problem(400, 'request_cut', 'the body of the request did not come whole');
export const tooLarge = (limit) => problem(413, 'body_too_large', `the body is over ${limit} bytes`);
export const headTooLarge = (limit) => problem(431, 'head_too_large', `the head is over ${limit} bytes`);
export const lost = (method) =>
  problem(502, 'relay_lost', 'the daemon was lost before it answered; whether the callback had an effect is unknown', SAFE.includes(method));
export const late = (method) =>
  problem(504, 'relay_timeout', 'the daemon did not answer in time; whether the callback had an effect is unknown', SAFE.includes(method));
