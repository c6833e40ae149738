//! The keeping of a remote value, against a place that does what a test says, on a clock that stands still.

use tokio::sync::watch;
use tokio::time::{advance, timeout};
use zeroize::Zeroizing;

use super::*;
use crate::secrets::place::{Place, Reading as PlaceReading};

const TTL: Duration = Duration::from_secs(60);
const MAX_STALE: Duration = Duration::from_secs(120);

/// What the place says when it is asked.
#[derive(Clone, Debug)]
enum Says {
    Value(&'static str),
    Down,
    Denied,
    Nothing,
}

/// A remote place that counts how often it was asked.
#[derive(Debug)]
struct Remote {
    says: watch::Sender<Says>,
    asked: watch::Sender<u32>,
}

impl Place for Remote {
    fn is_remote(&self) -> bool {
        true
    }

    fn mark(&self, _: &Surroundings) -> Option<Mark> {
        None
    }

    fn read<'a>(&'a self, _: &'a Surroundings) -> PlaceReading<'a> {
        Box::pin(async move {
            self.asked.send_modify(|count| *count += 1);
            let mut says = self.says.subscribe();
            let said = says.wait_for(|says| !matches!(says, Says::Nothing)).await;
            match &*said.unwrap() {
                Says::Value(text) => Ok((Zeroizing::new((*text).to_owned()), None)),
                Says::Denied => Err(Fault::Unusable("denied".into())),
                Says::Down | Says::Nothing => Err(Fault::Unavailable("down".into())),
            }
        })
    }
}

struct World {
    remote: Arc<Remote>,
    secret: LiveSecret,
}

impl World {
    fn saying(says: Says) -> Self {
        let remote = Arc::new(Remote {
            says: watch::Sender::new(says),
            asked: watch::Sender::new(0),
        });
        let settings = SecretSettings {
            cache_ttl: TTL,
            max_stale: MAX_STALE,
        };
        let around = Arc::new(Surroundings::new(settings, |_| None));
        let secret = LiveSecret::new(SecretRef::to("far:away", remote.clone()), around);
        Self { remote, secret }
    }

    fn now_says(&self, says: Says) {
        self.remote.says.send_replace(says);
    }

    fn asked(&self) -> u32 {
        *self.remote.asked.borrow()
    }

    /// The value, or why there is none.
    async fn get(&self) -> Result<String, String> {
        let got = self.secret.get().await;
        got.map(|secret| secret.expose().to_owned())
            .map_err(|error| error.to_string())
    }
}

fn ok(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_value_is_kept_for_its_lifetime_and_then_read_again() {
    let world = World::saying(Says::Value("first"));

    assert_eq!(world.get().await, ok("first"));
    world.now_says(Says::Value("second"));
    advance(TTL - Duration::from_millis(1)).await;
    assert_eq!((world.get().await, world.asked()), (ok("first"), 1));
    advance(Duration::from_millis(1)).await;
    assert_eq!((world.get().await, world.asked()), (ok("second"), 2));
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_reading() {
    let world = World::saying(Says::Nothing);
    let waiting = futures_util::future::join_all((0..20).map(|_| world.get()));

    let answer = async {
        tokio::task::yield_now().await;
        world.now_says(Says::Value("one"));
    };
    let (got, ()) = tokio::join!(waiting, answer);

    assert_eq!((got, world.asked()), (vec![ok("one"); 20], 1));
}

#[tokio::test(start_paused = true)]
async fn while_the_place_is_down_the_old_value_serves_for_its_time_and_no_longer() {
    let world = World::saying(Says::Value("old"));
    assert_eq!(world.get().await, ok("old"));
    world.now_says(Says::Down);

    advance(TTL).await;
    assert_eq!(world.get().await, ok("old"));
    advance(MAX_STALE - Duration::from_millis(1)).await;
    assert_eq!(world.get().await, ok("old"));
    advance(Duration::from_millis(1)).await;
    let refusal = world.get().await.unwrap_err();
    assert!(
        refusal.contains("far:away") && refusal.contains("down"),
        "{refusal}"
    );

    world.now_says(Says::Value("new"));
    advance(LAST_PAUSE).await;
    assert_eq!(world.get().await, ok("new"));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_down_is_asked_ever_less_often() {
    let world = World::saying(Says::Down);

    for _ in 0..120 {
        assert!(world.get().await.is_err());
        advance(Duration::from_millis(500)).await;
    }

    // At 0, 1, 3, 7, 15, 30 and 45 s of the minute.
    assert_eq!(world.asked(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_says_no_ends_the_old_value_at_once() {
    let world = World::saying(Says::Value("old"));
    assert_eq!(world.get().await, ok("old"));

    world.now_says(Says::Denied);
    advance(TTL).await;

    assert!(world.get().await.unwrap_err().contains("denied"));
    assert!(world.get().await.unwrap_err().contains("denied"));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_never_answers_costs_one_caller_its_deadline() {
    let world = World::saying(Says::Value("old"));
    assert_eq!(world.get().await, ok("old"));
    world.now_says(Says::Nothing);
    advance(TTL).await;

    let began = Instant::now();
    assert_eq!(world.get().await, ok("old"));
    assert_eq!(began.elapsed(), DEADLINE);
    assert_eq!(world.get().await, ok("old"));
    assert_eq!(began.elapsed(), DEADLINE, "the second one did not wait");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_value_is_read_again_at_most_once_in_ten_seconds() {
    let world = World::saying(Says::Value("old"));
    let old = world.secret.get().await.unwrap();
    world.now_says(Says::Value("new"));

    world.secret.rejected(&old);
    assert_eq!((world.get().await, world.asked()), (ok("new"), 2));
    let new = world.secret.get().await.unwrap();
    world.secret.rejected(&old);
    world.secret.rejected(&new);
    assert_eq!((world.get().await, world.asked()), (ok("new"), 2));
    advance(BETWEEN_REJECTIONS).await;
    world.secret.rejected(&old);
    assert_eq!(
        (world.get().await, world.asked()),
        (ok("new"), 2),
        "an older value says nothing"
    );
    world.secret.rejected(&new);
    assert_eq!((world.get().await, world.asked()), (ok("new"), 3));
}

#[tokio::test(start_paused = true)]
async fn a_reading_that_everybody_left_is_begun_anew() {
    let world = World::saying(Says::Nothing);

    assert!(timeout(Duration::from_secs(1), world.get()).await.is_err());
    advance(DEADLINE).await;
    world.now_says(Says::Value("value"));

    assert_eq!((world.get().await, world.asked()), (ok("value"), 2));
}

#[tokio::test]
async fn a_value_on_this_machine_that_is_rejected_is_read_again_though_nothing_seems_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "value").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).unwrap();
    let reference = format!("file:{}", path.display()).parse().unwrap();
    let around = Arc::new(Surroundings::new(SecretSettings::default(), |_| None));
    let secret = LiveSecret::new(reference, around);
    let first = secret.get().await.unwrap();

    secret.rejected(&first);

    assert!(!Arc::ptr_eq(&first, &secret.get().await.unwrap()));
}
