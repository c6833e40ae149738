//! How large things may be.
//!
//! Here: [`Limits`] as values. Not here: counting, which is done where bytes are read.

/// Most bytes of a body, each way: 10 MiB and 64 KiB of room for multipart framing.
pub const DEFAULT_MAX_BODY: u64 = 10 * 1024 * 1024 + 64 * 1024;

/// The sizes that a callback must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a body, each way; beyond is 413.
    pub max_body: u64,
    /// Most bytes of a request head; beyond is 431.
    pub max_head: usize,
    /// Most header lines of a request; beyond is 431.
    pub max_headers: usize,
    /// Most bytes of a request target; beyond is 431.
    pub max_target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: DEFAULT_MAX_BODY,
            max_head: 32 * 1024,
            max_headers: 100,
            max_target: 8 * 1024,
        }
    }
}

impl Limits {
    /// The limits with what a rule file sets put in.
    #[must_use]
    pub const fn with_file(mut self, file: &crate::FileLimits) -> Self {
        if let Some(max_body) = file.max_body {
            self.max_body = max_body;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_body_limit_is_the_peers() {
        assert_eq!(Limits::default().max_body, 10_551_296);
    }

    #[test]
    fn a_rule_file_sets_the_body_limit() {
        let file = crate::PolicyFile::parse("[limits]\nmax_body = 1024").expect("no mistakes");

        assert_eq!(Limits::default().with_file(&file.limits()).max_body, 1024);
    }
}
