//! Configurations as people write them; without a disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Files by path; a pattern names those that match it whole.
#[derive(Debug, Default)]
struct Memory(BTreeMap<PathBuf, String>);

impl Memory {
    fn of(files: &[(&str, &str)]) -> Self {
        Self(
            files
                .iter()
                .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
                .collect(),
        )
    }
}

impl ConfigFiles for Memory {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        if path.ends_with("unreadable") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.0.get(path).map(|text| text.clone().into_bytes()))
    }

    fn expand(&self, pattern: &Path) -> Vec<PathBuf> {
        let wanted = pattern.display().to_string();
        if wanted.ends_with("unreadable") {
            return vec![pattern.to_path_buf()];
        }
        self.0
            .keys()
            .filter(|path| super::pattern::matches(&wanted, &path.display().to_string()))
            .cloned()
            .collect()
    }
}

fn resolver() -> Resolver {
    Resolver {
        home: PathBuf::from("/home/op"),
        local_user: "op".to_owned(),
        user_config: Some(PathBuf::from("/home/op/.ssh/config")),
        system_config: Some(PathBuf::from("/etc/ssh/ssh_config")),
    }
}

fn resolve(text: &str, alias: &str) -> Result<HostSettings, ConfigError> {
    resolver().resolve_with(&Memory::of(&[("/home/op/.ssh/config", text)]), alias, None, None)
}

fn message(text: &str, alias: &str) -> String {
    resolve(text, alias).expect_err("refused").to_string()
}

#[test]
fn without_any_file_the_defaults_hold() {
    let settings = resolver()
        .resolve_with(&Memory::default(), "Host.Example", None, None)
        .expect("resolves");

    assert_eq!(
        (settings.host.as_str(), settings.port, settings.user.as_str()),
        ("host.example", 22, "op")
    );
    assert!(settings.identity_files_are_defaults);
    assert_eq!(settings.identity_files[2], Path::new("/home/op/.ssh/id_ed25519"));
    assert_eq!(
        settings.user_known_hosts_files,
        [
            Path::new("/home/op/.ssh/known_hosts"),
            Path::new("/home/op/.ssh/known_hosts2")
        ]
    );
    assert_eq!(
        settings.global_known_hosts_files[0],
        Path::new("/etc/ssh/ssh_known_hosts")
    );
    assert_eq!((settings.agent, settings.notes), (Agent::Default, Vec::new()));
}

#[test]
fn the_users_file_wins_over_the_systems_and_the_command_line_over_both() {
    let files = Memory::of(&[
        ("/home/op/.ssh/config", "Host h\n  User mine\n"),
        ("/etc/ssh/ssh_config", "User theirs\nPort 2200\n"),
    ]);

    let settings = resolver()
        .resolve_with(&files, "h", None, None)
        .expect("resolves");
    assert_eq!((settings.user.as_str(), settings.port), ("mine", 2200));
    let settings = resolver()
        .resolve_with(&files, "h", Some("me"), Some(23))
        .expect("resolves");
    assert_eq!((settings.user.as_str(), settings.port), ("me", 23));
}

#[test]
fn relative_includes_are_looked_up_beside_the_file_they_stand_in() {
    let files = Memory::of(&[
        ("/home/op/.ssh/config", "Include conf.d/*\nInclude ~/more\n"),
        ("/home/op/.ssh/conf.d/1", "User one\n"),
        ("/home/op/.ssh/conf.d/2", "User two\nPort 2\n"),
        ("/home/op/more", "Port 3\nHostKeyAlias more\n"),
        ("/etc/ssh/ssh_config", "Include conf.d/x\n"),
        ("/etc/ssh/conf.d/x", "HostName from-system\n"),
    ]);

    let settings = resolver()
        .resolve_with(&files, "h", None, None)
        .expect("resolves");

    assert_eq!((settings.user.as_str(), settings.port), ("one", 2));
    assert_eq!(
        (settings.host_key_alias.as_deref(), settings.host.as_str()),
        (Some("more"), "from-system")
    );
}

