//! The same configurations through `ssh -G`.
//!
//! Where there is no `ssh`, the comparison says that it was skipped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::*;

/// A configuration, the alias, and the arguments given beside it (`-l`, `-p`). `$D` is a directory with the files of
/// [`INCLUDED`].
struct Case(&'static str, &'static str, &'static [&'static str]);

const INCLUDED: [(&str, &str); 6] = [
    ("a.conf", "User from-a\nHost inner\n  Port 1111\n"),
    ("b.conf", "User from-b\nHostKeyAlias from-b\n"),
    ("host.conf", "Host *\n  Port 2222\n"),
    ("nested.conf", "Include $D/b.conf\nUser from-nested\n"),
    ("sub/1.cfg", "IdentityFile /k/one\n"),
    ("sub/2.cfg", "IdentityFile /k/two\n"),
];

const CASES: &[Case] = &[
    Case("", "plain.example", &[]),
    Case("", "UPPER.Example", &[]),
    Case("", "h", &["-l", "me", "-p", "2022"]),
    Case("Host h\n  User u\n  Port 2200\n", "h", &[]),
    Case(
        "Host h\n  User u\n  Port 2200\n",
        "h",
        &["-l", "me", "-p", "2022"],
    ),
    Case("Host h\n  User u\nHost *\n  User fallback\n  Port 99\n", "h", &[]),
    Case("Port 1\nHost *\n  Port 2\n", "h", &[]),
    Case("Host *.example !bad.example\n  User u\n", "good.example", &[]),
    Case("Host *.example !bad.example\n  User u\n", "bad.example", &[]),
    Case("Host !bad.example *.example\n  User u\n", "bad.example", &[]),
    Case("Host !other\n  User u\n", "h", &[]),
    Case("Host H\n  User u\n", "h", &[]),
    Case("Host h\n  HostName %h.example.NET\n", "H", &[]),
    Case("Host h\n  HostName %h.example.NET\n", "h", &[]),
    Case("host=h\nuser=\"a b\"\nPORT = 77\n", "h", &[]),
    Case(
        "  \t# comment\nHost h # a comment\n\tUser u # another\r\n",
        "h",
        &[],
    ),
    Case(
        "Host h\n  IdentityFile ~/.ssh/a\n  IdentityFile \"/k/with space\"\nIdentityFile /k/b\n",
        "h",
        &[],
    ),
    Case(
        "IdentityFile /k/a\nIdentityFile /k/a\nIdentityFile none\n",
        "h",
        &[],
    ),
    Case(
        "IdentityFile /k/%h-%p-%r-%n-%%\nUser u\nPort 7\nHostName X\n",
        "h",
        &[],
    ),
    Case(
        "IdentitiesOnly yes\nCertificateFile /c/1\nCertificateFile ~/c2\nIdentityAgent none\n",
        "h",
        &[],
    ),
    Case("IdentityAgent /run/agent\nIdentitiesOnly no\n", "h", &[]),
    Case(
        "HostKeyAlias Alias\nUserKnownHostsFile /k/1 \"/k/2 x\"\nGlobalKnownHostsFile /g\n",
        "h",
        &[],
    ),
    Case("UserKnownHostsFile none\nUserKnownHostsFile /k/1\n", "h", &[]),
    Case("UserKnownHostsFile /k/none none\n", "h", &[]),
    Case("ProxyJump a\n", "h", &[]),
    Case("ProxyJump u@a:2200,b,ssh://x@c:33\n", "h", &[]),
    Case("ProxyJump none\nProxyJump a\n", "h", &[]),
    Case("Host h\n  ProxyJump none\nHost *\n  ProxyJump gate\n", "h", &[]),
    Case("ProxyCommand none\nProxyJump a\n", "h", &[]),
    Case("ProxyJump a\nProxyCommand nc %h %p # \"\n", "h", &[]),
    Case("ProxyJump [::1]:22\n", "h", &[]),
    Case("ProxyJump a:0\n", "h", &[]),
    Case(
        "ServerAliveInterval 1m30s\nServerAliveCountMax 7\nConnectTimeout 5\n",
        "h",
        &[],
    ),
    Case("ConnectTimeout none\nServerAliveInterval 0\n", "h", &[]),
    Case("ConnectTimeout 5x\n", "h", &[]),
    Case("Host other\n  ConnectTimeout 5x\n", "h", &[]),
    Case("StrictHostKeyChecking accept-new\n", "h", &[]),
    Case("StrictHostKeyChecking perhaps\n", "h", &[]),
    Case("Match all\n  User u\n", "h", &[]),
    Case(
        "Match host *.net\n  User u\nHost h\n  HostName h.net\nMatch host h.net\n  Port 5\n",
        "h",
        &[],
    ),
    Case(
        "HostName h.net\nMatch host h.net\n  User u\nMatch originalhost h\n  Port 5\n",
        "h",
        &[],
    ),
    Case("Match host H\n  User u\n", "h", &[]),
    Case("Match host H\n  User u\n", "H", &[]),
    Case(
        "Match !host h user me\n  Port 5\nMatch host h user me,you\n  Port 6\n",
        "h",
        &["-l", "me"],
    ),
    Case("User u\nMatch user u\n  Port 5\n", "h", &[]),
    Case(
        "Match localuser nobody-by-this-name\n  Port 5\nMatch !localuser nobody-by-this-name\n  Port 6\n",
        "h",
        &[],
    ),
    Case("Match host h,!h\n  Port 5\n", "h", &[]),
    Case("Match host=h\n  Port 5\n", "h", &[]),
    Case("Match all host h\n  Port 5\n", "h", &[]),
    Case("Match host h all\n  Port 5\n", "h", &[]),
    Case("Match\n  Port 5\n", "h", &[]),
    Case("Match host\n  Port 5\n", "h", &[]),
    Case("Match colour red\n  Port 5\n", "h", &[]),
    Case(
        "Match final\n  Port 5\nMatch final host x.net\n  User late\nHost h\n  HostName X.net\n",
        "h",
        &[],
    ),
    Case(
        "Match canonical\n  Port 5\nMatch !final\n  User early\n",
        "h",
        &[],
    ),
    Case("Match final all\n  Port 5\nHost h\n  Port 6\n", "h", &[]),
    Case("Match exec false host other\n  Port 5\n", "h", &[]),
    Case("Match host other exec false\n  Port 5\n", "h", &[]),
    Case("Include $D/a.conf\nUser outer\nPort 9\n", "h", &[]),
    Case("Include $D/a.conf\nPort 9\n", "inner", &[]),
    Case(
        "Host h\n  Include $D/a.conf\n  Port 9\nHost *\n  Port 10\n",
        "h",
        &[],
    ),
    Case(
        "Host other\n  Include $D/a.conf $D/host.conf\nHost *\n  Port 10\n",
        "h",
        &[],
    ),
    Case("Include $D/nested.conf $D/missing.conf\n", "h", &[]),
    Case("Include $D/sub/*.cfg\nInclude $D/su?/1.cfg\n", "h", &[]),
    Case("Include \"$D/a.conf\" # comment\n", "h", &[]),
    Case("Port abc\n", "h", &[]),
    Case("Port 0\n", "h", &[]),
    Case("Port 65536\n", "h", &[]),
    Case("Port 22 23\n", "h", &[]),
    Case("Port\n", "h", &[]),
    Case("Port # none\n", "h", &[]),
    Case("User \"open\n", "h", &[]),
    Case("User 'a\\'b'\n", "h", &[]),
    Case("User a\\ b\n", "h", &[]),
    Case("User dom\\user\n", "h", &[]),
    Case("IdentitiesOnly maybe\n", "h", &[]),
    Case("HostName %x\n", "h", &[]),
    Case("Host \"h\"\n  Port 7\n", "h", &[]),
    Case("Host a,h\n  Port 7\n", "h", &[]),
    Case("Host ?\n  Port 7\n", "h", &[]),
];

