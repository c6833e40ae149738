//! The page itself, and the way in and out.

use std::time::Instant;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use super::Board;
use super::door::IDLE;
use super::gate::{self, COOKIE};
use crate::control::Problem;

/// A login is a few words.
const MAX_LOGIN_BYTES: usize = 1024;

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What a page is made of; anybody who reaches the listener may read it.
const ASSETS: &[(&str, &str, &str)] = &[
    ("style.css", STYLE, include_str!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("login.js", SCRIPT, include_str!("assets/login.js")),
    ("app.js", SCRIPT, include_str!("assets/app.js")),
    ("api.js", SCRIPT, include_str!("assets/api.js")),
    ("dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("words.js", SCRIPT, include_str!("assets/words.js")),
    ("overview.js", SCRIPT, include_str!("assets/overview.js")),
    ("session.js", SCRIPT, include_str!("assets/session.js")),
    ("live.js", SCRIPT, include_str!("assets/live.js")),
    ("explain.js", SCRIPT, include_str!("assets/explain.js")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
}

pub(super) async fn to_page() -> Redirect {
    Redirect::to("/dashboard/")
}

/// The page for whoever is logged in; the others are shown the way in.
pub(super) async fn page(State(board): State<Board>, headers: HeaderMap) -> Response {
    let known = gate::cookie(&headers).and_then(|cookie| board.daemon.door().knows(cookie, Instant::now()));
    match known {
        Some(_) => file(HTML, include_str!("assets/index.html")),
        None => Redirect::to("/dashboard/login").into_response(),
    }
}

pub(super) async fn login_page() -> Response {
    file(HTML, include_str!("assets/login.html"))
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(asset, ..)| *asset == name) {
        Some((_, content_type, text)) => file(content_type, text),
        None => unknown().await.into_response(),
    }
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

pub(super) async fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no such page; the dashboard is at /dashboard/",
    )
}

/// Takes a ticket; the cookie that it becomes is for this program's pages only, and no script sees it.
///
/// No `Secure`: the listener is loopback without TLS.
pub(super) async fn login(State(board): State<Board>, request: Request) -> Result<Response, Problem> {
    gate::own_page(request.headers())?;
    let refused = |detail| Problem::new(StatusCode::BAD_REQUEST, "invalid_login", detail);
    let json = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/json"));
    if !json {
        return Err(refused(r#"send {"token": "…"} as application/json"#));
    }
    let body = to_bytes(request.into_body(), MAX_LOGIN_BYTES)
        .await
        .map_err(|_| refused("a login is at most 1 KiB"))?;
    let login: Login =
        serde_json::from_slice(&body).map_err(|_| refused(r#"send {"token": "…"} and nothing else"#))?;
    let entered = board
        .daemon
        .door()
        .enter(login.token.trim().as_bytes(), Instant::now())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string()))?;
    let Some(entered) = entered else {
        tracing::warn!("a login to the dashboard was refused");
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "invalid_login",
            "this token is not good: each one works once and for 15 minutes; `paperclip-bridge dashboard` prints a new one",
        ));
    };
    tracing::info!("a login to the dashboard");
    let cookie = format!(
        "{COOKIE}={}; Path=/dashboard; HttpOnly; SameSite=Strict",
        entered.cookie
    );
    with_cookie(&cookie)
}

/// What the page needs to know of itself.
pub(super) async fn me(State(board): State<Board>, headers: HeaderMap) -> Response {
    let header_token =
        gate::cookie(&headers).and_then(|cookie| board.daemon.door().knows(cookie, Instant::now()));
    Json(json!({
        "header": gate::HEADER.as_str(),
        "token": header_token,
        "version": env!("CARGO_PKG_VERSION"),
        "idle_seconds": IDLE.as_secs(),
    }))
    .into_response()
}

pub(super) async fn logout(State(board): State<Board>, headers: HeaderMap) -> Result<Response, Problem> {
    if let Some(cookie) = gate::cookie(&headers) {
        board.daemon.door().leave(cookie);
    }
    with_cookie(&format!(
        "{COOKIE}=; Path=/dashboard; HttpOnly; SameSite=Strict; Max-Age=0"
    ))
}

fn with_cookie(cookie: &str) -> Result<Response, Problem> {
    let cookie = HeaderValue::from_str(cookie)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string()))?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}