#[test]
fn an_include_loop_is_an_error_and_not_for_ever() {
    let files = Memory::of(&[("/home/op/.ssh/config", "Include config\n")]);
    let error = resolver()
        .resolve_with(&files, "h", None, None)
        .expect_err("a loop")
        .to_string();
    assert!(
        error.contains("/home/op/.ssh/config:1") && error.contains("include itself"),
        "{error}"
    );

    // Nor may a loop fan out: sixteen levels of two are sixty thousand files.
    let files = Memory::of(&[
        ("/home/op/.ssh/config", "Include a b\n"),
        ("/home/op/.ssh/a", "Include b b\n"),
        ("/home/op/.ssh/b", &"Include c c c c\n".repeat(400)),
    ]);
    let error = resolver().resolve_with(&files, "h", None, None);
    assert!(error.is_ok(), "missing files cost nothing: {error:?}");
    let files = Memory::of(&[
        ("/home/op/.ssh/config", &"Include a\n".repeat(40)),
        ("/home/op/.ssh/a", &"Include b\n".repeat(40)),
        ("/home/op/.ssh/b", "Port 1\n"),
    ]);
    let error = resolver()
        .resolve_with(&files, "h", None, None)
        .expect_err("too many")
        .to_string();
    assert!(error.contains("more than 1024 files"), "{error}");
}

#[test]
fn a_file_that_exists_and_cannot_be_read_is_an_error() {
    let text = message("Include unreadable\n", "h");

    assert!(
        text.contains("/home/op/.ssh/unreadable") && text.contains("cannot be read"),
        "{text}"
    );
}

#[test]
fn a_proxy_command_is_an_error_only_where_it_would_apply() {
    let text = "Host h\n  ProxyCommand nc %h %p\nHost free\n  ProxyCommand none\nHost *\n  ProxyCommand x\n";

    let error = message(text, "h");
    assert!(
        error.starts_with("/home/op/.ssh/config:2: ProxyCommand would apply to h"),
        "{error}"
    );
    assert!(resolve(text, "free").is_ok());
    assert!(message(text, "other").contains("config:6"));
}

#[test]
fn match_exec_is_an_error_only_where_all_else_fits() {
    let text = "Match host a exec \"touch /tmp/x\"\n  User u\nMatch exec true host b\n  User u\n";

    assert!(message(text, "a").starts_with("/home/op/.ssh/config:1: `Match exec` may apply to a"));
    assert!(message(text, "b").starts_with("/home/op/.ssh/config:3:"));
    assert_eq!(resolve(text, "c").expect("resolves").user, "op");
    // What newer versions know cannot be decided here either.
    assert!(message("Match localnetwork 10.0.0.0/8\n  User u\n", "a").contains("localnetwork"));
}

#[test]
fn lines_that_are_not_followed_are_noted_once() {
    let text = "ForwardAgent yes\nForwardAgent no\nStrictHostKeyChecking no\nHost other\n  Compression yes\n";

    let notes = resolve(text, "h").expect("resolves").notes;

    assert_eq!(
        notes,
        [
            "/home/op/.ssh/config:1: ForwardAgent is not used",
            "/home/op/.ssh/config:3: StrictHostKeyChecking no is not followed: host keys are always checked",
        ]
    );
}

#[test]
fn tokens_that_are_not_known_are_errors_where_they_apply() {
    let settings = resolve("IdentityFile %d/%u/%k\nHostKeyAlias k\n", "h").expect("resolves");
    assert_eq!(settings.identity_files, [Path::new("/home/op/op/k")]);

    for bad in ["/k/%C", "/k/%", "~other/k", "${HOME}/k"] {
        let error = message(&format!("Port 1\nIdentityFile {bad}\n"), "h");
        assert!(error.starts_with("/home/op/.ssh/config:2: "), "{error}");
        assert!(resolve(&format!("Host other\n  IdentityFile {bad}\n"), "h").is_ok());
    }
}

#[test]
fn a_route_goes_through_every_jump_host_in_order() {
    let text = "Host t\n  ProxyJump a,x@b:23\nHost a\n  ProxyJump c\n  HostName a.example\nHost b\n  ProxyJump never\nHost c\n  Port 99\n";
    let files = Memory::of(&[("/home/op/.ssh/config", text)]);

    let route = resolver()
        .resolve_route_with(&files, "t", None, None)
        .expect("a route");

    let hops: Vec<_> = route
        .iter()
        .map(|hop| format!("{}@{}:{}", hop.user, hop.host, hop.port))
        .collect();
    assert_eq!(hops, ["op@c:99", "op@a.example:22", "x@b:23", "op@t:22"]);
    assert!(route.iter().all(|hop| hop.proxy_jump.is_empty()));
}

