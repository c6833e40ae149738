//! Laws of policy, over generated targets and rule files, against the slow reference.

use policy::explain::explain;
use policy::{Ask, PackChoice, PolicyFile, Rules, Target, Template, reference};
use proptest::prelude::*;
use proptest::sample::select;

const RULE_METHODS: &[&str] = &["GET", "HEAD", "POST", "PATCH", "DELETE"];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PATCH", "DELETE", "get", "TRACE"];
/// Text that a target is put together from; much of it is near the edge of the canonical form.
const TARGET_PIECES: &[&str] = &[
    "api",
    "API",
    "a",
    "b",
    "A",
    "me",
    "x.txt",
    ".txt",
    "xy",
    "a%20b",
    "A%20B",
    "%C3%A9",
    "%c3%a9",
    "%C3",
    "%E2%82%AC",
    "%F0%9F%A6%80",
    "%C2%85",
    "%",
    "%2",
    "%2e",
    "%2E",
    ".",
    "..",
    "...",
    ";",
    "%3B",
    "%3b",
    "%25",
    "%2541",
    "%61",
    "41",
    "%2F",
    "%2f",
    "%5C",
    "%00",
    "%7F",
    "\\",
    "",
    "?",
    "#",
    "é",
    " ",
    "~",
    "'",
    "{",
    "|",
    "\"",
    "%FF",
    "%F4%90%80%80",
];
/// Segments that are canonical and that templates can match.
const PATH_SEGMENTS: &[&str] = &[
    "api", "API", "a", "A", "b", "me", "ME", "x.txt", "y.TXT", ".txt", "xb", "xa%20b", "a%20b", "A%20B",
    "%C3%A9", "1",
];
const TEMPLATE_SEGMENTS: &[&str] = &[
    "api", "a", "b", "me", "a%20b", "{}", "{}", "{}.txt", "x{}", "x.{}", "%C3%A9",
];
const VALUES: &[&str] = &["a", "b", "A", "me", "1"];

fn raw_target() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::collection::vec((select(TARGET_PIECES), prop::bool::weighted(0.6)), 0..8);
    let woven = pieces.prop_map(|pieces| {
        let mut text = String::from("/");
        for (piece, slash) in pieces {
            text.push_str(piece);
            if slash {
                text.push('/');
            }
        }
        text.into_bytes()
    });
    prop_oneof![
        6 => woven,
        3 => path().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..24),
        1 => "/[ -~]{0,24}".prop_map(String::into_bytes),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(select(PATH_SEGMENTS), 1..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

/// A template, with its parameters called p0, p1 and so on by their segment.
fn template() -> impl Strategy<Value = String> {
    prop::collection::vec(select(TEMPLATE_SEGMENTS), 1..5).prop_map(|parts| {
        let named = parts
            .iter()
            .enumerate()
            .map(|(at, part)| part.replace("{}", &format!("{{p{at}}}")));
        format!("/{}", named.collect::<Vec<_>>().join("/"))
    })
}

prop_compose! {
    fn rule(kind: &'static str)(
        template in template(),
        method in select(RULE_METHODS),
        values in prop::option::weighted(0.4, prop::collection::vec(select(VALUES), 1..3)),
        expires in prop::option::weighted(0.3, 0_u32..60),
        any_method in prop::bool::weighted(0.3),
    ) -> String {
        let method = if kind == "deny" && any_method { "*" } else { method };
        let mut text = format!("[[{kind}]]\nmethod = \"{method}\"\npath = \"{template}\"\n");
        let parameter = (0..5).map(|at| format!("p{at}")).find(|name| template.contains(&format!("{{{name}}}")));
        if let (Some(values), Some(parameter)) = (values, parameter) {
            text += &format!("where = {{ {parameter} = {values:?} }}\n");
        }
        if let Some(second) = expires {
            text += &format!("expires = 1970-01-01T00:00:{second:02}Z\n");
        }
        text
    }
}

fn rules_text() -> impl Strategy<Value = String> {
    let allows = prop::collection::vec(rule("allow"), 0..8);
    let denies = prop::collection::vec(rule("deny"), 0..4);
    (allows, denies).prop_map(|(allows, denies)| allows.concat() + &denies.concat())
}

/// A path that `template` matches, its parameters filled with `values` in turn.
fn filled(template: &str, values: &[&str]) -> String {
    let mut values = values.iter().cycle();
    let mut path = String::new();
    for (number, part) in template.split('{').enumerate() {
        match part.split_once('}') {
            Some((_, text)) if number > 0 => path.extend([values.next().copied().unwrap_or("a"), text]),
            _ => path.push_str(part),
        }
    }
    path
}

/// A path that one of the rules in `text` is about, if there is one.
fn path_of_a_rule(text: &str, pick: usize, values: &[&str]) -> String {
    let paths: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'))
        .collect();
    paths
        .get(pick % paths.len().max(1))
        .map_or_else(|| "/a".to_owned(), |template| filled(template, values))
}

fn fillings() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(
        select(&["a", "b", "A", "me", "a%20b", "%C3%A9", "1.txt"][..]),
        1..4,
    )
}

