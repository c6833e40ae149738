//! What was seen on the wire of a real server inside a sandbox (version 0.6.13), asserted of the fake: one row a fact.
//!
//! Not in the table, and not played: the protobuf codec beside JSON. Read next: [`super::caller`].

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use paperclip_bridge_tests::{Wire, eventually, processes};
use serde_json::{Value, json};

use super::caller::{Caller, END, LIMIT, command, end, frame, pieces};

type Fact = for<'a> fn(&'a Caller) -> BoxFuture<'a, ()>;

/// Each on a sandbox of its own.
const FACTS: &[(&str, Fact)] = &[
    ("start, data, end and an empty last frame", |caller| {
        Box::pin(messages(caller))
    }),
    ("what is a default is left out", |caller| {
        Box::pin(defaults(caller))
    }),
    ("a missing program is exit 127 and a line", |caller| {
        Box::pin(missing_program(caller))
    }),
    ("a missing folder is invalid_argument", |caller| {
        Box::pin(missing_folder(caller))
    }),
    ("an unknown user is unauthenticated", |caller| {
        Box::pin(unknown_user(caller))
    }),
    ("a unary type on a stream is 415 and nothing", |caller| {
        Box::pin(wrong_type(caller))
    }),
    ("a process that is not there is 404 not_found", |caller| {
        Box::pin(unknown_process(caller))
    }),
    ("the time-out kills the process, not its children", |caller| {
        Box::pin(time_out(caller))
    }),
    ("a signal is exit code -1 and its name", |caller| {
        Box::pin(signal(caller))
    }),
    ("output comes in pieces of at most 32 KiB", |caller| {
        Box::pin(piece_size(caller))
    }),
    (
        "a pty's output comes in pieces of at most 16 KiB, 8-bit clean when raw",
        |caller| Box::pin(pty(caller)),
    ),
    ("without stdin there is the end of it", |caller| {
        Box::pin(no_stdin(caller))
    }),
    ("one call takes megabytes", |caller| Box::pin(large_input(caller))),
    ("input waits until the program reads", |caller| {
        Box::pin(input_waits(caller))
    }),
    (
        "a slow reader holds the program back and loses nothing",
        |caller| Box::pin(slow_reader(caller)),
    ),
    ("output without a reader is lost, the process lives", |caller| {
        Box::pin(no_reader(caller))
    }),
    ("an end is kept for 30 s, by pid and by tag", |caller| {
        Box::pin(kept_end(caller))
    }),
    (
        "a stream of input is 8-bit clean and answered at its end",
        |caller| Box::pin(stream_input(caller)),
    ),
    ("stdin can be closed twice, that of a pty never", |caller| {
        Box::pin(close_stdin(caller))
    }),
    ("the end waits for all who hold the outputs", |caller| {
        Box::pin(holders(caller))
    }),
    (
        "with setsid pid, group and session are one, and the group can be ended",
        |caller| Box::pin(group(caller)),
    ),
    ("a keep-alive comes when nothing else does", |caller| {
        Box::pin(keep_alive(caller))
    }),
    ("a list shows what was asked for", |caller| Box::pin(list(caller))),
    ("files are written and read raw", |caller| Box::pin(files(caller))),
    ("without the token it is 401 with a number", |caller| {
        Box::pin(no_token(caller))
    }),
    ("health is 204", |caller| Box::pin(health(caller))),
    ("HTTP/2 in clear is refused", |caller| Box::pin(no_http2(caller))),
    ("a sandbox that is gone is 502 of the edge", |caller| {
        Box::pin(gone(caller))
    }),
];

#[tokio::test]
async fn the_fake_has_every_fact_that_was_seen() {
    for (fact, check) in FACTS {
        println!("{fact}");
        let caller = Caller::start().await;
        tokio::time::timeout(LIMIT, check(&caller)).await.expect(fact);
    }
}

