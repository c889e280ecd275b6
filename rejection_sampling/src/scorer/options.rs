//! The part of a scorer's text after its name: a value and `key=value` options between commas.

use std::str::FromStr;

use halter_core::{Error, Result};

/// Options of one scorer, each to be taken once.
pub(crate) struct Options<'a> {
    name: &'a str,
    left: Vec<&'a str>,
}

impl<'a> Options<'a> {
    pub(crate) fn new(name: &'a str, argument: Option<&'a str>) -> Self {
        let left = argument.map(|text| text.split(',').map(str::trim).collect());
        Self { name, left: left.unwrap_or_default() }
    }

    /// Whether the word `flag` is there.
    pub(crate) fn flag(&mut self, flag: &str) -> bool {
        let place = self.left.iter().position(|part| *part == flag);
        place.map(|place| self.left.remove(place)).is_some()
    }

    /// The text of `key=text`.
    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        let value = |part: &&'a str| part.strip_prefix(key)?.strip_prefix('=');
        let place = self.left.iter().position(|part| value(part).is_some())?;
        value(&self.left.remove(place))
    }

    /// The number of `key=number`.
    pub(crate) fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        self.text(key).map(|text| self.read(text)).transpose()
    }

    /// The value without a key, which stands first.
    pub(crate) fn first(&mut self) -> Option<&'a str> {
        let first = *self.left.first().filter(|part| !part.contains('='))?;
        self.left.remove(0);
        Some(first)
    }

    /// `text` as a positive number.
    pub(crate) fn read<T: FromStr>(&self, text: &str) -> Result<T> {
        text.parse().map_err(|_| {
            Error::config(format!(
                "scorer `{}`: expected a positive whole number, got `{text}`",
                self.name
            ))
        })
    }

    /// Refuses what was not taken; `known` says what could have been.
    pub(crate) fn finish(self, known: &str) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(left) => Err(Error::config(format!(
                "scorer `{}`: expected {known}, got `{left}`",
                self.name
            ))),
        }
    }
}
