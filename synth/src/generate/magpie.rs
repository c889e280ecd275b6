//! Prompts out of nothing (Xu et al. 2024, "Magpie", section 2): an aligned model that is given the
//! beginning of the user's turn writes what users ask.

use std::collections::HashSet;

use halter_core::Result;
use halter_core::data::record::Turn;

use super::asking::{Asking, prompt_row, remove, said};
use super::template::hash;
use super::{Made, Questions};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

/// Chat templates: name, beginning of a conversation without a system prompt, a system prompt's
/// beginning and end, beginning of the user's turn, end of a turn.
const TEMPLATES: [(&str, &str, [&str; 2], &str, &str); 3] = [
    ("chatml", "", ["<|im_start|>system\n", "<|im_end|>\n"], "<|im_start|>user\n", "<|im_end|>"),
    (
        "llama-3",
        "<|begin_of_text|>",
        ["<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"],
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    ("gemma", "<bos>", ["", ""], "<start_of_turn>user\n", "<end_of_turn>"),
];

/// Draws prompts.
#[derive(Debug)]
pub(super) struct Magpie {
    asking: Asking,
    prefix: String,
    stop: Vec<String>,
    count: usize,
    num_chars: (usize, usize),
}

impl Magpie {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 1.0)?;
        let count = options.within("count", 100, 1..=10_000_000)?;
        let system: Option<String> = options.get("system")?;
        let prefix: Option<String> = options.get("prefix")?;
        let name = options.or("template", "chatml".to_string())?;
        let (prefix, end) = match prefix {
            Some(prefix) => (prefix, None),
            None => {
                let found = TEMPLATES.iter().find(|template| template.0 == name);
                let Some((_, begin, [before, after], user, end)) = found else {
                    let names = TEMPLATES.map(|template| template.0).join(", ");
                    let why = format!("expected one of {names}, got `{name}`");
                    return Err(options
                        .wrong("template", &why)
                        .hint("or give the text in `prefix`"));
                };
                let system = match (&system, before.is_empty()) {
                    (Some(_), true) => {
                        let why = format!("the template `{name}` has no system prompt");
                        return Err(options.wrong("system", &why));
                    }
                    (Some(text), false) => format!("{before}{text}{after}"),
                    (None, _) => String::new(),
                };
                (format!("{begin}{system}{user}"), Some(end.to_string()))
            }
        };
        let step = Self {
            prefix,
            stop: options.or("stop", end.into_iter().collect())?,
            count,
            num_chars: (options.or("min_chars", 10)?, options.or("max_chars", 4000)?),
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: false,
            questions: Questions::Fixed(count),
        })
    }
}

impl Step for Magpie {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        // Rows before it go through: prompts may come from several places.
        let mut outcome = Outcome { rows, ..Outcome::default() };
        let questions: Vec<_> = (0..self.count)
            .map(|draw| {
                let prompt = Turn::Text(self.prefix.clone());
                let mut question = self.asking.question(prompt, run.seed, draw);
                question.stop.clone_from(&self.stop);
                question
            })
            .collect();
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        let (hash, mut seen) = (hash(&self.prefix), HashSet::new());
        for answer in answers {
            let mut blank = Row::default();
            self.asking.sign(&mut blank, "magpie", run, &hash, &[]);
            let Some(text) = said(answer, &blank, &mut outcome) else { continue };
            let mut row = prompt_row(&text);
            row.set("provenance", blank.0["provenance"].clone());
            let (least, most) = self.num_chars;
            let chars = text.chars().count();
            if text.contains("<|") || self.stop.iter().any(|stop| text.contains(stop)) {
                remove(&mut outcome, &row, "template token", &text);
            } else if !(least..=most).contains(&chars) {
                remove(&mut outcome, &row, "length", &format!("{chars} characters"));
            } else if !seen.insert(text.clone()) {
                remove(&mut outcome, &row, "repeated", &text);
            } else {
                outcome.rows.push(row);
            }
        }
        Ok(outcome)
    }
}
