//! The stages over all rounds, and what each is made from.
//!
//! A text in an option refers to other stages: `{sft}` is the directory of the stage `sft`, of this
//! round or of the newest one before; `{previous.sft}` that of the rounds before; `{all.sample}` in a
//! list stands for one of every round so far; `{base}` is the model that all begins with, and
//! `{round}` the number of the round. A stage can use what stands above it and what is of earlier
//! rounds, so no cycle can be written.

use std::collections::BTreeMap;
use std::path::Path;

use halter_core::{Error, Result};
use toml::{Table, Value};

use crate::kind::{self, Kind};
use crate::recipe::{BASE, Recipe, Stage, unknown};

/// Stands before and after the number of a stage in a text whose references are followed.
const MARK: char = '\u{1}';

/// Options of `[eval]` that say how prompts are read, and where.
const READING: [&str; 5] =
    ["allow_special_text", "chat_template", "device", "revision", "tokenizer"];

/// A stage in a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The stage's name; `eval-NAME` where it measures the model of one.
    pub name: String,
    /// The round, from 1; 0 for what comes before the first.
    pub round: usize,
    /// Its command.
    pub kind: &'static Kind,
    /// Options, with marks in place of references.
    options: Table,
    /// The stages whose outputs it uses.
    pub inputs: Vec<usize>,
    /// The stage whose model it measures; `None` for the base.
    pub of: Option<usize>,
    /// Share of its rows that may fail.
    pub failures: f64,
    /// Its line in the recipe.
    pub line: usize,
    /// The line of each option.
    lines: BTreeMap<String, usize>,
}

impl Node {
    /// The line of an option.
    pub fn line_of(&self, key: &str) -> usize {
        self.lines.get(key).copied().unwrap_or(self.line)
    }

    /// Its options, where `place` says what stands for the output of another stage.
    pub fn options(&self, place: &dyn Fn(usize) -> String) -> Table {
        let fill = |value: &Value| filled(value, place);
        self.options.iter().map(|(key, value)| (key.clone(), fill(value))).collect()
    }

    /// `round 2, sft`.
    pub fn title(&self) -> String {
        match self.round {
            0 => self.name.clone(),
            round => format!("round {round}, {}", self.name),
        }
    }
}

fn filled(value: &Value, place: &dyn Fn(usize) -> String) -> Value {
    match value {
        Value::String(text) => {
            let part = |(at, part): (usize, &str)| match at % 2 {
                1 => part.parse().map(place).unwrap_or_default(),
                _ => part.to_string(),
            };
            Value::String(text.split(MARK).enumerate().map(part).collect())
        }
        Value::Array(values) => {
            Value::Array(values.iter().map(|value| filled(value, place)).collect())
        }
        other => other.clone(),
    }
}

/// The stages over all rounds, in an order in which they can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Every one uses earlier ones only.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Follows the references of `recipe`.
    ///
    /// # Errors
    /// References to what there is not, or not yet: with their line.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let mut unrolled = Unrolled { recipe, nodes: Vec::new(), newest: BTreeMap::new() };
        unrolled.measure(None, 0)?;
        for round in 1..=recipe.rounds {
            for stage in &recipe.stages {
                let (first, last) = stage.rounds;
                if (first..=last).contains(&round) {
                    unrolled.stage(stage, round)?;
                }
            }
        }
        Ok(Self { nodes: unrolled.nodes })
    }

    /// The last model that answers.
    pub fn result(&self) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.kind.answers)
    }
}

/// What is done of the unrolling.
struct Unrolled<'a> {
    recipe: &'a Recipe,
    nodes: Vec<Node>,
    /// Rounds and nodes of each stage, ascending.
    newest: BTreeMap<&'a str, Vec<(usize, usize)>>,
}

/// The stage that refers to others, and where.
struct Site<'a> {
    stage: &'a Stage,
    round: usize,
    line: usize,
    /// Whether the text is in a list, and nothing is lost if it is left out.
    in_list: bool,
}

impl<'a> Unrolled<'a> {
    fn stage(&mut self, stage: &'a Stage, round: usize) -> Result<()> {
        let mut inputs = Vec::new();
        let mut options = Table::new();
        for (key, value) in &stage.options {
            let site = Site { stage, round, line: stage.line_of(key), in_list: value.is_array() };
            if let Some(value) = self.follow(value, &site, &mut inputs)? {
                options.insert(key.clone(), value);
            }
        }
        self.seed(stage, round, &mut options);
        inputs.sort_unstable();
        inputs.dedup();
        let at = self.nodes.len();
        self.nodes.push(Node {
            name: stage.name.clone(),
            round,
            kind: stage.kind,
            options,
            inputs,
            of: None,
            failures: stage.failures.unwrap_or(self.recipe.failures),
            line: stage.line,
            lines: stage.lines.clone(),
        });
        self.newest.entry(&stage.name).or_default().push((round, at));
        match stage.kind.answers && stage.measured {
            true => self.measure(Some(at), round),
            false => Ok(()),
        }
    }

