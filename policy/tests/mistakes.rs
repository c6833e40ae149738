//! Rule files with mistakes are refused, every mistake at its line.

use policy::{PackChoice, PolicyFile, Rules};

#[cfg(test)]
fn told(text: &str) -> Vec<(usize, String)> {
    let mistakes = PolicyFile::parse(text).expect_err("has mistakes");
    mistakes
        .iter()
        .map(|mistake| (mistake.line, mistake.message.clone()))
        .collect()
}

#[cfg(test)]
fn only(text: &str) -> String {
    let told = told(text);
    assert_eq!(told.len(), 1, "{told:?}");
    told[0].1.clone()
}

#[cfg(test)]
fn in_rule(keys: &str) -> String {
    only(&format!(
        "[[allow]]\nmethod = \"GET\"\npath = \"/api/issues/{{issue}}\"\n{keys}\n"
    ))
}

#[test]
fn every_mistake_is_told_at_its_line_in_one_go() {
    let text = r#"pack = "paperclip-2026.999"
colour = "red"

[constrain]
issue = []

[limits]
max_bdy = 5
rate = "fast"

[[allow]]
methd = "GET"
path = "/api/x"

[[allow]]
method = "get"
path = "api/x/"
expires = 2026-12-01
multipart = "yes"

[[deny]]
method = "GET"
path = "/api/issues/{issue}"
where = { isue = ["PAP-1"], issue = ["a/b", "c%20d"] }
reason = 5
"#;

    let told = told(text);

    let wanted = [
        (
            1,
            "there is no pack `paperclip-2026.999`; one of paperclip-2026.707",
        ),
        (
            2,
            "unknown key `colour`; known here: pack, constrain, limits, allow, deny",
        ),
        (5, "`issue` is an empty list, which nothing can match"),
        (8, "unknown key `max_bdy`; did you mean `max_body`?"),
        (9, "`rate` is not a rate: write COUNT/UNIT"),
        (11, "`method` is missing"),
        (12, "unknown key `methd`; did you mean `method`?"),
        (16, "`get` is not a method for rules; did you mean `GET`?"),
        (
            17,
            "`path` is not a path rule: no canonical path looks like this: the path must start with `/`",
        ),
        (
            18,
            "`expires` is not a point in time; write a date with time and offset",
        ),
        (19, "`multipart` must be true or false, not a string"),
        (
            24,
            "`/api/issues/{issue}` has no parameter {isue}; did you mean `issue`?",
        ),
        (
            24,
            "the value `a/b` of `issue` has a `/`, and a parameter never does",
        ),
        (
            24,
            "the value `c%20d` of `issue` has a `%`; write the character itself, not its escape",
        ),
        (25, "`reason` must be a text in quotes, not a integer"),
    ];
    for (line, text) in wanted {
        assert!(
            told.iter()
                .any(|(at, said)| *at == line && said.starts_with(text)),
            "{line}: {text}\n{told:#?}"
        );
    }
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
}

#[test]
fn a_text_that_is_not_toml_is_one_mistake_at_its_line() {
    let told = told("pack = \"none\"\n[[allow]\nmethod = 5");

    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, 2);
    assert!(told[0].1.starts_with("not TOML: "), "{told:?}");
}

#[test]
fn mistakes_print_as_file_line_and_message() {
    let mistakes = PolicyFile::parse("a = 1\npack = \"x\"").expect_err("two mistakes");

    let printed = mistakes.in_file("policy.toml").to_string();

    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].starts_with("policy.toml:1: unknown key `a`"),
        "{printed}"
    );
    assert!(
        lines[1].starts_with("policy.toml:2: there is no pack `x`"),
        "{printed}"
    );
}

#[test]
fn templates_that_no_canonical_path_fits_are_mistakes() {
    for path in [
        "",
        "/",
        "api",
        "/a/",
        "//a",
        "/a//b",
        "/a/../b",
        "/a/%2e/b",
        "/a/%61",
        "/a/%2F",
        "/a?b",
        "/a#b",
        "/a b",
        "/a/{",
        "/a/}",
        "/a/{}",
        "/a/{1a}",
        "/a/{a-b}",
        "/a/{a}{b}",
        "/a/{a}-{b}",
        "/a/{a}/{a}",
        "/a/{{a}}",
        "/é",
        "/%2{a}",
        "/%{a}",
        "*",
        "http://x/a",
    ] {
        let text = format!("[[deny]]\nmethod = \"GET\"\npath = \"{path}\"");
        let said = only(&text);
        assert!(said.starts_with("`path` is not a path rule"), "{path}: {said}");
    }
    let deep = "/a".repeat(33);
    assert!(
        only(&format!("[[deny]]\nmethod = \"GET\"\npath = \"{deep}\"")).ends_with("more than 32 segments")
    );
}

