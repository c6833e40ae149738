//! Rule files and the decision.
//!
//! Laws: reading any text never panics, and every mistake stands on a line of that text; what compiles decides as the
//! slow reference does; one more deny never allows more; a target that is not canonical is never matched, whatever the
//! rules; `explain` says what `decide` does.
//!
//! The first byte chooses what the rest is: a rule file as it is, a case table as it is, or the choices of a grammar
//! that makes a rule file and calls that mostly fit it. Random bytes alone would seldom be TOML.

use policy::{
    Ask, Mistakes, Pack, PackChoice, PolicyFile, Rules, Target, Verdict, cases, explain, reference,
};

/// The instant that calls are made at; rules expire around it.
const NOW: u64 = 1_790_000_000;
/// That instant and its neighbours as a rule file writes them.
const EXPIRES: [&str; 3] = [
    "2026-09-21T14:13:19Z",
    "2026-09-21T14:13:20Z",
    "2026-09-21T16:13:21+02:00",
];
const METHODS: [&str; 12] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "", "*",
];
const TEMPLATE_PARTS: [&str; 14] = [
    "api",
    "issues",
    "{issue}",
    "{company}",
    "a{x}",
    "{x}.txt",
    "a{x}b",
    "API",
    "a b",
    "ä",
    "_",
    "..",
    "",
    "%41",
];
const PATH_PARTS: [&str; 18] = [
    "api", "issues", "PAP-1", "pap-1", "c1", "a", "ab", "aab", "x.txt", "API", "a%20b", "A%20B", "%C3%A4",
    "_", "..", "", "%2E%2E", "%2Fapi",
];
const VALUES: [&str; 7] = ["PAP-1", "pap-1", "c1", "a", "a b", "ä", "%41"];

/// Takes the bytes as a rule file, a case table, or choices.
///
/// # Panics
///
/// On a broken law.
pub fn decision(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind {
        b'f' => file(&String::from_utf8_lossy(rest)),
        b'c' => case_table(&String::from_utf8_lossy(rest)),
        _ => grammar(Choices(rest)),
    }
}

fn file(text: &str) {
    let parsed = match PolicyFile::parse(text) {
        Ok(parsed) => parsed,
        Err(mistakes) => return lie_within(&mistakes, text),
    };
    let rules = match Rules::load(None, Some(&parsed)) {
        Ok(rules) => rules,
        Err(mistakes) => return lie_within(&mistakes, text),
    };
    // Each rule's own path with its parameters filled in, and some spellings beside it.
    let paths: Vec<String> = rules.views().take(40).map(|rule| filled(rule.path)).collect();
    for path in paths
        .iter()
        .chain([&"/".to_owned(), &"/api/agents/me".to_owned()])
    {
        for method in ["GET", "HEAD", "POST", "PATCH"] {
            agrees(&rules, method, path.as_bytes());
            agrees(&rules, method, path.to_ascii_uppercase().as_bytes());
        }
    }
    denies_only_take_away(&parsed, text, &rules, &paths);
}

fn case_table(text: &str) {
    match cases::run(text) {
        Ok(results) => {
            let lines = text.split('\n').count();
            assert!(results.iter().all(|result| (1..=lines).contains(&result.line)));
        }
        Err(mistakes) => lie_within(&mistakes, text),
    }
}

fn lie_within(mistakes: &Mistakes, text: &str) {
    assert!(!mistakes.is_empty(), "refused without a mistake");
    let lines: Vec<&str> = text.split('\n').collect();
    for mistake in mistakes {
        let line = mistake.line.checked_sub(1).and_then(|line| lines.get(line));
        let line = line.unwrap_or_else(|| panic!("{mistake:?} in a text of {} lines", lines.len()));
        let within = (1..=line.chars().count() + 1).contains(&mistake.column);
        assert!(within, "{mistake:?} on {line:?}");
        assert!(!mistake.message.is_empty());
    }
}

fn filled(template: &str) -> String {
    let mut path = String::new();
    for (number, part) in template.split('{').enumerate() {
        let behind = part.split_once('}').map_or(part, |(_, behind)| behind);
        if number > 0 {
            path.push_str("PAP-1");
        }
        path.push_str(behind);
    }
    path
}

/// `decide`, `explain` and the reference say the same; returns it.
fn agrees(rules: &Rules, method: &str, raw: &[u8]) -> bool {
    let slow = reference::allows(rules, method, raw, NOW);
    let explained = explain::explain(rules, method, raw, NOW);
    assert_eq!(
        explained.is_allowed(),
        slow,
        "explain and the reference on {method} {}",
        raw.escape_ascii()
    );
    let Ok(target) = Target::parse(raw) else {
        assert!(
            !slow,
            "a target that is not canonical was matched: {}",
            raw.escape_ascii()
        );
        return false;
    };
    let verdict = rules.decide(&Ask {
        method,
        target: &target,
        now_unix: NOW,
    });
    assert_eq!(
        verdict.is_allow(),
        slow,
        "decide and the reference on {method} {target:?}: {verdict:?}"
    );
    if let Verdict::Deny(denial) = &verdict {
        // What a caller is told must come about for every denial.
        let _told = (denial.hint(), denial.reason.to_string());
    }
    slow
}

