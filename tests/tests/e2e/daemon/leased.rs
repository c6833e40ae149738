//! Sessions in a provider's sandbox, over the daemon's end: the same lease, the same URL and token, and nobody who gives
//! it back meanwhile.
//!
//! Every sentence is tested at each provider that [`at_each_cloud`] names.

use std::path::PathBuf;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::clouds::{Cloud, KEY_VARIABLE};
use paperclip_bridge_tests::serving::{Serving, ServingBuilder, agent};
use paperclip_bridge_tests::waiting::within;
use paperclip_bridge_tests::{Upstream, eventually};
use serde_json::Value;

use super::SOON;
use super::returning::{BOTH, End, ended, is_back};

const ME: &str = "/api/agents/me";

/// Makes a test of each function, for each provider.
macro_rules! at_each_cloud {
    ($($sentence:ident),* $(,)?) => {
        mod e2b {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::e2b).await; })*
        }
        mod daytona {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::daytona).await; })*
        }
    };
}

at_each_cloud!(
    a_session_over_http2_comes_back_on_the_same_lease,
    a_session_over_a_queue_comes_back_on_the_same_lease,
    a_provider_that_is_away_at_the_restart_is_waited_for_and_costs_no_sandbox,
    a_tunnel_that_cannot_be_had_again_at_once_costs_no_sandbox,
    a_sandbox_that_went_meanwhile_ends_its_session,
    a_session_that_is_revoked_before_it_is_back_gives_its_lease_back,
);

/// One account, the API, and one daemon after the other.
struct World {
    cloud: Cloud,
    upstream: Upstream,
    serving: Serving,
    opened: Opened,
    /// The sandbox's name.
    sandbox: String,
}

impl World {
    async fn at(cloud: Cloud) -> Self {
        let upstream = Upstream::start().await;
        let serving = keyed(Serving::builder(), &cloud).start().await;
        let opened = session(&serving, &cloud, &upstream).await;
        assert_eq!(agent(&opened).get(ME).await.unwrap().status, 200);
        let sandbox = cloud.sandboxes().remove(0);
        Self {
            cloud,
            upstream,
            serving,
            opened,
            sandbox,
        }
    }

    async fn restarted(self, end: End) -> Self {
        let Self { cloud, serving, .. } = self;
        let serving = keyed(ended(serving, end).await, &cloud).start().await;
        Self {
            cloud,
            serving,
            ..self
        }
    }

    /// Whoever looks for what nobody uses finds nothing.
    async fn nothing_is_reaped(&self) {
        let reaped = self.serving.ask(&["sessions", "reap"]).await;
        assert_eq!(reaped["leases"], serde_json::json!([]), "{reaped}");
        assert!(!self.cloud.ended_any());
    }

    /// It is back, in the same sandbox and no other.
    async fn is_back(&self) {
        is_back(&self.serving, &self.opened).await;
        let shown = self.shown().await;
        assert_eq!(shown["lease"], self.sandbox.as_str());
        assert_eq!(self.cloud.sandboxes(), std::slice::from_ref(&self.sandbox));
        assert!(!self.cloud.ended_any());
    }

    async fn shown(&self) -> Value {
        let path = format!("/v1/sessions/{}", self.opened.session);
        self.serving.call("GET", &path, "").await.json()
    }

