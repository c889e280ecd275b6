//! Instructions that become harder (Xu et al. 2023, "WizardLM", sections 3.2 and 3.3).

use halter_core::Result;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::asking::{Asking, prompt_row, remove, said};
use super::rouge::words;
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const DEPTH: &str = include_str!("../../prompts/evolve-depth.txt");
const BREADTH: &str = include_str!("../../prompts/evolve-breadth.txt");

/// What is asked of an evolution, by its name.
const WAYS: [(&str, &str); 6] = [
    ("constraints", "Add one more constraint or requirement."),
    ("deepen", "If it asks about something, ask about it in more depth and breadth."),
    ("concretize", "Replace general concepts by more specific ones."),
    (
        "reasoning",
        "If it can be solved by a few simple steps, ask explicitly for reasoning in several steps.",
    ),
    (
        "complicate-input",
        "Add data to work on, such as a table, code, a formula or a text, in a form that fits.",
    ),
    ("breadth", ""),
];
/// What shows that a reply speaks of the request.
const LEAKS: [&str; 6] =
    ["given prompt", "rewritten prompt", "#given", "#rewritten", "#created", "created prompt"];

/// Rewrites each instruction `rounds` times.
#[derive(Debug)]
pub(super) struct EvolInstruct {
    asking: Asking,
    depth: Template,
    breadth: Template,
    rounds: usize,
    ways: Vec<String>,
    keep_original: bool,
}

impl EvolInstruct {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let rounds = options.within("rounds", 4, 1..=100)?;
        let ways: Vec<String> =
            options.or("ways", WAYS.map(|(name, _)| name.to_string()).to_vec())?;
        let unknown = |way: &&String| !WAYS.iter().any(|(name, _)| name == way);
        if let Some(way) = ways.iter().find(unknown) {
            let names = WAYS.map(|(name, _)| name).join(", ");
            return Err(options.wrong("ways", &format!("expected some of {names}, got `{way}`")));
        }
        if ways.is_empty() {
            return Err(options.wrong("ways", "expected at least one"));
        }
        let step = Self {
            depth: Template::read(options, "prompt", DEPTH)?,
            breadth: Template::read(options, "breadth_prompt", BREADTH)?,
            rounds,
            ways,
            keep_original: options.or("keep_original", true)?,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(rounds),
        })
    }
}

/// Why an evolution failed (the paper's elimination); the answers are looked at by later steps.
fn fault(before: &str, after: &str) -> Option<&'static str> {
    let lower = after.to_lowercase();
    let own = words(after);
    if own == words(before) {
        return Some("nothing gained");
    }
    if LEAKS.iter().any(|leak| lower.contains(leak)) {
        return Some("speaks of the request");
    }
    if own.len() < 3 {
        return Some("too short");
    }
    let refuses = ["sorry", "i cannot", "i can't", "as an ai"];
    (own.len() < 80
        && refuses
            .iter()
            .any(|words| lower.starts_with(words) || lower.starts_with(&format!("i'm {words}"))))
    .then_some("refusal")
}

impl Step for EvolInstruct {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut random = ChaCha8Rng::seed_from_u64(run.seed);
        let mut current: Vec<(Row, String)> = Vec::new();
        for row in rows {
            match reply::instruction(&row) {
                Some(text) => current.push((row, text)),
                None => remove(&mut outcome, &row, "no prompt", "expected an instruction"),
            }
        }
        if self.keep_original {
            let plain = |(row, text): &(Row, String)| {
                let mut made = prompt_row(text);
                if let Some(before) = row.0.get("provenance") {
                    made.set("provenance", before.clone());
                }
                made
            };
            outcome.rows = current.iter().map(plain).collect();
        }
        for round in 0..self.rounds {
            let mut questions = Vec::new();
            let mut hashes = Vec::new();
            for (at, (_, text)) in current.iter().enumerate() {
                let way = self.ways.choose(&mut random).map_or("deepen", String::as_str);
                let how = WAYS.iter().find(|(name, _)| *name == way).map_or("", |(_, how)| how);
                let template = if way == "breadth" { &self.breadth } else { &self.depth };
                let names = json!({"instruction": text, "how": how});
                let draw = format!("{round} {at}");
                questions.push(self.asking.user(&template.render(&names)?, run.seed, draw));
                hashes.push(&template.hash);
            }
            let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
            for (((row, text), answer), hash) in current.iter_mut().zip(answers).zip(hashes) {
                let Some(reply) = said(answer, row, &mut outcome) else { continue };
                let new = reply::bare(&reply);
                if let Some(reason) = fault(text, new) {
                    // It goes on from what it was.
                    remove(&mut outcome, row, reason, new);
                    continue;
                }
                let mut made = prompt_row(new);
                self.asking.sign(&mut made, "evol-instruct", run, hash, &[row]);
                outcome.rows.push(made.clone());
                (*row, *text) = (made, new.to_string());
            }
        }
        Ok(outcome)
    }
}
