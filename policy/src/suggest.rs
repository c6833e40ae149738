//! "Did you mean …?": the nearest of a few known words.

use alloc::vec::Vec;

/// Longest word that is compared, in bytes; bounds the cost of one comparison.
const LONGEST: usize = 64;

/// The nearest of `known` to `word`, if it is near enough to be a slip of the pen.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .filter_map(|candidate| Some((slips(word, candidate)?, candidate)))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// How many slips of the pen turn `word` into `meant`; `None` when they are too many to be slips.
pub(crate) fn slips(word: &str, meant: &str) -> Option<usize> {
    let limit = (word.len() / 3).clamp(1, 3);
    if word.len().abs_diff(meant.len()) > limit {
        return None;
    }
    distance(word, meant).filter(|distance| *distance <= limit)
}

/// Insertions, removals, replacements and swaps of neighbours that turn `left` into `right`, ASCII case
/// ignored; `None` for words longer than [`LONGEST`].
fn distance(left: &str, right: &str) -> Option<usize> {
    if left.len() > LONGEST || right.len() > LONGEST {
        return None;
    }
    let right: Vec<u8> = right.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut last_letter = None;
    for (row, letter) in left.bytes().map(|byte| byte.to_ascii_lowercase()).enumerate() {
        let mut current = Vec::with_capacity(right.len() + 1);
        current.push(row + 1);
        for (column, other) in right.iter().enumerate() {
            let cell = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX - 1);
            let replaced = cell(&last, column) + usize::from(letter != *other);
            let mut best = replaced
                .min(cell(&last, column + 1) + 1)
                .min(cell(&current, column) + 1);
            let swapped = column > 0 && last_letter == Some(*other) && right.get(column - 1) == Some(&letter);
            if swapped {
                best = best.min(cell(&before_last, column - 1).saturating_add(1));
            }
            current.push(best);
        }
        before_last = core::mem::replace(&mut last, current);
        last_letter = Some(letter);
    }
    last.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_slips_of_the_pen() {
        for (left, right, slips) in [
            ("issue", "issue", 0),
            ("ISSUE", "issue", 0),
            ("isue", "issue", 1),
            ("issuee", "issue", 1),
            ("isseu", "issue", 1),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), Some(slips), "{left} {right}");
        }
        assert_eq!(distance(&"a".repeat(65), "a"), None);
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(nearest("metod", ["path", "method"]), Some("method"));
        assert_eq!(nearest("colour", ["path", "method"]), None);
    }
}
