//! The operator's rule file: parsing and its mistakes.
//!
//! Here: [`PolicyFile`], a checked but not yet compiled rule file. `docs/policy.md` describes the format.
//! Not here: opening the file (the caller's part), and joining it with packs ([`crate::rules`]).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use toml::de::DeTable;

use crate::mistakes::{Mistake, Mistakes};
use crate::pack::Pack;
use crate::path::is_segment_byte;
use crate::rate::RateLimit;
use crate::reader::{At, Reader};
use crate::route::Template;
use crate::rule::{Effect, Method};
use crate::suggest;

/// Most rules of one kind in a file; bounds the cost of a decision.
const MAX_RULES: usize = 1_000;
/// Longest `reason` and constraint value, in bytes.
const MAX_WORDS: usize = 200;
/// Longest rule name, in bytes.
const MAX_NAME: usize = 64;
/// Largest `max_body`: 1 GiB.
const MAX_BODY: u64 = 1 << 30;

/// A rule file without mistakes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFile {
    pack: Option<PackChoice>,
    limits: FileLimits,
    pub(crate) constrain: Vec<Constrain>,
    pub(crate) rules: Vec<FileRule>,
}

/// Which pack to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackChoice {
    /// No pack: only the operator's own allow rules.
    Empty,
    /// This pack.
    Pack(Pack),
}

/// Limits that a rule file may set; `None` leaves the daemon's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileLimits {
    /// Most bytes of a body, each way.
    pub max_body: Option<u64>,
    /// Callbacks per time.
    pub rate: Option<RateLimit>,
}

/// One entry of `[constrain]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constrain {
    pub(crate) parameter: String,
    pub(crate) values: Vec<String>,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// One `[[allow]]` or `[[deny]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRule {
    pub(crate) effect: Effect,
    pub(crate) name: Option<String>,
    /// `None` is `*`, every method; only in deny rules.
    pub(crate) method: Option<Method>,
    pub(crate) template: Template,
    pub(crate) constraints: Vec<(String, Vec<String>)>,
    pub(crate) expires: Option<u64>,
    pub(crate) reason: Option<String>,
    pub(crate) multipart: bool,
    pub(crate) line: usize,
}

impl PackChoice {
    /// Reads a pack name or `none`; `None` when there is no such pack.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == "none" {
            Some(Self::Empty)
        } else {
            Pack::named(name).map(Self::Pack)
        }
    }

    /// The pack as the list that [`crate::Rules::compile`] takes.
    #[must_use]
    pub fn packs(self) -> Vec<Pack> {
        match self {
            Self::Empty => Vec::new(),
            Self::Pack(pack) => Vec::from([pack]),
        }
    }

    /// What to write for a pack, for error texts.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Pack::all().iter().map(Pack::name).chain(["none"]).collect()
    }
}

impl PolicyFile {
    /// Reads a rule file.
    ///
    /// # Errors
    ///
    /// Every mistake in the text, each at its line; a text that is not TOML has one.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(text);
        let Some(document) = reader.document() else {
            return Err(reader.into_mistakes());
        };
        let root = document.get_ref();
        reader.unknown_keys(root, &["pack", "constrain", "limits", "allow", "deny"]);
        let mut file = Self {
            pack: pack_choice(&mut reader, root),
            limits: limits(&mut reader, root),
            constrain: constrain(&mut reader, root),
            rules: Vec::new(),
        };
        for (effect, key) in [(Effect::Deny, "deny"), (Effect::Allow, "allow")] {
            let tables = reader.tables(root, key);
            if let Some(beyond) = tables.get(MAX_RULES) {
                reader.mistake(beyond.at, format!("more than {MAX_RULES} {key} rules"));
            }
            file.rules.extend(
                tables
                    .into_iter()
                    .filter_map(|table| rule(&mut reader, effect, table)),
            );
        }
        names_are_unique(&mut reader, root);
        reader.finish(file)
    }

    /// The pack the file asks for; `None` when it leaves that open.
    #[must_use]
    pub const fn pack(&self) -> Option<PackChoice> {
        self.pack
    }

    /// The limits the file sets.
    #[must_use]
    pub const fn limits(&self) -> FileLimits {
        self.limits
    }
}

