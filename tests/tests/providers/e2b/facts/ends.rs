//! How processes end, and who hears of it.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::{eventually, processes};
use serde_json::json;

use super::super::caller::{Caller, LIMIT, command, end, pieces};

pub(super) async fn time_out(caller: &Caller) {
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

pub(super) async fn signal(caller: &Caller) {
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

pub(super) async fn kept_end(caller: &Caller) {
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

pub(super) async fn holders(caller: &Caller) {
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

pub(super) async fn group(caller: &Caller) {
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

pub(super) async fn keep_alive(caller: &Caller) {
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
