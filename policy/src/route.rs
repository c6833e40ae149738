//! Route templates such as `/api/issues/{issue}`, and how they match.
//!
//! Here: [`Template`]. It matches in two ways. *Exactly*, for allow rules: the whole path, byte for byte,
//! case-sensitively; an escape never equals the character it stands for. *Broadly*, for deny rules:
//! escapes decoded and ASCII case ignored on both sides, so that no other spelling of a denied path
//! slips past. Too narrow an allow and too broad a deny both fail closed.
//! Not here: methods, constraints, expiry ([`crate::rules`]).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::path::{Target, TargetFault, hex_value};

/// Most segments a template or a matched path may have; longer paths match nothing.
pub const MAX_SEGMENTS: usize = 32;

/// A path pattern: literal text and `{parameters}`, at most one parameter in a segment.
///
/// `{x}` stands for one or more characters other than `/`, and may share its segment with literal text.
///
/// ```
/// use policy::Template;
///
/// let template = Template::parse("/llms/agent-configuration/{adapter}.txt").expect("a template");
/// assert!(template.matches("/llms/agent-configuration/codex.txt"));
/// assert!(!template.matches("/llms/agent-configuration/.txt"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    segments: Vec<Segment>,
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateFault {
    /// With an example value for each parameter, the path would not be canonical.
    #[error("no canonical path looks like this: {0}")]
    NotCanonical(#[source] TargetFault),
    /// A `?`.
    #[error("a path rule has no query; rules see only the path")]
    Query,
    /// A `/` at the end.
    #[error("a path rule does not end in `/`")]
    TrailingSlash,
    /// A brace without its partner, or a second parameter in one segment.
    #[error(
        "braces must enclose one parameter, and a segment may hold only one, as in `/api/issues/{{issue}}`"
    )]
    Braces,
    /// A parameter name that is not letters, digits and `_`.
    #[error("`{{{0}}}` is not a parameter; its name is a letter followed by letters, digits or `_`")]
    ParameterName(String),
    /// The same name twice.
    #[error("the parameter {{{0}}} occurs twice")]
    ParameterTwice(String),
    /// More than [`MAX_SEGMENTS`].
    #[error("more than {MAX_SEGMENTS} segments")]
    TooLong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    Parameter {
        prefix: Box<str>,
        name: Box<str>,
        suffix: Box<str>,
    },
}

