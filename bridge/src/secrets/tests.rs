//! References, and what is read on this machine.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::*;

/// A folder with one secret file of mode 600.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write(text);
        folder
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("key")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
        self.mode(0o600);
    }

    fn mode(&self, mode: u32) {
        std::fs::set_permissions(self.path(), Permissions::from_mode(mode)).unwrap();
    }
}

fn secrets() -> Secrets {
    Secrets::new(SecretSettings::default(), |_| None)
}

fn file(path: &Path) -> LiveSecret {
    secrets().live(&format!("file:{}", path.display()).parse().unwrap())
}

async fn value(secret: &LiveSecret) -> String {
    secret.get().await.unwrap().expose().to_owned()
}

async fn refusal(secret: &LiveSecret) -> String {
    secret.get().await.unwrap_err().to_string()
}

#[test]
fn a_secret_never_prints_itself() {
    let secret = Secret::new("pk_live_1");

    assert_eq!(format!("{secret:?}"), "Secret(..)");
    assert!(!format!("{:?}", LiveSecret::from(secret)).contains("pk_live_1"));
}

#[test]
fn a_value_given_in_place_of_a_reference_is_refused_and_not_repeated() {
    for text in [
        "pk_live_1",
        "env:",
        "env:A=pk_live_1",
        "file:",
        "cred:pk_live_1/x",
        "cred:..",
        "aws-sm:pk_live_1",
        "ENV:pk_live_1",
        "vault:pk_live_1",
    ] {
        let error = text.parse::<SecretRef>().unwrap_err().to_string();

        assert!(!error.contains("pk_live_1"), "{text}: {error}");
        assert!(error.contains("never the value itself"), "{text}: {error}");
    }
}

#[test]
fn every_form_is_named_where_none_is_known() {
    let error = "x".parse::<SecretRef>().unwrap_err().to_string();

    for form in [
        "env:NAME",
        "file:PATH",
        "cred:NAME",
        "aws-sm:REGION/NAME[#json-key]",
    ] {
        assert!(error.contains(form), "{error}");
    }
}

#[tokio::test]
async fn a_file_loses_its_line_end_and_nothing_inside() {
    let folder = Folder::with("a b\r\n");

    assert_eq!(value(&file(&folder.path())).await, "a b");
    folder.write("a\nb\n");
    assert!(refusal(&file(&folder.path())).await.contains("line break"));
}

#[tokio::test]
async fn a_file_that_others_can_read_or_write_is_refused() {
    let folder = Folder::with("pk_live_1");
    for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
        folder.mode(mode);

        let refusal = refusal(&file(&folder.path())).await;

        assert!(
            refusal.contains("chmod 600") && !refusal.contains("pk_live_1"),
            "{refusal}"
        );
    }
    for mode in [0o600, 0o400, 0o700, 0o611] {
        folder.mode(mode);
        assert_eq!(value(&file(&folder.path())).await, "pk_live_1");
    }
}

#[tokio::test]
async fn it_is_the_target_of_a_link_that_is_checked() {
    let folder = Folder::with("pk_live_1");
    let link = folder.0.path().join("link");
    symlink(folder.path(), &link).unwrap();
    let secret = file(&link);

    assert_eq!(value(&secret).await, "pk_live_1");
    folder.mode(0o644);
    assert!(refusal(&secret).await.contains("chmod 600"));
}

#[tokio::test]
async fn what_is_no_regular_file_or_too_long_or_not_there_is_refused() {
    let folder = Folder::with(&"x".repeat(64 * 1024 + 1));
    let pipe = folder.0.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();

    assert!(refusal(&file(&folder.path())).await.contains("65536 bytes"));
    assert!(refusal(&file(&pipe)).await.contains("not a regular file"));
    assert!(
        refusal(&file(folder.0.path()))
            .await
            .contains("not a regular file")
    );
    let absent = folder.0.path().join("absent");
    let refusal = refusal(&file(&absent)).await;
    assert!(
        refusal.contains("not found") && refusal.contains(&*absent.to_string_lossy()),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_one_that_does_not_is_not() {
    let folder = Folder::with("first");
    let secret = file(&folder.path());
    let first = secret.get().await.unwrap();

    assert!(Arc::ptr_eq(&first, &secret.get().await.unwrap()));
    let new = folder.0.path().join("new");
    std::fs::write(&new, "second").unwrap();
    std::fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, folder.path()).unwrap();
    assert_eq!(value(&secret).await, "second");
    std::fs::remove_file(folder.path()).unwrap();
    assert!(secret.get().await.is_err(), "a file that is gone is no secret");
}

#[tokio::test]
async fn an_unset_or_blank_variable_is_missing_and_named() {
    let secrets = Secrets::new(SecretSettings::default(), |name| {
        (name == "BLANK").then(|| "  ".to_owned())
    });
    for name in ["KEY", "BLANK"] {
        let secret = secrets.live(&format!("env:{name}").parse().unwrap());

        let refusal = refusal(&secret).await;

        assert!(
            refusal.contains(name) && refusal.contains("not found"),
            "{refusal}"
        );
    }
}

#[tokio::test]
async fn a_credential_of_systemd_is_found_in_its_folder_and_nowhere_else() {
    let folder = Folder::with("from systemd");
    let place = folder.0.path().display().to_string();
    let service = Secrets::new(SecretSettings::default(), move |name| {
        (name == "CREDENTIALS_DIRECTORY").then(|| place.clone())
    });
    let reference: SecretRef = "cred:key".parse().unwrap();
    // As systemd's access list makes it look.
    folder.mode(0o440);

    assert_eq!(value(&service.live(&reference)).await, "from systemd");
    folder.mode(0o444);
    assert!(refusal(&service.live(&reference)).await.contains("others"));
    assert!(
        refusal(&secrets().live(&reference))
            .await
            .contains("CREDENTIALS_DIRECTORY")
    );
}

#[tokio::test]
async fn the_source_of_secrets_for_providers_reads_the_same_references() {
    let secrets = Secrets::new(SecretSettings::default(), |name| {
        (name == "KEY").then(|| "pk_live_1".to_owned())
    });

    assert_eq!(secrets.resolve("env:KEY").await.unwrap().expose(), "pk_live_1");
    let fault = secrets.resolve("env:OTHER").await.unwrap_err();
    assert!(fault.to_string().contains("OTHER"), "{fault}");
    let fault = secrets.resolve("pk_live_1").await.unwrap_err();
    assert!(!fault.to_string().contains("pk_live_1"), "{fault}");
}
