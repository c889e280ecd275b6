//! A key, which nothing shows.

use std::fmt;
use std::fs;
use std::path::Path;

use reqwest::header::HeaderValue;

use super::EndpointConfig;
use crate::{Error, Result};

/// Bytes of a key below which it may well stand in an answer by chance.
const TELLING: usize = 8;
/// Stands where a key would.
const HIDDEN: &str = "[key]";

/// The key of a server. It is read from the environment or a file and sent, nothing else.
#[derive(Clone)]
pub struct Key(String);

impl Key {
    /// The key that `config` names, where it names one.
    ///
    /// # Errors
    /// There is none where it should be.
    pub fn of(config: &EndpointConfig) -> Result<Option<Self>> {
        match (&config.api_key_env, &config.api_key_file) {
            (Some(name), _) => Self::from_env(name).map(Some),
            (None, Some(path)) => Self::from_file(path).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn from_env(name: &str) -> Result<Self> {
        let value = std::env::var(name).ok();
        value.as_deref().and_then(Self::parse).ok_or_else(|| {
            Error::config(format!(
                "`api_key_env`: expected the key in the environment variable `{name}`"
            ))
        })
    }

    fn from_file(path: &Path) -> Result<Self> {
        // The error of the file system holds nothing of what is in the file.
        let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        Self::parse(&text).ok_or_else(|| {
            Error::config("`api_key_file`: expected a file that holds the key alone").in_file(path)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_sendable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        (is_sendable && !text.is_empty()).then(|| Self(text.to_string()))
    }

    /// The header that shows the key to the server.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What a server said that may have repeated the key, without it.
    pub(super) fn hide_in(&self, text: String, is_shown: bool) -> String {
        match (is_shown || self.0.len() >= TELLING) && text.contains(&self.0) {
            true => text.replace(&self.0, HIDDEN),
            false => text,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_whole_and_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, " sk-secret-1\n").unwrap();
        let config = EndpointConfig { api_key_file: Some(path), ..EndpointConfig::default() };
        let key = Key::of(&config).unwrap().unwrap();
        assert_eq!(key.0, "sk-secret-1");
        let header = key.header().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer sk-secret-1");
        for shown in [format!("{key}"), format!("{key:?}"), format!("{header:?} {config:?}")] {
            assert!(!shown.contains("secret"), "{shown}");
        }
        let echoed = key.hide_in("no such key: sk-secret-1!".into(), false);
        assert_eq!(echoed, "no such key: [key]!");
    }

    #[test]
    fn a_key_that_is_not_there_is_an_error_that_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for text in ["", " \n", "sk-secret\nsk-secret", "sk-secret-ü"] {
            fs::write(&path, text).unwrap();
            let error = Key::from_file(&path).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("api_key_file") && !shown.contains("secret"), "{shown}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Key::from_file(&path).unwrap_err().to_string().contains("cannot read"));
        let error = Key::from_env("HALTER_NO_SUCH_KEY").unwrap_err().to_string();
        assert!(error.contains("HALTER_NO_SUCH_KEY"), "{error}");
    }
}
