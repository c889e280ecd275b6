//! `tag`: intentions by name, and how difficult a row is (Llama 3, section 4.2.3, difficulty scoring;
//! Lu et al. 2023, "#InsTag").

use std::collections::{BTreeMap, BTreeSet};

use halter_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::dialogue::Dialogue;
use super::options::{Checked, wrong};
use super::words::{excerpt, normalised};
use crate::asking::{Asking, after_thinking};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};
use crate::template::Template;

const TAGS: &str = include_str!("../../prompts/tags.txt");

const DIFFICULTY: &str = include_str!("../../prompts/difficulty.txt");

/// Asks a teacher for the intentions of each row (column `tags`, and their number in `num_tags`) and
/// for its difficulty on three points (`difficulty`). More intentions mean a more complex row.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tag {
    /// The teacher's name in the pipeline; may be left out where there is only one.
    pub teacher: String,
    /// Ask for tags.
    pub tags: bool,
    /// Ask for the difficulty.
    pub difficulty: bool,
    /// Tags that fewer rows have are left out.
    pub min_tag_rows: usize,
    /// Rows stay where the answer cannot be read; without the column.
    pub keep_untagged: bool,
    /// What is asked for tags, a template that shows `dialogue`.
    pub tags_prompt: String,
    /// What is asked for the difficulty, a template that shows `dialogue`.
    pub difficulty_prompt: String,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
}

impl Default for Tag {
    fn default() -> Self {
        Self {
            teacher: String::new(),
            tags: true,
            difficulty: true,
            min_tag_rows: 1,
            keep_untagged: false,
            tags_prompt: TAGS.into(),
            difficulty_prompt: DIFFICULTY.into(),
            max_new_tokens: 256,
        }
    }
}

impl Checked for Tag {
    fn check(&self) -> Result<()> {
        if !self.tags && !self.difficulty {
            return Err(wrong("tags", "`true`, or `difficulty = true`", false));
        }
        self.templates()?;
        match self.max_new_tokens {
            0 => Err(wrong("max_new_tokens", "a number from 1", 0)),
            _ => Ok(()),
        }
    }

    fn questions(&self) -> usize {
        usize::from(self.tags) + usize::from(self.difficulty)
    }
}

impl Tag {
    /// What is asked of each row.
    fn templates(&self) -> Result<Vec<Template>> {
        let all = [
            (self.tags, "tags_prompt", &self.tags_prompt),
            (self.difficulty, "difficulty_prompt", &self.difficulty_prompt),
        ];
        let wanted = all.iter().filter(|(wanted, ..)| *wanted);
        wanted.map(|(_, key, prompt)| Template::showing(key, prompt, &["dialogue"])).collect()
    }

    /// The rows that can be shown to a teacher, with what is asked of each.
    fn asked(
        &self,
        templates: &[Template],
        rows: Vec<Row>,
        outcome: &mut Outcome,
    ) -> Result<(Vec<Row>, Vec<String>)> {
        let (mut asked, mut texts) = (Vec::new(), Vec::new());
        for row in rows {
            match Dialogue::of(&row) {
                Ok(dialogue) => {
                    let shown = json!({"dialogue": dialogue.shown()});
                    for template in templates {
                        texts.push(template.render(&shown)?);
                    }
                    asked.push(row);
                }
                Err(error) => {
                    let detail = error.to_string();
                    outcome.removed.push(Removed { row, reason: "unreadable", detail });
                }
            }
        }
        Ok((asked, texts))
    }

    /// Writes what was answered into the row.
    fn write(&self, row: &mut Row, said: &[Result<String>]) -> Result<(), (&'static str, String)> {
        let mut said = said.iter();
        let mut next = || match said.next() {
            Some(Ok(said)) => Ok(said.as_str()),
            Some(Err(error)) => Err(("no answer", error.to_string())),
            None => Err(("no answer", String::new())),
        };
        if self.tags {
            let tags = tags(next()?).map_err(|told| ("no tags", told))?;
            row.set("tags", tags);
        }
        if self.difficulty {
            let points = difficulty(next()?).map_err(|told| ("no difficulty", told))?;
            row.set("difficulty", points);
        }
        Ok(())
    }

