//! The file by which our daemon finds a gateway's process again, and its removal when that ends by itself.
//!
//! Here: [`remove`]. Not here: who writes it: the command that becomes the gateway, before it does so.

use std::fs::{self, File};
use std::io::Read as _;

use wire::names::variable;

use crate::settings::Environment;

/// A record is two numbers.
const MAX_BYTES: u64 = 64;

/// Removes this process's record, if there is one and it is still this process's: a successor writes its own over it.
pub(crate) fn remove(environment: &Environment) {
    let Some(path) = environment.get(variable::RECORD).filter(|path| !path.is_empty()) else {
        return;
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    let recorded = text.split(' ').next().and_then(|pid| pid.parse().ok());
    if read.is_ok() && recorded == Some(std::process::id()) {
        // What cannot be removed names a process that is gone, and the next installation sweeps it.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_record_of_this_process_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run-x");
        let environment = Environment::from([(variable::RECORD.to_owned(), path.display().to_string())]);
        let own = format!("{} 123\n", std::process::id());

        for (text, stays) in [("1 123\n", true), ("", true), ("x", true), (own.as_str(), false)] {
            fs::write(&path, text).unwrap();
            remove(&environment);
            assert_eq!(path.exists(), stays, "{text:?}");
        }
        remove(&environment);
        remove(&Environment::default());
    }
}
