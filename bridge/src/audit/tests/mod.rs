//! Real audits on a real disk: written, ended in every way, changed, and looked at.

mod tampering;
mod life;
mod disk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::folder::{segment_path, segments};
use super::*;

/// Kind, segment, line and record of a finding.
type Found = (FindingKind, Option<u64>, Option<u64>, Option<u64>);

/// A folder with an audit in it, or without one yet.
struct Ground {
    _folder: tempfile::TempDir,
    settings: AuditSettings,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings::in_state_folder(folder.path());
        Self {
            _folder: folder,
            settings,
        }
    }

    /// With segments of about ten records.
    fn of_small_segments() -> Self {
        let mut ground = Self::new();
        ground.settings.segment_bytes = 4000;
        ground
    }

    fn folder(&self) -> &Path {
        &self.settings.folder
    }

    fn open(&self) -> Arc<Audit> {
        Audit::open(self.settings.clone()).unwrap()
    }

    fn segment(&self, number: u64) -> PathBuf {
        segment_path(self.folder(), number)
    }

    fn read(&self, number: u64) -> Vec<u8> {
        std::fs::read(self.segment(number)).unwrap()
    }

    fn lines(&self, number: u64) -> Vec<String> {
        let text = String::from_utf8(self.read(number)).unwrap();
        text.split_inclusive('\n').map(str::to_owned).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        segments(self.folder()).unwrap()
    }

    fn key(&self) -> AuditKey {
        AuditKey::in_folder(self.folder()).unwrap()
    }

    fn verify(&self) -> Report {
        verify(self.folder(), &self.key(), None).unwrap()
    }

    fn found(&self) -> Vec<Found> {
        let findings = self.verify().findings;
        findings
            .into_iter()
            .map(|finding| (finding.kind, finding.segment, finding.line, finding.seq))
            .collect()
    }
}

/// A session of so many callbacks.
fn use_it(audit: &Arc<Audit>, callbacks: usize) {
    let identities = Identities {
        run: Some("run-1".into()),
        ..Identities::default()
    };
    let session = SessionAudit::begin(audit, Uuid::now_v7(), &identities, "local").unwrap();
    for _ in 0..callbacks {
        let request_id = Uuid::now_v7();
        let attempt = Attempt {
            request_id,
            method: "GET",
            route: "/api/issues/{issue}",
            path: "/api/issues/1",
            verdict: Verdict::Allow { rule: "issues" },
        };
        session.attempt(&attempt).unwrap();
        session.outcome(&Ended {
            request_id,
            status: 200,
            code: "",
            upstream: true,
            broken: "",
            request_bytes: 0,
            answer_bytes: 2,
            request_sha256: None,
            answer_sha256: None,
            duration_us: 7,
            dispatched_us: Some(1),
            upstream_us: Some(5),
        });
    }
}

/// An audit of three segments or more, closed in order.
fn written() -> Ground {
    let ground = Ground::of_small_segments();
    let audit = ground.open();
    use_it(&audit, 15);
    audit.close().unwrap();
    assert!(ground.numbers().len() >= 3, "{:?}", ground.numbers());
    assert!(ground.verify().is_clean());
    ground
}
