//! Beginnings, ends, and what lies between.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn only_its_owner_can_read_an_audit_and_only_one_can_write_it() {
    let ground = Ground::new();
    let audit = ground.open();

    let second = Audit::open(ground.settings.clone());

    assert!(matches!(second, Err(AuditError::InUse(_))), "{second:?}");
    audit.close().unwrap();
    for entry in std::fs::read_dir(ground.folder()).unwrap() {
        let path = entry.unwrap().path();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[test]
fn a_head_follows_its_records_without_being_asked() {
    let ground = Ground::new();
    let audit = ground.open();

    use_it(&audit, 1);

    let newest = audit.counts().seq;
    until(|| Head::of(ground.folder()).unwrap().unwrap().seq == newest);
    assert!(ground.verify().is_clean());
}

#[test]
fn a_restart_begins_a_new_segment_and_leaves_the_old_one_as_it_is() {
    let ground = Ground::new();
    let audit = ground.open();
    use_it(&audit, 3);
    drop(audit);
    let before = ground.read(1);

    let audit = ground.open();
    use_it(&audit, 3);
    drop(audit);

    assert_eq!(ground.numbers(), [1, 2]);
    assert_eq!(ground.read(1), before);
    let report = ground.verify();
    assert_eq!(
        (report.findings.len(), report.warnings.len()),
        (0, 0),
        "{report:?}"
    );
}

#[test]
fn a_torn_tail_is_a_warning_that_stays_provable_after_the_restart() {
    let ground = Ground::new();
    let audit = ground.open();
    use_it(&audit, 3);
    drop(audit);
    append(&ground, 1, b"{\"seq\":10,\"pre");
    let torn = ground.verify();
    assert_eq!(
        (torn.findings.len(), torn.warnings[0].kind),
        (0, "torn_tail"),
        "{torn:?}"
    );

    let audit = ground.open();
    use_it(&audit, 1);
    drop(audit);

    let report = ground.verify();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.warnings.len(), report.warnings[0].segment), (1, Some(1)));
    let mut text = ground.read(1);
    *text.last_mut().unwrap() = b'x';
    std::fs::write(ground.segment(1), text).unwrap();
    assert_eq!(ground.found()[0].0, FindingKind::RestChanged);
}

#[test]
fn segments_that_a_killed_process_left_without_a_record_hold_nothing_up() {
    let mut ground = Ground::new();
    let audit = ground.open();
    use_it(&audit, 3);
    drop(audit);
    append(&ground, 1, b"torn");
    std::fs::write(ground.segment(2), "").unwrap();
    std::fs::write(ground.segment(3), "{\"seq\"").unwrap();

    let audit = ground.open();
    use_it(&audit, 3);
    drop(audit);

    assert_eq!(ground.numbers(), [1, 2, 3, 4]);
    let report = ground.verify();
    assert!(report.is_clean(), "{report:?}");
    let torn: Vec<_> = report.warnings.iter().map(|warning| warning.segment).collect();
    assert_eq!(torn, [Some(1), Some(3)]);
    // And they can be removed in order.
    ground.settings.keep_bytes = Some(0);
    drop(ground.open());
    assert_eq!(ground.numbers(), [5]);
    assert!(ground.verify().is_clean(), "{:?}", ground.verify());
}

#[test]
fn records_that_no_head_had_signed_when_their_writer_was_killed_are_said_to_be_so() {
    let ground = Ground::new();
    let audit = ground.open();
    use_it(&audit, 1);
    let newest = audit.counts().seq;
    until(|| Head::of(ground.folder()).unwrap().unwrap().seq == newest);
    let earlier = std::fs::read(ground.folder().join("head")).unwrap();
    use_it(&audit, 1);
    drop(audit);
    std::fs::write(ground.folder().join("head"), earlier).unwrap();

    drop(ground.open());

    let report = ground.verify();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.warnings[0].kind, "unsealed_end");
}

#[test]
fn a_segment_that_is_old_is_followed_by_the_next() {
    let mut ground = Ground::new();
    ground.settings.segment_age = Duration::ZERO;
    let audit = ground.open();

    audit.append("event", |_| {}).unwrap();
    audit.append("event", |_| {}).unwrap();
    drop(audit);

    assert_eq!(ground.numbers(), [1, 2, 3]);
    assert!(ground.verify().is_clean());
}

