//! The dashboard: who is let in, what is refused, and the page in a real browser.

mod door;
mod browser;
mod figures;
mod top;

use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::{Agent, Answer, Wire};

/// One request to the ops listener, with these headers beside `Host`.
async fn ask(serving: &Serving, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let host = serving.ops.trim_start_matches("http://");
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += &format!("host: {host}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n{body}", body.len());
    let mut wire = Wire::connect(&serving.ops)
        .await
        .expect("the ops listener listens");
    let mut answers = wire.exchange(head.as_bytes(), &[method], false).await;
    answers.remove(0).expect("a whole answer")
}

/// A token that is good once.
async fn ticket(serving: &Serving) -> String {
    let told = serving.ask(&["dashboard"]).await;
    told["token"].as_str().expect("it is printed").to_owned()
}

/// A login: the cookie as it is shown, and the header token.
async fn logged_in(serving: &Serving) -> (String, String) {
    let answer = enter(serving, &ticket(serving).await, &[]).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let cookie = answer.header("set-cookie").expect("there is a cookie");
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    let me = ask(serving, "GET", "/dashboard/api/me", &[("cookie", &cookie)], "").await;
    let token = me.json()["token"].as_str().expect("it is told").to_owned();
    (cookie, token)
}

async fn enter(serving: &Serving, token: &str, more: &[(&str, &str)]) -> Answer {
    let body = format!(r#"{{"token":"{token}"}}"#);
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(more);
    ask(serving, "POST", "/dashboard/login", &headers, &body).await
}

/// What an agent of no session is.
fn nobody(agent: &Agent) -> Agent {
    Agent {
        url: agent.url.clone(),
        token: "pcb_nobody".to_owned(),
    }
}
