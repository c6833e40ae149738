//! The credential is read for each callback: a newer one is sent, and without one nothing is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::secrets::{SecretSettings, Secrets};

fn put(folder: &Path, value: &str) -> PathBuf {
    let (new, path) = (folder.join("new"), folder.join("key"));
    std::fs::write(&new, value).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

async fn world_with(path: &Path) -> World {
    let secrets = Secrets::new(SecretSettings::default(), |_| None);
    let reference = format!("file:{}", path.display()).parse().unwrap();
    let shape = Shape {
        credential: Some(secrets.live(&reference)),
        ..Shape::default()
    };
    world(shape, ok).await
}

#[tokio::test]
async fn the_next_callback_carries_the_credential_that_holds_then() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_with(&put(folder.path(), "first")).await;

    world.ask("GET /api/agents/me", "").await;
    put(folder.path(), "second");
    world.post("/api/issues/1/comments", "{}").await;

    let seen = world.seen();
    assert!(seen[0].contains("authorization: Bearer first\r\n"), "{seen:?}");
    assert!(seen[1].contains("authorization: Bearer second\r\n"), "{seen:?}");
}

#[tokio::test]
async fn without_a_credential_nothing_is_sent_and_a_write_is_known_to_be_unsent() {
    let folder = tempfile::tempdir().unwrap();
    let path = put(folder.path(), "first");
    let world = world_with(&path).await;
    std::fs::remove_file(&path).unwrap();

    let read = world.ask("GET /api/agents/me", "").await;
    let written = world.post("/api/issues/1/comments", "{}").await;

    assert_eq!(code(&read), refused(503, "unavailable"));
    assert_eq!(code(&written), refused(503, "unavailable"));
    assert!(!written.contains(&*folder.path().to_string_lossy()), "{written}");
    assert!(world.seen().is_empty());
    let id = json(&written)["request_id"].as_str().unwrap().to_owned();
    let outcome = world.ask(&format!("GET /_bridge/outcome/{id}"), "").await;
    assert_eq!(json(&outcome)["outcome"], "not_sent");
}
