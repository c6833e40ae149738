//! Every way to change an audit is found, and the place is named.

use super::*;
use FindingKind::*;

#[test]
fn an_audit_that_nobody_changed_is_in_order() {
    let ground = written();

    let report = ground.verify();

    assert_eq!(report.findings, []);
    assert_eq!(report.warnings, []);
    assert_eq!(
        (report.first_seq, report.last_seq, report.sealed_seq),
        (1, report.records, report.records)
    );
}

#[test]
fn every_single_byte_that_is_changed_is_found() {
    let ground = written();
    let records = ground.verify().records;
    let before = ground.read(2);
    // Each place of a middle segment, by steps that meet every member of a record.
    for at in (0..before.len()).step_by(7) {
        let mut changed = before.clone();
        changed[at] ^= 1;
        std::fs::write(ground.segment(2), &changed).unwrap();

        let report = ground.verify();

        assert!(!report.is_clean(), "byte {at} of {records} records");
        assert!(
            report
                .findings
                .iter()
                .all(|found| found.segment == Some(2) || found.segment == Some(3))
        );
    }
}

#[test]
fn a_changed_record_is_named_with_its_segment_and_line() {
    let ground = written();
    for line in [2, 5] {
        let before = ground.lines(2);
        let mut lines = before.clone();
        lines[line - 1] = lines[line - 1].replace("run-1", "run-2");
        std::fs::write(ground.segment(2), lines.concat()).unwrap();

        let found = ground.found();

        let seq = seq_of(&before[line - 1]);
        assert_eq!(found, [(RecordChanged, Some(2), Some(line as u64), Some(seq))]);
        std::fs::write(ground.segment(2), before.concat()).unwrap();
    }
}

#[test]
fn the_last_record_changed_is_found_by_the_head_alone() {
    let ground = written();
    let newest = *ground.numbers().last().unwrap();
    let mut lines = ground.lines(newest);
    let last = lines.last_mut().unwrap();
    *last = last.replace("run-1", "run-2");
    std::fs::write(ground.segment(newest), lines.concat()).unwrap();

    let found = ground.found();

    assert_eq!(found[0].0, ChainRebuilt);
    assert_eq!(found[0].1, Some(newest));
}

#[test]
fn a_removed_record_is_found_and_named() {
    let ground = written();
    let mut lines = ground.lines(2);
    let seq = seq_of(&lines.remove(3));
    std::fs::write(ground.segment(2), lines.concat()).unwrap();

    assert_eq!(ground.found()[0], (RecordsMissing, Some(2), Some(4), Some(seq)));
}

#[test]
fn the_first_record_of_all_removed_is_found() {
    let ground = written();
    let mut lines = ground.lines(1);
    lines.remove(0);
    std::fs::write(ground.segment(1), lines.concat()).unwrap();

    let kinds: Vec<_> = ground.found().into_iter().map(|found| found.0).collect();

    assert!(
        kinds.contains(&SegmentUnsigned) && kinds.contains(&RecordsMissing),
        "{kinds:?}"
    );
}

#[test]
fn two_swapped_records_are_found_and_named() {
    let ground = written();
    let mut lines = ground.lines(2);
    lines.swap(3, 4);
    let moved = seq_of(&lines[4]);
    std::fs::write(ground.segment(2), lines.concat()).unwrap();

    assert_eq!(ground.found(), [(RecordMoved, Some(2), Some(5), Some(moved))]);
}

#[test]
fn a_tail_cut_between_two_records_is_found() {
    let ground = written();
    let newest = *ground.numbers().last().unwrap();
    let mut lines = ground.lines(newest);
    lines.pop();
    std::fs::write(ground.segment(newest), lines.concat()).unwrap();

    let found = ground.found();

    assert_eq!((found.len(), found[0].0, found[0].1), (1, TailCut, Some(newest)));
}

#[test]
fn a_tail_cut_within_a_signed_record_is_no_torn_tail() {
    let ground = written();
    let newest = *ground.numbers().last().unwrap();
    let mut text = ground.read(newest);
    text.truncate(text.len() - 20);
    std::fs::write(ground.segment(newest), text).unwrap();

    assert_eq!(ground.found()[0].0, TailCut);
}

#[test]
fn a_tail_cut_with_its_whole_segment_is_found() {
    let ground = written();
    let newest = *ground.numbers().last().unwrap();
    std::fs::remove_file(ground.segment(newest)).unwrap();

    assert_eq!(ground.found()[0].0, TailCut);
}

#[test]
fn every_segment_removed_is_found() {
    let ground = written();
    for number in ground.numbers() {
        std::fs::remove_file(ground.segment(number)).unwrap();
    }

    assert_eq!(ground.found()[0].0, TailCut);
}

