//! `judge`: a model's marks on the paper's scales (Llama 3, section 4.2.3, quality scoring).

mod verdict;

use halter_core::Result;
use halter_core::endpoint::Answer;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::dialogue::{Dialogue, Part};
use super::options::{self, Checked, wrong};
use super::refusals::refusal;
use crate::asking::{Asking, after_thinking};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};
use crate::template::Template;
use verdict::Criterion;

/// What a mark can be given for.
const GENERAL: [Criterion; 3] = [
    Criterion { name: "accuracy", asks: "everything stated is correct, and nothing is made up" },
    Criterion {
        name: "instruction following",
        asks: "all that was asked is done, and nothing that was not asked",
    },
    Criterion {
        name: "tone",
        asks: "tone and presentation fit: clear, to the point, well set out, courteous",
    },
];
const CODE: [Criterion; 2] = [
    Criterion { name: "bug identification", asks: "the code has no bugs: it runs and is right" },
    Criterion {
        name: "user intention",
        asks: "the code does what the user wants it for, as the user wants it",
    },
];

/// Asked where no template is given.
const PROMPT: &str = include_str!("../../../prompts/judge.txt");

/// On which scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Accuracy, instruction following, tone: three points.
    #[default]
    General,
    /// Bug identification, user intention: two points.
    Code,
    /// `code` where an answer has a code fence, else `general`.
    Auto,
}

/// Asks a teacher for a point for each criterion, writes what it gave, and keeps the rows whose
/// share of the points reaches the threshold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Judge {
    /// The teacher's name in the pipeline; may be left out where there is only one.
    pub teacher: String,
    /// The scale.
    pub scale: Scale,
    /// The share of the points that a row needs; 1: all of them.
    pub threshold: f64,
    /// Whether rows below it are removed, or all are only marked.
    pub remove: bool,
    /// Whether rows stay, without a mark, where the judge gave no verdict.
    pub keep_unjudged: bool,
    /// Where the share of the points is written. Beside it `judge` holds each point.
    pub column: String,
    /// What the judge is asked: a template that shows `dialogue`, `criteria` and `form`.
    pub prompt: String,
    /// Most tokens of a verdict.
    pub max_new_tokens: usize,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            teacher: String::new(),
            scale: Scale::General,
            threshold: 1.0,
            remove: true,
            keep_unjudged: false,
            column: "quality".into(),
            prompt: PROMPT.into(),
            max_new_tokens: 512,
        }
    }
}

impl Checked for Judge {
    fn check(&self) -> Result<()> {
        options::share("threshold", self.threshold)?;
        options::column("column", &self.column)?;
        if self.max_new_tokens == 0 {
            return Err(wrong("max_new_tokens", "a number from 1", 0));
        }
        Template::showing("prompt", &self.prompt, &["dialogue", "form"]).map(drop)
    }

    fn questions(&self) -> usize {
        1
    }
}

impl Judge {
    fn criteria(&self, dialogue: &Dialogue) -> &'static [Criterion] {
        let has_code = || dialogue.text(Part::Answer).contains("```");
        match self.scale {
            Scale::Code => &CODE,
            Scale::Auto if has_code() => &CODE,
            Scale::General | Scale::Auto => &GENERAL,
        }
    }

    fn asked(
        &self,
        template: &Template,
        dialogue: &Dialogue,
        criteria: &[Criterion],
    ) -> Result<String> {
        let each = |line: fn(&Criterion) -> String| {
            criteria.iter().map(line).collect::<Vec<_>>().join("\n")
        };
        let told = each(|criterion| format!("- {}: {}", criterion.name, criterion.asks));
        let form = each(|criterion| format!("{}: N", criterion.name));
        template.render(&json!({"dialogue": dialogue.shown(), "criteria": told, "form": form}))
    }
}

/// Counts for the report.
#[derive(Default)]
struct Figures {
    points: std::collections::BTreeMap<&'static str, usize>,
    judged: usize,
    refused: usize,
    unreadable: usize,
}

impl Figures {
    /// The points of an answer, or the reason why there are none, which is counted.
    fn read(
        &mut self,
        answer: Result<Answer>,
        criteria: &[Criterion],
    ) -> Result<Vec<bool>, (&'static str, String)> {
        let answer = answer.map_err(|error| ("no answer", error.to_string()))?;
        let said = after_thinking(answer.text());
        verdict::read(said, criteria).map_err(|told| {
            let refused = refusal(said).is_some();
            self.refused += usize::from(refused);
            self.unreadable += usize::from(!refused);
            (if refused { "the judge refused" } else { "no verdict" }, told)
        })
    }

    fn told(self) -> Map<String, Value> {
        let pairs = [
            ("judged", json!(self.judged)),
            ("points", json!(self.points)),
            ("judge_refused", json!(self.refused)),
            ("unreadable_verdicts", json!(self.unreadable)),
        ];
        pairs.map(|(name, value)| (name.to_string(), value)).into_iter().collect()
    }
}

