//! What the journal promises: nothing sent is forgotten, nothing malformed is read.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn id(name: &str) -> FileId {
    FileId::of_file(&format!("{name}.json")).unwrap()
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    (folder, path)
}

#[test]
fn what_was_sent_is_known_after_a_restart() {
    let (_folder, path) = place();
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.begin("s", &id("a")).unwrap(), Seen::Never);
    assert_eq!(journal.begin("s", &id("b")).unwrap(), Seen::Never);
    journal.answered("s", &id("b")).unwrap();
    drop(journal);

    let journal = Journal::open(&path).unwrap();

    assert_eq!(journal.begin("s", &id("a")).unwrap(), Seen::Unanswered);
    assert_eq!(journal.begin("s", &id("b")).unwrap(), Seen::Answered);
    assert_eq!(journal.begin("other", &id("a")).unwrap(), Seen::Never);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn whose_queue_it_knows_is_known_after_a_restart_until_that_is_closed() {
    let (_folder, path) = place();
    let journal = Journal::open(&path).unwrap();
    assert!(!journal.opens("s").unwrap());
    assert!(!journal.opens("over").unwrap());
    assert!(journal.opens("s").unwrap());
    journal.close("over").unwrap();
    drop(journal);

    // Read once, and once more as it was compacted.
    drop(Journal::open(&path).unwrap());
    let journal = Journal::open(&path).unwrap();

    assert!(journal.opens("s").unwrap());
    assert!(!journal.opens("over").unwrap());
}

#[test]
fn a_torn_last_line_is_cut_off_and_the_next_line_stands_alone() {
    let (_folder, path) = place();
    let journal = Journal::open(&path).unwrap();
    journal.begin("s", &id("a")).unwrap();
    drop(journal);
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"event\":\"sent\",\"sess");
    std::fs::write(&path, text).unwrap();

    let journal = Journal::open(&path).unwrap();
    journal.begin("s", &id("b")).unwrap();
    drop(journal);

    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.begin("s", &id("a")).unwrap(), Seen::Unanswered);
    assert_eq!(journal.begin("s", &id("b")).unwrap(), Seen::Unanswered);
}

#[test]
fn a_line_that_is_not_understood_refuses_the_file() {
    let good = "{\"event\":\"sent\",\"session\":\"s\",\"id\":\"a\"}\n";
    for bad in [
        "garbage\n",
        "\n",
        "{\"event\":\"sent\",\"session\":\"s\"}\n",
        "{\"event\":\"sent\",\"session\":\"s\",\"id\":\"../a\"}\n",
        "{\"event\":\"lost\",\"session\":\"s\",\"id\":\"a\"}\n",
        "{\"event\":\"sent\",\"session\":\"s\",\"id\":\"a\",\"more\":1}\n",
    ] {
        let (_folder, path) = place();
        drop(Journal::open(&path).unwrap());
        std::fs::write(&path, format!("{good}{bad}{good}")).unwrap();

        let fault = Journal::open(&path).unwrap_err();

        assert!(
            matches!(fault, JournalFault::Malformed { line: 2, .. }),
            "{bad:?}: {fault}"
        );
    }
}

#[test]
fn a_journal_belongs_to_one_process_and_to_one_user() {
    let (folder, path) = place();
    let held = Journal::open(&path).unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalFault::InUse(_))));
    drop(held);

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalFault::NotOurs(_))));

    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(Journal::open(&link), Err(JournalFault::Io { .. })));
}

#[test]
fn a_closed_session_is_forgotten_and_takes_no_room() {
    let (_folder, path) = place();
    let journal = Journal::open(&path).unwrap();
    for number in 0..100 {
        journal.begin("s", &id(&format!("a{number}"))).unwrap();
    }
    journal.close("s").unwrap();
    drop(journal);

    let journal = Journal::open(&path).unwrap();

    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(journal.begin("s", &id("a1")).unwrap(), Seen::Never);
}

#[test]
fn a_full_journal_forgets_the_answered_and_never_the_open() {
    let journal = Journal::in_memory();
    for number in 0..ENTRIES {
        journal.begin("s", &id(&format!("a{number}"))).unwrap();
    }
    assert!(matches!(journal.begin("s", &id("b")), Err(JournalFault::Full)));

    journal.answered("s", &id("a7")).unwrap();

    assert_eq!(journal.begin("s", &id("b")).unwrap(), Seen::Never);
    assert_eq!(journal.begin("s", &id("a0")).unwrap(), Seen::Unanswered);
}