#[test]
fn retention_leaves_a_signed_record_of_what_it_removes() {
    let mut ground = Ground::of_small_segments();
    ground.settings.keep_bytes = Some(10_000);
    let audit = ground.open();
    for _ in 0..4 {
        use_it(&audit, 15);
    }
    drop(audit);

    let numbers = ground.numbers();
    assert!(numbers[0] > 1 && numbers.len() < 8, "{numbers:?}");
    let report = ground.verify();
    assert!(report.is_clean() && report.first_seq > 1, "{report:?}");
    // One more than was said to be removed.
    std::fs::remove_file(ground.segment(numbers[0])).unwrap();
    assert_eq!(ground.found()[0].0, FindingKind::SegmentMissing);
}

#[test]
fn what_is_too_old_is_removed_at_the_start() {
    let mut ground = Ground::new();
    drop(ground.open());
    drop(ground.open());
    ground.settings.keep_age = Some(Duration::ZERO);

    drop(ground.open());

    assert_eq!(ground.numbers(), [3]);
    assert!(ground.verify().is_clean());
}

#[tokio::test]
async fn a_committed_record_is_confirmed_by_the_disk() {
    for (durability, safe, waits) in [
        (Durability::Write, false, false),
        (Durability::Fsync, true, false),
        (Durability::Fsync, false, true),
        (Durability::FsyncAll, true, true),
    ] {
        let mut ground = Ground::new();
        ground.settings.durability = durability;
        let audit = ground.open();
        let seq = audit.append("event", |_| {}).unwrap();

        audit.commit(seq, safe).await.unwrap();

        let synced = audit.inner().lock().synced;
        assert!(!waits || synced >= seq, "{durability:?}: {synced} of {seq}");
    }
}

#[tokio::test]
async fn many_commits_at_once_are_all_confirmed() {
    let mut ground = Ground::new();
    ground.settings.durability = Durability::FsyncAll;
    let audit = ground.open();

    let commits = (0..64).map(|_| {
        let audit = Arc::clone(&audit);
        async move {
            let seq = audit.append("event", |_| {})?;
            audit.commit(seq, true).await
        }
    });
    let confirmed = futures_util::future::try_join_all(commits).await;

    assert!(confirmed.is_ok(), "{confirmed:?}");
    drop(audit);
    assert!(ground.verify().is_clean());
}

#[test]
fn nothing_is_written_after_the_close() {
    let ground = Ground::new();
    let audit = ground.open();
    audit.close().unwrap();

    let written = audit.append("event", |_| {});

    assert!(matches!(written, Err(AuditError::Closed)), "{written:?}");
    assert_eq!(audit.counts().unwritten, 1);
}

#[test]
fn an_audit_can_be_verified_while_it_is_written() {
    let ground = Ground::of_small_segments();
    let audit = ground.open();
    let writer = std::thread::spawn(move || {
        for _ in 0..30 {
            use_it(&audit, 10);
        }
    });

    while !writer.is_finished() {
        let report = ground.verify();
        assert!(report.is_clean(), "{report:?}");
    }
    writer.join().unwrap();
}

#[test]
fn callbacks_are_read_with_their_outcomes() {
    let ground = written();
    let mut callbacks = 0;
    let mut events = Vec::new();

    query::read(ground.folder(), &query::Filter::default(), &mut |entry| {
        match entry {
            query::Entry::Callback { attempt, outcome } => {
                let outcome = outcome.as_ref().unwrap();
                assert_eq!(attempt["request_id"], outcome["request_id"]);
                callbacks += 1;
            }
            query::Entry::Event(event) => events.push(event["type"].as_str().unwrap().to_owned()),
        }
        true
    })
    .unwrap();

    assert_eq!(
        (callbacks, events),
        (15, vec!["session_started".into(), "session_ended".into()])
    );
}

#[test]
fn exports_say_of_a_callback_what_the_audit_says() {
    let ground = written();
    let mut rows = String::new();
    let mut entries = Vec::new();

    query::read(ground.folder(), &query::Filter::default(), &mut |entry| {
        rows.extend(export::csv(entry));
        entries.extend(export::har_entry(entry));
        true
    })
    .unwrap();

    let first: Vec<_> = rows.lines().next().unwrap().split(',').collect();
    assert_eq!(first.len(), export::COLUMNS.len());
    assert_eq!(
        (first[2], first[8], first[11], first[15]),
        ("run-1", "GET", "allow", "200")
    );
    assert_eq!((rows.lines().count(), entries.len()), (15, 15));
    assert_eq!(entries[0]["response"]["status"], 200);
    assert_eq!(entries[0]["timings"]["wait"], 0.005);
}

fn append(ground: &Ground, number: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(ground.segment(number))
        .unwrap();
    file.write_all(bytes).unwrap();
}

/// Waits for a condition; a generous limit only guards against hanging.
fn until(condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < limit, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}
