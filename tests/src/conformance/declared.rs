//! What a runner says of itself.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use super::Subject;

pub async fn the_capabilities_are_the_declared_ones_and_stay(subject: &Subject) {
    let before = subject.runner().capabilities();
    if let Some(provider) = subject.provider() {
        let declared = provider.capabilities;
        assert_eq!(
            (
                before.duplex,
                before.file_transfer,
                before.streaming_output,
                before.concurrent
            ),
            (
                declared.duplex,
                declared.file_transfer,
                declared.streaming_output,
                declared.background
            ),
            "duplex, file transfer, streaming output, background of {}",
            provider.key
        );
    }

    subject.says("true").await;

    assert_eq!(subject.runner().capabilities(), before);
}

pub async fn the_target_is_told_in_one_line(subject: &Subject) {
    subject.says("true").await;

    let target = subject.runner().target();

    assert!(
        !target.is_empty() && !target.contains(char::is_control),
        "{target:?}"
    );
    if let Some(provider) = subject.provider() {
        assert!(target.starts_with(&format!("{}:", provider.key)), "{target}");
    }
}
