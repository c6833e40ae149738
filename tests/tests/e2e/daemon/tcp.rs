//! The control API over TCP: who is let in, who is not, and what half-open connections cost.

use paperclip_bridge_tests::remote::{Asks, CONTROL_TOKEN, Remote, certificates, renew, serve};
use paperclip_bridge_tests::world::CREDENTIAL_VARIABLE;
use paperclip_bridge_tests::{Upstream, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::SOON;

const TRUSTS: [&str; 2] = ["--control-ca", "@ca.pem"];
const TOKEN: [&str; 2] = ["--control-token", "file:@token"];
const SHOWS: [&str; 4] = [
    "--control-cert",
    "@client.pem",
    "--control-key",
    "file:@client.key",
];

/// One request as a program would write it, and all that comes back.
async fn asked(remote: &Remote, head: &str) -> String {
    let mut stream = remote.connect().await.unwrap();
    let bytes = format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The other side may close without a farewell of TLS.
    let _ended = within(SOON, "an answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn with_the_token_every_command_works_and_without_it_none_does() {
    let remote = Remote::start(Asks::Token, "").await;

    let right = remote
        .run(&[&["status", "--json"], &TRUSTS[..], &TOKEN].concat())
        .await;
    let none = remote.run(&[&["status"], &TRUSTS[..]].concat()).await;
    std::fs::write(remote.file("client.key"), format!("{CONTROL_TOKEN}x")).unwrap();
    let wrong = ["--control-token", "file:@client.key"];
    let wrong = remote.run(&[&["status"], &TRUSTS[..], &wrong].concat()).await;

    assert_eq!(right.code, Some(0), "{}", right.stderr);
    assert!(right.stdout.contains("\"sessions\""), "{}", right.stdout);
    for refused in [none, wrong] {
        assert_eq!(refused.code, Some(4), "{}", refused.stderr);
        assert!(refused.stderr.contains("token_refused"), "{}", refused.stderr);
    }
    for words in [
        &["sessions", "ls"][..],
        &["sessions", "reap"],
        &["drain", "--wait"],
    ] {
        let ended = remote.run(&[words, &TRUSTS, &TOKEN].concat()).await;
        assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
    }
    let ended = remote.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(CONTROL_TOKEN));
}

#[tokio::test]
async fn an_answer_without_the_token_says_what_to_show_and_a_page_of_a_browser_gets_none() {
    let remote = Remote::start(Asks::Token, "").await;
    let authorized = format!("GET /v1/status HTTP/1.1\r\nAuthorization: Bearer {CONTROL_TOKEN}");

    let none = asked(&remote, "GET /v1/status HTTP/1.1").await;
    let right = asked(&remote, &authorized).await;
    let twice = format!("{authorized}\r\nAuthorization: Bearer {CONTROL_TOKEN}");
    let twice = asked(&remote, &twice).await;
    let page = asked(&remote, &format!("{authorized}\r\nOrigin: https://evil.example")).await;

    assert!(none.starts_with("HTTP/1.1 401 "), "{none}");
    assert!(none.contains("www-authenticate: Bearer\r\n") && none.contains("problem+json"));
    assert!(right.starts_with("HTTP/1.1 200 "), "{right}");
    assert!(twice.starts_with("HTTP/1.1 401 "), "{twice}");
    assert!(
        page.starts_with("HTTP/1.1 403 ") && page.contains("browser_refused"),
        "{page}"
    );
}

#[tokio::test]
async fn with_an_authority_of_clients_a_certificate_of_another_is_worth_nothing() {
    let remote = Remote::start(Asks::Certificate, "").await;
    let strange = [
        "--control-cert",
        "@strange.pem",
        "--control-key",
        "file:@strange.key",
    ];

    let right = remote.run(&[&["status"], &TRUSTS[..], &SHOWS].concat()).await;
    let none = remote.run(&[&["status"], &TRUSTS[..]].concat()).await;
    let strange = remote.run(&[&["status"], &TRUSTS[..], &strange].concat()).await;

    assert_eq!(right.code, Some(0), "{}", right.stderr);
    for refused in [none, strange] {
        assert_ne!(refused.code, Some(0));
        assert_eq!(refused.stdout, "");
    }
}

#[tokio::test]
async fn where_both_are_asked_for_one_of_them_is_not_enough() {
    let remote = Remote::start(Asks::Both, "").await;

    let both = remote
        .run(&[&["status"], &TRUSTS[..], &SHOWS, &TOKEN].concat())
        .await;
    let token = remote.run(&[&["status"], &TRUSTS[..], &TOKEN].concat()).await;
    let certificate = remote.run(&[&["status"], &TRUSTS[..], &SHOWS].concat()).await;

    assert_eq!(both.code, Some(0), "{}", both.stderr);
    assert_ne!(token.code, Some(0));
    assert!(
        certificate.stderr.contains("token_refused"),
        "{}",
        certificate.stderr
    );
}

#[tokio::test]
async fn a_daemon_of_another_authority_is_not_spoken_to() {
    let remote = Remote::start(Asks::Token, "").await;

    let ended = remote
        .run(&[&["status", "--control-ca", "@strange-ca.pem"], &TOKEN[..]].concat())
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("--control-ca"), "{}", ended.stderr);
}