#[test]
fn methods_are_those_that_may_be_forwarded() {
    for method in ["TRACE", "CONNECT", "ANY", "", "GET POST", "Post"] {
        let said = only(&format!("[[allow]]\nmethod = \"{method}\"\npath = \"/a\""));
        assert!(said.contains("is not a method for rules"), "{method}: {said}");
    }
    assert!(only("[[allow]]\nmethod = \"*\"\npath = \"/a\"").starts_with("`*` is for deny rules"));
    assert!(PolicyFile::parse("[[deny]]\nmethod = \"*\"\npath = \"/a\"").is_ok());
}

#[test]
fn values_that_can_never_match_are_mistakes() {
    assert!(in_rule("where = { issue = [\"\"] }").contains("is empty"));
    assert!(in_rule("where = { issue = [\"a b\"] }").contains("an escape never equals a value"));
    assert!(in_rule("where = { issue = [\"é\"] }").contains("an escape never equals a value"));
    assert!(in_rule("where = { issue = [\"a\\nb\"] }").contains("has a control character"));
    assert!(in_rule("where = { issue = [1] }").contains("`issue` must be a text in quotes"));
    assert!(in_rule("where = [\"PAP-1\"]").contains("`where` must be a table"));
    assert!(in_rule(&format!("where = {{ issue = \"{}\" }}", "x".repeat(201))).contains("is too long"));
}

#[test]
fn dates_need_a_time_and_an_offset() {
    for date in [
        "2026-12-01",
        "2026-12-01T00:00:00",
        "12:00:00",
        "1960-01-01T00:00:00Z",
    ] {
        assert!(
            in_rule(&format!("expires = {date}")).starts_with("`expires` is not a point in time"),
            "{date}"
        );
    }
    assert!(in_rule("expires = \"2026-12-01T00:00:00Z\"").contains("a date without quotes"));
}

#[test]
fn names_are_plain_and_unique() {
    assert!(in_rule("name = \"\"").starts_with("`name` is 1 to 64"));
    assert!(in_rule("name = \"a b\"").starts_with("`name` is 1 to 64"));
    let rule = |kind: &str| format!("[[{kind}]]\nname = \"same\"\nmethod = \"GET\"\npath = \"/a\"\n");
    assert_eq!(
        told(&(rule("allow") + &rule("deny"))),
        [(6, "the name `same` is taken by the rule at line 2".to_owned())]
    );
}

#[test]
fn a_deny_rule_knows_no_multipart() {
    let said = only("[[deny]]\nmethod = \"POST\"\npath = \"/a\"\nmultipart = true");

    assert!(said.starts_with("unknown key `multipart`"), "{said}");
}

#[test]
fn limits_are_bounded() {
    assert!(only("[limits]\nmax_body = 0").contains("1 to 1073741824"));
    assert!(only("[limits]\nmax_body = 1073741825").contains("1 to 1073741824"));
    assert!(only("[limits]\nmax_body = -1").contains("a whole number"));
    let file = PolicyFile::parse("[limits]\nmax_body = 0x400\nrate = \"5/s:9\"").expect("no mistakes");
    assert_eq!(file.limits().max_body, Some(1024));
    assert_eq!(
        file.limits().rate.map(|rate| rate.to_string()),
        Some("5/s:9".to_owned())
    );
}

#[test]
fn too_many_rules_and_too_large_a_file_are_mistakes() {
    let rules = "[[deny]]\nmethod=\"GET\"\npath=\"/a\"\n".repeat(1001);
    assert_eq!(told(&rules), [(3001, "more than 1000 deny rules".to_owned())]);
    assert!(only(&" ".repeat(1024 * 1024 + 1)).contains("more than 1048576 bytes"));
}

#[test]
fn a_constraint_that_no_pack_route_has_is_a_mistake_at_its_line() {
    let file = PolicyFile::parse("[constrain]\nisue = [\"PAP-1\"]").expect("parses");

    let mistakes = Rules::load(None, Some(&file)).expect_err("constrains nothing");
    assert_eq!(
        mistakes.to_string(),
        "line 2: no pack route has a parameter {isue}; did you mean `issue`?"
    );

    let mistakes = Rules::load(Some(PackChoice::Empty), Some(&file)).expect_err("constrains nothing");
    assert!(mistakes.to_string().contains("there is no pack"), "{mistakes}");
}

#[test]
fn a_parameter_missing_only_from_an_older_pack_is_a_mistake_there() {
    let file = PolicyFile::parse("[constrain]\nadapter = \"codex\"").expect("parses");

    assert!(Rules::load(PackChoice::named("paperclip-2026.916"), Some(&file)).is_ok());
    assert!(Rules::load(PackChoice::named("paperclip-2026.707"), Some(&file)).is_err());
}
