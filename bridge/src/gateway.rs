//! The gateway that this daemon carries for sandboxes without one.
//!
//! Here: its bytes, as `build.rs` put them there, and what they are called. Not here: how it gets to a target and is
//! started (`tunnel::launch`).

use sha2::{Digest, Sha256};

/// Empty where none was built in.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gateway"));

/// A static program for Linux on x86-64; `None` where this daemon was built without.
#[must_use]
pub fn embedded() -> Option<&'static [u8]> {
    Some(EMBEDDED).filter(|bytes| !bytes.is_empty())
}

/// What `version` tells of it.
#[must_use]
pub fn described() -> serde_json::Value {
    embedded().map_or(serde_json::Value::Null, |bytes| {
        let digest: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        serde_json::json!({ "platform": "linux-x86_64", "sha256": digest, "bytes": bytes.len() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_is_a_program_and_is_named_by_its_content() {
        let Some(bytes) = embedded() else {
            assert!(described().is_null());
            return;
        };

        assert!(bytes.starts_with(b"\x7fELF"), "no program");
        assert_eq!(described()["bytes"], bytes.len());
        assert_eq!(described()["sha256"].as_str().unwrap().len(), 64);
    }
}
