//! The recipe: a TOML file of stages, read downward.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use halter_core::{Error, Result};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::kind::{self, Kind, TAKEN};

/// The recipe of a run without one.
pub const BUNDLED: (&str, &str) =
    (include_str!("../../examples/recipes/bundled.toml"), "examples/recipes/bundled.toml");

/// The name of the base's evaluation, and what stands for the base in references.
pub const BASE: &str = "base";

/// Where everything is written where a recipe does not say.
const OUTPUT: &str = "runs/align";

const TOP: [&str; 7] = ["model", "seed", "rounds", "failures", "output", "eval", "stage"];
/// Keys of a stage that are not options of its command.
const OWN: [&str; 4] = ["name", "kind", "rounds", "measured"];
/// Words with a meaning in references.
const WORDS: [&str; 4] = [BASE, "round", "previous", "all"];

/// A recipe, its references not yet followed.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The file.
    pub path: PathBuf,
    text: String,
    /// The model that everything begins with.
    pub model: String,
    /// Seed of the first round; each later one adds 1.
    pub seed: u64,
    /// How many rounds.
    pub rounds: usize,
    /// Share of the rows of a stage that may fail.
    pub failures: f64,
    /// Where everything is written.
    pub output: PathBuf,
    /// What every model is measured with.
    pub eval: Option<Stage>,
    /// In their order within a round.
    pub stages: Vec<Stage>,
}

/// A stage as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Its command.
    pub kind: &'static Kind,
    /// The first and the last round that it takes part in.
    pub rounds: (usize, usize),
    /// Whether the model that it makes is measured with [`Recipe::eval`].
    pub measured: bool,
    /// In place of [`Recipe::failures`].
    pub failures: Option<f64>,
    /// The command's options.
    pub options: Table,
    /// Line of its head.
    pub line: usize,
    /// The line of each option.
    pub lines: BTreeMap<String, usize>,
    /// The recipe with nothing left but the options, each on its line: for those who read
    /// configurations and tell the line of what is wrong.
    pub alone: String,
}

impl Stage {
    /// The line of an option.
    pub fn line_of(&self, key: &str) -> usize {
        self.lines.get(key).copied().unwrap_or(self.line)
    }
}

impl Recipe {
    /// The recipe in `path`.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`Recipe::parse`].
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::config(format!("cannot read the recipe: {error}")).in_file(path)
        })?;
        Self::parse(&text, path)
    }

    /// The recipe that `text` is; references are checked by [`crate::graph::Graph::new`].
    ///
    /// # Errors
    /// Text that is not TOML, unknown keys and kinds, missing ones, values of the wrong type, and
    /// names that are given twice: with their line.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let reader = Reader { text, path };
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| reader.line(span.start));
            Error::config(error.message().replace('\n', " ")).at(path, line)
        })?;
        let mut recipe = Self {
            path: path.to_path_buf(),
            text: text.to_string(),
            model: String::new(),
            seed: 0,
            rounds: 1,
            failures: 0.0,
            output: PathBuf::from(OUTPUT),
            eval: None,
            stages: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            let line = reader.line(key.span().start);
            let name = key.get_ref().as_ref();
            match name {
                "model" => recipe.model = reader.text_of(name, value.get_ref(), line)?,
                "output" => recipe.output = reader.text_of(name, value.get_ref(), line)?.into(),
                "seed" => recipe.seed = reader.whole(name, value.get_ref(), line, 0)?,
                "rounds" => {
                    recipe.rounds =
                        reader.whole(name, value.get_ref(), line, 1)?.min(1000) as usize;
                }
                "failures" => recipe.failures = reader.share(name, value.get_ref(), line)?,
                "eval" | "stage" => {}
                _ => return Err(unknown("key", name, &TOP).at(path, line)),
            }
        }
        if recipe.model.is_empty() {
            return Err(Error::config("no model: expected `model = \"PATH\"` at the top")
                .in_file(path)
                .hint(
                    "the model that everything begins with: a directory, a hub id, or `bundled`",
                ));
        }
        // In the order of the file, whatever the order of the table.
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let line = reader.line(key.span().start);
            match (name, value.get_ref()) {
                ("eval", DeValue::Table(options)) => {
                    recipe.eval = Some(reader.stage(options, line, recipe.rounds, true)?);
                }
                ("stage", DeValue::Array(stages)) => {
                    for stage in stages {
                        let DeValue::Table(options) = stage.get_ref() else {
                            return Err(expected("stage", "tables, `[[stage]]`").at(path, line));
                        };
                        // The place of a table that a head opens is the head's.
                        let line = reader.line(stage.span().start);
                        let stage = reader.stage(options, line, recipe.rounds, false)?;
                        if recipe.stages.iter().any(|other| other.name == stage.name) {
                            let message = format!("two stages are called `{}`", stage.name);
                            return Err(Error::config(message)
                                .at(path, stage.line_of("name"))
                                .hint("give each a name of its own"));
                        }
                        recipe.stages.push(stage);
                    }
                }
                ("eval", _) => return Err(expected("eval", "a table, `[eval]`").at(path, line)),
                ("stage", _) => {
                    return Err(expected("stage", "tables, `[[stage]]`").at(path, line));
                }
                _ => {}
            }
        }
        if recipe.stages.is_empty() {
            return Err(Error::config("no stage: expected at least one `[[stage]]`").in_file(path));
        }
        Ok(recipe)
    }
}