#[test]
fn a_jump_host_that_jumps_over_itself_is_an_error() {
    let files = Memory::of(&[("/home/op/.ssh/config", "ProxyJump gate\n")]);

    let error = resolver()
        .resolve_route_with(&files, "t", None, None)
        .expect_err("a loop")
        .to_string();

    assert!(error.contains("`ProxyJump none`"), "{error}");
}

#[test]
fn jump_hosts_are_read_in_every_spelling() {
    let one = |host: &str, user: Option<&str>, port| {
        Ok(Some(vec![JumpHost {
            host: host.to_owned(),
            user: user.map(str::to_owned),
            port,
        }]))
    };
    assert_eq!(jump::parse("h"), one("h", None, None));
    assert_eq!(jump::parse("u@h:23"), one("h", Some("u"), Some(23)));
    assert_eq!(jump::parse("u@d@h"), one("h", Some("u@d"), None));
    assert_eq!(jump::parse("ssh://u@h:23/"), one("h", Some("u"), Some(23)));
    assert_eq!(jump::parse("[::1]:23"), one("::1", None, Some(23)));
    assert_eq!(jump::parse("fe80::1"), one("fe80::1", None, None));
    assert_eq!(jump::parse("NONE"), Ok(None));
    for bad in [
        "", "a,", ",a", "h:", "h:0", "h:65536", "h:+1", "@h", "-h", "[::1", "[::1]x", "a b",
    ] {
        assert!(jump::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn names_that_are_no_hosts_are_refused() {
    for bad in ["", "-oProxyCommand=x", "a b", "a\n", "a;b", "$(id)", "a,b", "u@h"] {
        assert!(resolve("", bad).is_err(), "{bad:?}");
    }
    let long_line = format!("User {}\n", "u".repeat(2000));
    assert!(resolve(&long_line, "h").is_err());
    assert!(
        resolver()
            .resolve_with(&Memory::default(), "h", Some("-l"), None)
            .is_err()
    );
}

#[test]
fn bytes_that_are_no_text_are_errors_with_their_line() {
    assert_eq!(
        lines::parse("f", b"Port 1\n\xff\n")
            .expect_err("bytes")
            .to_string(),
        "f:2: the line is not UTF-8"
    );
    assert_eq!(
        lines::parse("f", b"Port 1\0\n").expect_err("NUL").to_string(),
        "f:1: the line holds a NUL byte"
    );
    assert!(lines::parse("f", &vec![b'#'; lines::FILE_LIMIT_BYTES + 1]).is_err());
    assert_eq!(
        lines::parse("f", b"= x\n").expect_err("no keyword").to_string(),
        "f:1: the line does not start with a keyword"
    );
}

#[test]
fn includes_are_found_on_a_real_disk_sorted_and_without_hidden_files() {
    let directory = tempfile::tempdir().expect("tempdir");
    for name in ["b.conf", "a.conf", ".c.conf", "d.txt"] {
        std::fs::write(directory.path().join(name), "").expect("write");
    }

    let found = DiskFiles.expand(&directory.path().join("*.conf"));

    assert_eq!(
        found,
        [directory.path().join("a.conf"), directory.path().join("b.conf")]
    );
    assert_eq!(DiskFiles.expand(Path::new("/no/such/*")), Vec::<PathBuf>::new());
    assert_eq!(
        DiskFiles.read(&directory.path().join("none")).expect("none"),
        None
    );
    assert!(DiskFiles.read(directory.path()).is_err());
    assert_eq!(DiskFiles.read(Path::new("/dev/null")).expect("empty"), None);
}

proptest! {
    #[test]
    fn no_text_panics(
        text in "(\\PC|[\n\t\r \"'#=%,@:!*]|Host |Match |Include |IdentityFile |ProxyJump |Port |all|final|host |h|~/)*",
        alias in "[a-z.]{1,8}",
    ) {
        let files = Memory::of(&[("/home/op/.ssh/config", &text), ("/home/op/.ssh/h", &text)]);
        if let Ok(settings) = resolver().resolve_with(&files, &alias, None, None) {
            prop_assert!(settings.port > 0 && !settings.user.is_empty() && !settings.host.is_empty());
        }
    }

    #[test]
    fn what_stands_first_wins(ports in proptest::collection::vec(1_u16.., 1..6)) {
        let text: String = ports.iter().map(|port| format!("Port {port}\n")).collect();

        prop_assert_eq!(resolve(&text, "h").map(|settings| settings.port), Ok(ports[0]));
    }
}