async fn messages(caller: &Caller) {
    let mut stream = caller.script("echo out; echo err >&2; exit 3").await;

    stream.pid().await;
    let frames = stream.rest().await;

    assert_eq!(pieces(&frames, "stdout"), [b"out\n"]);
    assert_eq!(pieces(&frames, "stderr"), [b"err\n"]);
    let status = "exit status 3";
    assert_eq!(
        end(&frames),
        json!({"exitCode": 3, "exited": true, "status": status, "error": status})
    );
    assert_eq!(frames.last(), Some(&(END, json!({}))));
}

async fn defaults(caller: &Caller) {
    let frames = caller.script("exit 0").await.rest().await;
    assert_eq!(end(&frames), json!({"exited": true, "status": "exit status 0"}));

    let mut cat = caller.fed("cat", "cat").await;
    cat.pid().await;
    assert_eq!(caller.input("cat", b"x").await, (200, json!({})));
    assert_eq!(
        caller
            .unary("CloseStdin", json!({"process": {"tag": "cat"}}))
            .await,
        (200, json!({}))
    );
    cat.rest().await;
    assert_eq!(caller.unary("List", json!({})).await, (200, json!({})));
}

async fn missing_program(caller: &Caller) {
    let request = json!({"process": {"cmd": "/no/such"}, "stdin": false});
    let frames = caller.stream("Start", request, &[]).await.rest().await;

    assert_eq!(end(&frames)["exitCode"], 127);
    assert!(String::from_utf8_lossy(&pieces(&frames, "stderr").concat()).contains("/no/such"));
}

async fn missing_folder(caller: &Caller) {
    let request = json!({"process": {"cmd": "/bin/true", "cwd": "/no/such"}});
    let frames = caller.stream("Start", request, &[]).await.rest().await;

    assert_eq!((frames.len(), frames[0].0), (1, END));
    assert_eq!(frames[0].1["error"]["code"], "invalid_argument");
}

async fn unknown_user(caller: &Caller) {
    let basic = format!("Basic {}", STANDARD.encode("nobodyhere:"));
    let request = json!({"process": {"cmd": "/bin/true"}});
    let frames = caller
        .stream("Start", request, &[("authorization", &basic)])
        .await
        .rest()
        .await;

    assert_eq!(frames[0].1["error"]["code"], "unauthenticated");
}

async fn wrong_type(caller: &Caller) {
    let headers = [("content-type", "application/json")];
    let answer = caller
        .fetch(
            "POST",
            "/process.Process/Start",
            &headers,
            r#"{"process":{"cmd":"true"}}"#,
        )
        .await;

    assert_eq!((answer.0, answer.1.len()), (415, 0));
}

async fn unknown_process(caller: &Caller) {
    let request = json!({"process": {"pid": 999_999_999}, "input": {"stdin": "eA=="}});
    let (status, body) = caller.unary("SendInput", request).await;

    assert_eq!((status, &body["code"]), (404, &json!("not_found")));
}

async fn time_out(caller: &Caller) {
    let child = caller.path("child");
    let script = format!("sleep 987 & echo $! >{child}; echo told; wait");
    let request = json!({"process": command(&script), "stdin": false});
    let mut stream = caller
        .stream("Start", request, &[("connect-timeout-ms", "1500")])
        .await;
    let pid = stream.pid().await;

    let frames = stream.rest().await;

    assert_eq!(
        frames.last().expect("an end").1["error"]["code"],
        "deadline_exceeded"
    );
    let gone = || {
        processes::one(pid)
            .is_none_or(|one| one.state == 'Z')
            .then_some(())
    };
    eventually(LIMIT, "the process is killed", gone).await;
    let child: u32 = fs::read_to_string(child)
        .expect("told")
        .trim()
        .parse()
        .expect("a pid");
    assert!(
        processes::one(child).is_some_and(|one| one.state != 'Z'),
        "its child lives"
    );
}

