//! Pairs: several teachers answer, and a judge compares in both orders, since judges prefer a place
//! (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4).

use halter_core::Result;
use halter_core::data::record::Message;
use serde_json::{Value, json};

use super::asking::{Asking, remove, said, teacher, whole};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/compare.txt");
/// By the least margin of both orders' mean, from 0 to 4 ("The Llama 3 Herd of Models", 4.2.1).
const STRENGTHS: [(f64, &str); 4] = [
    (3.0, "significantly better"),
    (2.0, "better"),
    (1.0, "slightly better"),
    (0.0, "marginally better"),
];

/// Answers each prompt by each teacher, and compares them two by two.
#[derive(Debug)]
pub(super) struct Preferences {
    asking: Asking,
    teachers: Vec<String>,
    samples: usize,
    judge: Asking,
    prompt: Template,
    least: f64,
}

impl Preferences {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let all = || teachers.iter().map(|name| name.to_string()).collect();
        let named: Vec<String> = options.get("teachers")?.unwrap_or_else(all);
        let judge = teacher(options, "judge", teachers)?;
        let samples = options.within("samples", 1, 1..=100)?;
        let answers = named.len().saturating_mul(samples);
        if answers < 2 {
            let why = "expected at least two answers to compare";
            return Err(options
                .wrong("teachers", why)
                .hint("name more teachers, or raise `samples`"));
        }
        let first: Vec<&str> = named.iter().map(String::as_str).take(1).collect();
        let asking = Asking::read(options, &first, 1.0)?;
        let pairs = answers.saturating_mul(answers - 1) / 2;
        let mut everybody = named.clone();
        everybody.push(judge.clone());
        everybody.sort();
        everybody.dedup();
        let step = Self {
            teachers: named,
            samples,
            judge: asking.of(&judge).greedy(),
            prompt: Template::read(options, "prompt", PROMPT)?,
            least: options.within("min_margin", 0.5, 0.0..=4.0)?,
            asking,
        };
        Ok(Made {
            step: Box::new(step),
            teachers: everybody,
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(answers.saturating_add(pairs.saturating_mul(2))),
        })
    }

    fn compare(&self, prompt: &[Message], first: &str, second: &str) -> Result<String> {
        let turns: Vec<Value> = prompt.iter().map(|turn| Value::Object(turn.0.clone())).collect();
        self.prompt.render(&json!({"prompt": turns, "first": first, "second": second}))
    }
}

impl Step for Preferences {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut prompts = Vec::new();
        for row in &rows {
            match reply::prompt(row) {
                Some(turns) => prompts.push((row, turns, Vec::<(usize, String)>::new())),
                None => remove(&mut outcome, row, "no prompt", "expected `prompt` or `messages`"),
            }
        }
        for (number, name) in self.teachers.iter().enumerate() {
            let asking = self.asking.of(name);
            let questions: Vec<_> = prompts
                .iter()
                .flat_map(|(_, turns, _)| (0..self.samples).map(|draw| (turns.clone(), draw)))
                .map(|(turns, draw)| asking.chat(turns, run.seed, draw))
                .collect();
            let answers = asking.ask(&questions, run, &mut outcome.figures)?;
            for (at, answer) in answers.into_iter().enumerate() {
                let (row, _, said) = &mut prompts[at / self.samples];
                if let Some(text) = whole(answer, row, &mut outcome) {
                    said.push((number, text));
                }
            }
        }
        let (mut questions, mut asked) = (Vec::new(), Vec::new());
        for (row, turns, said) in &prompts {
            for (at, a) in said.iter().enumerate() {
                for b in &said[at + 1..] {
                    if a.1 == b.1 {
                        remove(&mut outcome, row, "equal answers", &a.1);
                        continue;
                    }
                    for (first, second) in [(a, b), (b, a)] {
                        let text = self.compare(turns, &first.1, &second.1)?;
                        questions.push(self.judge.user(&text, run.seed, 0));
                    }
                    asked.push((*row, turns, a, b));
                }
            }
        }
        let mut verdicts = self.judge.ask(&questions, run, &mut outcome.figures)?.into_iter();
        for (row, turns, a, b) in asked {
            let both = [verdicts.next(), verdicts.next()].map(|answer| {
                let said = said(answer?, row, &mut outcome)?;
                let verdict = reply::score(&said, "verdict:", -4.0, 4.0);
                if verdict.is_none() {
                    remove(&mut outcome, row, "no verdict", &said);
                }
                verdict
            });
            let [Some(forth), Some(back)] = both else { continue };
            // The second answer's lead in the second order is the first one's.
            let (forth, back) = (forth, -back);
            let margin = (forth + back) / 2.0;
            if forth * back <= 0.0 {
                remove(&mut outcome, row, "order decides", &format!("`{forth}` and `{back}`"));
                continue;
            }
            if margin.abs() < self.least {
                remove(&mut outcome, row, "small margin", &format!("`{margin}`"));
                continue;
            }
            let (chosen, rejected) = if margin > 0.0 { (a, b) } else { (b, a) };
            let strength = STRENGTHS.iter().find(|(least, _)| margin.abs() >= *least);
            let said = |text: &str| json!([{"role": "assistant", "content": text}]);
            let mut made = Row::default();
            let turns: Vec<Value> = turns.iter().map(|t| Value::Object(t.0.clone())).collect();
            made.set("prompt", turns);
            made.set("chosen", said(&chosen.1));
            made.set("rejected", said(&rejected.1));
            made.set("strength", strength.map_or("marginally better", |(_, name)| name));
            let model = |(number, _): &(usize, String)| {
                run.teachers.get(&self.teachers[*number]).map(|t| t.name().to_string())
            };
            made.set("chosen_model", json!(model(chosen)));
            made.set("rejected_model", json!(model(rejected)));
            self.judge.sign(&mut made, "preferences", run, &self.prompt.hash, &[row]);
            let of = |(number, _): &(usize, String)| self.asking.of(&self.teachers[*number]);
            of(chosen).sign_as(&mut made, "chosen", run);
            of(rejected).sign_as(&mut made, "rejected", run);
            outcome.rows.push(made);
        }
        Ok(outcome)
    }
}
