//! Text of a configuration to lines of words; pure.
//!
//! Here: comments, quotes, `=`. Not here: what a keyword means ([`super::collect`]).

use std::fmt;
use std::sync::Arc;

use super::ConfigError;

/// Largest file read.
pub const FILE_LIMIT_BYTES: usize = 1024 * 1024;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's path.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value as written, quotes removed.
    pub text: String,
    /// Its line; `None` for a built-in default.
    pub at: Option<Source>,
}

impl Value {
    pub(super) fn built_in(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            at: None,
        }
    }
}

/// One line with something on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands.
    pub at: Source,
    /// The keyword as written.
    pub keyword: String,
    /// The words behind it, up to a comment.
    pub args: Vec<String>,
}

impl Line {
    /// The keyword as it is compared.
    #[must_use]
    pub fn lower_keyword(&self) -> String {
        self.keyword.to_ascii_lowercase()
    }
}

/// Cuts a file's content into lines.
///
/// # Errors
///
/// [`ConfigError`] with the line: not UTF-8, a NUL byte, a quote that is not closed, a keyword without a value; or a
/// file over 1 MiB.
pub fn parse(file: &str, text: &[u8]) -> Result<Vec<Line>, ConfigError> {
    let file: Arc<str> = Arc::from(file);
    let at = |line| Source {
        file: Arc::clone(&file),
        line,
    };
    if text.len() > FILE_LIMIT_BYTES {
        return Err(ConfigError::new(Some(&at(1)), "the file is larger than 1 MiB"));
    }
    let mut lines = Vec::new();
    for (index, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
        let at = at(index + 1);
        let text =
            std::str::from_utf8(bytes).map_err(|_| ConfigError::new(Some(&at), "the line is not UTF-8"))?;
        if text.contains('\0') {
            return Err(ConfigError::new(Some(&at), "the line holds a NUL byte"));
        }
        if let Some(line) = parse_line(text, &at)? {
            lines.push(line);
        }
    }
    Ok(lines)
}

fn parse_line(text: &str, at: &Source) -> Result<Option<Line>, ConfigError> {
    let blank = |character: char| matches!(character, ' ' | '\t' | '\r');
    let text = text
        .trim_end_matches(|character| blank(character) || character == '\x0c')
        .trim_start_matches(blank);
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let end = text
        .find(|character| blank(character) || character == '=' || character == '"')
        .unwrap_or(text.len());
    let (keyword, rest) = text.split_at(end);
    if keyword.is_empty() {
        return Err(ConfigError::new(
            Some(at),
            "the line does not start with a keyword",
        ));
    }
    let rest = rest.trim_start_matches(blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches(blank);
    if rest.is_empty() {
        return Err(ConfigError::new(Some(at), format!("{keyword} has no value")));
    }
    // These two take the rest of the line as it is, comment signs and unpaired quotes included.
    let args = if [
        "proxycommand",
        "localcommand",
        "remotecommand",
        "knownhostscommand",
    ]
    .contains(&keyword.to_ascii_lowercase().as_str())
    {
        vec![rest.to_owned()]
    } else {
        split(rest).ok_or_else(|| ConfigError::new(Some(at), "a quote is not closed"))?
    };
    Ok(Some(Line {
        at: at.clone(),
        keyword: keyword.to_owned(),
        args,
    }))
}

/// Words of a line: `"` and `'` group, `\` escapes a quote, itself or (outside quotes) a space; `#` at the start of a
/// word ends the line. `None` where a quote stays open.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters
            .next_if(|character| matches!(character, ' ' | '\t'))
            .is_some()
        {}
        match characters.peek() {
            None | Some('#') => return Some(words),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quote = None;
        while let Some(character) = characters.next() {
            match (character, quote) {
                ('\\', _) => {
                    let escaped = characters.next_if(|next| {
                        matches!(next, '\'' | '"' | '\\') || (quote.is_none() && *next == ' ')
                    });
                    word.push(escaped.unwrap_or('\\'));
                }
                (' ' | '\t', None) => break,
                ('"' | '\'', None) => quote = Some(character),
                (character, Some(open)) if character == open => quote = None,
                (character, _) => word.push(character),
            }
        }
        if quote.is_some() {
            return None;
        }
        words.push(word);
    }
}
