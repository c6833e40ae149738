//! Standing in for `node`: serving in place of the peer's script, and handing every other call to the real one.
//!
//! Here: how such a call is told, and the search for the real `node`. Not here: serving, see `main.rs`.
//! Nothing of this runs when the gateway is started under its own name without that script.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::diagnostics::say;

/// The file name of the script that Paperclip's host starts.
const SCRIPT: &str = "paperclip-bridge-server.mjs";

/// Says which process already tried which `node`s, so that a wrapper that leads back here ends.
const TRIED: &str = "PCBRIDGE_GATEWAY_NODE_TRIED";

/// What a shell says of a command that is not there.
const NOT_FOUND: u8 = 127;

/// How the program was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// Under its own name.
    AsItself,
    /// As `node SCRIPT`, or with the script as its first argument: serve, by the environment.
    InPlaceOfTheScript,
    /// As `node` with anything else: [`hand_over`] these arguments to the real one.
    AsNode(Vec<OsString>),
}

/// Tells from all arguments, the program's name included, how it was called.
#[must_use]
pub fn called(arguments: &[OsString]) -> Called {
    let is_script = |argument: &OsString| argument.as_bytes().ends_with(SCRIPT.as_bytes());
    let name = arguments
        .first()
        .and_then(|program| Path::new(program).file_name());
    match (name == Some(OsStr::new("node")), arguments.get(1)) {
        (_, Some(argument)) if is_script(argument) => Called::InPlaceOfTheScript,
        (true, _) => Called::AsNode(arguments.get(1..).unwrap_or_default().to_vec()),
        (false, _) => Called::AsItself,
    }
}

/// Becomes the real `node`: the next one on `PATH` that is not this program. Returns only when there is none.
#[must_use]
pub fn hand_over(arguments: &[OsString]) -> ExitCode {
    let value = |name: &str| {
        std::env::vars_os()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value)
    };
    let (path, tried) = (value("PATH"), value(TRIED));
    say(become_node(arguments, path.as_deref(), tried.as_deref()));
    ExitCode::from(NOT_FOUND)
}

/// As [`hand_over`], with the values of `PATH` and [`TRIED`]; says why it did not work.
fn become_node(arguments: &[OsString], path: Option<&OsStr>, tried: Option<&OsStr>) -> String {
    let mut tried = Tried::read(tried);
    let ourselves = ["/proc/self/exe".into()]
        .into_iter()
        .chain(std::env::current_exe())
        .find_map(|program: PathBuf| identity(&program));
    let mut last_failure = None;
    for candidate in candidates(path) {
        let Some(found) = identity(&candidate) else {
            continue;
        };
        if Some(found) == ourselves || tried.holds(found) {
            continue;
        }
        tried.add(found);
        let failure = Command::new(&candidate)
            .args(arguments)
            .env(TRIED, tried.written())
            .exec();
        last_failure = Some((candidate, failure));
    }
    failure_text(last_failure.as_ref())
}

fn failure_text(last: Option<&(PathBuf, io::Error)>) -> String {
    let why =
        last.map(|(program, failure)| format!(" ({} could not be started: {failure})", program.display()));
    format!(
        "this is the bridge's gateway under the name node, and PATH holds no other node{}; \
         install Node.js, or take this program off PATH",
        why.unwrap_or_default()
    )
}

/// Device and inode of an executable regular file.
fn identity(program: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(program).ok()?;
    (metadata.is_file() && metadata.mode() & 0o111 != 0).then(|| (metadata.dev(), metadata.ino()))
}

fn candidates(path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    // An empty entry means the working directory to a shell; here it would let a checkout choose the program.
    std::env::split_paths(path.unwrap_or_default())
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("node"))
}

/// The programs that this process already became: `pid dev:inode dev:inode …`.
///
/// A wrapper named `node` that leads back here keeps the process id. Children of the real `node` inherit the variable
/// but have other ids, so that it means nothing to them.
struct Tried {
    programs: Vec<(u64, u64)>,
}

impl Tried {
    fn read(value: Option<&OsStr>) -> Self {
        Self {
            programs: value
                .and_then(OsStr::to_str)
                .and_then(Self::parse)
                .unwrap_or_default(),
        }
    }

    fn parse(text: &str) -> Option<Vec<(u64, u64)>> {
        let mut words = text.split(' ');
        if words.next()?.parse() != Ok(std::process::id()) {
            return None;
        }
        let program = |word: &str| {
            let (device, inode) = word.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        };
        words.map(program).collect()
    }

    fn holds(&self, program: (u64, u64)) -> bool {
        self.programs.contains(&program)
    }

    fn add(&mut self, program: (u64, u64)) {
        self.programs.push(program);
    }

    fn written(&self) -> String {
        let programs = self
            .programs
            .iter()
            .map(|(device, inode)| format!(" {device}:{inode}"));
        format!("{}{}", std::process::id(), programs.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_the_script_as_first_argument_is_served_in_place() {
        for (line, expected) in [
            ("paperclip-bridge-gateway", Called::AsItself),
            ("paperclip-bridge-gateway --version", Called::AsItself),
            (
                "/usr/bin/node /q/server/paperclip-bridge-server.mjs",
                Called::InPlaceOfTheScript,
            ),
            (
                "/x/paperclip-bridge-gateway /q/paperclip-bridge-server.mjs",
                Called::InPlaceOfTheScript,
            ),
            ("node", Called::AsNode(vec![])),
            ("/bin/node --version", Called::AsNode(words("--version"))),
            (
                "node --check paperclip-bridge-server.mjs",
                Called::AsNode(words("--check paperclip-bridge-server.mjs")),
            ),
            (
                "node other.mjs paperclip-bridge-server.mjs",
                Called::AsNode(words("other.mjs paperclip-bridge-server.mjs")),
            ),
        ] {
            assert_eq!(called(&words(line)), expected, "{line}");
        }
        assert_eq!(called(&[]), Called::AsItself);
    }

    #[test]
    fn without_a_node_the_text_says_what_to_do() {
        let nowhere = OsString::from("/nonexistent:relative::");
        let ourselves = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&ourselves, folder.path().join("node")).unwrap();

        for path in [None, Some(nowhere.as_os_str()), Some(folder.path().as_os_str())] {
            assert!(
                become_node(&[], path, None).contains("PATH holds no other node;"),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_node_that_cannot_be_started_is_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("node");
        std::fs::write(&broken, "#!/nonexistent/interpreter\n").unwrap();
        std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();

        let text = become_node(&[], Some(folder.path().as_os_str()), None);

        assert!(
            text.contains(&broken.display().to_string()) && text.contains("could not be started"),
            "{text}"
        );
    }

    #[test]
    fn what_was_tried_counts_for_this_process_only() {
        let mut tried = Tried::read(None);
        tried.add((3, 4));
        tried.add((3, 5));

        assert!(Tried::read(Some(OsStr::new(&tried.written()))).holds((3, 5)));
        for other in ["1 3:4", "", "x", " "] {
            assert!(!Tried::read(Some(OsStr::new(other))).holds((3, 4)), "{other:?}");
        }
    }
}
