//! The layers, and where each value comes from. In `mistakes` what is refused, and how that is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::model::{LogLevel, PolicyMode};
use super::*;

mod mistakes;

const FILE: &str = "/etc/bridge.toml";

fn with(text: &str, variables: &[(&str, &str)], flags: Vec<Flag>) -> Result<Effective, ConfigErrors> {
    let options = LoadOptions {
        file: Some(PathBuf::from(FILE)),
        environment: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        flags,
    };
    Config::of_text(text, Path::new(FILE), &options)
}

fn of(text: &str) -> Result<Effective, ConfigErrors> {
    with(text, &[], Vec::new())
}

fn at_line(line: usize) -> Origin {
    Origin::File {
        path: Path::new(FILE).into(),
        line,
    }
}

#[test]
fn without_a_file_there_are_the_defaults_and_the_upstream_of_run_and_open() {
    let loaded = Config::load(LoadOptions::default()).unwrap();

    let upstream = &loaded.config.upstreams["default"];
    assert_eq!(upstream.url, DEFAULT_UPSTREAM);
    assert_eq!(upstream.credential.as_str(), DEFAULT_CREDENTIAL);
    assert_eq!(loaded.config.control.adhoc, Some(true));
    let expected = Config {
        upstreams: loaded.config.upstreams.clone(),
        control: loaded.config.control.clone(),
        ..Config::default()
    };
    assert_eq!(loaded.config, expected);
    assert_eq!(loaded.origins.of_leaf("telemetry.level"), Origin::Default);
}

#[test]
fn an_empty_file_is_the_default_and_closes_requests_of_their_own() {
    let loaded = of("").unwrap();

    assert_eq!(loaded.config.control.adhoc, Some(false));
    assert_eq!(loaded.config.sessions, Config::default().sessions);
    assert!(of("[control]\nadhoc = true").unwrap().config.control.adhoc == Some(true));
}

#[test]
fn the_upstream_nobody_named_is_paperclips_own_variable() {
    let loaded = with("", &[("PAPERCLIP_API_URL", "http://api:1")], Vec::new()).unwrap();

    assert_eq!(loaded.config.upstreams["default"].url, "http://api:1");
    assert_eq!(
        loaded.origins.of_leaf("upstreams.default.url"),
        Origin::Variable("PAPERCLIP_API_URL".into())
    );
    let named = "[upstreams.main]\nurl = 'http://h'\ncredential = 'env:KEY'";
    assert_eq!(
        of(named).unwrap().config.upstreams.keys().collect::<Vec<_>>(),
        ["main"]
    );
}

#[test]
fn the_file_wins_over_the_default_the_variable_over_the_file_and_the_flag_over_the_variable() {
    let text = "[telemetry]\nlevel = 'warn'\n";
    let variable = [("PCBRIDGE_TELEMETRY__LEVEL", "debug")];
    let flag = || {
        vec![Flag {
            option: "--log-level",
            key: "telemetry.level",
            value: json!("trace"),
        }]
    };

    for (loaded, level, origin) in [
        (of(""), LogLevel::Info, Origin::Default),
        (of(text), LogLevel::Warn, at_line(2)),
        (
            with(text, &variable, Vec::new()),
            LogLevel::Debug,
            Origin::Variable("PCBRIDGE_TELEMETRY__LEVEL".into()),
        ),
        (
            with(text, &variable, flag()),
            LogLevel::Trace,
            Origin::Flag("--log-level".into()),
        ),
    ] {
        let loaded = loaded.unwrap();
        assert_eq!(loaded.config.telemetry.level, level);
        assert_eq!(loaded.origins.of_leaf("telemetry.level"), origin);
    }
}

#[test]
fn a_later_layer_mends_an_earlier_one() {
    let text = "[telemetry]\nlevel = 'loud'\n";

    assert!(of(text).is_err());
    assert!(with(text, &[("PCBRIDGE_TELEMETRY__LEVEL", "info")], Vec::new()).is_ok());
}

