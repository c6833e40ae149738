//! Files by the runner's own call. Where it has none, every case is that it says so.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use bytes::Bytes;
use runners::{Execution, RunnerError};

use super::{LIMIT, Subject, every_byte, sh, told};
use crate::waiting::within;

async fn try_upload(subject: &Subject, path: &str, bytes: &[u8], mode: u32) -> Result<(), RunnerError> {
    let bytes = Bytes::copy_from_slice(bytes);
    within(
        LIMIT,
        "an upload ends",
        subject.runner().upload(path, bytes, mode),
    )
    .await
}

/// False where the runner has no upload and says so.
async fn upload(subject: &Subject, path: &str, bytes: &[u8], mode: u32) -> bool {
    let done = try_upload(subject, path, bytes, mode).await;
    if subject.runner().capabilities().file_transfer {
        done.expect("an upload succeeds");
        return true;
    }
    assert!(matches!(done, Err(RunnerError::Unsupported(_))), "{done:?}");
    false
}

/// Mode and size of a file, and its bytes as numbers.
async fn found(subject: &Subject, path: &str) -> (String, Vec<u8>) {
    let stat = Execution::new("stat", ["-c", "%a %s %F", path]);
    let stat = subject.run(stat).await;
    assert!(stat.success(), "{}", told(&stat));
    let mut dump = Execution::new("od", ["-An", "-v", "-tu1", path]);
    dump.keep_output = 64 * 1024 * 1024;
    let dump = subject.run(dump).await;
    let bytes = String::from_utf8_lossy(&dump.stdout)
        .split_ascii_whitespace()
        .map(|value| value.parse().expect("od prints numbers"))
        .collect();
    (String::from_utf8_lossy(&stat.stdout).trim_end().to_owned(), bytes)
}

pub async fn a_file_arrives_with_its_bytes_and_mode(subject: &Subject) {
    let folder = subject.folder().await;
    for (name, mode, told) in [
        ("a", 0o600, "600 256 regular file"),
        ("b", 0o755, "755 256 regular file"),
        ("c", 0o500, "500 256 regular file"),
    ] {
        let path = format!("{folder}/{name}");
        if !upload(subject, &path, &every_byte(), mode).await {
            return;
        }

        assert_eq!(found(subject, &path).await, (told.to_owned(), every_byte()));
    }
    assert_eq!(subject.says(&format!("ls -A {folder}")).await, "a\nb\nc");
}

pub async fn an_empty_file_arrives(subject: &Subject) {
    let path = format!("{}/empty", subject.folder().await);
    if !upload(subject, &path, b"", 0o640).await {
        return;
    }

    assert_eq!(
        found(subject, &path).await,
        ("640 0 regular empty file".to_owned(), vec![])
    );
}

pub async fn parents_are_made(subject: &Subject) {
    let path = format!("{}/a/b c/file", subject.folder().await);
    if !upload(subject, &path, b"deep", 0o600).await {
        return;
    }

    assert_eq!(found(subject, &path).await.1, b"deep");
}

pub async fn an_upload_replaces_the_whole_file(subject: &Subject) {
    let folder = subject.folder().await;
    let path = format!("{folder}/file");
    if !upload(subject, &path, &[b'x'; 5000], 0o600).await {
        return;
    }
    // Another name of the old file keeps the old bytes: it was replaced, not written into.
    subject.says(&format!("ln {path} {folder}/old")).await;

    assert!(upload(subject, &path, b"new", 0o700).await);

    assert_eq!(
        found(subject, &path).await,
        ("700 3 regular file".to_owned(), b"new".to_vec())
    );
    assert_eq!(subject.says(&format!("wc -c <{folder}/old")).await.trim(), "5000");
    assert_eq!(subject.says(&format!("ls -A {folder}")).await, "file\nold");
}

pub async fn eight_mebibytes_are_uploaded(subject: &Subject) {
    let path = format!("{}/large", subject.folder().await);
    let bytes = vec![b'a'; 8 * 1024 * 1024];
    if !upload(subject, &path, &bytes, 0o600).await {
        return;
    }

    let wanted = subject
        .says("head -c 8388608 /dev/zero | tr '\\000' a | cksum")
        .await;
    assert_eq!(subject.says(&format!("cksum <{path}")).await, wanted);
}

pub async fn an_odd_path_is_taken_as_it_is(subject: &Subject) {
    let path = format!("{}/a b'c$(x)`y`;é\"?&#%41", subject.folder().await);
    if !upload(subject, &path, b"odd", 0o600).await {
        return;
    }

    assert_eq!(found(subject, &path).await.1, b"odd");
}

pub async fn an_upload_that_cannot_be_is_an_error_and_leaves_nothing(subject: &Subject) {
    let folder = subject.folder().await;
    subject
        .says(&format!("mkdir {folder}/taken; echo >{folder}/file"))
        .await;
    for bad in [
        format!("{folder}/taken"),
        format!("{folder}/file/below"),
        "relative/path".to_owned(),
        format!("{folder}/nul\0"),
    ] {
        let tried = try_upload(subject, &bad, b"bytes", 0o600).await;

        assert!(tried.is_err(), "{bad}");
    }
    let mut list = sh("ls -A \"$1\" \"$1/taken\"");
    list.args.extend(["sh".to_owned(), folder.clone()]);
    let left = subject.run(list).await;
    assert_eq!(
        String::from_utf8_lossy(&left.stdout),
        format!("{folder}:\nfile\ntaken\n\n{folder}/taken:\n"),
        "{}",
        told(&left)
    );
}
