//! What is wrong with a configuration: all of it at once, each with the place where it was said.

use std::fmt;

use super::origin::Origin;

/// More mistakes than this are counted and not listed.
const MOST_LISTED: usize = 100;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigMistake {
    /// Where it was said.
    pub origin: Origin,
    /// The key, such as `store.url`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do, as the rest of a sentence that begins with the key.
    pub problem: String,
}

impl fmt::Display for ConfigMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.origin, self.problem),
            key => write!(f, "{}: `{key}` {}", self.origin, self.problem),
        }
    }
}

/// Every mistake of a configuration, in the order of their lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    list: Vec<ConfigMistake>,
    beyond: usize,
}

impl ConfigErrors {
    pub(super) fn new(mut list: Vec<ConfigMistake>) -> Self {
        list.sort();
        list.dedup();
        let beyond = list.len().saturating_sub(MOST_LISTED);
        list.truncate(MOST_LISTED);
        Self { list, beyond }
    }

    /// The mistakes, from the first line to the last; at most a hundred.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigMistake> {
        self.list.iter()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigMistake;
    type IntoIter = std::slice::Iter<'a, ConfigMistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::error::Error for ConfigErrors {}

/// One mistake a line.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.list.iter().enumerate() {
            write!(f, "{}{mistake}", if number == 0 { "" } else { "\n" })?;
        }
        match self.beyond {
            0 => Ok(()),
            beyond => write!(f, "\nand {beyond} more"),
        }
    }
}