    /// The seed of the round, unless it cannot be written.
    fn seed(&self, stage: &Stage, round: usize, options: &mut Table) {
        let own = stage.options.get("seed").and_then(Value::as_integer);
        if stage.kind.seeded || own.is_some() {
            let first = own.unwrap_or(self.recipe.seed as i64);
            options.insert("seed".into(), first.saturating_add(round as i64 - 1).into());
        }
    }

    /// Adds the evaluation of a model, and how far it has come from the base.
    fn measure(&mut self, of: Option<usize>, round: usize) -> Result<()> {
        let Some(stage) = &self.recipe.eval else { return Ok(()) };
        let name = of.map_or(BASE, |of| &self.nodes[of].name).to_string();
        let mut inputs: Vec<usize> = of.into_iter().collect();
        let mut options = Table::new();
        for (key, value) in &stage.options {
            let site = Site { stage, round, line: stage.line_of(key), in_list: value.is_array() };
            if key == "model" {
                return Err(Error::config("`[eval]` has no `model`: it measures every one")
                    .at(&self.recipe.path, site.line)
                    .hint("leave it out, or write a stage of kind `eval`"));
            }
            if let Some(value) = self.follow(value, &site, &mut inputs)? {
                options.insert(key.clone(), value);
            }
        }
        // Every model is asked the same, with the same draws.
        let seed = stage.options.get("seed").and_then(Value::as_integer);
        options.insert("seed".into(), seed.unwrap_or(self.recipe.seed as i64).into());
        let model = of.map_or_else(|| self.recipe.model.clone(), |of| format!("{MARK}{of}{MARK}"));
        options.insert("model".into(), model.into());
        let lines = stage.lines.clone();
        let line = stage.line;
        let evaluation = self.nodes.len();
        let name = format!("eval-{name}");
        let failures = stage.failures.unwrap_or(self.recipe.failures);
        // How prompts are read is the same for both.
        let reads = |(key, _): &(String, Value)| READING.contains(&key.as_str());
        let read: Vec<_> = options.clone().into_iter().filter(reads).collect();
        let mut inputs_of_drift = inputs.clone();
        let kind = &kind::EVAL;
        self.nodes.push(Node { name, round, kind, options, inputs, of, failures, line, lines });
        let Some(of) = of else { return Ok(()) };
        let mut options = Table::from_iter(read);
        options.insert("model".into(), self.recipe.model.clone().into());
        options.insert("trained".into(), format!("{MARK}{of}{MARK}").into());
        options.insert("samples".into(), format!("{MARK}{evaluation}{MARK}").into());
        let name = format!("drift-{}", self.nodes[of].name);
        inputs_of_drift.push(evaluation);
        let (inputs, of, lines) = (inputs_of_drift, Some(of), BTreeMap::new());
        let kind = &kind::DRIFT;
        self.nodes.push(Node { name, round, kind, options, inputs, of, failures, line, lines });
        Ok(())
    }

    /// An option's value with its references followed; `None` where nothing is left of it.
    fn follow(&self, value: &Value, site: &Site, inputs: &mut Vec<usize>) -> Result<Option<Value>> {
        Ok(match value {
            Value::String(text) => self.texts(text, site, inputs)?.pop().map(Value::String),
            Value::Array(values) => {
                let mut followed = Vec::new();
                for value in values {
                    match value {
                        Value::String(text) => followed
                            .extend(self.texts(text, site, inputs)?.into_iter().map(Value::String)),
                        other => followed.push(other.clone()),
                    }
                }
                // A list of nothing but what is not there yet is as if it were not given.
                (values.is_empty() || !followed.is_empty()).then_some(Value::Array(followed))
            }
            other => Some(other.clone()),
        })
    }