impl Recipe {
    /// Another number of rounds; stages up to the last round go on to the new one.
    pub fn set_rounds(&mut self, rounds: usize) {
        for stage in &mut self.stages {
            if stage.rounds.1 == self.rounds {
                stage.rounds.1 = rounds;
            }
        }
        self.rounds = rounds;
    }

    /// Its text with what was set since it was read.
    pub fn resolved(&self) -> String {
        let Ok(table) = DeTable::parse(&self.text) else { return self.text.clone() };
        let table = table.get_ref();
        let mut edits = Vec::new();
        let mut above = String::new();
        let (output, seed) = (self.output.display().to_string(), self.seed as i64);
        let top: [(&str, Value, Value); 4] = [
            ("model", self.model.as_str().into(), "".into()),
            ("output", output.into(), OUTPUT.into()),
            ("seed", seed.into(), 0.into()),
            ("rounds", (self.rounds as i64).into(), 1.into()),
        ];
        for (key, value, default) in top {
            match table.get(key) {
                Some(written) => edits.push((written.span(), value.to_string())),
                None if value != default => above += &format!("{key} = {value}\n"),
                None => {}
            }
        }
        let read = Self::parse(&self.text, &self.path);
        let rounds_before = read.iter().flat_map(|read| &read.stages).map(|stage| stage.rounds);
        let stages = table.get("stage").and_then(|stages| stages.get_ref().as_array());
        let stages = stages.into_iter().flatten().filter_map(|stage| stage.get_ref().as_table());
        for ((table, stage), before) in stages.zip(&self.stages).zip(rounds_before) {
            if let Some(written) = table.get("rounds").filter(|_| stage.rounds != before) {
                let (first, last) = stage.rounds;
                edits.push((written.span(), format!("\"{first}-{last}\"")));
            }
        }
        edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
        let mut text = self.text.clone();
        edits.into_iter().for_each(|(span, value)| text.replace_range(span, &value));
        above + &text
    }
}

/// An error that names what was meant; `names` are those that there are.
pub fn unknown(what: &str, name: &str, names: &[&str]) -> Error {
    let error = Error::config(format!("no {what} is called `{name}`"));
    match nearest(name, names) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("there are {}", names.join(", "))),
    }
}

/// The name that was probably meant.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|other| (edits(name, other), *other)).min()?;
    // Two letters that changed places are two edits.
    (near.0 <= (near.1.len() / 3).max(2) && near.0 < near.1.len()).then_some(near.1)
}

/// Levenshtein's distance: letters to add, take away or change.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn expected(key: &str, what: &str) -> Error {
    Error::config(format!("`{key}`: expected {what}"))
}

