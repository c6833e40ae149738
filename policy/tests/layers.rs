//! Two rule files over each other, and denials that are only reported.

#![cfg(test)]

use policy::{Ask, Denial, Mode, Pack, PolicyFile, Reason, Rules, Ruling, Target, Verdict};

const CONFIGURED: &str = r#"
[constrain]
issue = ["PAP-1", "PAP-2"]

[[deny]]
name = "no-email"
method = "POST"
path = "/api/companies/{company}/email/send"

[[allow]]
name = "extra"
method = "GET"
path = "/api/extra/{issue}"
"#;

fn file(text: &str) -> PolicyFile {
    PolicyFile::parse(text).expect("no mistakes")
}

fn layered(own: &str) -> Rules {
    Rules::layered(&[Pack::newest()], Some(&file(CONFIGURED)), Some(&file(own))).expect("compiles")
}

fn ruled(rules: &Rules, mode: Mode, method: &str, target: &str) -> Ruling {
    let target = Target::parse(target.as_bytes()).expect("canonical");
    let ask = Ask {
        method,
        target: &target,
        now_unix: 0,
    };
    rules.decide_in(mode, &ask)
}

fn denied(rules: &Rules, method: &str, target: &str) -> Denial {
    match ruled(rules, Mode::Enforce, method, target) {
        Ruling::Deny(denial) => denial,
        Ruling::Allow(permit) | Ruling::Report(permit, _) => panic!("{permit:?}"),
    }
}

fn allowed(rules: &Rules, method: &str, target: &str) -> String {
    match ruled(rules, Mode::Enforce, method, target) {
        Ruling::Allow(permit) => permit.rule().to_owned(),
        Ruling::Deny(denial) | Ruling::Report(_, denial) => panic!("{denial:?}"),
    }
}

#[test]
fn what_a_session_adds_never_lifts_a_deny_rule_of_the_operator() {
    let rules = layered(
        "[[allow]]\nmethod = \"POST\"\npath = \"/api/companies/{company}/email/send\"\n\
         [[allow]]\nname = \"own\"\nmethod = \"GET\"\npath = \"/api/own\"\n",
    );

    let denial = denied(&rules, "POST", "/api/companies/c1/email/send");

    assert_eq!(denial.reason, Reason::DenyRule);
    assert_eq!(denial.rule.as_ref().map(|rule| rule.as_str()), Some("no-email"));
    assert_eq!(allowed(&rules, "GET", "/api/own"), "session own");
}

#[test]
fn what_a_session_constrains_narrows_the_packs_and_the_operators_rules_further() {
    let rules = layered("[constrain]\nissue = [\"PAP-2\", \"PAP-3\"]\n");

    // The operator's own rule is not narrowed by the operator's `[constrain]`, which is about packs.
    for (path, refused) in [
        ("/api/issues/", ["PAP-1", "PAP-3"]),
        ("/api/extra/", ["PAP-1", "PAP-4"]),
    ] {
        allowed(&rules, "GET", &format!("{path}PAP-2"));
        for issue in refused {
            let denial = denied(&rules, "GET", &format!("{path}{issue}"));
            assert_eq!(denial.reason, Reason::Constraint, "{path}{issue}");
        }
    }
    allowed(&rules, "GET", "/api/extra/PAP-3");
    allowed(&rules, "GET", "/api/agents/me");
}

#[test]
fn a_session_alone_above_a_pack_is_what_the_file_alone_is() {
    let own = "[constrain]\nissue = \"PAP-1\"\n[[deny]]\nname = \"quiet\"\nmethod = \"GET\"\npath = \"/api/agents/me\"\n";
    let names = |rules: &Rules| rules.views().map(|rule| format!("{rule:?}")).collect::<Vec<_>>();

    let alone = Rules::compile(&[Pack::newest()], Some(&file(own))).expect("compiles");
    let above = Rules::layered(&[Pack::newest()], None, Some(&file(own))).expect("compiles");

    assert_eq!(names(&alone), names(&above));
}

#[test]
fn a_constraint_of_a_session_must_have_something_to_narrow() {
    let configured = file(CONFIGURED);
    let fits = |own: &str, packs: &[Pack]| Rules::fits(packs, Some(&configured), &file(own));

    assert!(fits("[constrain]\ncompany = \"c1\"\n", &[Pack::newest()]).is_ok());
    // The operator's own route has it.
    assert!(fits("[constrain]\nissue = \"PAP-1\"\n", &[]).is_ok());
    let wrong = fits("\n[constrain]\nisue = \"PAP-1\"\n", &[]).expect_err("nothing has it");
    assert!(
        wrong.to_string().contains("line 3") && wrong.to_string().contains("`issue`"),
        "{wrong}"
    );
}

#[test]
fn a_denial_that_is_only_reported_knows_what_would_have_been() {
    let rules = layered("");
    let reported = |method: &str, target: &str| match ruled(&rules, Mode::Report, method, target) {
        Ruling::Report(permit, denial) => (permit.route().to_owned(), permit.multipart(), denial.reason),
        Ruling::Allow(permit) => panic!("{permit:?}"),
        Ruling::Deny(denial) => panic!("{denial:?}"),
    };

    assert_eq!(
        reported("POST", "/api/companies/c1/email/send").2,
        Reason::DenyRule
    );
    assert_eq!(
        reported("GET", "/api/issues/PAP-9"),
        ("/api/issues/{issue}".to_owned(), false, Reason::Constraint)
    );
    assert_eq!(
        reported("GET", "/nowhere"),
        (String::new(), false, Reason::NoRule)
    );
    assert!(matches!(
        ruled(&rules, Mode::Report, "GET", "/api/agents/me"),
        Ruling::Allow(_)
    ));
}

proptest::proptest! {
    #[test]
    fn a_mode_changes_nothing_of_the_verdict_itself(
        method in proptest::sample::select(vec!["GET", "POST", "HEAD", "get", "TRACE"]),
        path in "/(api|nowhere)/(issues|agents|extra|companies)/(PAP-1|PAP-9|me|c1)(/comments|/email/send)?",
    ) {
        let rules = layered("");
        let target = Target::parse(path.as_bytes()).expect("canonical");
        let ask = Ask { method, target: &target, now_unix: 0 };

        let (verdict, report) = (rules.decide(&ask), rules.decide_in(Mode::Report, &ask));

        match (verdict, report) {
            (Verdict::Allow(one), Ruling::Allow(other)) => proptest::prop_assert_eq!(one.rule(), other.rule()),
            (Verdict::Deny(one), Ruling::Report(_, other)) => proptest::prop_assert_eq!(one.reason, other.reason),
            (verdict, report) => proptest::prop_assert!(false, "{:?} {:?}", verdict, report),
        }
        proptest::prop_assert_eq!(
            matches!(rules.decide_in(Mode::Enforce, &ask), Ruling::Deny(_)),
            !rules.decide(&ask).is_allow()
        );
    }
}