/// A path cut at its slashes, on the stack.
pub(crate) struct Segments<'a> {
    parts: [&'a str; MAX_SEGMENTS],
    count: usize,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// [`TemplateFault`], the first one met.
    pub fn parse(text: &str) -> Result<Self, TemplateFault> {
        let mut segments = Vec::new();
        let mut example = String::new();
        for part in text.strip_prefix('/').unwrap_or(text).split('/') {
            let segment = Segment::parse(part)?;
            if let Segment::Parameter { name, .. } = &segment
                && segments
                    .iter()
                    .any(|earlier: &Segment| earlier.parameter() == Some(name))
            {
                return Err(TemplateFault::ParameterTwice(String::from(&**name)));
            }
            segment.push_example(&mut example);
            segments.push(segment);
        }
        if !text.starts_with('/') {
            example.remove(0);
        }
        match Target::parse(example.as_bytes()) {
            Err(fault) => return Err(TemplateFault::NotCanonical(fault)),
            Ok(target) if target.query().is_some() => return Err(TemplateFault::Query),
            Ok(_) if text.ends_with('/') => return Err(TemplateFault::TrailingSlash),
            Ok(_) if segments.len() > MAX_SEGMENTS => return Err(TemplateFault::TooLong),
            Ok(_) => {}
        }
        Ok(Self {
            text: Arc::from(text),
            segments,
        })
    }

    /// The template as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names of the parameters, from left to right.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::parameter)
    }

    /// Whether `path` (canonical, without query) matches exactly. No allocation.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        Segments::of(path).is_some_and(|path| self.matches_exactly(path.parts()))
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn position(&self, parameter: &str) -> Option<usize> {
        self.segments
            .iter()
            .position(|segment| segment.parameter() == Some(parameter))
    }

    pub(crate) fn matches_exactly(&self, parts: &[&str]) -> bool {
        self.segments.len() == parts.len()
            && self
                .segments
                .iter()
                .zip(parts)
                .all(|(segment, part)| segment.matches_exactly(part))
    }

    pub(crate) fn matches_broadly(&self, parts: &[&str]) -> bool {
        self.segments.len() == parts.len()
            && self
                .segments
                .iter()
                .zip(parts)
                .all(|(segment, part)| segment.matches_broadly(part))
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Template").field(&self.text).finish()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Segment {
    fn parse(part: &str) -> Result<Self, TemplateFault> {
        let Some((prefix, behind)) = part.split_once('{') else {
            return if part.contains('}') {
                Err(TemplateFault::Braces)
            } else {
                Ok(Self::Literal(Box::from(part)))
            };
        };
        let (name, suffix) = behind.split_once('}').ok_or(TemplateFault::Braces)?;
        if prefix.contains('}') || suffix.contains(['{', '}']) || name.contains('{') {
            return Err(TemplateFault::Braces);
        }
        let mut letters = name.bytes();
        if !letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            || !letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
        {
            return Err(TemplateFault::ParameterName(String::from(name)));
        }
        Ok(Self::Parameter {
            prefix: Box::from(prefix),
            name: Box::from(name),
            suffix: Box::from(suffix),
        })
    }

    fn parameter(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Parameter { name, .. } => Some(name),
        }
    }

    fn push_example(&self, example: &mut String) {
        example.push('/');
        match self {
            Self::Literal(text) => example.push_str(text),
            Self::Parameter { prefix, suffix, .. } => example.extend([prefix, "x", suffix]),
        }
    }

    fn matches_exactly(&self, part: &str) -> bool {
        match self {
            Self::Literal(text) => **text == *part,
            Self::Parameter { .. } => self.captured(part).is_some(),
        }
    }

    /// What the parameter stands for in `part`, as it is spelt there; `None` for a literal or no match.
    pub(crate) fn captured<'p>(&self, part: &'p str) -> Option<&'p str> {
        match self {
            Self::Literal(_) => None,
            Self::Parameter { prefix, suffix, .. } => part
                .strip_prefix(&**prefix)
                .and_then(|rest| rest.strip_suffix(&**suffix))
                .filter(|value| !value.is_empty()),
        }
    }

    fn matches_broadly(&self, part: &str) -> bool {
        match self {
            Self::Literal(text) => broadly_equal(broad(text), broad(part)),
            Self::Parameter { .. } => self.captured_broadly(part).is_some(),
        }
    }

    /// What the parameter stands for in `part`, decoded and in lower case.
    pub(crate) fn captured_broadly<'p>(&self, part: &'p str) -> Option<impl Iterator<Item = u8> + use<'p>> {
        let Self::Parameter { prefix, suffix, .. } = self else {
            return None;
        };
        let (before, behind) = (broad(prefix).count(), broad(suffix).count());
        let value = broad(part)
            .count()
            .checked_sub(before + behind)
            .filter(|length| *length > 0)?;
        let fits = broadly_equal(broad(part).take(before), broad(prefix))
            && broadly_equal(broad(part).skip(before + value), broad(suffix));
        fits.then(|| broad(part).skip(before).take(value))
    }
}

impl<'a> Segments<'a> {
    /// Cuts a canonical path; `None` when it has more than [`MAX_SEGMENTS`] segments.
    pub(crate) fn of(path: &'a str) -> Option<Self> {
        Self::collect(path.strip_prefix('/').unwrap_or(path).split('/'))
    }

    pub(crate) fn collect(parts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut segments = Self {
            parts: [""; MAX_SEGMENTS],
            count: 0,
        };
        for part in parts {
            *segments.parts.get_mut(segments.count)? = part;
            segments.count += 1;
        }
        Some(segments)
    }

    pub(crate) fn parts(&self) -> &[&'a str] {
        self.parts.get(..self.count).unwrap_or_default()
    }
}

/// The bytes of `text` with escapes decoded once and ASCII letters in lower case.
pub(crate) fn broad(text: &str) -> impl Iterator<Item = u8> + use<'_> {
    let mut rest = text.as_bytes();
    core::iter::from_fn(move || {
        let (first, behind) = rest.split_first()?;
        if *first == b'%'
            && let [high, low, after @ ..] = behind
            && let (Some(high), Some(low)) = (hex_value(*high), hex_value(*low))
        {
            rest = after;
            return Some((high << 4 | low).to_ascii_lowercase());
        }
        rest = behind;
        Some(first.to_ascii_lowercase())
    })
}

fn broadly_equal(left: impl Iterator<Item = u8>, right: impl Iterator<Item = u8>) -> bool {
    left.eq(right)
}