/// The text, for the lines of what is in it.
struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    fn text_of(&self, key: &str, value: &DeValue, line: usize) -> Result<String> {
        match value.as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_string()),
            Some(_) => Err(expected(key, "a text that is not empty").at(self.path, line)),
            None => {
                let found = value.type_str();
                Err(expected(key, &format!("a text, got {found}")).at(self.path, line))
            }
        }
    }

    fn whole(&self, key: &str, value: &DeValue, line: usize, least: u64) -> Result<u64> {
        let number =
            value.as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok());
        match number {
            // What TOML can write again.
            Some(number) if number >= least && i64::try_from(number).is_ok() => Ok(number),
            _ => {
                Err(expected(key, &format!("a whole number, {least} or more")).at(self.path, line))
            }
        }
    }

    fn share(&self, key: &str, value: &DeValue, line: usize) -> Result<f64> {
        let text = match value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => "",
        };
        let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        share.ok_or_else(|| expected(key, "a share, from 0 to 1").at(self.path, line))
    }

    fn stage(&self, table: &DeTable, line: usize, rounds: usize, is_eval: bool) -> Result<Stage> {
        let mut stage = Stage {
            name: String::new(),
            kind: &kind::EVAL,
            rounds: (1, rounds),
            measured: true,
            failures: None,
            options: Table::new(),
            line,
            lines: BTreeMap::new(),
            alone: String::new(),
        };
        let mut kept = vec![false; self.text.len()];
        let mut kind = None;
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), self.line(key.span().start));
            stage.lines.insert(name.to_string(), at);
            match name {
                _ if is_eval && OWN.contains(&name) => {
                    let message = format!("`[eval]` has no `{name}`");
                    return Err(Error::config(message)
                        .at(self.path, at)
                        .hint("it measures every model; for less, write a stage of kind `eval`"));
                }
                "name" => stage.name = self.name(value.get_ref(), at)?,
                "kind" => kind = Some(self.kind(value.get_ref(), at)?),
                "rounds" => stage.rounds = self.rounds(value.get_ref(), at, rounds)?,
                "measured" => {
                    let measured = value.get_ref().as_bool();
                    stage.measured = measured
                        .ok_or_else(|| expected(name, "true or false").at(self.path, at))?;
                }
                "failures" => stage.failures = Some(self.share(name, value.get_ref(), at)?),
                _ => {
                    if let Some((_, why)) = TAKEN.iter().find(|(taken, _)| *taken == name) {
                        let message = format!("`{name}` cannot be set: {why}");
                        return Err(Error::config(message).at(self.path, at).hint("leave it out"));
                    }
                    stage.options.insert(name.to_string(), self.plain(name, value.get_ref(), at)?);
                    kept[key.span().start..value.span().end].fill(true);
                }
            }
        }
        if !is_eval {
            if stage.name.is_empty() {
                return Err(Error::config("the stage has no `name`").at(self.path, line));
            }
            stage.kind = match kind {
                Some(kind) => kind,
                // A stage that is called as its command is.
                None => kind::named(&stage.name).ok_or_else(|| {
                    let message = format!("the stage `{}` has no `kind`", stage.name);
                    Error::config(message).at(self.path, line).hint(kinds())
                })?,
            };
        }
        let blank = |(byte, keep): (u8, bool)| if keep || byte == b'\n' { byte } else { b' ' };
        let alone = self.text.bytes().zip(kept).map(blank).collect();
        stage.alone = String::from_utf8(alone).unwrap_or_default();
        Ok(stage)
    }

    fn name(&self, value: &DeValue, line: usize) -> Result<String> {
        let name = self.text_of("name", value, line)?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if !name.chars().all(fits) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let message =
                format!("`name` is `{name}`: expected small letters, digits, `-` and `_`");
            return Err(Error::config(message).at(self.path, line));
        }
        if WORDS.contains(&name.as_str()) {
            let message = format!("`name` is `{name}`, which has a meaning of its own");
            return Err(Error::config(message).at(self.path, line).hint("choose another name"));
        }
        Ok(name)
    }

    fn kind(&self, value: &DeValue, line: usize) -> Result<&'static Kind> {
        let name = self.text_of("kind", value, line)?;
        let names: Vec<&str> = kind::KINDS.iter().map(|kind| kind.name).collect();
        kind::named(&name)
            .ok_or_else(|| unknown("kind of stage", &name, &names).at(self.path, line))
    }

    /// `2`, `"2-"`, `"-3"` or `"2-3"`.
    fn rounds(&self, value: &DeValue, line: usize, rounds: usize) -> Result<(usize, usize)> {
        let wrong = || {
            let message = format!("`rounds`: expected rounds from 1 to {rounds}");
            Error::config(message)
                .at(self.path, line)
                .hint("a number, or a text: \"2-\" is all from the second, \"1-3\" the first three")
        };
        let text = match (value.as_integer(), value.as_str()) {
            (Some(number), _) => number.as_str().to_string(),
            (_, Some(text)) => text.to_string(),
            _ => return Err(wrong()),
        };
        let number = |text: &str, absent: usize| match text.trim() {
            "" => Some(absent),
            text => text.parse().ok(),
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first, 1), number(last, rounds)),
            None => (number(&text, 0), number(&text, 0)),
        };
        match (first, last) {
            (Some(first), Some(last)) if 1 <= first && first <= last && last <= rounds => {
                Ok((first, last))
            }
            _ => Err(wrong()),
        }
    }

    /// An option's value, which is text, a number, a truth value, or a list of them.
    fn plain(&self, key: &str, value: &DeValue, line: usize) -> Result<Value> {
        let wrong =
            || expected(key, "a text, a number, true, false, or a list").at(self.path, line);
        Ok(match value {
            // What marks a reference once it is followed.
            DeValue::String(text) if text.contains(char::is_control) && text.contains('\u{1}') => {
                return Err(expected(key, "no control character").at(self.path, line));
            }
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(truth) => Value::Boolean(*truth),
            DeValue::Integer(number) => Value::Integer(
                i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| wrong())?,
            ),
            DeValue::Float(number) => {
                let number: f64 = number.as_str().parse().map_err(|_| wrong())?;
                if !number.is_finite() {
                    return Err(expected(key, "a finite number").at(self.path, line));
                }
                Value::Float(number)
            }
            DeValue::Array(values) => {
                let values = values.iter().map(|value| match value.get_ref() {
                    DeValue::Array(_) => Err(wrong()),
                    value => self.plain(key, value, line),
                });
                Value::Array(values.collect::<Result<_>>()?)
            }
            _ => return Err(wrong()),
        })
    }
}

fn kinds() -> String {
    let names: Vec<&str> = kind::KINDS.iter().map(|kind| kind.name).collect();
    format!("the kinds are {}", names.join(", "))
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
