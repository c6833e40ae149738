//! `~` and `%` in values; pure.

use std::path::{Path, PathBuf};

use super::ConfigError;
use super::lines::Value;

/// What the tokens stand for (ssh_config(5), TOKENS).
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// `~` and `%d`.
    pub home: &'a Path,
    /// `%h`.
    pub host: &'a str,
    /// `%n`.
    pub original_host: &'a str,
    /// `%k`, if set.
    pub host_key_alias: Option<&'a str>,
    /// `%p`.
    pub port: u16,
    /// `%r`.
    pub user: &'a str,
    /// `%u`.
    pub local_user: &'a str,
}

/// `HostName` with `%h` as the name asked for; that name itself where there is none.
///
/// # Errors
///
/// [`ConfigError`] for another token than `%h` and `%%`.
pub fn host_name(value: Option<&Value>, alias: &str) -> Result<String, ConfigError> {
    let Some(value) = value else {
        return Ok(alias.to_owned());
    };
    percent(value, |token| (token == 'h').then(|| alias.to_owned()))
}

impl Tokens<'_> {
    /// A path with `~/` and tokens replaced.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: `~user`, an environment variable, a token that is not known here.
    pub fn path(&self, value: &Value) -> Result<PathBuf, ConfigError> {
        let at = value.at.as_ref();
        if value.text.contains("${") || value.text.starts_with('$') {
            return Err(ConfigError::new(
                at,
                "environment variables are not read here: write the path out",
            ));
        }
        let (below_home, text) = match value.text.strip_prefix('~') {
            None => (false, value.text.clone()),
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                (true, rest.trim_start_matches('/').to_owned())
            }
            Some(_) => return Err(ConfigError::new(at, "only `~/` is understood, not `~user`")),
        };
        let expanded = percent(
            &Value {
                text,
                at: value.at.clone(),
            },
            |token| {
                Some(match token {
                    'd' => self.home.display().to_string(),
                    'h' => self.host.to_owned(),
                    'k' => self.host_key_alias.unwrap_or(self.original_host).to_owned(),
                    'n' => self.original_host.to_owned(),
                    'p' => self.port.to_string(),
                    'r' => self.user.to_owned(),
                    'u' => self.local_user.to_owned(),
                    _ => return None,
                })
            },
        )?;
        Ok(if below_home {
            self.home.join(expanded)
        } else {
            PathBuf::from(expanded)
        })
    }
}

fn percent(value: &Value, known: impl Fn(char) -> Option<String>) -> Result<String, ConfigError> {
    let mut expanded = String::with_capacity(value.text.len());
    let mut characters = value.text.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            expanded.push(character);
            continue;
        }
        match characters.next() {
            Some('%') => expanded.push('%'),
            Some(token) => expanded.push_str(&known(token).ok_or_else(|| {
                ConfigError::new(
                    value.at.as_ref(),
                    format!("token %{token} is not supported here: write its value out"),
                )
            })?),
            None => {
                return Err(ConfigError::new(
                    value.at.as_ref(),
                    "a lone `%` at the end: write `%%`",
                ));
            }
        }
    }
    Ok(expanded)
}
