//! Instructions from instructions (Wang et al. 2023, "Self-Instruct", section 2).

use halter_core::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::asking::{Asking, prompt_row, remove, whole};
use super::rouge::{rouge_l, words};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/self-instruct.txt");
/// Of the paper's own filter: what a model of text alone cannot do.
const BLOCKED: [&str; 15] = [
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps",
    "draw", "plot", "video", "audio", "music",
];

/// Shows instructions, and keeps the new ones of a reply that are unlike all before.
#[derive(Debug)]
pub(super) struct SelfInstruct {
    asking: Asking,
    prompt: Template,
    rounds: usize,
    requests: usize,
    /// Given instructions in a request, and those generated before.
    shown: (usize, usize),
    per_request: usize,
    max_similarity: f64,
    num_words: (usize, usize),
    blocked: Vec<String>,
    count: usize,
}

impl SelfInstruct {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let rounds = options.within("rounds", 3, 1..=10_000)?;
        let requests = options.within("requests_per_round", 10, 1..=100_000)?;
        let step = Self {
            prompt: Template::read(options, "prompt", PROMPT)?,
            rounds,
            requests,
            shown: (options.or("seeds_shown", 6)?, options.or("generated_shown", 2)?),
            per_request: options.within("per_request", 8, 1..=100)?,
            max_similarity: options.within("max_similarity", 0.7, 0.0..=1.0)?,
            num_words: (options.or("min_words", 4)?, options.or("max_words", 150)?),
            blocked: options.or("blocked", BLOCKED.map(String::from).to_vec())?,
            count: options.or("count", usize::MAX >> 1)?,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::Fixed(rounds.saturating_mul(requests)),
        })
    }

    /// Why an instruction is not taken.
    fn fault(&self, text: &str, pool: &[(String, Vec<String>)]) -> Option<(&'static str, String)> {
        let own = words(text);
        if let Some(word) = own.iter().find(|word| self.blocked.contains(word)) {
            return Some(("blocked word", format!("`{word}`: {text}")));
        }
        let (least, most) = self.num_words;
        if !(least..=most).contains(&own.len()) {
            return Some(("length", format!("{} words: {text}", own.len())));
        }
        let near = pool.iter().find(|(_, other)| rouge_l(&own, other) >= self.max_similarity);
        near.map(|(other, _)| ("similar", format!("{text} — like: {other}")))
    }
}

/// The items of a numbered list that goes on after `first`, items of several lines included.
fn items(reply: &str, first: usize) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in reply.lines() {
        let start = line.trim_start();
        let start = start.strip_prefix("Task ").unwrap_or(start);
        let mark = format!("{}", first + items.len());
        let after = start.strip_prefix(&mark).and_then(|rest| rest.strip_prefix(['.', ')', ':']));
        match (after, items.last_mut()) {
            (Some(text), _) => items.push(text.trim().to_string()),
            (None, Some(item)) => {
                item.push('\n');
                item.push_str(line.trim_end());
            }
            (None, None) => {}
        }
    }
    items.iter().map(|item| reply::bare(item).to_string()).collect()
}

impl Step for SelfInstruct {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut random = ChaCha8Rng::seed_from_u64(run.seed);
        let mut pool: Vec<(String, Vec<String>)> = Vec::new();
        let mut from: Vec<Row> = Vec::new();
        for row in rows {
            match reply::instruction(&row) {
                Some(text) => {
                    pool.push((text.clone(), words(&text)));
                    from.push(row);
                }
                None => remove(&mut outcome, &row, "no prompt", "expected an instruction"),
            }
        }
        let seeds = from.len();
        for round in 0..self.rounds {
            if from.len() - seeds >= self.count || seeds == 0 {
                break;
            }
            let mut questions = Vec::new();
            let mut parents = Vec::new();
            for request in 0..self.requests {
                let mut old: Vec<usize> = (0..seeds).collect();
                let mut new: Vec<usize> = (seeds..pool.len()).collect();
                old.shuffle(&mut random);
                new.shuffle(&mut random);
                old.truncate(self.shown.0.max(1));
                old.extend(new.into_iter().take(self.shown.1));
                old.shuffle(&mut random);
                let shown: Vec<&String> = old.iter().map(|&at| &pool[at].0).collect();
                let names = json!({"instructions": shown, "count": self.per_request,
                                   "next": shown.len() + 1});
                let text = self.prompt.render(&names)?;
                let draw = format!("{round} {request}");
                questions.push(self.asking.user(&text, run.seed, draw));
                parents.push(old);
            }
            let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
            for (shown, answer) in parents.into_iter().zip(answers) {
                let parents: Vec<&Row> = shown.iter().map(|&at| &from[at]).collect();
                let mut blank = Row::default();
                self.asking.sign(
                    &mut blank,
                    "self-instruct",
                    run,
                    Some(&self.prompt.hash),
                    &parents,
                );
                let cut = answer.as_ref().is_ok_and(|answer| !answer.is_whole());
                // A list that was cut has whole items before its last one.
                let text = match answer {
                    Ok(answer) if cut => answer.text().to_string(),
                    answer => match whole(answer, &blank, &mut outcome) {
                        Some(text) => text,
                        None => continue,
                    },
                };
                let mut found = items(&text, shown.len() + 1);
                if found.is_empty() {
                    found = items(&text, 1);
                }
                if cut {
                    found.pop();
                }
                if found.is_empty() {
                    remove(&mut outcome, &blank, "no list", &text);
                }
                for text in found.into_iter().take(self.per_request) {
                    let mut row = prompt_row(&text);
                    row.set("provenance", blank.0["provenance"].clone());
                    match self.fault(&text, &pool) {
                        Some((reason, detail)) => remove(&mut outcome, &row, reason, &detail),
                        None if from.len() - seeds >= self.count => {}
                        None => {
                            pool.push((text.clone(), words(&text)));
                            from.push(row);
                        }
                    }
                }
            }
        }
        outcome.figures.insert("seeds".into(), Value::from(seeds));
        outcome.rows = from.split_off(seeds);
        Ok(outcome)
    }
}
