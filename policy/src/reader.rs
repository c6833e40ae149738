//! Reading TOML so that every mistake is found, each at its line.
//!
//! Here: [`Reader`], typed access to parsed tables that notes mistakes and goes on. serde would stop at
//! the first. Not here: what the keys mean ([`mod@crate::file`], [`crate::pack`], [`crate::cases`]).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistakes::{Mistake, Mistakes};
use crate::route::Template;
use crate::rule::Method;
use crate::suggest;
use crate::time;

/// Longest text that is read, in bytes.
const MAX_TEXT: usize = 1024 * 1024;
/// Mistakes beyond this many are not listed.
const MAX_MISTAKES: usize = 100;

pub(crate) struct Reader<'t> {
    text: &'t str,
    found: Vec<Mistake>,
}

/// A value and its byte offset in the text.
#[derive(Clone, Copy)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: usize,
}

impl<'t> Reader<'t> {
    pub(crate) const fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// The parsed text; `None`, with the mistake noted, when it is not TOML.
    pub(crate) fn document(&mut self) -> Option<Spanned<DeTable<'t>>> {
        if self.text.len() > MAX_TEXT {
            self.mistake(0, format!("the file has more than {MAX_TEXT} bytes"));
            return None;
        }
        match DeTable::parse(self.text) {
            Ok(document) => Some(document),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                self.mistake(at, format!("not TOML: {}", error.message()));
                None
            }
        }
    }

    pub(crate) fn mistake(&mut self, at: usize, message: String) {
        if self.found.len() >= MAX_MISTAKES {
            return;
        }
        let (line, column) = self.position(at);
        self.found.push(Mistake {
            line,
            column,
            message,
        });
    }

    /// Notes a mistake in a text that is itself the string value at `at`.
    pub(crate) fn mistake_inside(&mut self, at: usize, inner: &Mistake) {
        let (line, column) = self.position(at);
        let value = self.text.get(at..).unwrap_or_default();
        // TOML drops a line break right behind the opening quotes.
        let dropped = ["\"\"\"\n", "\"\"\"\r\n", "'''\n", "'''\r\n"]
            .iter()
            .any(|open| value.starts_with(open));
        let many_lines = value.starts_with("\"\"\"") || value.starts_with("'''");
        let on_a_later_line = many_lines && (dropped || inner.line > 1);
        let (line, column) = if on_a_later_line {
            (line + inner.line - 1 + usize::from(dropped), inner.column)
        } else {
            (line, column)
        };
        if self.found.len() < MAX_MISTAKES {
            let message = format!("in `rules`: {}", inner.message);
            self.found.push(Mistake {
                line,
                column,
                message,
            });
        }
    }

    /// Line and column of a byte offset, both from 1.
    pub(crate) fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
        (line, column)
    }

    pub(crate) fn into_mistakes(self) -> Mistakes {
        Mistakes::new(self.found)
    }

    /// `value`, unless there were mistakes.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        if self.found.is_empty() {
            Ok(value)
        } else {
            Err(self.into_mistakes())
        }
    }

    pub(crate) fn unknown_keys(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref();
            if known.contains(&name.as_ref()) {
                continue;
            }
            let advice = match suggest::nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.mistake(key.span().start, format!("unknown key `{name}`; {advice}"));
        }
    }

    pub(crate) fn string<'d>(&mut self, table: &'d DeTable<'_>, key: &str) -> Option<At<&'d str>> {
        let value = table.get(key)?;
        self.as_string(value, key)
    }

    pub(crate) fn required_string<'d>(
        &mut self,
        table: &'d DeTable<'_>,
        key: &str,
        table_at: usize,
    ) -> Option<At<&'d str>> {
        if !table.contains_key(key) {
            self.mistake(table_at, format!("`{key}` is missing"));
        }
        self.string(table, key)
    }

    pub(crate) fn boolean(&mut self, table: &DeTable<'_>, key: &str) -> Option<bool> {
        let value = table.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(value, key, "true or false");
        }
        found
    }

    pub(crate) fn integer(&mut self, table: &DeTable<'_>, key: &str) -> Option<At<u64>> {
        let value = table.get(key)?;
        let number = value.get_ref().as_integer();
        let found = number.and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        if found.is_none() {
            self.wrong_type(value, key, "a whole number, 0 or more");
        }
        Some(At {
            value: found?,
            at: value.span().start,
        })
    }

    /// A date with offset, as seconds since 1970.
    pub(crate) fn instant(&mut self, table: &DeTable<'_>, key: &str) -> Option<u64> {
        let value = table.get(key)?;
        let Some(datetime) = value.get_ref().as_datetime() else {
            self.wrong_type(value, key, "a date without quotes, such as 2026-12-01T00:00:00Z");
            return None;
        };
        match time::unix_seconds(datetime) {
            Ok(seconds) => Some(seconds),
            Err(advice) => {
                self.mistake(
                    value.span().start,
                    format!("`{key}` is not a point in time; {advice}"),
                );
                None
            }
        }
    }

    pub(crate) fn table<'d, 'i>(&mut self, table: &'d DeTable<'i>, key: &str) -> Option<At<&'d DeTable<'i>>> {
        let value = table.get(key)?;
        let found = value.get_ref().as_table();
        if found.is_none() {
            self.wrong_type(value, key, "a table");
        }
        Some(At {
            value: found?,
            at: value.span().start,
        })
    }

    /// The tables of `[[key]]`, or of an array of inline tables.
    pub(crate) fn tables<'d, 'i>(&mut self, table: &'d DeTable<'i>, key: &str) -> Vec<At<&'d DeTable<'i>>> {
        let Some(value) = table.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, key, &format!("a list of tables, written `[[{key}]]`"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(found) => tables.push(At {
                    value: found,
                    at: item.span().start,
                }),
                None => self.wrong_type(item, key, &format!("a list of tables, written `[[{key}]]`")),
            }
        }
        tables
    }

    /// One string, or a list of strings that is not empty.
    pub(crate) fn strings<'d>(&mut self, value: &'d Spanned<DeValue<'_>>, key: &str) -> Vec<At<&'d str>> {
        let Some(list) = value.get_ref().as_array() else {
            return self.as_string(value, key).into_iter().collect();
        };
        if list.is_empty() {
            self.mistake(
                value.span().start,
                format!("`{key}` is an empty list, which nothing can match"),
            );
        }
        list.iter().filter_map(|item| self.as_string(item, key)).collect()
    }

    /// The key `method`: one of the methods, in upper case.
    pub(crate) fn method(&mut self, table: &DeTable<'_>, table_at: usize) -> Option<Method> {
        let name = self.required_string(table, "method", table_at)?;
        let found = Method::parse(name.value);
        if found.is_none() {
            let known = Method::ALL.map(Method::as_str);
            let advice = match suggest::nearest(name.value, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("one of {}", known.join(", ")),
            };
            self.mistake(
                name.at,
                format!("`{}` is not a method for rules; {advice}", name.value),
            );
        }
        found
    }

    /// The key `path`: a template.
    pub(crate) fn template(&mut self, table: &DeTable<'_>, table_at: usize) -> Option<Template> {
        let path = self.required_string(table, "path", table_at)?;
        match Template::parse(path.value) {
            Ok(template) => Some(template),
            Err(fault) => {
                self.mistake(path.at, format!("`path` is not a path rule: {fault}"));
                None
            }
        }
    }

    fn as_string<'d>(&mut self, value: &'d Spanned<DeValue<'_>>, key: &str) -> Option<At<&'d str>> {
        let found = value.get_ref().as_str();
        if found.is_none() {
            self.wrong_type(value, key, "a text in quotes");
        }
        Some(At {
            value: found?,
            at: value.span().start,
        })
    }

    fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &str) {
        let found = value.get_ref().type_str().to_string();
        self.mistake(
            value.span().start,
            format!("`{key}` must be {wanted}, not a {found}"),
        );
    }
}