    /// Leaves rare tags out and counts the others.
    fn count(&self, rows: &mut [Row]) -> Map<String, Value> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for tag in rows.iter().flat_map(tags_of) {
            *counts.entry(tag.to_string()).or_default() += 1;
        }
        counts.retain(|_, rows| *rows >= self.min_tag_rows);
        for row in rows {
            if row.0.contains_key("tags") {
                let kept = tags_of(row).filter(|tag| counts.contains_key(*tag));
                let kept: Vec<String> = kept.map(str::to_string).collect();
                row.set("num_tags", kept.len());
                row.set("tags", kept);
            }
        }
        let mut common: Vec<_> = counts.into_iter().collect();
        common.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let distinct = common.len();
        common.truncate(50);
        let common: Map<String, Value> =
            common.into_iter().map(|(tag, rows)| (tag, json!(rows))).collect();
        Map::from_iter([
            ("distinct_tags".to_string(), json!(distinct)),
            ("most_common_tags".to_string(), common.into()),
        ])
    }
}

fn tags_of(row: &Row) -> impl Iterator<Item = &str> {
    row.0.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

impl Step for Tag {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let templates = self.templates()?;
        let (asked, texts) = self.asked(&templates, rows, &mut outcome)?;
        let asking = Asking::likeliest(&self.teacher, self.max_new_tokens);
        let questions: Vec<_> = texts.iter().map(|text| asking.once(text)).collect();
        let answers = asking.ask(&questions, run, &mut outcome.figures)?;
        let said: Vec<Result<String>> = answers
            .into_iter()
            .map(|answer| Ok(after_thinking(answer?.text()).to_string()))
            .collect();
        let mut untagged = 0usize;
        for (mut row, said) in asked.into_iter().zip(said.chunks(self.questions())) {
            let before = row.clone();
            match self.write(&mut row, said) {
                Ok(()) => {
                    let hashes: Vec<&str> = templates.iter().map(|t| t.hash.as_str()).collect();
                    asking.sign(&mut row, "tag", run, &hashes.join(" "), &[&before]);
                    outcome.rows.push(row);
                }
                Err((reason, detail)) => {
                    untagged += 1;
                    match self.keep_untagged {
                        true => outcome.rows.push(row),
                        false => outcome.removed.push(Removed { row, reason, detail }),
                    }
                }
            }
        }
        if self.tags {
            let figures = self.count(&mut outcome.rows);
            outcome.figures.extend(figures);
        }
        outcome.figures.insert("untagged".into(), json!(untagged));
        if self.difficulty {
            let mut points: BTreeMap<String, usize> = BTreeMap::new();
            for row in &outcome.rows {
                if let Some(point) = row.0.get("difficulty") {
                    *points.entry(point.to_string()).or_default() += 1;
                }
            }
            outcome.figures.insert("difficulty".into(), json!(points));
        }
        Ok(outcome)
    }
}

/// The tags of an answer: a JSON array of strings, or of objects with a `tag` as InsTag's own prompt
/// gives them, perhaps in a code fence. They are made alike: lower case, no punctuation, once each.
fn tags(said: &str) -> Result<Vec<String>, String> {
    let plain = said.trim().trim_start_matches("```json").trim_matches('`').trim();
    let told = || format!("expected a JSON array of strings, got `{}`", excerpt(said.trim(), 120));
    let values: Vec<Value> = serde_json::from_str(plain).map_err(|_| told())?;
    let mut seen = BTreeSet::new();
    let mut tags = Vec::new();
    for value in &values {
        let text = value.as_str().or_else(|| value.get("tag")?.as_str()).ok_or_else(told)?;
        let tag = normalised(text);
        if !tag.is_empty() && seen.insert(tag.clone()) {
            tags.push(tag);
        }
    }
    match tags.is_empty() {
        true => Err(told()),
        false => Ok(tags),
    }
}

