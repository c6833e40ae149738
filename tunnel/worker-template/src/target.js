// What a request is aimed at: its host, path and query as the caller wrote them.
//
// Here: taking them from the request without the repairs of a URL parser, which resolves `..` and `%2e%2e` silently.
// Not here: the canonical forms that are signed (envelope.js).

import { invalid } from './answers.js';

const TARGET = /^https?:\/\/[^/?#]*([^?#]*)(?:\?([^#]*))?(#.*)?$/s;

/** @returns {{host: string, path: string, query: string}} host in lower case, else exactly as sent */
export function targetOf(request) {
  const match = TARGET.exec(request.url);
  if (!match || match[3] !== undefined) throw invalid('the request target is not a path with an optional query');
  const [, path, query] = match;
  const host = (request.headers.get('host') ?? new URL(request.url).host).toLowerCase();
  return { host, path: path === '' ? '/' : path, query: query ?? '' };
}
