//! Case tables: calls and the verdicts that their author expects, one row a case.
//!
//! Here: [`run`], which `policy test FILE` and this crate's own tests use. `docs/policy.md` describes the
//! format; `policy/cases/` has examples. Not here: opening the file.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;
use toml::de::DeTable;

use crate::explain::{Explanation, explain};
use crate::file::{PackChoice, PolicyFile, pack_choice};
use crate::mistakes::Mistakes;
use crate::pack::Pack;
use crate::path::TargetFault;
use crate::reader::{At, Reader};
use crate::rules::Rules;
use crate::suggest;
use crate::verdict::Reason;

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// The case's name, or its call.
    pub name: String,
    /// Where it stands, from 1.
    pub line: usize,
    /// Whether the verdict is the expected one.
    pub passed: bool,
    /// What was expected.
    pub expected: String,
    /// What policy says.
    pub found: Explanation,
}

/// Runs a case table against the rules that it names, or else the newest pack.
///
/// # Errors
///
/// Every mistake in the table, each at its line, those in the rules inside it included. Then no case runs.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Mistakes> {
    run_with(text, None)
}

/// Runs a case table; cases that name neither `rules` nor `pack` are put to `rules`.
///
/// # Errors
///
/// As [`run`].
pub fn run_with(text: &str, rules: Option<&Rules>) -> Result<Vec<CaseResult>, Mistakes> {
    let mut reader = Reader::new(text);
    let Some(document) = reader.document() else {
        return Err(reader.into_mistakes());
    };
    let root = document.get_ref();
    reader.unknown_keys(root, &["pack", "rules", "now", "case"]);
    let fallback = rules.cloned().unwrap_or_else(|| Rules::from_pack(Pack::newest()));
    let outer = Setting::read(&mut reader, root, None, fallback);
    let rows = reader.tables(root, "case");
    if rows.is_empty() {
        reader.mistake(0, "there is no case; write one as `[[case]]`".to_owned());
    }
    let cases: Vec<Case> = rows
        .into_iter()
        .filter_map(|row| Case::read(&mut reader, row, &outer))
        .collect();
    reader
        .finish(cases)
        .map(|cases| cases.into_iter().map(Case::run).collect())
}

/// The rules and the time that a case is put to.
#[derive(Clone)]
struct Setting {
    pack: Option<PackChoice>,
    rules: Rules,
    now_unix: u64,
}

struct Case {
    name: String,
    line: usize,
    method: String,
    target: String,
    verdict: String,
    reason: Option<String>,
    rule: Option<String>,
    nearest: Option<String>,
    setting: Setting,
}

impl Setting {
    /// Reads `pack`, `rules` and `now`; what is absent comes from `outer` or is `fallback`.
    fn read(reader: &mut Reader<'_>, table: &DeTable<'_>, outer: Option<&Self>, fallback: Rules) -> Self {
        let pack = pack_choice(reader, table);
        let now = reader
            .instant(table, "now")
            .or_else(|| outer.map(|outer| outer.now_unix));
        let text = reader.string(table, "rules");
        let inherited = outer.and_then(|outer| outer.pack);
        let rules = match (&text, pack) {
            (None, None) => outer.map_or(fallback, |outer| outer.rules.clone()),
            (None, Some(_)) => compile(reader, At { value: "", at: 0 }, pack, None),
            (Some(text), _) => compile(reader, *text, pack, inherited),
        };
        Self {
            pack: pack.or(inherited),
            rules,
            now_unix: now.unwrap_or(0),
        }
    }
}

/// Compiles rules inside a case table: `pack`, else the rules' own, else `inherited`, else the newest.
fn compile(
    reader: &mut Reader<'_>,
    text: At<&str>,
    pack: Option<PackChoice>,
    inherited: Option<PackChoice>,
) -> Rules {
    let compiled = PolicyFile::parse(text.value)
        .and_then(|file| Rules::load(pack.or(file.pack()).or(inherited), Some(&file)));
    compiled.unwrap_or_else(|mistakes| {
        for mistake in &mistakes {
            reader.mistake_inside(text.at, mistake);
        }
        Rules::none()
    })
}

