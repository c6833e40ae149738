//! Values of options as people write them: each has one reader, which says what to give instead.
//!
//! Here: gateways, sizes, run ids and paths of sockets. Not here: the options (`options.rs`), durations and rates, which the
//! configuration has, too (`config::spelled`).

use std::path::PathBuf;

use crate::app::GatewayChoice;
use crate::config::spelled;

/// Reads `builtin`, the path of a program, or `node:` and the path of a script.
pub(crate) fn gateway(text: &str) -> Result<GatewayChoice, String> {
    let choice = match text.strip_prefix("node:") {
        _ if text == "builtin" => return Ok(GatewayChoice::Builtin),
        Some(path) => GatewayChoice::Script(PathBuf::from(path)),
        None => GatewayChoice::Binary(PathBuf::from(text)),
    };
    if text.is_empty() || text == "node:" {
        return Err("give `builtin`, the path of a program, or node:PATH".into());
    }
    Ok(choice)
}

/// Largest `--max-body`: one body may not need more than a session may hold of all bodies together.
pub(crate) const MAX_BODY_BYTES: u64 = 64 * 1024 * 1024;

/// Reads `10MiB`, `512KiB` or a plain number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bytes = spelled::size(text)?;
    if bytes == 0 || bytes > MAX_BODY_BYTES {
        return Err("must be between 1 byte and 64MiB".into());
    }
    Ok(bytes)
}

/// Longest run id in bytes.
const MAX_RUN_ID_BYTES: usize = 256;

/// A run id goes into a header and into logs: visible ASCII, no blank.
pub(crate) fn run_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_RUN_ID_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "must be 1 to {MAX_RUN_ID_BYTES} characters of visible ASCII without blanks"
        ));
    }
    Ok(text.to_owned())
}

/// `sun_path` holds 108 bytes with its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Reads the path of a unix socket.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.len() > MAX_SOCKET_PATH_BYTES || text.contains(char::is_control) {
        return Err(format!(
            "must be an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes without control characters"
        ));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_between_one_byte_and_what_a_session_may_hold() {
        assert_eq!(size("64MiB"), Ok(MAX_BODY_BYTES));
        for text in ["0", "65MiB", "1GiB"] {
            assert!(size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_gateway_is_built_in_a_program_or_a_script() {
        assert_eq!(gateway("builtin"), Ok(GatewayChoice::Builtin));
        assert_eq!(gateway("/x/y"), Ok(GatewayChoice::Binary("/x/y".into())));
        assert_eq!(
            gateway("node:./s.mjs"),
            Ok(GatewayChoice::Script("./s.mjs".into()))
        );
        assert!(gateway("").is_err() && gateway("node:").is_err());
    }

    #[test]
    fn a_run_id_fits_a_header() {
        assert!(run_id("run-1").is_ok());
        for text in ["", "a b", "a\r\nx: y", "ä", &"x".repeat(257)] {
            assert!(run_id(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_socket_path_is_absolute_and_fits() {
        assert!(socket_path("/run/agent/api.sock").is_ok());
        assert!(socket_path("api.sock").is_err());
        assert!(socket_path(&format!("/{}", "x".repeat(107))).is_err());
    }
}