/// What OpenSSH takes and we refuse: a second value that it drops unseen, names that cannot be resolved, and what
/// would run a command.
const STRICTER: &[Case] = &[
    Case("ProxyJump a b\n", "h", &[]),
    Case("HostName bad;name\n", "h", &[]),
    Case("ProxyCommand nc %h %p\n", "h", &[]),
    Case(
        "Host other\n  ProxyCommand none\nHost *\n  ProxyCommand nc %h %p\n  ProxyJump a\n",
        "h",
        &[],
    ),
    Case("Match exec false\n  Port 5\n", "h", &[]),
    Case("Match host h exec true\n  Port 5\n", "h", &[]),
    Case("Match !exec true host h\n  Port 5\n", "h", &[]),
];

/// What this machine says of its user: `~` of OpenSSH is the home in the user database.
fn local_user() -> Option<(String, PathBuf)> {
    let output = Command::new("sh")
        .args(["-c", "id -un; getent passwd \"$(id -un)\" | cut -d: -f6"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut lines = text.lines();
    Some((lines.next()?.to_owned(), PathBuf::from(lines.next()?)))
}

#[test]
fn our_reading_is_that_of_openssh_or_stricter() {
    let Some((user, home)) = local_user() else {
        println!("skipped: no `id` and `getent` on this machine");
        return;
    };
    let directory = tempfile::tempdir().expect("tempdir");
    let root = directory.path().to_str().expect("text");
    std::fs::create_dir(directory.path().join("sub")).expect("mkdir");
    for (name, text) in INCLUDED {
        std::fs::write(directory.path().join(name), text.replace("$D", root)).expect("write");
    }
    let file = directory.path().join("config");
    let resolver = Resolver {
        home: home.clone(),
        local_user: user,
        user_config: Some(file.clone()),
        system_config: None,
    };
    let mut differences = Vec::new();
    for (Case(text, alias, extra), stricter) in CASES
        .iter()
        .map(|case| (case, false))
        .chain(STRICTER.iter().map(|case| (case, true)))
    {
        std::fs::write(&file, text.replace("$D", root)).expect("write");
        let output = match Command::new("ssh")
            .arg("-G")
            .arg("-F")
            .arg(&file)
            .args(*extra)
            .arg(alias)
            .output()
        {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: no ssh on this machine ({error})");
                return;
            }
        };
        let given = |flag: &str| {
            extra
                .iter()
                .position(|word| *word == flag)
                .and_then(|at| extra.get(at + 1))
                .copied()
        };
        let port = given("-p").map(|port| port.parse().expect("a port"));
        let ours = resolver.resolve(alias, given("-l"), port);
        let theirs = output
            .status
            .success()
            .then(|| summary_of_openssh(&String::from_utf8_lossy(&output.stdout), &home));
        let ours_text = ours.as_ref().ok().map(summary);
        let as_wanted = if stricter {
            ours.is_err() && theirs.is_some()
        } else {
            ours_text == theirs
        };
        if !as_wanted {
            differences.push(format!(
                "--- {text:?} for {alias} {extra:?}\nours   {ours:?}\n       {ours_text:?}\ntheirs {theirs:?}\n       {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// What is compared, by OpenSSH's names.
type Summary = BTreeMap<&'static str, Vec<String>>;

fn summary(settings: &HostSettings) -> Summary {
    let paths = |paths: &[PathBuf]| {
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
    };
    let identity_files = match settings.identity_files_are_defaults {
        true => vec!["default".to_owned()],
        false => paths(&settings.identity_files),
    };
    let jumps = settings
        .proxy_jump
        .iter()
        .map(|jump| format!("{jump:?}"))
        .collect();
    BTreeMap::from([
        ("hostname", vec![settings.host.clone()]),
        ("port", vec![settings.port.to_string()]),
        ("user", vec![settings.user.clone()]),
        ("identityfile", identity_files),
        (
            "identitiesonly",
            vec![if settings.identities_only { "yes" } else { "no" }.to_owned()],
        ),
        ("certificatefile", paths(&settings.certificate_files)),
        (
            "identityagent",
            match &settings.agent {
                Agent::Default => Vec::new(),
                Agent::None => vec!["none".to_owned()],
                Agent::Socket(path) => vec![path.display().to_string()],
            },
        ),
        ("hostkeyalias", settings.host_key_alias.iter().cloned().collect()),
        ("proxyjump", jumps),
        (
            "userknownhostsfile",
            vec![paths(&settings.user_known_hosts_files).join(" ")],
        ),
        (
            "globalknownhostsfile",
            vec![paths(&settings.global_known_hosts_files).join(" ")],
        ),
        (
            "serveraliveinterval",
            vec![
                settings
                    .keepalive_interval
                    .unwrap_or_default()
                    .as_secs()
                    .to_string(),
            ],
        ),
        (
            "serveralivecountmax",
            vec![settings.keepalive_count.unwrap_or(3).to_string()],
        ),
        (
            "connecttimeout",
            vec![
                settings
                    .connect_timeout
                    .map_or("none".to_owned(), |time| time.as_secs().to_string()),
            ],
        ),
    ])
}

fn summary_of_openssh(text: &str, home: &Path) -> Summary {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = value.replace("~/", &format!("{}/", home.display()));
        all.entry(name.to_owned()).or_default().push(value);
    }
    let mut take = |name: &str| all.remove(name).unwrap_or_default();
    let (hostname, port, user) = (take("hostname"), take("port"), take("user"));
    // `-G` prints paths before their tokens are replaced.
    let tokens = |path: String| {
        path.replace("%h", hostname.first().map_or("", String::as_str))
            .replace("%p", port.first().map_or("", String::as_str))
            .replace("%r", user.first().map_or("", String::as_str))
            .replace("%n", "h")
            .replace("%%", "%")
    };
    let mut identity_files: Vec<String> = take("identityfile").into_iter().map(tokens).collect();
    if identity_files
        .iter()
        .any(|path| path.ends_with("/.ssh/id_ecdsa_sk"))
    {
        identity_files = vec!["default".to_owned()];
    }
    identity_files.retain(|path| path != "none");
    let known_hosts = |values: Vec<String>| {
        values
            .into_iter()
            .map(|value| value.replace("none", ""))
            .collect()
    };
    let jumps = take("proxyjump")
        .iter()
        .filter_map(|list| jump::parse(list).expect("OpenSSH's own spelling"))
        .flatten()
        .map(|jump| format!("{jump:?}"))
        .collect();
    BTreeMap::from([
        ("identityfile", identity_files),
        ("identitiesonly", take("identitiesonly")),
        ("certificatefile", take("certificatefile")),
        ("identityagent", take("identityagent")),
        ("hostkeyalias", take("hostkeyalias")),
        ("proxyjump", jumps),
        ("userknownhostsfile", known_hosts(take("userknownhostsfile"))),
        ("globalknownhostsfile", known_hosts(take("globalknownhostsfile"))),
        ("serveraliveinterval", take("serveraliveinterval")),
        ("serveralivecountmax", take("serveralivecountmax")),
        ("connecttimeout", take("connecttimeout")),
        ("hostname", hostname.clone()),
        ("port", port.clone()),
        ("user", user.clone()),
    ])
}