impl Case {
    fn read(reader: &mut Reader<'_>, row: At<&DeTable<'_>>, outer: &Setting) -> Option<Self> {
        const KEYS: &[&str] = &[
            "name", "method", "target", "verdict", "reason", "rule", "nearest", "pack", "rules", "now",
        ];
        let At { value: table, at } = row;
        reader.unknown_keys(table, KEYS);
        let setting = Setting::read(reader, table, Some(outer), Rules::none());
        let owned = |text: At<&str>| text.value.to_owned();
        let method = reader.required_string(table, "method", at).map(owned);
        let target = reader.required_string(table, "target", at).map(owned);
        let verdict = verdict(reader, table, at);
        let reason = reason(reader, table, verdict.as_deref());
        let (line, _) = reader.position(at);
        let name = reader.string(table, "name").map(owned);
        let rule = reader.string(table, "rule").map(owned);
        let nearest = reader.string(table, "nearest").map(owned);
        let (method, target) = (method?, target?);
        Some(Self {
            name: name.unwrap_or_else(|| format!("{method} {}", target.escape_debug())),
            line,
            method,
            target,
            verdict: verdict?,
            reason,
            rule,
            nearest,
            setting,
        })
    }

    fn run(self) -> CaseResult {
        let now_unix = self.setting.now_unix;
        let found = explain(
            &self.setting.rules,
            &self.method,
            self.target.as_bytes(),
            now_unix,
        );
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let passed = self.verdict == found.verdict
            && same(&self.reason, Some(found.reason))
            && same(&self.rule, found.rule.as_deref())
            && same(&self.nearest, found.nearest.or(Some("none")));
        let details = [
            ("reason", &self.reason),
            ("rule", &self.rule),
            ("nearest", &self.nearest),
        ];
        let mut expected = self.verdict.clone();
        for (key, value) in details {
            if let Some(value) = value {
                expected.push_str(&format!(", {key} {value}"));
            }
        }
        CaseResult {
            name: self.name,
            line: self.line,
            passed,
            expected,
            found,
        }
    }
}

impl fmt::Display for CaseResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed {
            return write!(formatter, "ok   line {}: {}", self.line, self.name);
        }
        let found = &self.found;
        write!(formatter, "FAIL line {}: {}", self.line, self.name)?;
        write!(
            formatter,
            ": expected {}, found {}, reason {}",
            self.expected, found.verdict, found.reason
        )?;
        write!(formatter, ", rule {}", found.rule.as_deref().unwrap_or("none"))?;
        write!(formatter, ", nearest {}", found.nearest.unwrap_or("none"))
    }
}

fn verdict(reader: &mut Reader<'_>, table: &DeTable<'_>, at: usize) -> Option<String> {
    let verdict = reader.required_string(table, "verdict", at)?;
    if !["allow", "deny", "refuse"].contains(&verdict.value) {
        let message = format!("`{}` is not a verdict; one of allow, deny, refuse", verdict.value);
        reader.mistake(verdict.at, message);
    }
    Some(verdict.value.to_owned())
}

/// The expected reason, which must be one that this verdict can have.
fn reason(reader: &mut Reader<'_>, table: &DeTable<'_>, verdict: Option<&str>) -> Option<String> {
    const DENIALS: [Reason; 4] = [
        Reason::DenyRule,
        Reason::NoRule,
        Reason::Constraint,
        Reason::Expired,
    ];
    let reason = reader.string(table, "reason")?;
    let known: Vec<&str> = match verdict {
        Some("deny") => DENIALS.map(Reason::code).to_vec(),
        Some("refuse") => TargetFault::ALL.map(TargetFault::code).to_vec(),
        _ => Vec::from(["allow_rule"]),
    };
    if !known.contains(&reason.value) {
        let advice = match suggest::nearest(reason.value, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", known.join(", ")),
        };
        reader.mistake(
            reason.at,
            format!("`{}` is no reason of this verdict; {advice}", reason.value),
        );
    }
    Some(reason.value.to_owned())
}
