//! Who is let in, and what is refused: each fact by plain HTTP.

use paperclip_bridge_tests::Upstream;
use paperclip_bridge_tests::serving::{Serving, agent};

use super::{ask, enter, logged_in, ticket};

const HEADER: &str = "x-paperclip-bridge-dashboard";

#[tokio::test]
async fn without_a_login_there_is_no_data_and_the_page_shows_the_way_in() {
    let serving = Serving::start().await;

    let page = ask(&serving, "GET", "/dashboard/", &[], "").await;
    assert_eq!(
        (page.status, page.header("location")),
        (303, Some("/dashboard/login"))
    );
    for path in ["me", "overview", "sessions", "events", "explain", "nothing"] {
        let path = format!("/dashboard/api/{path}");
        for cookie in [
            "",
            "paperclip_bridge_dashboard=",
            "paperclip_bridge_dashboard=0000",
        ] {
            let answer = ask(&serving, "GET", &path, &[("cookie", cookie)], "").await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "login_required"),
                "{path}"
            );
        }
    }
    let way_in = ask(&serving, "GET", "/dashboard/login", &[], "").await;
    assert_eq!(way_in.status, 200);
    assert!(way_in.text().contains("paperclip-bridge dashboard"));
}

#[tokio::test]
async fn a_token_is_good_once_and_becomes_a_cookie_that_no_script_and_no_other_site_has() {
    let serving = Serving::start().await;
    let token = ticket(&serving).await;

    let wrong = enter(
        &serving,
        "pbd_000000000000000000000000000000000000000000000000",
        &[],
    )
    .await;
    let foreign = enter(&serving, &token, &[("origin", "http://evil.example")]).await;
    let first = enter(&serving, &token, &[]).await;
    let second = enter(&serving, &token, &[]).await;

    assert_eq!((wrong.status, wrong.code().as_str()), (401, "invalid_login"));
    assert_eq!((foreign.status, foreign.code().as_str()), (403, "foreign_origin"));
    assert_eq!(first.status, 204, "{}", first.text());
    assert_eq!((second.status, second.header("set-cookie")), (401, None));
    let cookie = first.header("set-cookie").unwrap();
    let attributes: Vec<_> = cookie.split("; ").skip(1).collect();
    assert_eq!(attributes, ["Path=/dashboard", "HttpOnly", "SameSite=Strict"]);
    let log = serving.running.stderr();
    let value = cookie.split(';').next().unwrap().split('=').nth(1).unwrap();
    assert!(!log.contains(&token) && !log.contains(value), "{log}");
    // Not what a form of another page could send.
    let body = format!(r#"{{"token":"{token}"}}"#);
    let form = ask(
        &serving,
        "POST",
        "/dashboard/login",
        &[("content-type", "text/plain")],
        &body,
    )
    .await;
    assert_eq!(form.status, 400);
}

#[tokio::test]
async fn what_changes_something_needs_the_header_token_and_our_own_page() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let (cookie, header) = logged_in(&serving).await;
    let path = format!("/dashboard/api/sessions/{}/revoke", opened.session);
    let own = ("origin", serving.ops.as_str());

    for (headers, code) in [
        (vec![], "header_token_required"),
        (vec![own], "header_token_required"),
        (vec![(HEADER, "0000"), own], "header_token_required"),
        (
            vec![(HEADER, header.as_str()), ("origin", "http://evil.example")],
            "foreign_origin",
        ),
        (
            vec![(HEADER, header.as_str()), ("sec-fetch-site", "same-site")],
            "foreign_origin",
        ),
    ] {
        let mut headers = headers;
        headers.push(("cookie", &cookie));
        let answer = ask(&serving, "POST", &path, &headers, "").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, code),
            "{headers:?}"
        );
    }
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    let read = ask(&serving, "GET", &path, &[("cookie", &cookie)], "").await;
    assert_eq!(read.status, 405);

    let headers = [("cookie", cookie.as_str()), (HEADER, &header), own];
    let done = ask(&serving, "POST", &path, &headers, "").await;

    assert_eq!(done.status, 200, "{}", done.text());
    assert!(agent(&opened).get("/api/agents/me").await.is_err());
    serving.until(&opened.session, "ended").await;
}