fn denies_only_take_away(parsed: &PolicyFile, text: &str, rules: &Rules, paths: &[String]) {
    let deny = "[[deny]]\nmethod = \"*\"\npath = \"/api/issues/{issue}\"\n";
    let Ok(more) = PolicyFile::parse(&format!("{text}\n{deny}")) else {
        return;
    };
    let Ok(stricter) = Rules::load(None, Some(&more)) else {
        return;
    };
    assert_eq!(more.pack(), parsed.pack());
    for path in paths {
        for method in ["GET", "POST", "PATCH"] {
            if agrees(&stricter, method, path.as_bytes()) {
                assert!(
                    agrees(rules, method, path.as_bytes()),
                    "a deny allowed {method} {path}"
                );
            }
        }
    }
}

fn grammar(mut choices: Choices<'_>) {
    let pack = if choices.byte() % 8 == 7 {
        PackChoice::Pack(Pack::newest())
    } else {
        PackChoice::Empty
    };
    let mut text = String::new();
    if choices.byte() % 8 == 7 {
        text += &format!("[constrain]\nissue = {:?}\n", choices.of(&VALUES));
    }
    for _ in 0..choices.byte() % 6 {
        let effect = choices.of(&["allow", "deny"]);
        text += &rule(effect, &mut choices);
    }
    let deny = rule("deny", &mut choices);
    let rules = compiled(pack, &text);
    let stricter = compiled(pack, &format!("{text}{deny}"));
    for _ in 0..8 {
        let method = choices.of(&METHODS);
        let raw = path(&mut choices);
        let before = rules.as_ref().map(|rules| agrees(rules, method, raw.as_bytes()));
        let after = stricter
            .as_ref()
            .map(|rules| agrees(rules, method, raw.as_bytes()));
        if let (Some(before), Some(after)) = (before, after) {
            assert!(
                before || !after,
                "a deny allowed {method} {raw}:\n{text}and\n{deny}"
            );
        }
    }
    // What is left of the bytes is a target of its own.
    if let Some(rules) = &rules {
        agrees(rules, "GET", choices.0);
    }
}

fn compiled(pack: PackChoice, text: &str) -> Option<Rules> {
    let rules = PolicyFile::parse(text).and_then(|file| Rules::load(Some(pack), Some(&file)));
    rules.map_err(|mistakes| lie_within(&mistakes, text)).ok()
}

fn rule(effect: &str, choices: &mut Choices<'_>) -> String {
    let methods = if effect == "deny" {
        &["GET", "POST", "HEAD", "*"]
    } else {
        &["GET", "POST", "HEAD", "PATCH"]
    };
    let mut text = format!("[[{effect}]]\nmethod = \"{}\"\npath = \"", choices.of(methods));
    for _ in 0..=choices.byte() % 3 {
        // Mostly from the front of the list, where the parts make sense.
        let most = if choices.byte() < 224 {
            8
        } else {
            TEMPLATE_PARTS.len()
        };
        text += "/";
        text += choices.of(TEMPLATE_PARTS.get(..most).unwrap_or(&TEMPLATE_PARTS));
    }
    text += "\"\n";
    let extras = choices.byte();
    if extras & 3 == 3 {
        let parameter = choices.of(&["issue", "company", "x"]);
        text += &format!(
            "where = {{ {parameter} = [{:?}, {:?}] }}\n",
            choices.of(&VALUES),
            choices.of(&VALUES)
        );
    }
    if extras & 12 == 12 {
        text += &format!("expires = {}\n", choices.of(&EXPIRES));
    }
    if extras & 48 == 48 && effect == "allow" {
        text += "multipart = true\n";
    }
    text
}

fn path(choices: &mut Choices<'_>) -> String {
    let mut path = String::new();
    for _ in 0..=choices.byte() % 4 {
        let most = if choices.byte() < 192 {
            14
        } else {
            PATH_PARTS.len()
        };
        path += "/";
        path += choices.of(PATH_PARTS.get(..most).unwrap_or(&PATH_PARTS));
    }
    match choices.byte() {
        byte if byte >= 240 => path + "?view=full",
        byte if byte >= 224 => path + "/",
        _ => path,
    }
}

/// Bytes as choices; zeros once they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn of<'t>(&mut self, list: &[&'t str]) -> &'t str {
        let at = usize::from(self.byte()) % list.len();
        list.get(at).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instants_lie_around_now() {
        let rules = |expires: &str| {
            let text = format!("[[allow]]\nmethod = \"GET\"\npath = \"/a\"\nexpires = {expires}\n");
            compiled(PackChoice::Empty, &text).expect("a good file")
        };

        assert_eq!(
            EXPIRES.map(|at| agrees(&rules(at), "GET", b"/a")),
            [false, false, true]
        );
    }

    #[test]
    fn the_grammar_reaches_verdicts_of_both_kinds() {
        let text = "[[allow]]\nmethod = \"GET\"\npath = \"/api/issues/{issue}\"\n";
        let rules = compiled(PackChoice::Empty, text).expect("a good file");

        assert!(agrees(&rules, "GET", b"/api/issues/PAP-1"));
        assert!(!agrees(&rules, "GET", b"/api/issues/../PAP-1"));
        assert_eq!(filled("/llms/{adapter}.txt"), "/llms/PAP-1.txt");
    }
}
