//! `probe`: what it finds on good, restricted and unreachable targets, and that it looks nowhere else.
//!
//! Here: what a probe said, and this machine. The rest by the kind of target.

mod hosts;
mod sandboxes;
mod clouds;
mod nowhere_else;

use std::time::Duration;

use paperclip_bridge_tests::Upstream;
use paperclip_bridge_tests::binary::Finished;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, daemon};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// What a probe said, which holds no secret.
struct Probed {
    code: Option<i32>,
    report: Value,
}

impl Probed {
    fn of(ended: Finished) -> Self {
        for output in [&ended.stdout, &ended.stderr] {
            assert!(
                !output.contains(CREDENTIAL) && !output.contains("pcb_"),
                "{output}"
            );
        }
        let report = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
        let probed = Self {
            code: ended.code,
            report,
        };
        probed.assert_shape();
        probed
    }

    fn assert_shape(&self) {
        let report = &self.report;
        assert!(
            report["ok"].is_boolean() && report["target"].is_string(),
            "{report}"
        );
        assert!(report["seconds"].as_f64().unwrap() < 120.0, "{report}");
        assert_eq!(report["ok"], self.code == Some(0), "{report}");
        for check in report["checks"].as_array().unwrap() {
            let result = check["result"].as_str().unwrap();
            assert!(["ok", "warn", "fail", "skipped"].contains(&result), "{check}");
            assert!(
                check["name"].is_string() && check["ms"].is_u64() && check["found"].is_string(),
                "{check}"
            );
            let wrong = ["warn", "fail"].contains(&result);
            assert_eq!(check["to_do"].is_string(), wrong, "{check}");
            assert_eq!(check["reason"].is_string(), wrong, "{check}");
        }
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("no check {name}: {}", self.report))
    }

    fn assert_is(&self, result: &str, names: &[&str]) {
        for name in names {
            assert_eq!(self.check(name)["result"], result, "{}", self.report);
        }
    }

    /// It ended at the target, for this reason.
    fn assert_unreached(&self, reason: &str) {
        assert_eq!(self.code, Some(4), "{}", self.report);
        assert_eq!(self.check("target")["reason"], reason, "{}", self.report);
        assert_eq!(
            self.report["checks"].as_array().unwrap().len(),
            1,
            "{}",
            self.report
        );
        assert_eq!(self.report["tunnel"], Value::Null);
    }
}

async fn probe(place: &Place, upstream: &Upstream, options: &[&str]) -> Probed {
    let command = daemon("probe", place, &upstream.url())
        .args(["--json"])
        .args(options.iter().copied());
    Probed::of(command.finish().await)
}

#[tokio::test]
async fn this_machine_is_probed_and_each_of_its_tunnels_carries_a_callback() {
    let upstream = Upstream::start().await;

    let probed = probe(&Place::Local, &upstream, &[]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "local");
    probed.assert_is(
        "ok",
        &[
            "target",
            "command",
            "shell",
            "clock",
            "upstream",
            "callback local",
            "callback http2_v1",
            "callback queue_v1",
        ],
    );
    // No pack opens the API's health to agents.
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn people_get_a_table() {
    let upstream = Upstream::start().await;

    let ended = daemon("probe", &Place::Local, &upstream.url())
        .args(["--tunnel", "local"])
        .finish()
        .await;

    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{}",
        ended.stdout
    );
    for told in ["Check ", "callback local", "Sessions work there, over local"] {
        assert!(ended.stdout.contains(told), "{}", ended.stdout);
    }
    assert!(
        !ended.stdout.contains("queue_v1"),
        "only what was demanded: {}",
        ended.stdout
    );
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_before_anything_is_reached() {
    let upstream = Upstream::start().await;

    let socket = daemon("probe", &Place::Local, &upstream.url())
        .args(["--unix-socket", "/tmp/x.sock"])
        .finish()
        .await;
    let tunnel = daemon("probe", &Place::Local, &upstream.url())
        .args(["--tunnel", "ssh-reverse"])
        .finish()
        .await;

    assert_eq!(
        (socket.code, tunnel.code),
        (Some(2), Some(2)),
        "{}",
        socket.stderr
    );
    assert_eq!((socket.stdout, tunnel.stdout), (String::new(), String::new()));
}