#[tokio::test]
async fn plain_http_gets_no_answer() {
    let remote = Remote::start(Asks::Token, "").await;
    let mut stream = TcpStream::connect(remote.address).await.unwrap();

    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();

    let mut answer = Vec::new();
    let _ended = within(SOON, "it is closed", stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_is_cut_and_many_of_them_keep_nobody_out() {
    let remote = Remote::start(Asks::Token, "").await;
    let mut open = Vec::new();
    for _ in 0..300 {
        open.push(TcpStream::connect(remote.address).await.unwrap());
    }

    let ended = remote.run(&[&["status"], &TRUSTS[..], &TOKEN].concat()).await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let all_cut = async {
        for stream in &mut open {
            let mut nothing = [0; 1];
            assert!(matches!(stream.read(&mut nothing).await, Ok(0) | Err(_)));
        }
    };
    within(SOON, "every half-open connection is cut", all_cut).await;
}

#[tokio::test]
async fn over_tcp_nobody_is_the_daemon_s_own_user() {
    let upstream = Upstream::start().await;
    let more = format!(
        "[control]\nadhoc = true\n[upstreams.main]\nurl = \"{}\"\ncredential = \"env:{CREDENTIAL_VARIABLE}\"\n",
        upstream.url()
    );
    let remote = Remote::start(Asks::Token, &more).await;

    let local = remote
        .run(&[&["sessions", "new", "local"], &TRUSTS[..], &TOKEN].concat())
        .await;
    let brought = [
        "sessions",
        "new",
        "ssh://a@127.0.0.1:1",
        "--credential",
        "env:HOME",
        "--upstream",
        "http://127.0.0.1:1",
    ];
    let brought = remote.run(&[&brought[..], &TRUSTS, &TOKEN].concat()).await;

    for refused in [local, brought] {
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains("adhoc_refused"), "{}", refused.stderr);
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_control_api_over_tcp_without_tls_or_authentication_is_refused() {
    let bare = paperclip_bridge_tests::binary::BridgeCommand::new([
        "serve",
        "--control",
        "tcp:127.0.0.1:0",
        "--ops",
        "127.0.0.1:0",
    ])
    .finish()
    .await;
    assert_eq!(bare.code, Some(3), "{}", bare.stderr);
    assert!(
        bare.stderr.contains("certificate") && bare.stderr.contains("token"),
        "{}",
        bare.stderr
    );
    let folder = certificates();
    let short = serve(folder.path(), Asks::Token, "");
    std::fs::write(folder.path().join("token"), "short").unwrap();
    let short = short.finish().await;
    assert_eq!(short.code, Some(3), "{}", short.stderr);
    assert!(short.stderr.contains("32 or more"), "{}", short.stderr);
    let no_key = serve(folder.path(), Asks::Certificate, "");
    std::fs::write(folder.path().join("server.key"), "no key at all").unwrap();
    let no_key = no_key.finish().await;
    assert_eq!(no_key.code, Some(3), "{}", no_key.stderr);
    assert!(
        no_key.stderr.contains("no key in PEM") && !no_key.stderr.contains("no key at all"),
        "{}",
        no_key.stderr
    );
}

#[tokio::test]
async fn a_new_certificate_is_shown_after_a_reload_and_one_that_is_none_changes_nothing() {
    let upstream = Upstream::start().await;
    let more = format!(
        "[targets.here]\ntarget = \"local\"\n[upstreams.main]\nurl = \"{}\"\ncredential = \"env:{CREDENTIAL_VARIABLE}\"\n",
        upstream.url()
    );
    let remote = Remote::start(Asks::Token, &more).await;
    // A connection that stands from before all that.
    let mut standing = remote.connect().await.unwrap();
    let listens = format!(
        "GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CONTROL_TOKEN}\r\n\r\n"
    );
    standing.write_all(listens.as_bytes()).await.unwrap();
    until(&mut standing, b"text/event-stream").await;
    let run = async |words: &[&str], ca: &str| {
        let trusts = ["--control-ca", ca];
        remote.run(&[words, &trusts, &TOKEN].concat()).await
    };

    renew(remote.folder.path());
    // Not before it is asked for.
    assert!(remote.connect_trusting("new-ca.pem").await.is_err());
    let renewed = run(&["reload", "--json"], "@ca.pem").await;

    assert_eq!(renewed.code, Some(0), "{}", renewed.stderr);
    assert!(
        renewed.stdout.contains("listeners.control.certificate"),
        "{}",
        renewed.stdout
    );
    assert!(remote.connect().await.is_err());
    remote.connect_trusting("new-ca.pem").await.unwrap();
    // A key that is not its own, and then no certificate at all.
    std::fs::copy(remote.file("client.key"), remote.file("server.key")).unwrap();
    let strange = run(&["reload"], "@new-ca.pem").await;
    std::fs::write(remote.file("server.pem"), "nothing").unwrap();
    let none = run(&["reload"], "@new-ca.pem").await;
    for refused in [strange, none] {
        assert_eq!(refused.code, Some(3), "{}", refused.stderr);
        assert!(refused.stderr.contains("server.pem"), "{}", refused.stderr);
    }
    let made = run(&["sessions", "new", "here"], "@new-ca.pem").await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    until(&mut standing, b"event: session").await;
}

/// Reads until this was among what came.
async fn until(stream: &mut (impl tokio::io::AsyncRead + Unpin), what: &[u8]) {
    let mut told = Vec::new();
    let read = async {
        while !told.windows(what.len()).any(|found| found == what) {
            assert_ne!(
                stream.read_buf(&mut told).await.unwrap(),
                0,
                "the connection was closed"
            );
        }
    };
    within(SOON, "what is waited for", read).await;
}

#[tokio::test]
async fn an_authority_of_clients_is_read_again_too() {
    let remote = Remote::start(Asks::Certificate, "").await;
    let status = async || {
        remote
            .run(&[&["status"], &TRUSTS[..], &SHOWS].concat())
            .await
            .code
    };
    assert_eq!(status().await, Some(0));
    let own = std::fs::read(remote.file("ca.pem")).unwrap();
    // What the command line trusts stands in the same file: it is put back once the daemon has read the other.
    std::fs::copy(remote.file("strange-ca.pem"), remote.file("ca.pem")).unwrap();

    remote.running.signal("HUP");
    eventually(SOON, "it is read again", || {
        remote
            .running
            .stderr()
            .contains("listeners.control.client_ca")
            .then_some(())
    })
    .await;
    std::fs::write(remote.file("ca.pem"), own).unwrap();

    assert_ne!(status().await, Some(0));
}

#[tokio::test]
async fn options_for_tcp_do_not_go_with_a_unix_socket() {
    let folder = certificates();
    let ca = folder.path().join("ca.pem");
    let ended =
        paperclip_bridge_tests::binary::BridgeCommand::new(["status", "--control", "unix:/nonexistent"])
            .args(["--control-ca", ca.to_str().unwrap()])
            .finish()
            .await;

    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("tcp:HOST:PORT"), "{}", ended.stderr);
}
