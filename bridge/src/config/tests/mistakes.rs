//! What is refused, and how that is told.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn mistakes(text: &str) -> String {
    of(text).unwrap_err().to_string()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn load(&self, text: &[u8], mode: u32) -> Result<Effective, ConfigErrors> {
        let file = self.0.path().join("bridge.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        Config::load(LoadOptions {
            file: Some(file),
            ..LoadOptions::default()
        })
    }

    fn refused(&self, text: &[u8], mode: u32) -> String {
        self.load(text, mode).unwrap_err().to_string()
    }
}

#[test]
fn a_variable_that_names_no_key_is_refused_by_its_name() {
    let errors = with(
        "",
        &[
            ("PCBRIDGE_STORE__ULR", "x"),
            ("PCBRIDGE_TELEMETRY__LEVEL__X", "1"),
            ("PCBRIDGE_TELEMETRY__LEVEL", "info"),
            ("PCBRIDGE_", "x"),
            ("PCBRIDGE_STORE__CONNECTIONS", "8"),
            ("PCBRIDGE_STORE__connections", "9"),
        ],
        Vec::new(),
    )
    .unwrap_err()
    .to_string();

    for line in [
        "PCBRIDGE_STORE__ULR: `store.ulr` is not known here; did you mean `url`?",
        "PCBRIDGE_TELEMETRY__LEVEL__X: `telemetry.level.x` cannot be said: `telemetry.level` is no table",
        "PCBRIDGE_STORE__connections: `store.connections` is said twice: by PCBRIDGE_STORE__CONNECTIONS, too",
    ] {
        assert!(
            errors.lines().any(|told| told == line),
            "{line}\nis not in\n{errors}"
        );
    }
    assert_eq!(errors.lines().count(), 4, "{errors}");
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_one() {
    let told = mistakes("\n[limits.concurency]\nsession = 3\n\n[audit]\ndurabilty = 'write'\n");

    assert_eq!(
        told,
        "/etc/bridge.toml:2: `limits.concurency` is not known here; did you mean `concurrency`?\n\
         /etc/bridge.toml:6: `audit.durabilty` is not known here; did you mean `durability`?"
    );
}

#[test]
fn ten_mistakes_are_all_told_each_with_its_line() {
    let text = "\
[upstreams.main]
url = 'ftp://h'
credential = 'env:KEY'
[targets.box]
target = 'local'
upstream = 'mian'
[targets.other]
target = 'gopher://h'
[limits]
max_body = '65MiB'
max_head = 4096
[limits.rate.session]
all = '0/s'
[sessions]
heartbeat = '30'
misses = 0
[telemetry]
level = 'loud'
[store]
url = 'mysql://h'
[policy]
mode = 'enforcing'
";

    let told = mistakes(text);

    let lines: Vec<usize> = told
        .lines()
        .map(|line| line.split(':').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!(lines, [2, 6, 8, 10, 11, 13, 15, 16, 18, 20, 22], "{told}");
}

#[test]
fn what_is_no_toml_is_told_beside_the_other_mistakes() {
    let told = mistakes("[telemetry]\nlevel = 'loud'\nlog = \n[store]\nconnections = 0\n");

    let lines: Vec<&str> = told.lines().collect();
    assert!(
        lines[0].starts_with("/etc/bridge.toml:2: `telemetry.level` must be one of"),
        "{told}"
    );
    assert!(
        lines[1].starts_with("/etc/bridge.toml:3: is not TOML: "),
        "{told}"
    );
    assert_eq!(
        lines[2],
        "/etc/bridge.toml:5: `store.connections` must be at least 1, not 0"
    );
    assert_eq!(lines.len(), 3, "{told}");
}

#[test]
fn a_secret_in_place_of_a_reference_is_refused_and_not_repeated() {
    let secret = "pk_live_5f3b0c6d9a";
    for text in [
        format!("[upstreams.main]\nurl = 'http://h'\ncredential = '{secret}'"),
        format!("[upstreams.main]\nurl = 'http://h'\ncredential = ['{secret}']"),
        format!("[upstreams.main]\nurl = 'http://h'\ncredential = {secret}"),
        format!("[upstreams.main]\nurl = 'http://u:{secret}@h'\ncredential = 'env:KEY'"),
        format!("[store]\nurl = 'postgres://u:{secret}@h/d'"),
        format!("[store]\nurl = 'postgres://u@h/d?password={secret}'"),
        format!("[store]\npassword = '{secret}'"),
        format!("[providers.e2b]\napiKey = '{secret}'"),
        format!("[audit]\nkey = '{secret}'"),
        format!("[targets.box]\ntarget = 'ssh://me:{secret}@h'"),
    ] {
        let errors = of(&text).unwrap_err();

        let told = format!("{errors} {errors:?}");
        assert!(!told.contains(secret), "{told}");
    }
    let variable = with("", &[("PCBRIDGE_AUDIT__KEY", secret)], Vec::new()).unwrap_err();
    assert!(
        variable
            .to_string()
            .starts_with("PCBRIDGE_AUDIT__KEY: `audit.key` must be a reference")
    );
    assert!(!variable.to_string().contains(secret));
}

#[test]
fn a_mistake_in_the_rules_is_told_at_its_own_line() {
    let told = mistakes("[policy]\nrules = '''\n[[allow]]\nmethod = 'GET'\npth = '/api/x'\n'''\n");

    assert!(
        told.lines()
            .any(|line| line
                .starts_with("/etc/bridge.toml:5: `policy.rules` has a mistake: unknown key `pth`")),
        "{told}"
    );
}

#[test]
fn keys_that_contradict_each_other_are_told() {
    for (text, said) in [
        (
            "[listeners.control]\naddress = 'tcp:127.0.0.1:1'",
            "2: `listeners.control.address` is TCP, which needs TLS",
        ),
        (
            "[listeners.control]\nadvertise = 'https://me:hidden@bridge.example'",
            "2: `listeners.control.advertise` give unix:PATH",
        ),
        (
            "[listeners.control]\ntoken = 'env:T'",
            "2: `listeners.control.token` is for an address with tcp: only",
        ),
        (
            "[targets.box]\ntarget = 'local'\ntunnel = 'ssh-reverse'",
            "3: `targets.box.tunnel` does not fit the target",
        ),
        (
            "[targets.box]\ntarget = 'local'\nidentities = ['/k']",
            "3: `targets.box.identities` is for SSH targets only",
        ),
        (
            "[policy]\nfile = '/r'\nrules = ''",
            "3: `policy.rules` cannot stand beside `policy.file`",
        ),
        ("[policy]\npacks = ['1999.1']", "2: `policy.packs[0]` is no pack"),
        (
            "[limits.bytes]\nsession = '1MiB'",
            "2: `limits.bytes.session` must be at least `limits.max_body`",
        ),
        (
            "[store]\npassword = 'env:P'",
            "2: `store.password` is for a PostgreSQL store only",
        ),
        (
            "[targets.'a b']\ntarget = 'local'",
            "1: `targets.a b` has a name that is no plain word",
        ),
    ] {
        let told = mistakes(text);

        assert!(told.contains(&format!("{FILE}:{said}")), "{text}\n{told}");
    }
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let folder = Folder(tempfile::tempdir().unwrap());

    for mode in [0o600, 0o644, 0o440] {
        assert!(folder.load(b"", mode).is_ok(), "{mode:o}");
    }
    for mode in [0o620, 0o602, 0o666] {
        let told = folder.refused(b"", mode);
        assert!(
            told.contains("can be written by others") && told.contains("chmod go-w"),
            "{told}"
        );
    }
}

#[test]
fn a_file_that_is_none_of_ours_to_read_is_refused() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let missing = Config::load(LoadOptions {
        file: Some(folder.0.path().join("missing.toml")),
        ..LoadOptions::default()
    });

    assert!(
        missing
            .unwrap_err()
            .to_string()
            .contains("missing.toml: cannot be read: ")
    );
    assert!(
        folder
            .refused(b"a = '\xff'", 0o600)
            .ends_with("bridge.toml: is not UTF-8")
    );
    assert!(folder.load(&vec![b'\n'; 1024 * 1024], 0o600).is_ok());
    assert!(
        folder
            .refused(&vec![b'\n'; 1024 * 1024 + 1], 0o600)
            .ends_with("is larger than 1 MiB")
    );
    let no_file = Config::load(LoadOptions {
        file: Some(folder.0.path().to_owned()),
        ..LoadOptions::default()
    });
    assert!(
        no_file
            .unwrap_err()
            .to_string()
            .ends_with("is not a regular file")
    );
}

#[test]
fn what_is_missing_is_told_at_the_variable_that_calls_for_it() {
    let errors = with("", &[("PCBRIDGE_UPSTREAMS__MAIN__URL", "http://h")], Vec::new()).unwrap_err();

    assert_eq!(
        errors.to_string(),
        "PCBRIDGE_UPSTREAMS__MAIN__URL: `upstreams.main.credential` is missing"
    );
}