#[test]
fn a_variable_reaches_every_kind_of_value() {
    let loaded = with(
        "[upstreams.my-api]\nurl = 'http://h'\ncredential = 'env:KEY'\n",
        &[
            ("PCBRIDGE_UPSTREAMS__MY_API__URL", "http://other"),
            ("PCBRIDGE_SESSIONS__TTL", "2h"),
            ("PCBRIDGE_SESSIONS__MISSES", "5"),
            ("PCBRIDGE_AUDIT__ENABLED", "false"),
            ("PCBRIDGE_CONTROL__ALLOW_UIDS", "[1, 2]"),
            ("PCBRIDGE_STORE__URL", "postgres://bridge@db/bridge"),
            ("PCBRIDGE_PROVIDERS__E2B__API_KEY", "env:E2B"),
            ("PCBRIDGE_POLICY__MODE", "\"report\""),
            ("PCBRIDGE_STORE__PASSWORD", ""),
            ("OTHER", "x"),
        ],
        Vec::new(),
    )
    .unwrap()
    .config;

    assert_eq!(loaded.upstreams["my-api"].url, "http://other");
    assert_eq!(loaded.sessions.ttl, Duration::from_hours(2));
    assert_eq!(loaded.sessions.misses, 5);
    assert!(!loaded.audit.enabled);
    assert_eq!(loaded.control.allow_uids, [1, 2]);
    assert_eq!(loaded.store.url.as_deref(), Some("postgres://bridge@db/bridge"));
    assert_eq!(loaded.providers["e2b"].0["apiKey"], "env:E2B");
    assert_eq!(loaded.policy.mode, PolicyMode::Report);
    assert_eq!(loaded.store.password, None);
}

#[test]
fn a_byte_order_mark_and_line_ends_of_two_characters_are_taken() {
    let loaded = of("\u{feff}[telemetry]\r\nlevel = 'warn'\r\n").unwrap();

    assert_eq!(loaded.config.telemetry.level, LogLevel::Warn);
    assert_eq!(loaded.origins.of_leaf("telemetry.level"), at_line(2));
}

#[test]
fn what_was_printed_is_read_again() {
    let text = "[upstreams.main]\nurl = 'http://h'\ncredential = 'env:KEY'\n[limits.rate.issue]\nwrite = '5/m'\n\
                [providers.e2b]\nenvs = { 'a.b' = 'x', \"\" = \"two\\nlines\" }\n[providers.daytona]\n";
    let loaded = of(text).unwrap();
    let values = serde_json::to_value(&loaded.config).unwrap();

    let printed: Vec<String> = leaves(&values).iter().map(Leaf::toml).collect();
    let printed = printed.join("\n");

    assert_eq!(of(&printed).unwrap().config, loaded.config, "{printed}");
}

#[test]
fn the_defaults_are_within_their_own_bounds() {
    let schema = schema();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let said: serde_json::Map<_, _> = defaults
        .as_object()
        .unwrap()
        .iter()
        .map(|(section, values)| {
            let said = values
                .as_object()
                .unwrap()
                .iter()
                .filter(|(_, value)| !value.is_null());
            let said: serde_json::Map<_, _> = said
                .map(|(key, value)| (key.clone(), without_null(value)))
                .collect();
            (section.clone(), said.into())
        })
        .collect();

    let found = runners::provider::config::faults(&schema, &said.into(), &super::schema::keywords);

    assert_eq!(found, []);
    assert!(jsonless(&schema), "{schema:#}");
}

fn without_null(value: &serde_json::Value) -> serde_json::Value {
    match value.as_object() {
        Some(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_null(value)))
            .collect(),
        None => value.clone(),
    }
}

/// Nothing in the schema points elsewhere, and nothing is null, which TOML does not have.
fn jsonless(schema: &serde_json::Value) -> bool {
    let text = schema.to_string();
    !text.contains("$ref") && !text.contains("$defs") && !text.contains("null")
}

#[test]
fn the_option_wins_over_the_variable_and_the_variable_over_the_default() {
    let set = |name: &str| (name == "PAPERCLIP_API_URL").then(|| "http://api:1".to_owned());

    assert_eq!(upstream(Some("http://x"), &set).url, "http://x");
    assert_eq!(upstream(None, &set).url, "http://api:1");
    assert_eq!(upstream(None, &|_| None).url, DEFAULT_UPSTREAM);
    assert_eq!(upstream(None, &|_| Some(String::new())).url, DEFAULT_UPSTREAM);
}

#[test]
fn leases_are_written_down_below_the_operators_own_state() {
    let found = |set: &[(&str, &str)]| {
        let lookup = |name: &str| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        state_folder(&lookup)
    };

    assert_eq!(
        found(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]),
        Some("/s/paperclip-bridge".into())
    );
    assert_eq!(
        found(&[("XDG_STATE_HOME", "s"), ("HOME", "/h")]),
        Some("/h/.local/state/paperclip-bridge".into())
    );
    assert_eq!(found(&[]), None);
}

#[test]
fn two_runs_never_share_a_run_id_by_default() {
    assert_ne!(run_id(None), run_id(None));
    assert_eq!(run_id(Some("r-1")), "r-1");
}