    fn entries(&self) -> Vec<PathBuf> {
        let folder = self.serving.folder.path().join("state/leases");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// It ends for good, and its sandbox with it.
    async fn ends(&self) {
        self.serving
            .ask(&["sessions", "revoke", &self.opened.session])
            .await;
        self.serving.until(&self.opened.session, "ended").await;
        self.nothing_is_left().await;
    }

    async fn nothing_is_left(&self) {
        eventually(SOON, "the lease is given back", || {
            (self.cloud.states().is_empty() && self.entries().is_empty()).then_some(())
        })
        .await;
        eventually(SOON, "no process is left of the sandbox", || {
            self.cloud.processes(&self.sandbox).is_empty().then_some(())
        })
        .await;
    }
}

fn keyed(builder: ServingBuilder, cloud: &Cloud) -> ServingBuilder {
    builder.env(KEY_VARIABLE, cloud.key())
}

async fn session(serving: &Serving, cloud: &Cloud, upstream: &Upstream) -> Opened {
    let fields: Vec<_> = cloud
        .fields()
        .into_iter()
        .flat_map(|field| ["--provider".to_owned(), field])
        .collect();
    let fields: Vec<_> = fields.iter().map(String::as_str).collect();
    serving
        .session_named(&format!("{}:", cloud.name()), upstream, &fields)
        .await
}

async fn comes_back(make: impl AsyncFn() -> Cloud, tunnel: &str) {
    for end in BOTH {
        let cloud = make().await;
        if tunnel == "queue_v1" {
            cloud.take_duplex_away();
        }
        let world = World::at(cloud).await;
        assert_eq!(world.opened.tunnel, tunnel);

        // Twice: what comes back can come back again.
        let world = world.restarted(end).await;
        world.nothing_is_reaped().await;
        world.is_back().await;
        world.nothing_is_reaped().await;
        let world = world.restarted(end).await;
        world.is_back().await;
        // A session beside it looks through the book, too.
        let beside = session(&world.serving, &world.cloud, &world.upstream).await;
        assert_eq!(agent(&world.opened).get(ME).await.unwrap().status, 200);
        world.serving.ask(&["sessions", "revoke", &beside.session]).await;
        world.serving.until(&beside.session, "ended").await;
        assert_eq!(world.cloud.sandboxes(), std::slice::from_ref(&world.sandbox));

        world.ends().await;
    }
}

async fn a_session_over_http2_comes_back_on_the_same_lease(make: impl AsyncFn() -> Cloud) {
    comes_back(make, "http2_v1").await;
}

async fn a_session_over_a_queue_comes_back_on_the_same_lease(make: impl AsyncFn() -> Cloud) {
    comes_back(make, "queue_v1").await;
}

async fn a_provider_that_is_away_at_the_restart_is_waited_for_and_costs_no_sandbox(
    make: impl AsyncFn() -> Cloud,
) {
    let world = World::at(make().await).await;
    world.cloud.is_away();

    let world = world.restarted(End::Killed).await;

    let shown = world.serving.until(&world.opened.session, "reconnecting").await;
    assert_eq!(shown["reason"], "target_unreachable", "{shown}");
    assert_eq!(shown["url"], world.opened.url.as_str());
    assert_eq!(shown["lease"], world.sandbox.as_str());
    world.cloud.is_there_again();
    world.is_back().await;
    world.ends().await;
}

async fn a_tunnel_that_cannot_be_had_again_at_once_costs_no_sandbox(make: impl AsyncFn() -> Cloud) {
    for end in BOTH {
        let world = World::at(make().await).await;
        assert_eq!(world.opened.tunnel, "http2_v1");
        world.cloud.take_duplex_away();

        let world = world.restarted(end).await;

        let shown = world.serving.until(&world.opened.session, "degraded").await;
        assert_eq!(shown["reason"], "channel_open_failed", "{shown}");
        // Also a daemon that ends then leaves it to the next one.
        let world = world.restarted(end).await;
        world.cloud.give_duplex_back();
        world.is_back().await;
        world.ends().await;
    }
}

async fn a_sandbox_that_went_meanwhile_ends_its_session(make: impl AsyncFn() -> Cloud) {
    let world = World::at(make().await).await;
    let serving = ended(world.serving, End::Killed).await;
    world.cloud.lose(&world.sandbox);

    let serving = keyed(serving, &world.cloud).start().await;

    let world = World { serving, ..world };
    let shown = world.serving.until(&world.opened.session, "ended").await;
    assert_eq!(shown["reason"], "lease_lost", "{shown}");
    world.nothing_is_left().await;
}

async fn a_session_that_is_revoked_before_it_is_back_gives_its_lease_back(make: impl AsyncFn() -> Cloud) {
    let world = World::at(make().await).await;
    world.cloud.take_duplex_away();
    let world = world.restarted(End::Killed).await;
    world.serving.until(&world.opened.session, "degraded").await;

    let revoked = world
        .serving
        .ask(&["sessions", "revoke", &world.opened.session])
        .await;

    assert_eq!(revoked["reason"], "revoked");
    within(SOON, "the sandbox is given back", world.nothing_is_left()).await;
}