    /// What becomes of a text: one, several in a list, or none.
    fn texts(&self, text: &str, site: &Site, inputs: &mut Vec<usize>) -> Result<Vec<String>> {
        let mut texts = vec![String::new()];
        let is_alone = text.starts_with('{') && text.find('}') == Some(text.len() - 1);
        for piece in pieces(text) {
            let reference = match piece {
                Piece::Text(text) => {
                    texts.iter_mut().for_each(|whole| whole.push_str(text));
                    continue;
                }
                Piece::Reference(reference) => reference,
            };
            let stands = match reference {
                "round" => vec![site.round.to_string()],
                BASE => vec![self.recipe.model.clone()],
                _ => {
                    let found = self.nodes_of(reference, site)?;
                    inputs.extend(&found);
                    let marked = |at: usize| format!("{MARK}{at}{MARK}");
                    match (found.is_empty(), is_alone && reference.starts_with("previous.")) {
                        (true, true) => vec![self.recipe.model.clone()],
                        (true, false) if !site.in_list => {
                            return Err(self.error(site, format!(
                                "`{{{reference}}}` is nothing in round {}", site.round
                            )).hint("put it in a list, where it is left out until it is there; or limit the stage with `rounds`"));
                        }
                        _ => found.into_iter().map(marked).collect(),
                    }
                }
            };
            let joined = |whole: &String| -> Vec<String> {
                stands.iter().map(|part| format!("{whole}{part}")).collect()
            };
            texts = texts.iter().flat_map(joined).collect();
        }
        Ok(texts)
    }

    /// The stages that a reference names, in this round.
    fn nodes_of(&self, reference: &str, site: &Site) -> Result<Vec<usize>> {
        let (word, name) = match reference.split_once('.') {
            Some((word @ ("previous" | "all"), name)) => (Some(word), name),
            Some((word, _)) => {
                return Err(unknown("word before a dot", word, &["previous", "all"])
                    .at(&self.recipe.path, site.line));
            }
            None => (None, reference),
        };
        let names: Vec<&str> = self.recipe.stages.iter().map(|s| s.name.as_str()).collect();
        if !names.contains(&name) {
            let words = if word.is_none() { &[BASE, "round"][..] } else { &[] };
            let names = [words, &names].concat();
            return Err(unknown("stage", name, &names).at(&self.recipe.path, site.line));
        }
        let made = self.newest.get(name).map_or(&[][..], Vec::as_slice);
        match word {
            Some("previous") => {
                let before = made.iter().rfind(|(round, _)| *round < site.round);
                Ok(before.map(|(_, at)| *at).into_iter().collect())
            }
            Some(_) if !site.in_list => Err(self
                .error(site, format!("`{{{reference}}}` may be several, in no list"))
                .hint(format!("write `[\"{{{reference}}}…\"]`"))),
            Some(_) => Ok(made.iter().map(|(_, at)| *at).collect()),
            None => self.newest_of(name, site, made),
        }
    }

    /// `{name}`: of this round, if it stands above, or the newest one before if it takes no part.
    fn newest_of(&self, name: &str, site: &Site, made: &[(usize, usize)]) -> Result<Vec<usize>> {
        let place = |name: &str| self.recipe.stages.iter().position(|stage| stage.name == name);
        let is_above = match site.stage.name.is_empty() {
            true => true,
            false => place(name) < place(&site.stage.name),
        };
        match made.last() {
            Some(&(_, at)) if is_above => Ok(vec![at]),
            _ if name == site.stage.name => {
                Err(self.error(site, format!("`{{{name}}}` in the stage `{name}`: it would need itself"))
                    .hint(format!("`{{previous.{name}}}` is that of the round before")))
            }
            _ if !is_above => Err(self
                .error(site, format!("`{{{name}}}` stands below `{}`, which uses it", site.stage.name))
                .hint(format!(
                    "move it above; or write `{{previous.{name}}}`, which is that of the round before"
                ))),
            _ => Err(self
                .error(site, format!("`{{{name}}}` takes no part in the rounds up to {}", site.round))
                .hint("look at its `rounds`")),
        }
    }

    fn error(&self, site: &Site, message: String) -> Error {
        Error::config(message).at(&self.recipe.path as &Path, site.line)
    }
}

enum Piece<'a> {
    Text(&'a str),
    Reference(&'a str),
}

/// A text taken apart. What is between braces is a reference if it could be a name; `{{name}}` is
/// the text `{name}`.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let mut from = 0;
    while let Some(open) = rest[from..].find('{').map(|at| from + at) {
        let Some(close) = rest[open..].find('}').map(|at| open + at) else { break };
        let name = &rest[open + 1..close];
        let escaped =
            name.strip_prefix('{').is_some_and(is_name) && rest[close + 1..].starts_with('}');
        if escaped {
            found.push(Piece::Text(&rest[..open]));
            found.push(Piece::Text(&rest[open + 1..=close]));
            (rest, from) = (&rest[close + 2..], 0);
        } else if is_name(name) {
            found.push(Piece::Text(&rest[..open]));
            found.push(Piece::Reference(name));
            (rest, from) = (&rest[close + 1..], 0);
        } else {
            from = open + 1;
        }
    }
    found.push(Piece::Text(rest));
    found
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
