// What a request is aimed at: its host, path and query as the caller wrote them.
//
// Here: taking them from the request without the repairs of a URL parser, which resolves `..` and `%2e%2e` silently.
// Not here: the canonical forms that are signed (envelope.js).

import { invalid } from './answers.js';

const TARGET = /^(https?):\/\/[^/?#]*([^?#]*)(?:\?([^#]*))?(#.*)?$/s;

/** @returns {{host: string, path: string, query: string}} host in lower case, without its scheme's default port */
export function targetOf(request) {
  const match = TARGET.exec(request.url);
  if (!match || match[4] !== undefined) throw invalid('the request target is not a path with an optional query');
  const [, scheme, path, query] = match;
  const host = (request.headers.get('host') ?? new URL(request.url).host).toLowerCase();
  return { host: host.replace(scheme === 'https' ? /:443$/ : /:80$/, ''), path: path === '' ? '/' : path, query: query ?? '' };
}
