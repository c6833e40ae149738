//! What is asked of each request for data, before it is looked at.
//!
//! In this order: it comes from our own page and no other; it shows the cookie of a login; and where it changes
//! something, it carries the header token as well, which only our own page can read.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use policy::TokenDigest;

use super::Board;
use crate::control::Problem;

/// The cookie of a login.
pub(super) const COOKIE: &str = "paperclip_bridge_dashboard";
/// The header that a request which changes something carries.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-paperclip-bridge-dashboard");

/// Lets those through who may look, and those who may act.
pub(super) async fn admitted(State(board): State<Board>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if let Err(problem) = own_page(headers) {
        return problem.into_response();
    }
    let known = cookie(headers).and_then(|cookie| board.daemon.door().knows(cookie, Instant::now()));
    let Some(header_token) = known else {
        return Problem::new(
            StatusCode::UNAUTHORIZED,
            "login_required",
            "there is no login, or it is over; `paperclip-bridge dashboard` prints a way in",
        )
        .into_response();
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let presented = headers.get(HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if changes && !TokenDigest::of(header_token.as_bytes()).matches(presented) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "header_token_required",
            format!("what changes something needs the header {HEADER} with the token of /dashboard/api/me"),
        )
        .into_response();
    }
    next.run(request).await
}

/// Whether a request comes from our own page, or from no page at all.
///
/// # Errors
///
/// 403: it is another page's.
pub(super) fn own_page(headers: &HeaderMap) -> Result<(), Problem> {
    // The Host is pinned, so that this is an origin of ours.
    let own = headers
        .get(header::HOST)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let foreign_origin = headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| origin.as_bytes().strip_prefix(b"http://") != Some(own));
    let foreign_fetch = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    if foreign_origin || foreign_fetch {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "this is answered to the dashboard's own page only",
        ));
    }
    Ok(())
}

/// The value of our cookie.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&[u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn only_our_own_page_and_no_page_at_all_are_answered() {
        let host = ("host", "127.0.0.1:4409");

        for fine in [
            headers(&[host]),
            headers(&[host, ("origin", "http://127.0.0.1:4409")]),
            headers(&[host, ("sec-fetch-site", "same-origin")]),
        ] {
            assert!(own_page(&fine).is_ok(), "{fine:?}");
        }
        for foreign in [
            headers(&[host, ("origin", "http://127.0.0.1:4410")]),
            headers(&[host, ("origin", "https://127.0.0.1:4409")]),
            headers(&[host, ("origin", "null")]),
            headers(&[host, ("sec-fetch-site", "same-site")]),
            headers(&[host, ("sec-fetch-site", "cross-site")]),
        ] {
            assert!(own_page(&foreign).is_err(), "{foreign:?}");
        }
    }

    #[test]
    fn our_cookie_is_found_among_others() {
        let found = |line| cookie(&headers(&[("cookie", line)])).map(<[u8]>::to_vec);

        assert_eq!(
            found("a=b; paperclip_bridge_dashboard=c1; d=e"),
            Some(b"c1".to_vec())
        );
        assert_eq!(found("paperclip_bridge_dashboards=c1"), None);
        assert_eq!(found("x=paperclip_bridge_dashboard=c1"), None);
    }
}