#[cfg(test)]
fn compiled(text: &str) -> Rules {
    let file = PolicyFile::parse(text).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
    Rules::load(Some(PackChoice::Empty), Some(&file)).expect("compiles")
}

fn is_allowed(rules: &Rules, method: &str, raw: &[u8], now_unix: u64) -> bool {
    Target::parse(raw).is_ok_and(|target| {
        rules
            .decide(&Ask {
                method,
                target: &target,
                now_unix,
            })
            .is_allow()
    })
}

/// Writes the letters of a path differently: other case, or escaped.
fn respelt(path: &str, changes: &[u8]) -> String {
    let mut text = String::new();
    for (letter, change) in path.chars().zip(changes.iter().cycle()) {
        match change % 4 {
            1 => text.push(letter.to_ascii_uppercase()),
            2 => text.push(letter.to_ascii_lowercase()),
            3 if letter != '/' && letter != '%' => text.push_str(&format!("%{:02X}", u32::from(letter))),
            _ => text.push(letter),
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_canonical_form_is_a_fixed_point(raw in raw_target()) {
        if let Ok(target) = Target::parse(&raw) {
            prop_assert_eq!(target.as_str().as_bytes(), &raw[..]);
            prop_assert_eq!(Target::parse(target.as_str().as_bytes()), Ok(target));
            prop_assert_eq!(Target::parse(target.path().as_bytes()).map(|again| again.path()), Ok(target.path()));
        }
    }

    #[test]
    fn the_canonical_form_agrees_with_the_slow_reference(raw in raw_target()) {
        prop_assert_eq!(Target::parse(&raw).is_ok(), reference::is_canonical(&raw), "{}", raw.escape_ascii());
    }

    #[test]
    fn matching_agrees_with_the_slow_reference(template in template(), path in path(), values in fillings()) {
        let parsed = Template::parse(&template).expect("generated templates are templates");

        prop_assert!(parsed.matches(&filled(&template, &values)));
        prop_assert_eq!(parsed.matches(&path), reference::matches(&template, &path));
    }

    #[test]
    fn deciding_agrees_with_the_slow_reference(
        text in rules_text(), method in select(METHODS), raw in raw_target(), now in 0_u64..70,
        pick in any::<usize>(), values in fillings(), changes in prop::collection::vec(0_u8..3, 1..16),
    ) {
        let rules = compiled(&text);
        let path = path_of_a_rule(&text, pick, &values);
        let other = respelt(&path, &changes);

        for target in [raw, path.into_bytes(), other.into_bytes()] {
            prop_assert_eq!(
                is_allowed(&rules, method, &target, now),
                reference::allows(&rules, method, &target, now),
                "{} {}\n{}", method, target.escape_ascii(), text
            );
        }
    }

    #[test]
    fn adding_a_deny_rule_never_allows_more(
        text in rules_text(), deny in rule("deny"), method in select(METHODS), now in 0_u64..70,
        pick in any::<usize>(), values in fillings(),
    ) {
        let path = path_of_a_rule(&text, pick, &values);
        let (before, after) = (compiled(&text), compiled(&format!("{text}{deny}")));

        let (was, is) = (is_allowed(&before, method, path.as_bytes(), now), is_allowed(&after, method, path.as_bytes(), now));

        prop_assert!(was || !is, "{method} {path}\n{text}{deny}");
    }

    #[test]
    fn what_is_not_canonical_is_never_matched(text in rules_text(), method in select(METHODS), raw in raw_target()) {
        let explanation = explain(&compiled(&text), method, &raw, 0);

        prop_assert_eq!(explanation.verdict == "refuse", !reference::is_canonical(&raw));
        prop_assert_eq!(explanation.is_allowed(), is_allowed(&compiled(&text), method, &raw, 0));
    }

    #[test]
    fn no_other_spelling_of_a_denied_path_is_allowed(
        template in template(), values in fillings(), changes in prop::collection::vec(any::<u8>(), 1..16),
    ) {
        let path = filled(&template, &values);
        let allow_all: String = (1..5)
            .map(|depth| {
                let path: String = (0..depth).map(|at| format!("/{{p{at}}}")).collect();
                format!("[[allow]]\nmethod = \"GET\"\npath = \"{path}\"\n")
            })
            .collect();
        let rules = compiled(&format!("{allow_all}[[deny]]\nmethod = \"GET\"\npath = \"{template}\"\n"));
        prop_assert!(reference::matches(&template, &path));

        let other = respelt(&path, &changes);

        prop_assert!(!is_allowed(&rules, "GET", path.as_bytes(), 0));
        prop_assert!(!is_allowed(&rules, "GET", other.as_bytes(), 0), "{other} escaped {template}");
    }
}
