//! What goes in and comes out: pieces, patience, loss.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::{Wire, eventually};
use serde_json::{Value, json};

use super::super::caller::{Caller, LIMIT, command, end, frame, pieces};

pub(super) async fn piece_size(caller: &Caller) {
    let frames = caller.script("head -c 3000000 /dev/zero").await.rest().await;

    let pieces = pieces(&frames, "stdout");
    assert_eq!(pieces.concat().len(), 3_000_000);
    assert!(pieces.iter().all(|piece| piece.len() <= 32 * 1024));
}

pub(super) async fn pty(caller: &Caller) {
    let bytes: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
    let request = json!({
        "process": command("stty raw -echo; echo ready; head -c 65536"),
        "pty": {"size": {"cols": 80, "rows": 24}},
        "tag": "pty",
    });
    let mut stream = caller.stream("Start", request, &[]).await;
    stream.pid().await;
    let ready = stream.event().await;
    assert_eq!(ready["data"]["pty"], STANDARD.encode("ready\n"));

    let sent = async {
        // Less than a terminal holds at once: what reads is as slow as it likes.
        for piece in bytes.chunks(1024) {
            let input = json!({"pty": STANDARD.encode(piece)});
            let sent = caller
                .unary("SendInput", json!({"process": {"tag": "pty"}, "input": input}))
                .await;
            assert_eq!(sent.0, 200);
        }
    };
    let (frames, ()) = tokio::join!(stream.rest(), sent);

    let pieces = pieces(&frames, "pty");
    assert!(pieces.concat() == bytes, "every byte comes back");
    assert!(pieces.iter().all(|piece| piece.len() <= 16 * 1024));
}

pub(super) async fn no_stdin(caller: &Caller) {
    assert_eq!(end(&caller.script("cat").await.rest().await)["exited"], true);

    let mut waiting = caller.script("exec sleep 987").await;
    let pid = waiting.pid().await;
    let request = json!({"process": {"pid": pid}, "input": {"stdin": "eA=="}});
    assert_eq!(caller.unary("SendInput", request).await.0, 500);
}

pub(super) async fn large_input(caller: &Caller) {
    let mut stream = caller.fed("wc -c", "count").await;
    stream.pid().await;

    assert_eq!(caller.input("count", &vec![b'z'; 8 << 20]).await.0, 200);
    caller
        .unary("CloseStdin", json!({"process": {"tag": "count"}}))
        .await;

    let count = pieces(&stream.rest().await, "stdout").concat();
    assert_eq!(String::from_utf8_lossy(&count).trim(), "8388608");
}

pub(super) async fn input_waits(caller: &Caller) {
    let go = caller.path("go");
    let mut stream = caller
        .fed(
            &format!("until [ -e {go} ]; do sleep 0.02; done; cat >/dev/null"),
            "slow",
        )
        .await;
    stream.pid().await;
    let bytes = vec![b'z'; 300_000];
    let sending = caller.input("slow", &bytes);
    tokio::pin!(sending);

    tokio::select! {
        answer = &mut sending => panic!("answered before anything was read: {answer:?}"),
        () = caller.some_time() => {}
    }
    fs::write(&go, "").expect("a file");

    assert_eq!(sending.await.0, 200);
}

pub(super) async fn slow_reader(caller: &Caller) {
    const LENGTH: usize = 48 << 20;
    let done = caller.path("done");
    let mut stream = caller
        .script(&format!("head -c {LENGTH} /dev/zero; echo >{done}"))
        .await;
    stream.pid().await;

    caller.some_time().await;

    assert!(!Path::new(&done).exists(), "the program is held back");
    let mut length = 0;
    while let Some((_, message)) = stream.next().await {
        let text = message["event"]["data"]["stdout"].as_str().unwrap_or_default();
        length += STANDARD.decode(text).expect("base64").len();
    }
    assert_eq!(length, LENGTH);
}

pub(super) async fn no_reader(caller: &Caller) {
    let (first, second, wrote) = (caller.path("first"), caller.path("second"), caller.path("wrote"));
    let until = |file: &str| format!("until [ -e {file} ]; do sleep 0.02; done");
    let script = format!(
        "{}; echo lost; echo >{wrote}; {}; echo kept",
        until(&first),
        until(&second)
    );
    let mut stream = caller.fed(&script, "alone").await;
    let pid = stream.pid().await;
    drop(stream);

    fs::write(&first, "").expect("a file");
    eventually(LIMIT, "it writes", || Path::new(&wrote).exists().then_some(())).await;
    caller.some_time().await;
    let mut again = caller
        .stream("Connect", json!({"process": {"tag": "alone"}}), &[])
        .await;
    assert_eq!(again.pid().await, pid);
    fs::write(&second, "").expect("a file");

    let frames = again.rest().await;
    assert_eq!(pieces(&frames, "stdout"), [b"kept\n"]);
    assert_eq!(end(&frames)["exited"], true);
}

pub(super) async fn stream_input(caller: &Caller) {
    let mut output = caller.fed("exec cat", "dup").await;
    output.pid().await;
    let mut wire = Wire::connect(caller.fake.url()).await.expect("a connection");
    let head = format!(
        "POST /process.Process/StreamInput HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {}\r\nX-Access-Token: {}\r\n\
         Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n",
        caller.id, caller.token
    );
    wire.send(head.as_bytes()).await.expect("sent");
    let chunk = |message: &Value| {
        let frame = frame(message);
        [format!("{:x}\r\n", frame.len()).as_bytes(), &frame, b"\r\n"].concat()
    };
    wire.send(&chunk(&json!({"start": {"process": {"tag": "dup"}}})))
        .await
        .expect("sent");
    let bytes: Vec<u8> = (0..=255).cycle().take(16 * 1024).collect();
    for _ in 0..20 {
        let data = json!({"data": {"input": {"stdin": STANDARD.encode(&bytes)}}});
        wire.send(&chunk(&data)).await.expect("sent");
        let mut back = vec![];
        while back.len() < bytes.len() {
            let event = output.event().await;
            back.extend(
                STANDARD
                    .decode(event["data"]["stdout"].as_str().expect("stdout"))
                    .expect("base64"),
            );
        }
        assert!(back == bytes);
    }
    let last = [chunk(&json!({"keepalive": {}})), b"0\r\n\r\n".to_vec()].concat();
    wire.send(&last).await.expect("sent");

    let answer = wire.answer("POST").await.expect("an answer");
    assert_eq!(answer.status, 200);
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(body, "\0\0\0\0\u{2}{}\u{2}\0\0\0\u{2}{}");
}

pub(super) async fn close_stdin(caller: &Caller) {
    let mut stream = caller.fed("cat; exec sleep 987", "twice").await;
    stream.pid().await;
    for _ in 0..2 {
        let closed = caller
            .unary("CloseStdin", json!({"process": {"tag": "twice"}}))
            .await;
        assert_eq!(closed, (200, json!({})));
    }

    let request = json!({"process": command("cat"), "pty": {"size": {"cols": 80, "rows": 24}}, "tag": "pty"});
    let mut pty = caller.stream("Start", request, &[]).await;
    pty.pid().await;
    assert_ne!(
        caller
            .unary("CloseStdin", json!({"process": {"tag": "pty"}}))
            .await
            .0,
        200
    );
}
