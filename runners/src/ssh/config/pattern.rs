//! OpenSSH's patterns (ssh_config(5), PATTERNS): `*`, `?`, comma lists, `!`.
//!
//! Here: the one matcher for `Host`, `Match` and `known_hosts`. Both sides are compared byte by byte; whoever wants
//! no difference of case lowers both first.

/// Whether `text` matches one pattern, in which `*` is any text and `?` any one character.
///
/// At most `pattern.len() * text.len()` steps, whatever the pattern.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star stood and how much of the text it has taken.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some('?'), Some(_)) => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            (Some(want), Some(have)) if want == have => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            (_, None) => return false,
            (_, Some(_)) => {}
        }
        // Let the last star take one character more.
        let Some((after_star, taken)) = retry else {
            return false;
        };
        if taken >= text.len() {
            return false;
        }
        retry = Some((after_star, taken + 1));
        (p, t) = (after_star, taken + 1);
    }
}

/// Whether `text` matches a comma list: at least one pattern, and none of those with `!` in front.
#[must_use]
pub fn list_matches(list: &str, text: &str) -> bool {
    let mut found = false;
    for item in list.split(',') {
        match item.strip_prefix('!') {
            Some(negated) if matches(negated, text) => return false,
            Some(_) => {}
            None => found = found || matches(item, text),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Slow and obviously right.
    fn reference(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => reference(rest, text),
            (Some(('*', rest)), Some((_, tail))) => reference(rest, text) || reference(pattern, tail),
            (Some(('?', rest)), Some((_, tail))) => reference(rest, tail),
            (Some((want, rest)), Some((have, tail))) => want == have && reference(rest, tail),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_a_slow_reference(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());

            prop_assert_eq!(matches(&pattern, &text), reference(&p, &t));
        }
    }

    #[test]
    fn a_negated_pattern_wins_wherever_it_stands() {
        assert!(list_matches("*.example.com", "a.example.com"));
        assert!(!list_matches("*.example.com,!a.example.com", "a.example.com"));
        assert!(!list_matches("!a.example.com,*.example.com", "a.example.com"));
        assert!(!list_matches("!a.example.com", "b.example.com"));
        assert!(!list_matches("", "a"));
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let pattern = "*a".repeat(2_000) + "b";
        let text = "a".repeat(4_000);

        assert!(!matches(&pattern, &text));
    }
}
