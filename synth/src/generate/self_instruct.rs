//! Instructions from instructions (Wang et al. 2023, "Self-Instruct", section 2).

use std::collections::HashMap;

use halter_core::Result;
use halter_core::train::progress::Unit;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::asking::{Asking, after_thinking, prompt_row, remove, said};
use super::rouge::{rouge_l, rouge_l_bound, words};
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
    fn fault(&self, text: &str, pool: &mut Pool) -> Option<(&'static str, String)> {
        let own = words(text);
        if let Some(word) = own.iter().find(|word| self.blocked.contains(word)) {
            return Some(("blocked word", format!("`{word}`: {text}")));
        }
        let (least, most) = self.num_words;
        if !(least..=most).contains(&own.len()) {
            return Some(("length", format!("{} words: {text}", own.len())));
        }
        let other = pool.like(&own, self.max_similarity)?;
        Some(("similar", format!("{text} — like: {other}")))
    }
}

/// Instructions so far, with their words as numbers.
#[derive(Default)]
struct Pool {
    texts: Vec<String>,
    words: Vec<Vec<u32>>,
    numbers: HashMap<String, u32>,
}

impl Pool {
    fn add(&mut self, text: &str) {
        let numbers = self.numbers(&words(text));
        self.texts.push(text.to_string());
        self.words.push(numbers);
    }

    fn numbers(&mut self, words: &[String]) -> Vec<u32> {
        let mut number = |word: &String| {
            let next = self.numbers.len() as u32;
            *self.numbers.entry(word.clone()).or_insert(next)
        };
        words.iter().map(&mut number).collect()
    }

    /// The first that is as similar as `least` to a text of these words.
    fn like(&mut self, words: &[String], least: f64) -> Option<&str> {
        let own = self.numbers(words);
        let is_like = |other: &Vec<u32>| {
            rouge_l_bound(own.len(), other.len()) >= least && rouge_l(&own, other) >= least
        };
        let at = self.words.par_iter().position_first(is_like)?;
        Some(&self.texts[at])
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
        let mut pool = Pool::default();
        let mut from: Vec<Row> = Vec::new();
        for row in rows {
            match reply::instruction(&row) {
                Some(text) => {
                    pool.add(&text);
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
                let mut new: Vec<usize> = (seeds..from.len()).collect();
                old.shuffle(&mut random);
                new.shuffle(&mut random);
                old.truncate(self.shown.0.max(1));
                old.extend(new.into_iter().take(self.shown.1));
                old.shuffle(&mut random);
                let shown: Vec<&String> = old.iter().map(|&at| &pool.texts[at]).collect();
                let names = json!({"instructions": shown, "count": self.per_request,
                                   "next": shown.len() + 1});
                let text = self.prompt.render(&names)?;
                let draw = format!("{round} {request}");
                questions.push(self.asking.user(&text, run.seed, draw));
                parents.push(old);
            }
            let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
            run.progress.begin("comparing instructions", answers.len() as u64, Unit::Items);
            for (at, (shown, answer)) in parents.into_iter().zip(answers).enumerate() {
                run.interrupt.check()?;
                run.progress.advance(at as u64, "");
                let parents: Vec<&Row> = shown.iter().map(|&at| &from[at]).collect();
                let mut blank = Row::default();
                self.asking.sign(&mut blank, "self-instruct", run, &self.prompt.hash, &parents);
                let cut = answer.as_ref().is_ok_and(|answer| !answer.is_whole());
                // A list that was cut has whole items before its last one.
                let text = match answer {
                    Ok(answer) if cut => after_thinking(answer.text()).to_string(),
                    answer => match said(answer, &blank, &mut outcome) {
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
                for (number, text) in found.into_iter().enumerate() {
                    let mut row = prompt_row(&text);
                    row.set("provenance", blank.0["provenance"].clone());
                    if number >= self.per_request {
                        remove(&mut outcome, &row, "beyond `per_request`", &text);
                    } else if from.len() - seeds >= self.count {
                        remove(&mut outcome, &row, "beyond `count`", &text);
                    } else if let Some((reason, detail)) = self.fault(&text, &mut pool) {
                        remove(&mut outcome, &row, reason, &detail);
                    } else {
                        pool.add(&text);
                        from.push(row);
                    }
                }
            }
            run.progress.finish();
        }
        outcome.figures.insert("seeds".into(), Value::from(seeds));
        outcome.rows = from.split_off(seeds);
        Ok(outcome)
    }
}