async fn signal(caller: &Caller) {
    for (name, status) in [
        ("SIGNAL_SIGTERM", "signal: terminated"),
        ("SIGNAL_SIGKILL", "signal: killed"),
    ] {
        let mut stream = caller.script("exec sleep 987").await;
        let pid = stream.pid().await;

        let sent = caller
            .unary("SendSignal", json!({"process": {"pid": pid}, "signal": name}))
            .await;

        assert_eq!(sent, (200, json!({})));
        let end = end(&stream.rest().await);
        assert_eq!((&end["exitCode"], &end["status"]), (&json!(-1), &json!(status)));
        assert_eq!(end.get("exited"), None);
    }
}

async fn piece_size(caller: &Caller) {
    let frames = caller.script("head -c 3000000 /dev/zero").await.rest().await;

    let pieces = pieces(&frames, "stdout");
    assert_eq!(pieces.concat().len(), 3_000_000);
    assert!(pieces.iter().all(|piece| piece.len() <= 32 * 1024));
}

async fn pty(caller: &Caller) {
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

async fn no_stdin(caller: &Caller) {
    assert_eq!(end(&caller.script("cat").await.rest().await)["exited"], true);

    let mut waiting = caller.script("exec sleep 987").await;
    let pid = waiting.pid().await;
    let request = json!({"process": {"pid": pid}, "input": {"stdin": "eA=="}});
    assert_eq!(caller.unary("SendInput", request).await.0, 500);
}

async fn large_input(caller: &Caller) {
    let mut stream = caller.fed("wc -c", "count").await;
    stream.pid().await;

    assert_eq!(caller.input("count", &vec![b'z'; 8 << 20]).await.0, 200);
    caller
        .unary("CloseStdin", json!({"process": {"tag": "count"}}))
        .await;

    let count = pieces(&stream.rest().await, "stdout").concat();
    assert_eq!(String::from_utf8_lossy(&count).trim(), "8388608");
}

async fn input_waits(caller: &Caller) {
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

async fn slow_reader(caller: &Caller) {
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

async fn no_reader(caller: &Caller) {
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

async fn kept_end(caller: &Caller) {
    let mut stream = caller.fed("exit 4", "kept").await;
    let pid = stream.pid().await;
    stream.rest().await;

    for selector in [json!({"pid": pid}), json!({"tag": "kept"})] {
        let mut again = caller.stream("Connect", json!({"process": selector}), &[]).await;
        assert_eq!(again.pid().await, pid);
        assert_eq!(end(&again.rest().await)["exitCode"], 4);
    }
    caller.fake.clock().advance(Duration::from_secs(31));

    let frames = caller
        .stream("Connect", json!({"process": {"tag": "kept"}}), &[])
        .await
        .rest()
        .await;
    assert_eq!(frames[0].1["error"]["code"], "not_found");
}

async fn stream_input(caller: &Caller) {
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

async fn close_stdin(caller: &Caller) {
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

async fn holders(caller: &Caller) {
    let go = caller.path("go");
    let holder = format!("{{ until [ -e {go} ]; do sleep 0.02; done; echo later; }} & echo done");
    let mut stream = caller.fed(&holder, "held").await;
    stream.pid().await;
    assert_eq!(stream.event().await["data"]["stdout"], STANDARD.encode("done\n"));
    tokio::select! {
        frame = stream.next() => panic!("not yet: {frame:?}"),
        () = caller.some_time() => {}
    }
    fs::write(&go, "").expect("a file");
    let frames = stream.rest().await;
    assert_eq!(pieces(&frames, "stdout"), [b"later\n"]);

    let mut stream = caller.script("sleep 987 & echo up; wait").await;
    let pid = stream.pid().await;
    stream.event().await;
    caller
        .unary(
            "SendSignal",
            json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}),
        )
        .await;
    assert_eq!(end(&stream.rest().await)["status"], "signal: terminated");
}

async fn group(caller: &Caller) {
    let script = "read -r s </proc/$$/stat; set -- ${s##*) }; echo $$ $3 $4; sleep 987 & wait";
    let request = json!({"process": {"cmd": "setsid", "args": ["/bin/sh", "-c", script]}, "stdin": false});
    let mut stream = caller.stream("Start", request, &[]).await;
    let pid = stream.pid().await;
    let ids = stream.event().await;
    assert_eq!(
        ids["data"]["stdout"],
        STANDARD.encode(format!("{pid} {pid} {pid}\n"))
    );

    let killed = caller
        .script(&format!("kill -s TERM -- -{pid}"))
        .await
        .rest()
        .await;

    assert_eq!(end(&killed)["exited"], true);
    assert_eq!(end(&stream.rest().await)["status"], "signal: terminated");
}

async fn keep_alive(caller: &Caller) {
    let request = json!({"process": command("exec sleep 987"), "stdin": false});
    let mut asked = caller
        .stream("Start", request.clone(), &[("keepalive-ping-interval", "20")])
        .await;
    let mut silent = caller.stream("Start", request, &[]).await;
    asked.pid().await;
    silent.pid().await;
    let waits = caller.some_time();
    tokio::select! {
        event = asked.event() => panic!("too early: {event}"),
        () = waits => {}
    }

    caller.fake.clock().advance(Duration::from_secs(20));
    assert_eq!(asked.event().await, json!({"keepalive": {}}));
    tokio::select! {
        event = silent.event() => panic!("it is 90 s for those who do not ask: {event}"),
        () = caller.some_time() => {}
    }
    caller.fake.clock().advance(Duration::from_secs(70));

    assert_eq!(silent.event().await, json!({"keepalive": {}}));
}

async fn list(caller: &Caller) {
    let config = json!({"cmd": "/bin/sleep", "args": ["987"], "envs": {"A": "b"}, "cwd": "/tmp"});
    let mut stream = caller
        .stream(
            "Start",
            json!({"process": config, "stdin": false, "tag": "t"}),
            &[],
        )
        .await;
    let pid = stream.pid().await;

    let listed = caller.unary("List", json!({})).await;

    assert_eq!(
        listed,
        (
            200,
            json!({"processes": [{"config": config, "pid": pid, "tag": "t"}]})
        )
    );
}

async fn files(caller: &Caller) {
    let path = caller.path("folder/bytes.bin");
    let bytes: Vec<u8> = (0..=255).collect();
    let raw = [("content-type", "application/octet-stream")];

    let (status, body) = caller
        .fetch("POST", &format!("/files?path={path}"), &raw, bytes.clone())
        .await;

    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (status, told),
        (200, json!([{"name": "bytes.bin", "path": path, "type": "file"}]))
    );
    let read = caller.fetch("GET", &format!("/files?path={path}"), &[], "").await;
    assert_eq!((read.0, read.1.to_vec()), (200, bytes));
    let (status, body) = caller.fetch("GET", "/files?path=/no/such", &[], "").await;
    let fault: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &fault["code"]), (404, &json!(404)));
}

async fn no_token(caller: &Caller) {
    for path in ["/files?path=/etc/hostname", "/process.Process/List"] {
        let (status, body) = caller
            .fetch("POST", path, &[("x-access-token", "other")], "")
            .await;

        let fault: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((status, &fault["code"]), (401, &json!(401)));
    }
}

async fn health(caller: &Caller) {
    assert_eq!(caller.fetch("GET", "/health", &[], "").await.0, 204);
}

async fn no_http2(caller: &Caller) {
    let mut wire = Wire::connect(caller.fake.url()).await.expect("a connection");

    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("sent");

    let answer = wire.answer("PRI").await;
    assert!(
        answer.as_ref().is_err() || answer.as_ref().is_ok_and(|answer| answer.status >= 400),
        "{answer:?}"
    );
}

async fn gone(caller: &Caller) {
    caller.fake.kill_sandbox(&caller.id);

    let (status, body) = caller.fetch("GET", "/health", &[], "").await;

    let fault: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (status, &fault["code"], &fault["sandboxId"]),
        (502, &json!(502), &json!(caller.id))
    );
}
