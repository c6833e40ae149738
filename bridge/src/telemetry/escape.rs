//! Makes any text safe inside one line and inside a JSON string.
//!
//! Here: one escape for both forms of line, so that what a caller sends can neither forge a line nor drive a
//! terminal. Not here: the lines themselves (`mod.rs`).

use std::fmt::{self, Write};

/// Escapes whatever is written through it; see [`escape_into`].
pub(crate) struct Escaped<'a>(pub(crate) &'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape_into(self.0, text);
        Ok(())
    }
}

/// Appends `text`, with `"`, `\`, control characters (also C1 and DEL) and the characters that end or turn a line
/// (U+2028, U+2029, bidirectional controls) written as JSON escapes.
///
/// Linear; text that needs no escape is copied in one piece.
pub(crate) fn escape_into(line: &mut String, text: &str) {
    // Every byte is looked at, without a way out: so the compiler takes many at a time.
    if text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
        line.push_str(text);
        return;
    }
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            _ if turns_the_line(character) => {
                // All of them are in the basic plane, so four digits are enough. A `String` takes every write.
                let _ = write!(line, "\\u{:04x}", u32::from(character));
            }
            _ => line.push(character),
        }
    }
}

const fn is_plain(byte: u8) -> bool {
    (byte >= 0x20) & (byte <= 0x7e) & (byte != b'"') & (byte != b'\\')
}

/// Characters that a terminal or a viewer obeys instead of showing.
pub(crate) fn turns_the_line(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{feff}'
        )
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_escaped_reads_back_as_it_was(text in any::<String>()) {
            let mut line = String::from("\"");
            escape_into(&mut line, &text);
            line.push('"');

            prop_assert!(!line.contains(turns_the_line));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