/// The points of an answer: its one line `difficulty: N`.
fn difficulty(said: &str) -> Result<u8, String> {
    let points: Vec<&str> = said
        .lines()
        .filter_map(|line| {
            let line = line.trim_matches([' ', '\t', '*', '_', '`', '-', '#']);
            let head = line.get(.."difficulty".len())?;
            let rest = head.eq_ignore_ascii_case("difficulty").then(|| &line[head.len()..])?;
            let rest = rest.trim_start_matches(['*', '_', ' ']).strip_prefix(':')?;
            Some(rest.trim_matches([' ', '\t', '*', '_', '`', '.']))
        })
        .collect();
    match points.as_slice() {
        ["1"] => Ok(1),
        ["2"] => Ok(2),
        ["3"] => Ok(3),
        _ => Err(format!(
            "expected one line `difficulty: 1`, `2` or `3`, got `{}`",
            excerpt(said.trim(), 120)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::testing::{chat, prompts, removed, try_run};

    fn script() -> Vec<(&'static str, &'static str)> {
        vec![
            (
                "Which intentions does the user have in the conversation below? Name each by a tag of one to four English words, such as `creative writing`, `unit conversion` or `error correction`. Give one tag for each distinct thing that is wanted, no more.\n\n[Conversation]\n[user]\nfirst",
                r#"["Math", "word problem", "math."]"#,
            ),
            (
                "no more.\n\n[Conversation]\n[user]\nsecond",
                "```json\n[{\"tag\": \"Math\", \"explanation\": \"sums\"}]\n```",
            ),
            ("no more.\n\n[Conversation]\n[user]\nthird", "Math, I would say."),
            ("[user]\nfirst", "Many steps.\ndifficulty: 3"),
            ("[user]\nsecond", "**Difficulty:** 1"),
            ("[user]\nthird", "difficulty: 2"),
        ]
    }

    fn rows() -> Vec<Row> {
        ["first", "second", "third", "fourth"].map(|prompt| chat(prompt, "x")).to_vec()
    }

    #[test]
    fn rows_get_tags_and_difficulty_and_the_unreadable_go() {
        let outcome = try_run("tag", "", rows(), script()).unwrap();
        assert_eq!(prompts(&outcome.rows), ["first", "second"]);
        let first = &outcome.rows[0].0;
        assert_eq!(first["tags"], json!(["math", "word problem"]));
        assert_eq!((&first["num_tags"], &first["difficulty"]), (&json!(2), &json!(3)));
        assert_eq!(outcome.rows[1].0["tags"], json!(["math"]));
        let reasons: Vec<_> = removed(&outcome).into_iter().map(|(_, reason, _)| reason).collect();
        assert_eq!(reasons, ["no tags", "no answer"]);
        assert_eq!(outcome.figures["most_common_tags"]["math"], 2);
        assert_eq!(outcome.figures["untagged"], 2);
        assert_eq!(outcome.figures["difficulty"], json!({"1": 1, "3": 1}));
    }

    #[test]
    fn rare_tags_are_left_out_and_one_of_the_two_can_be_asked_alone() {
        let rare = try_run("tag", "min_tag_rows = 2", rows(), script()).unwrap();
        assert_eq!(rare.rows[0].0["tags"], json!(["math"]));
        assert_eq!(rare.rows[0].0["num_tags"], 1);
        let options = "tags = false\nkeep_untagged = true";
        let alone = try_run("tag", options, rows(), script()).unwrap();
        assert_eq!(alone.rows.len(), 4);
        assert_eq!(alone.rows[2].0["difficulty"], 2);
        assert!(!alone.rows[0].0.contains_key("tags"));
        assert!(try_run("tag", "tags = false\ndifficulty = false", rows(), script()).is_err());
    }

    #[test]
    fn answers_are_read_strictly() {
        for said in ["", "[]", "[1]", "{\"tag\": \"x\"}", "tags: [\"x\"]", "[\"!!\"]"] {
            assert!(tags(said).is_err(), "{said}");
        }
        for said in ["", "2", "difficulty: 4", "difficulty: 2\ndifficulty: 3", "difficulty: two"] {
            assert!(difficulty(said).is_err(), "{said}");
        }
    }
}