pub(crate) fn pack_choice(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<PackChoice> {
    let name = reader.string(root, "pack")?;
    let found = PackChoice::named(name.value);
    if found.is_none() {
        let known = PackChoice::names().join(", ");
        reader.mistake(
            name.at,
            format!("there is no pack `{}`; one of {known}", name.value),
        );
    }
    found
}

fn limits(reader: &mut Reader<'_>, root: &DeTable<'_>) -> FileLimits {
    let Some(table) = reader.table(root, "limits") else {
        return FileLimits::default();
    };
    reader.unknown_keys(table.value, &["max_body", "rate"]);
    let max_body = reader.integer(table.value, "max_body");
    if let Some(bytes) = max_body
        && !(1..=MAX_BODY).contains(&bytes.value)
    {
        reader.mistake(bytes.at, format!("`max_body` is in bytes, 1 to {MAX_BODY}"));
    }
    let rate = reader
        .string(table.value, "rate")
        .and_then(|text| match RateLimit::parse(text.value) {
            Ok(rate) => Some(rate),
            Err(fault) => {
                reader.mistake(text.at, format!("`rate` is not a rate: {fault}"));
                None
            }
        });
    FileLimits {
        max_body: max_body.map(|bytes| bytes.value),
        rate,
    }
}

fn constrain(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Vec<Constrain> {
    let Some(table) = reader.table(root, "constrain") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in table.value.iter() {
        let values = reader.strings(value, key.get_ref());
        let values = checked_values(reader, Effect::Allow, key.get_ref(), &values);
        let (line, column) = reader.position(key.span().start);
        found.push(Constrain {
            parameter: key.get_ref().as_ref().to_owned(),
            values,
            line,
            column,
        });
    }
    found
}

fn rule(reader: &mut Reader<'_>, effect: Effect, table: At<&DeTable<'_>>) -> Option<FileRule> {
    const ALLOW_KEYS: &[&str] = &[
        "name",
        "method",
        "path",
        "where",
        "expires",
        "reason",
        "multipart",
    ];
    const DENY_KEYS: &[&str] = &["name", "method", "path", "where", "expires", "reason"];
    let At { value: keys, at } = table;
    reader.unknown_keys(
        keys,
        if effect == Effect::Allow {
            ALLOW_KEYS
        } else {
            DENY_KEYS
        },
    );
    let method = method(reader, effect, table);
    let template = reader.template(keys, at);
    let constraints = constraints(reader, effect, keys, template.as_ref());
    let expires = reader.instant(keys, "expires");
    let reason = words(reader, keys, "reason");
    let name = name(reader, keys);
    let multipart = effect == Effect::Allow && reader.boolean(keys, "multipart").unwrap_or(false);
    let (line, _) = reader.position(at);
    Some(FileRule {
        effect,
        name,
        method: method?,
        template: template?,
        constraints,
        expires,
        reason,
        multipart,
        line,
    })
}

/// The method, or `Some(None)` for the `*` of a deny rule.
#[expect(
    clippy::option_option,
    reason = "outer: readable at all; inner: one method or every method"
)]
fn method(reader: &mut Reader<'_>, effect: Effect, table: At<&DeTable<'_>>) -> Option<Option<Method>> {
    let star = table
        .value
        .get("method")
        .filter(|method| method.get_ref().as_str() == Some("*"));
    match (star, effect) {
        (Some(_), Effect::Deny) => Some(None),
        (Some(star), Effect::Allow) => {
            reader.mistake(
                star.span().start,
                "`*` is for deny rules; allow one method a rule".to_owned(),
            );
            None
        }
        (None, _) => reader.method(table.value, table.at).map(Some),
    }
}

fn constraints(
    reader: &mut Reader<'_>,
    effect: Effect,
    keys: &DeTable<'_>,
    template: Option<&Template>,
) -> Vec<(String, Vec<String>)> {
    let Some(table) = reader.table(keys, "where") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in table.value.iter() {
        let parameter = key.get_ref();
        if let Some(template) = template
            && !template.parameters().any(|known| known == parameter)
        {
            let advice = match suggest::nearest(parameter, template.parameters()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it has: {}", template.parameters().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("`{template}` has no parameter {{{parameter}}}; {advice}");
            reader.mistake(key.span().start, message);
        }
        let values = reader.strings(value, parameter);
        found.push((
            parameter.as_ref().to_owned(),
            checked_values(reader, effect, parameter, &values),
        ));
    }
    found
}

/// Values that a path segment can be equal to; notes those that could never match.
fn checked_values(reader: &mut Reader<'_>, effect: Effect, key: &str, values: &[At<&str>]) -> Vec<String> {
    for At { value, at } in values {
        let fault = if value.is_empty() {
            "is empty, and a parameter never is"
        } else if value.len() > MAX_WORDS {
            "is too long"
        } else if value.contains('/') {
            "has a `/`, and a parameter never does"
        } else if value.contains('%') {
            "has a `%`; write the character itself, not its escape"
        } else if value.chars().any(char::is_control) {
            "has a control character"
        } else if effect == Effect::Allow && !value.bytes().all(is_segment_byte) {
            "has a character that a path spells as an escape, and an escape never equals a value here"
        } else {
            continue;
        };
        reader.mistake(
            *at,
            format!("the value `{}` of `{key}` {fault}", value.escape_debug()),
        );
    }
    values.iter().map(|value| value.value.to_owned()).collect()
}

fn words(reader: &mut Reader<'_>, keys: &DeTable<'_>, key: &str) -> Option<String> {
    let text = reader.string(keys, key)?;
    if text.value.len() > MAX_WORDS || text.value.chars().any(char::is_control) {
        reader.mistake(
            text.at,
            format!("`{key}` is one line of at most {MAX_WORDS} bytes"),
        );
    }
    Some(text.value.to_owned())
}

fn name(reader: &mut Reader<'_>, keys: &DeTable<'_>) -> Option<String> {
    let name = reader.string(keys, "name")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=MAX_NAME).contains(&name.value.len()) || !name.value.bytes().all(plain) {
        let message = format!("`name` is 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`");
        reader.mistake(name.at, message);
    }
    Some(name.value.to_owned())
}

fn names_are_unique(reader: &mut Reader<'_>, root: &DeTable<'_>) {
    let mut seen: Vec<At<&str>> = Vec::new();
    for table in ["deny", "allow"]
        .iter()
        .filter_map(|key| root.get(*key)?.get_ref().as_array())
    {
        for name in table
            .iter()
            .filter_map(|rule| rule.get_ref().as_table()?.get("name"))
        {
            if let Some(value) = name.get_ref().as_str() {
                seen.push(At {
                    value,
                    at: name.span().start,
                });
            }
        }
    }
    seen.sort_by_key(|name| (name.value, name.at));
    for pair in seen.windows(2) {
        if let [first, second] = pair
            && first.value == second.value
        {
            let (line, _) = reader.position(first.at);
            let message = format!("the name `{}` is taken by the rule at line {line}", first.value);
            reader.mistake(second.at, message);
        }
    }
}

impl Constrain {
    pub(crate) const fn mistake(&self, message: String) -> Mistake {
        Mistake {
            line: self.line,
            column: self.column,
            message,
        }
    }
}
