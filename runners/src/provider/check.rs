//! A schema's rules held against a value, for the schemas that our own structs make.
//!
//! Here: types, choices, bounds, required and unknown fields, each fault with the place where it is. Not here:
//! references, patterns and conditions: those schemas have none.

use serde_json::{Map, Value};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: `steps[1].times`; empty for the whole.
    pub field: String,
    /// What, as the rest of a sentence.
    pub problem: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// What a caller's own keywords in a schema's rules say against a value; asked before the rules of JSON Schema.
pub type Keywords<'a> = &'a dyn Fn(&Map<String, Value>, &Value) -> Option<String>;

/// Everything that is wrong with `value` by `schema`, in the order of its fields; empty where nothing is.
///
/// A value of the wrong type is named by its type, never repeated. `keywords` judges what this schema says beyond JSON
/// Schema; a value that it finds fault with is looked at no further.
#[must_use]
pub fn faults(schema: &Value, value: &Value, keywords: Keywords<'_>) -> Vec<Fault> {
    let mut check = Check {
        keywords,
        found: Vec::new(),
    };
    check.value(schema, value, "");
    check.found
}

struct Check<'a> {
    keywords: Keywords<'a>,
    found: Vec<Fault>,
}

impl Check<'_> {
    /// Checks `value`, which stands at `place`.
    fn value(&mut self, schema: &Value, value: &Value, place: &str) {
        // `true` allows everything, and nothing of ours makes `false`.
        let Some(rules) = schema.as_object() else {
            return;
        };
        let own = |rules, value| (self.keywords)(rules, value).map(|problem| Fault::new(place, problem));
        let fault = own(rules, value)
            .or_else(|| choice(rules, value, place).err())
            .or_else(|| self.alternatives(rules, value, place))
            .or_else(|| kind(rules, value, place).err())
            .or_else(|| match value {
                Value::Number(number) => bounds(rules, number, place).err(),
                Value::String(text) => length(rules, text, place).err(),
                Value::Array(list) => entries(rules, list, place).err(),
                Value::Object(_) | Value::Null | Value::Bool(_) => None,
            });
        match (fault, value) {
            (Some(fault), _) => self.found.push(fault),
            (None, Value::Array(list)) => self.items(rules, list, place),
            (None, Value::Object(fields)) => self.members(rules, fields, place),
            (None, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {}
        }
    }

    /// One branch must hold. The fault told is that of the first branch whose kind the value has.
    fn alternatives(&self, rules: &Map<String, Value>, found: &Value, place: &str) -> Option<Fault> {
        let mut told = None;
        let mut told_kind = false;
        for branch in branches(rules).into_iter().flatten() {
            let mut check = Check {
                keywords: self.keywords,
                found: Vec::new(),
            };
            check.value(branch, found, place);
            // All is well with this branch.
            let fault = check.found.into_iter().next()?;
            let same_kind = branch
                .as_object()
                .is_some_and(|rules| kind(rules, found, place).is_ok());
            if told.is_none() || (same_kind && !told_kind) {
                told = Some(fault);
                told_kind = same_kind;
            }
        }
        told
    }

    fn items(&mut self, rules: &Map<String, Value>, list: &[Value], place: &str) {
        if let Some(rule) = rules.get("items") {
            for (index, item) in list.iter().enumerate() {
                self.value(rule, item, &format!("{place}[{index}]"));
            }
        }
    }

    fn members(&mut self, rules: &Map<String, Value>, fields: &Map<String, Value>, place: &str) {
        let at = |name: &str| {
            if place.is_empty() {
                name.to_owned()
            } else {
                format!("{place}.{name}")
            }
        };
        let known = rules.get("properties").and_then(Value::as_object);
        let others = rules.get("additionalProperties");
        for (name, found) in fields {
            match (known.and_then(|known| known.get(name)), others) {
                (Some(rule), _) => self.value(rule, found, &at(name)),
                (None, Some(Value::Bool(false))) => {
                    self.found.push(Fault::new(at(name), unknown(name, known)));
                }
                (None, Some(rule)) => self.value(rule, found, &at(name)),
                (None, None) => {}
            }
        }
        let required = rules.get("required").and_then(Value::as_array);
        let missing = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|name| !fields.contains_key(*name));
        self.found
            .extend(missing.map(|name| Fault::new(at(name), "is missing")));
    }
}