#[tokio::test]
async fn no_other_page_reads_it_and_no_other_name_leads_to_it() {
    let serving = Serving::start().await;
    let (cookie, _) = logged_in(&serving).await;

    let foreign = [("cookie", cookie.as_str()), ("origin", "http://evil.example")];
    let refused = ask(&serving, "GET", "/dashboard/api/overview", &foreign, "").await;
    let preflight = ask(&serving, "OPTIONS", "/dashboard/api/overview", &foreign, "").await;
    let astray = [("cookie", cookie.as_str()), ("host", "evil.example")];
    let misdirected = ask(&serving, "GET", "/dashboard/", &astray, "").await;

    assert_eq!((refused.status, refused.code().as_str()), (403, "foreign_origin"));
    assert_eq!(misdirected.status, 421);
    for answer in [&refused, &preflight, &misdirected] {
        let cors = answer
            .headers
            .iter()
            .find(|(name, _)| name.starts_with("access-control"));
        assert_eq!(cors, None);
    }
}

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let serving = Serving::start().await;
    let (cookie, _) = logged_in(&serving).await;

    for path in [
        "/dashboard/",
        "/dashboard/login",
        "/dashboard/app.js",
        "/dashboard/none.js",
        "/dashboard/api/me",
        "/dashboard/api/overview",
        "/dashboard/api/none",
    ] {
        let answer = ask(&serving, "GET", path, &[("cookie", &cookie)], "").await;
        let csp = answer.header("content-security-policy").unwrap_or_default();
        assert!(csp.starts_with("default-src 'none';"), "{path}: {csp}");
        assert!(
            !csp.contains("unsafe") && !csp.contains("http") && !csp.contains('*'),
            "{csp}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {name}");
        }
    }
}

#[tokio::test]
async fn whoever_logs_out_is_out_also_of_the_stream() {
    let serving = Serving::start().await;
    let (cookie, header) = logged_in(&serving).await;
    let stream = {
        let headers = [("cookie", cookie.clone())];
        let ops = serving.ops.clone();
        let host = ops.trim_start_matches("http://").to_owned();
        let mut wire = paperclip_bridge_tests::Wire::connect(&ops).await.unwrap();
        tokio::spawn(async move {
            let head = format!(
                "GET /dashboard/api/events HTTP/1.1\r\nhost: {host}\r\ncookie: {}\r\n\r\n",
                headers[0].1
            );
            wire.exchange(head.as_bytes(), &["GET"], false).await.remove(0)
        })
    };

    let headers = [("cookie", cookie.as_str()), (HEADER, &header)];
    let left = ask(&serving, "POST", "/dashboard/api/logout", &headers, "").await;

    assert_eq!(left.status, 204);
    assert!(left.header("set-cookie").unwrap().contains("Max-Age=0"));
    let after = ask(&serving, "GET", "/dashboard/api/me", &headers, "").await;
    assert_eq!(after.status, 401);
    // Ends by itself, in order, once it is looked at.
    let ended = paperclip_bridge_tests::within(super::browser::SOON, "the stream ends", stream).await;
    let ended = ended.unwrap().unwrap();
    assert!(
        ended.status == 401 || ended.text().contains("event: live"),
        "{}",
        ended.text()
    );
}

#[tokio::test]
async fn where_others_can_reach_the_listener_there_are_only_health_and_metrics() {
    let serving = Serving::builder().args(["--ops", "0.0.0.0:0"]).start().await;
    let port = serving.ops.rsplit(':').next().unwrap().to_owned();
    let serving = Serving {
        ops: format!("http://127.0.0.1:{port}"),
        ..serving
    };

    for path in [
        "/dashboard/",
        "/dashboard/login",
        "/dashboard/app.js",
        "/dashboard/api/me",
    ] {
        assert_eq!(ask(&serving, "GET", path, &[], "").await.status, 404, "{path}");
    }
    assert_eq!(ask(&serving, "GET", "/healthz", &[], "").await.status, 200);
    assert_eq!(ask(&serving, "GET", "/metrics", &[], "").await.status, 200);
    let refused = serving.run(&["dashboard"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("not on loopback"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_dashboard_that_is_turned_off_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "[listeners.ops]\ndashboard = false\n").unwrap();
    let serving = Serving::builder()
        .args(["--config", file.to_str().unwrap()])
        .start()
        .await;

    assert_eq!(ask(&serving, "GET", "/dashboard/", &[], "").await.status, 404);
    assert_eq!(serving.run(&["dashboard"]).await.code, Some(3));
}
