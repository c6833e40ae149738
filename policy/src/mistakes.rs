//! Mistakes in a text that somebody wrote, each at its line.
//!
//! Here: [`Mistakes`], what every reader of this crate returns instead of its first error.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// All mistakes of one text, in the order of their lines; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    list: Vec<Mistake>,
}

impl Mistakes {
    pub(crate) fn new(mut list: Vec<Mistake>) -> Self {
        list.sort();
        list.dedup();
        Self { list }
    }

    /// The mistakes from the first line to the last.
    pub fn iter(&self) -> core::slice::Iter<'_, Mistake> {
        self.list.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Prints `FILE:LINE: message`, one mistake a line.
    #[must_use]
    pub fn in_file<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        InFile { mistakes: self, file }
    }
}

impl<'a> IntoIterator for &'a Mistakes {
    type Item = &'a Mistake;
    type IntoIter = core::slice::Iter<'a, Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl core::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.list.iter().enumerate() {
            let break_before = if number == 0 { "" } else { "\n" };
            write!(
                formatter,
                "{break_before}line {}: {}",
                mistake.line, mistake.message
            )?;
        }
        Ok(())
    }
}

struct InFile<'a> {
    mistakes: &'a Mistakes,
    file: &'a str,
}

impl fmt::Display for InFile<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.mistakes.iter().enumerate() {
            let break_before = if number == 0 { "" } else { "\n" };
            write!(
                formatter,
                "{break_before}{}:{}: {}",
                self.file, mistake.line, mistake.message
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn at(line: usize) -> Mistake {
        Mistake {
            line,
            column: 1,
            message: "unknown key".to_string(),
        }
    }

    #[test]
    fn mistakes_are_counted_once_each_and_in_the_order_of_their_lines() {
        let mistakes = Mistakes::new(alloc::vec![at(7), at(2), at(7)]);

        assert_eq!((mistakes.len(), mistakes.is_empty()), (2, false));
        assert_eq!(mistakes.to_string(), "line 2: unknown key\nline 7: unknown key");
        let none = Mistakes::default();
        assert_eq!((none.len(), none.is_empty()), (0, true));
    }
}
