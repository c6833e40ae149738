//! A sandbox of the provider for tests is probed, and left as it should be.

use paperclip_bridge_tests::leased::Leased;
use runners::fake::{Call, LeaseState};

use super::Probed;

#[tokio::test]
async fn a_sandbox_is_acquired_probed_and_given_back() {
    for (field, tunnel) in [("duplex=true", "http2_v1"), ("duplex=false", "queue_v1")] {
        let world = Leased::new().await;

        let probed = Probed::of(
            world
                .command("probe", "fake:")
                .args(["--json", "--provider", field])
                .finish()
                .await,
        );

        assert_eq!(probed.code, Some(0), "{}", probed.report);
        assert_eq!(probed.report["tunnel"], tunnel);
        probed.assert_is("ok", &["lease", "callback queue_v1"]);
        if tunnel == "queue_v1" {
            assert_eq!(probed.check("tunnel http2_v1")["reason"], "no_duplex");
        }
        assert_eq!(world.calls(Call::Acquire).len(), 1);
        assert_eq!(world.calls(Call::Release).len(), 1);
        nothing_is_held(&world);
    }
}

fn nothing_is_held(world: &Leased) {
    assert_eq!(world.present(), []);
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_sandbox_that_was_there_before_is_probed_and_never_ended() {
    let world = Leased::new().await;
    let kept = world
        .open("fake:", &["--provider", "reuseLease=true"])
        .await
        .unwrap();
    assert_eq!(kept.close().await.code, Some(0));
    let [(id, _)] = &world.present()[..] else {
        panic!("{:?}", world.present())
    };
    let target = format!("fake:{id}");
    let (released, destroyed) = (world.calls(Call::Release).len(), world.calls(Call::Destroy).len());

    for fail in [None, Some(r#"fail=[{"call":"execute","how":"lost"}]"#)] {
        let command = world.command("probe", &target).args(["--json"]);
        let command = match fail {
            Some(fail) => command.args(["--provider", fail]),
            None => command,
        };
        let probed = Probed::of(command.finish().await);

        assert_eq!(
            probed.code,
            Some(if fail.is_some() { 4 } else { 0 }),
            "{}",
            probed.report
        );
        assert_eq!(world.calls(Call::Release).len(), released);
        assert_eq!(world.calls(Call::Destroy).len(), destroyed);
        assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test]
async fn what_a_provider_does_not_do_is_told_as_what_it_is() {
    for (call, how, check, reason) in [
        ("acquire", "unreachable", "target", "provider_unreachable"),
        ("acquire", "refused", "target", "provider_refused"),
        ("acquire", "busy", "target", "provider_busy"),
        ("acquire", "unknown", "target", "provider_unknown"),
        ("execute", "lost", "command", "lease_lost"),
    ] {
        let world = Leased::new().await;
        let fail = format!(r#"fail=[{{"call":"{call}","how":"{how}"}}]"#);

        let probed = Probed::of(
            world
                .command("probe", "fake:")
                .args(["--json", "--provider", &fail])
                .finish()
                .await,
        );

        assert_eq!(probed.code, Some(4), "{}", probed.report);
        assert_eq!(probed.check(check)["reason"], reason, "{}", probed.report);
        let held = world
            .present()
            .into_iter()
            .filter(|(_, state)| *state == LeaseState::Held);
        assert_eq!(held.count(), 0, "{call} {how}");
    }
}