impl Step for Judge {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let asking = Asking::likeliest(&self.teacher, self.max_new_tokens);
        let template = Template::showing("prompt", &self.prompt, &["dialogue", "form"])?;
        let mut outcome = Outcome::default();
        let mut asked: Vec<(Row, &[Criterion])> = Vec::new();
        let mut questions = Vec::new();
        for row in rows {
            match Dialogue::of(&row) {
                Ok(dialogue) => {
                    let criteria = self.criteria(&dialogue);
                    let text = self.asked(&template, &dialogue, criteria)?;
                    questions.push(asking.once(&text));
                    asked.push((row, criteria));
                }
                Err(error) => {
                    let detail = error.to_string();
                    outcome.removed.push(Removed { row, reason: "unreadable", detail });
                }
            }
        }
        let answers = asking.ask(&questions, run, &mut outcome.figures)?;
        let mut figures = Figures::default();
        for ((mut row, criteria), answer) in asked.into_iter().zip(answers) {
            let verdict = figures.read(answer, criteria);
            match verdict {
                Ok(points) => {
                    figures.judged += 1;
                    let before = row.clone();
                    let share = mark(&mut row, &self.column, criteria, &points);
                    asking.sign(&mut row, "judge", run, &template.hash, &[&before]);
                    for (criterion, point) in criteria.iter().zip(&points) {
                        *figures.points.entry(criterion.name).or_default() += usize::from(*point);
                    }
                    if share + 1e-9 >= self.threshold || !self.remove {
                        outcome.rows.push(row);
                        continue;
                    }
                    let detail = lost(criteria, &points);
                    outcome.removed.push(Removed { row, reason: "below the threshold", detail });
                }
                Err(_) if self.keep_unjudged => outcome.rows.push(row),
                Err((reason, detail)) => outcome.removed.push(Removed { row, reason, detail }),
            }
        }
        outcome.figures.extend(figures.told());
        Ok(outcome)
    }
}

/// Writes the points into the row; their share.
fn mark(row: &mut Row, column: &str, criteria: &[Criterion], points: &[bool]) -> f64 {
    let sum = points.iter().filter(|point| **point).count();
    let share = sum as f64 / criteria.len() as f64;
    let mut marks: Map<String, Value> = criteria
        .iter()
        .zip(points)
        .map(|(criterion, point)| (criterion.name.replace(' ', "_"), json!(u8::from(*point))))
        .collect();
    marks.insert("points".into(), json!(sum));
    marks.insert("of".into(), json!(criteria.len()));
    row.set("judge", marks);
    row.set(column, share);
    share
}

/// The criteria that got no point.
fn lost(criteria: &[Criterion], points: &[bool]) -> String {
    let missing = criteria.iter().zip(points).filter(|(_, point)| !**point);
    format!("no point for {}", missing.map(|(c, _)| c.name).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, removed, try_run};

    const FULL: &str = "All well.\naccuracy: 1\ninstruction following: 1\ntone: 1";
    const RUDE: &str = "Rude.\naccuracy: 1\ninstruction following: 1\ntone: 0";

    fn script() -> Vec<(&'static str, &'static str)> {
        vec![
            ("good row", FULL),
            ("rude row", RUDE),
            ("vague row", "It is quite good, 8/10."),
            ("bad row", "I'm sorry, but I can't judge this."),
            ("code row", "Works.\nbug identification: 1\nuser intention: 1"),
        ]
    }

    fn rows() -> Vec<crate::Row> {
        let names = ["good row", "rude row", "vague row", "bad row", "lost row"];
        names.map(|name| chat(name, "An answer.")).to_vec()
    }

    #[test]
    fn only_the_best_mark_stays_and_everything_else_has_its_reason() {
        let outcome = try_run("judge", "", rows(), script()).unwrap();
        assert_eq!(prompts(&outcome.rows), ["good row"]);
        assert_eq!(outcome.rows[0].0["quality"], 1.0);
        assert_eq!(outcome.rows[0].0["judge"]["tone"], 1);
        let origin = &outcome.rows[0].0["provenance"][0];
        assert_eq!((&origin["kind"], &origin["model"]), (&"judge".into(), &"scripted".into()));
        assert_eq!(origin["parents"][0], rows()[0].id());
        let told: Vec<_> =
            removed(&outcome).into_iter().map(|(_, r, detail)| (r, detail)).collect();
        assert_eq!(told[0], ("below the threshold", "no point for tone".into()));
        assert_eq!(told[1].0, "no verdict");
        assert!(told[1].1.contains("8/10"), "{told:?}");
        assert_eq!(told[2].0, "the judge refused");
        assert_eq!(told[3], ("no answer", "server said 500".into()));
        let figures = ["judged", "judge_refused", "unreadable_verdicts", "no_answer"];
        assert_eq!(figures.map(|name| outcome.figures[name].as_u64()), [2, 1, 1, 1].map(Some));
        assert_eq!(outcome.figures["points"]["accuracy"], 2);
    }

    #[test]
    fn a_threshold_or_marks_alone_let_more_through() {
        let two_thirds = try_run("judge", "threshold = 0.66", rows(), script()).unwrap();
        assert_eq!(prompts(&two_thirds.rows), ["good row", "rude row"]);
        let options = "remove = false\nkeep_unjudged = true\nteacher = 'teacher'";
        let marked = try_run("judge", options, rows(), script()).unwrap();
        assert_eq!(marked.rows.len(), 5);
        assert!(marked.rows[1].0["quality"].as_f64().unwrap() < 0.67);
        assert!(!marked.rows[2].0.contains_key("quality"));
    }

    #[test]
    fn code_is_judged_on_its_own_scale() {
        let rows = vec![chat("code row", "```py\nx = 1\n```"), chat("good row", "x")];
        let outcome = try_run("judge", "scale = 'auto'", rows, script()).unwrap();
        assert_eq!(outcome.rows[0].0["judge"]["of"], 2);
        assert_eq!(outcome.rows[1].0["judge"]["of"], 3);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let told = |options| {
            let error = try_run("judge", options, rows(), script()).unwrap_err();
            error.message().to_string()
        };
        assert!(told("prompt = 'Good?'").starts_with("judge: `prompt`: expected a template with"));
        assert!(told("threshold = 0.0").starts_with("judge: `threshold`"));
        assert!(told("teacher = 'none'").contains("no teacher is called `none`"));
    }
}
