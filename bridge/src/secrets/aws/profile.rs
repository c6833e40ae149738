//! Keys of a profile, out of the files that AWS's own tools share.
//!
//! Here: the two files, their form and the profile in force. Only plain keys are taken. Not here: `credential_process`,
//! SSO, web identity and assumed roles: each is refused by name.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::super::error::Fault;
use super::super::place::Surroundings;
use super::credentials::Credentials;

/// A longer file is none of AWS's.
const MAX_BYTES: u64 = 1024 * 1024;

/// Keys of a profile that name a way to credentials which this program does not go.
const UNSUPPORTED: [&str; 6] = [
    "credential_process",
    "role_arn",
    "web_identity_token_file",
    "credential_source",
    "source_profile",
    "login_session",
];

/// What a look at the profile brought.
pub(super) enum Search {
    Found(Credentials),
    /// Nothing there, in words for a message.
    Absent(String),
}

/// The keys of the profile in force.
///
/// # Errors
///
/// [`Fault`] for a profile that was named and is not there, that has half of its keys, or that names another way.
pub(super) fn find(around: &Surroundings) -> Result<Search, Fault> {
    let named = around.variable("AWS_PROFILE");
    let name = named.as_deref().unwrap_or("default");
    let credentials = path(around, "AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let config = path(around, "AWS_CONFIG_FILE", ".aws/config");
    let mut values = BTreeMap::new();
    // The credentials file wins, so it is read last.
    for (path, is_config) in [(&config, true), (&credentials, false)] {
        if let Some(path) = path
            && let Some(text) = read(path)?
        {
            values.extend(profile(&text, name, is_config));
        }
    }
    let looked = looked(name, [&credentials, &config]);
    if let Some(key) = values.keys().find(|key| unsupported(key)) {
        return Err(Fault::Unusable(format!(
            "the AWS profile `{name}` has `{key}`, which is not supported: give it aws_access_key_id and \
             aws_secret_access_key, or use the role of the instance"
        )));
    }
    let value = |key: &str| {
        values
            .get(key)
            .filter(|value| !value.is_empty())
            .map(|value| value.as_str())
    };
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(id), Some(key)) => {
            let origin = format!("the keys of the AWS profile `{name}`");
            Credentials::new(id, key, value("aws_session_token"), origin).map(Search::Found)
        }
        (None, None) if named.is_none() => Ok(Search::Absent(looked)),
        (None, None) => Err(Fault::Missing(format!(
            "no AWS credentials: {looked}, and AWS_PROFILE names it"
        ))),
        (id, _) => {
            let missing = if id.is_some() {
                "aws_secret_access_key"
            } else {
                "aws_access_key_id"
            };
            Err(Fault::Missing(format!(
                "the AWS profile `{name}` has no {missing}"
            )))
        }
    }
}

fn unsupported(key: &str) -> bool {
    key.starts_with("sso_") || UNSUPPORTED.contains(&key)
}

fn path(around: &Surroundings, variable: &str, below_home: &str) -> Option<PathBuf> {
    let home = || Some(PathBuf::from(around.variable("HOME")?).join(below_home));
    around.variable(variable).map(PathBuf::from).or_else(home)
}

fn looked(name: &str, files: [&Option<PathBuf>; 2]) -> String {
    let files: Vec<_> = files
        .into_iter()
        .flatten()
        .map(|path| path.display().to_string())
        .collect();
    if files.is_empty() {
        return "there is no HOME with AWS profiles".into();
    }
    format!("no keys of a profile `{name}` are in {}", files.join(" or "))
}

fn read(path: &std::path::Path) -> Result<Option<Zeroizing<String>>, Fault> {
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Fault::Unusable(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}

/// The values of one profile; keys in lower case. In the config file a section is `[profile NAME]`, or `[default]`.
fn profile(text: &str, name: &str, is_config: bool) -> BTreeMap<String, Zeroizing<String>> {
    let mut values = BTreeMap::new();
    let mut ours = false;
    for line in text.lines() {
        if let Some(section) = line.trim_end().strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default();
            ours = section_is(section, name, is_config);
            continue;
        }
        // An indented line belongs to the value before it, none of which is ours.
        if !ours || line.starts_with(char::is_whitespace) || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some((key, value)) = line.split_once('=') {
            let value = value.split(" #").next().unwrap_or_default();
            let value = value.split(" ;").next().unwrap_or_default();
            values.insert(
                key.trim().to_ascii_lowercase(),
                Zeroizing::new(value.trim().to_owned()),
            );
        }
    }
    values
}

fn section_is(section: &str, name: &str, is_config: bool) -> bool {
    let words: Vec<_> = section.split_whitespace().collect();
    match *words.as_slice() {
        ["profile", of] if is_config => of == name,
        [of] => of == name && (!is_config || of == "default"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::SecretSettings;
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn with(config: &str, credentials: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(".aws")).unwrap();
            std::fs::write(folder.path().join(".aws/config"), config).unwrap();
            std::fs::write(folder.path().join(".aws/credentials"), credentials).unwrap();
            Self(folder)
        }

        fn find(&self, profile: Option<&'static str>) -> Result<Search, Fault> {
            let home = self.0.path().display().to_string();
            let around = Surroundings::new(SecretSettings::default(), move |name| match name {
                "HOME" => Some(home.clone()),
                "AWS_PROFILE" => profile.map(str::to_owned),
                _ => None,
            });
            find(&around)
        }

        fn keys(&self, profile: Option<&'static str>) -> (String, String) {
            match self.find(profile).unwrap() {
                Search::Found(found) => (found.access_key, found.secret_key.expose().to_owned()),
                Search::Absent(looked) => panic!("{looked}"),
            }
        }

        fn refusal(&self, profile: Option<&'static str>) -> String {
            self.find(profile).err().unwrap().to_string()
        }
    }

    #[test]
    fn the_credentials_file_wins_over_the_config_file() {
        let files = Files::with(
            "[default]\naws_access_key_id = A\naws_secret_access_key=from-config\n\
             [profile ci]\naws_access_key_id=C\naws_secret_access_key = c # mine\ns3 =\n  aws_access_key_id = X\n\
             [ci]\naws_access_key_id = WRONG\n",
            "# mine\n[default]\nAWS_SECRET_ACCESS_KEY = from-credentials\n",
        );

        assert_eq!(files.keys(None), ("A".into(), "from-credentials".into()));
        assert_eq!(files.keys(Some("ci")), ("C".into(), "c".into()));
    }

    #[test]
    fn other_ways_to_credentials_are_refused_by_profile_and_key() {
        for key in [
            "credential_process",
            "sso_session",
            "sso_start_url",
            "role_arn",
            "web_identity_token_file",
        ] {
            let config = format!("[profile work]\n{key} = anything\n");
            let keys = "[work]\naws_access_key_id = A\naws_secret_access_key = B\n";

            let refusal = Files::with(&config, keys).refusal(Some("work"));

            assert!(refusal.contains("`work`") && refusal.contains(key), "{refusal}");
            assert!(!refusal.contains("anything"), "{refusal}");
        }
    }

    #[test]
    fn a_profile_that_is_named_must_be_there_and_the_default_need_not() {
        let files = Files::with("", "[other]\naws_access_key_id = A\n");

        assert!(matches!(files.find(None), Ok(Search::Absent(_))));
        let refusal = files.refusal(Some("work"));
        assert!(
            refusal.contains("`work`") && refusal.contains(".aws/credentials"),
            "{refusal}"
        );
        assert!(files.refusal(Some("other")).contains("aws_secret_access_key"));
    }
}