#[test]
fn a_segment_removed_from_the_middle_or_the_beginning_is_found() {
    for number in [1, 2] {
        let ground = written();
        std::fs::remove_file(ground.segment(number)).unwrap();

        let found = ground.found();

        assert_eq!(found[0].0, SegmentMissing, "{number}: {found:?}");
    }
}

#[test]
fn a_chain_built_anew_without_the_key_is_found() {
    let ground = written();
    let numbers = ground.numbers();
    let newest = *numbers.last().unwrap();
    // Within the newest segment everything behind its signed beginning fits together again.
    let mut lines = ground.lines(newest);
    lines[1] = lines[1].replace("run-1", "run-2");
    rebuild(&mut lines, 1);
    std::fs::write(ground.segment(newest), lines.concat()).unwrap();
    assert_eq!(ground.found()[0].0, ChainRebuilt);

    // From an earlier segment on, the signed beginnings no longer fit.
    let ground = written();
    let mut lines = ground.lines(2);
    lines[1] = lines[1].replace("run-1", "run-2");
    rebuild(&mut lines, 1);
    std::fs::write(ground.segment(2), lines.concat()).unwrap();
    let last = seq_of(lines.last().unwrap());
    assert_eq!(
        ground.found(),
        [(RecordChanged, Some(2), Some(lines.len() as u64), Some(last))]
    );
}

#[test]
fn a_chain_built_anew_with_another_key_is_found() {
    let ground = written();
    let mut forged = Ground::of_small_segments();
    forged.settings.key = Some(AuditKey::of_secret(&crate::secrets::Secret::new("k".repeat(32))).unwrap());
    let audit = forged.open();
    use_it(&audit, 15);
    audit.close().unwrap();

    let report = verify(forged.folder(), &ground.key(), None).unwrap();

    let kinds: Vec<_> = report.findings.iter().map(|found| found.kind).collect();
    assert!(
        kinds.contains(&HeadUnsigned) && kinds.contains(&SegmentUnsigned),
        "{kinds:?}"
    );
}

#[test]
fn a_head_that_is_changed_or_gone_is_found() {
    let ground = written();
    let path = ground.folder().join("head");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"segment\":", "\"segment\":1")).unwrap();
    assert_eq!(ground.found()[0].0, HeadUnsigned);

    std::fs::remove_file(&path).unwrap();
    assert_eq!(ground.found()[0].0, HeadMissing);
}

#[test]
fn a_rollback_of_everything_is_found_against_an_anchor_from_outside_and_only_so() {
    let ground = written();
    let earlier: Vec<_> = std::fs::read_dir(ground.folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let audit = ground.open();
    use_it(&audit, 5);
    audit.close().unwrap();
    let head = Head::of(ground.folder()).unwrap().unwrap();
    let anchor = Anchor::parse(&serde_json::to_string(&head).unwrap()).unwrap();
    assert_eq!(
        Some(anchor.clone()),
        Anchor::parse(&format!("{}:{}\n", head.seq, head.hash))
    );
    let against = || verify(ground.folder(), &ground.key(), Some(&anchor)).unwrap();
    assert!(against().is_clean());

    for number in ground.numbers() {
        std::fs::remove_file(ground.segment(number)).unwrap();
    }
    for (path, bytes) in earlier {
        std::fs::write(path, bytes).unwrap();
    }

    assert!(ground.verify().is_clean());
    assert_eq!(against().findings[0].kind, AnchorMismatch);
}

#[test]
fn an_audit_that_was_changed_is_not_written_on() {
    for cut in [true, false] {
        let ground = written();
        let newest = *ground.numbers().last().unwrap();
        let mut lines = ground.lines(newest);
        if cut {
            lines.pop();
        } else {
            lines[1] = lines[1].replace("run-1", "run-2");
            rebuild(&mut lines, 1);
        }
        std::fs::write(ground.segment(newest), lines.concat()).unwrap();

        let opened = Audit::open(ground.settings.clone());

        assert!(matches!(opened, Err(AuditError::Tampered { .. })), "{opened:?}");
        assert_eq!(ground.numbers().last(), Some(&newest));
    }
}

fn seq_of(line: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    value["seq"].as_u64().unwrap()
}

/// Makes every line behind `from` name the one before, as whoever has no key can.
fn rebuild(lines: &mut [String], from: usize) {
    for at in from + 1..lines.len() {
        let prev = line::hex(&lines::hash_of(lines[at - 1].trim_end().as_bytes()));
        let start = lines[at].find("\"prev\":\"").unwrap() + 8;
        lines[at].replace_range(start..start + 64, &prev);
    }
}