fn choice(rules: &Map<String, Value>, value: &Value, place: &str) -> Result<(), Fault> {
    match choices(rules) {
        Some(allowed) if !allowed.contains(&value) => Err(Fault::new(
            place,
            format!(
                "must be one of {}",
                allowed
                    .iter()
                    .filter(|choice| !choice.is_null())
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

/// The only values allowed, where the rules are a list of those in any of the forms that it takes.
fn choices(rules: &Map<String, Value>) -> Option<Vec<&Value>> {
    if let Some(one) = rules.get("const") {
        return Some(vec![one]);
    }
    if let Some(listed) = rules.get("enum").and_then(Value::as_array) {
        return Some(listed.iter().collect());
    }
    let each: Option<Vec<Vec<&Value>>> = branches(rules)?
        .iter()
        .map(|branch| match branch.get("type").and_then(Value::as_str) {
            Some("null") => Some(vec![&Value::Null]),
            _ => choices(branch.as_object()?),
        })
        .collect();
    Some(each?.concat())
}

fn branches(rules: &Map<String, Value>) -> Option<&Vec<Value>> {
    rules.get("oneOf").or_else(|| rules.get("anyOf"))?.as_array()
}

fn kind(rules: &Map<String, Value>, value: &Value, place: &str) -> Result<(), Fault> {
    let allowed: Vec<&str> = match rules.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    if allowed.iter().any(|kind| is_of(kind, value)) {
        return Ok(());
    }
    let wanted: Vec<&str> = allowed
        .iter()
        .filter(|kind| **kind != "null")
        .map(|kind| in_words(kind))
        .collect();
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Err(Fault::new(
        place,
        format!("must be {}, not {found}", wanted.join(" or ")),
    ))
}

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn in_words(kind: &str) -> &str {
    match kind {
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
}

fn bounds(rules: &Map<String, Value>, number: &serde_json::Number, place: &str) -> Result<(), Fault> {
    let limit = |name: &str| rules.get(name).filter(|limit| limit.is_number());
    let Some(found) = number.as_f64() else {
        return Ok(());
    };
    // Our bounds are far below 2^53, where a float is exact.
    let below = limit("minimum").filter(|least| least.as_f64().is_some_and(|least| found < least));
    let above = limit("maximum").filter(|most| most.as_f64().is_some_and(|most| found > most));
    match (below, above) {
        (Some(least), _) => Err(Fault::new(
            place,
            format!("must be at least {}, not {number}", tidy(least)),
        )),
        (None, Some(most)) => Err(Fault::new(
            place,
            format!("must be at most {}, not {number}", tidy(most)),
        )),
        (None, None) => Ok(()),
    }
}

/// Without the `.0` of a bound that was written as a float.
fn tidy(limit: &Value) -> String {
    let text = limit.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn length(rules: &Map<String, Value>, text: &str, place: &str) -> Result<(), Fault> {
    let found = text.chars().count();
    if found == 0 && limit(rules, "minLength").is_some_and(|least| least > 0) {
        return Err(Fault::new(place, "must not be empty"));
    }
    within(rules, ["minLength", "maxLength"], found, "characters", place)
}

fn entries(rules: &Map<String, Value>, list: &[Value], place: &str) -> Result<(), Fault> {
    within(rules, ["minItems", "maxItems"], list.len(), "entries", place)
}

fn within(
    rules: &Map<String, Value>,
    [least, most]: [&str; 2],
    found: usize,
    of_what: &str,
    place: &str,
) -> Result<(), Fault> {
    if let Some(least) = limit(rules, least).filter(|least| found < *least) {
        return Err(Fault::new(
            place,
            format!("must have at least {least} {of_what}, not {found}"),
        ));
    }
    if let Some(most) = limit(rules, most).filter(|most| found > *most) {
        return Err(Fault::new(
            place,
            format!("must have at most {most} {of_what}, not {found}"),
        ));
    }
    Ok(())
}

fn limit(rules: &Map<String, Value>, name: &str) -> Option<usize> {
    usize::try_from(rules.get(name)?.as_u64()?).ok()
}

fn unknown(name: &str, known: Option<&Map<String, Value>>) -> String {
    let mut names: Vec<&str> = known
        .into_iter()
        .flat_map(|known| known.keys().map(String::as_str))
        .collect();
    names.sort_unstable();
    match super::nearest(name, names.iter().copied()) {
        Some(near) => format!("is not known here; did you mean `{near}`?"),
        None => format!("is not known here; known are {}", names.join(", ")),
    }
}
