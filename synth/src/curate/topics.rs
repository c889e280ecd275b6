//! `topics`: what each row is about (Llama 3, section 4.2.3, topic classification).

use std::collections::BTreeMap;
use std::path::PathBuf;

use halter_core::train::progress::Unit;
use halter_core::{Error, Result, device};
use serde::Deserialize;
use serde_json::json;

use super::clusters::cluster;
use super::dialogue::{Dialogue, Part};
use super::embed::Embedder;
use super::embed::bert::Bert;
use super::options::{self, Checked, wrong};
use super::sample::drawn;
use super::tfidf::{TfIdf, joined, split};
use super::words::excerpt;
use crate::asking::{Asking, after_thinking};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};
use crate::template::Template;

/// Rows that topics are learnt from, where there are more.
const LEARNT_FROM: usize = 20_000;
/// Rows whose vectors are held at once beyond these.
const CHUNK: usize = 4096;

const PROMPT: &str = include_str!("../../prompts/topics.txt");

/// Writes a topic into each row: one of the stated topics, which a teacher chooses, or, where none
/// are stated, the cluster of the row's words or of its embedding.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// The topics that a teacher chooses from; none: clusters.
    pub topics: Vec<String>,
    /// The teacher's name in the pipeline; may be left out where there is only one.
    pub teacher: String,
    /// Where the topic is written.
    pub column: String,
    /// Rows stay, without a topic, where the teacher named none of the topics.
    pub keep_unclassified: bool,
    /// What is asked, with the places `{topics}` and `{dialogue}`.
    pub prompt: String,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Number of clusters.
    pub clusters: usize,
    /// A BERT of sentence-transformers whose embeddings are clustered instead of words: a folder.
    pub model: Option<PathBuf>,
    /// `cpu`, `cuda` or `cuda:N`, for `model`.
    pub device: String,
    /// What is clustered: `all`, `prompt` or `answer`.
    pub of: Part,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            teacher: String::new(),
            column: "topic".into(),
            keep_unclassified: false,
            prompt: PROMPT.into(),
            max_new_tokens: 64,
            clusters: 20,
            model: None,
            device: "cpu".into(),
            of: Part::All,
        }
    }
}

impl Checked for Topics {
    fn check(&self) -> Result<()> {
        options::column("column", &self.column)?;
        if self.topics.len() == 1 {
            return Err(wrong("topics", "none, or two and more", &self.topics[0]));
        }
        if let Some(topic) = self.topics.iter().find(|topic| topic.trim().is_empty()) {
            return Err(wrong("topics", "topics with a name", topic));
        }
        if !self.topics.is_empty() && self.model.is_some() {
            return Err(Error::config("`model` clusters rows, so it cannot stand beside `topics`"));
        }
        self.template()?;
        match self.clusters {
            0 => Err(wrong("clusters", "a number from 1", 0)),
            _ if self.max_new_tokens == 0 => Err(wrong("max_new_tokens", "a number from 1", 0)),
            _ => Ok(()),
        }
    }

    fn questions(&self) -> usize {
        usize::from(!self.topics.is_empty())
    }

    fn files(&self) -> Vec<PathBuf> {
        self.model.iter().cloned().collect()
    }
}

impl Step for Topics {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let (mut readable, mut dialogues) = (Vec::new(), Vec::new());
        for row in rows {
            match Dialogue::of(&row) {
                Ok(dialogue) => {
                    dialogues.push(dialogue);
                    readable.push(row);
                }
                Err(error) => {
                    let detail = error.to_string();
                    outcome.removed.push(Removed { row, reason: "unreadable", detail });
                }
            }
        }
        match self.topics.is_empty() {
            true => self.clustered(readable, &dialogues, run, &mut outcome)?,
            false => self.classified(readable, &dialogues, run, &mut outcome)?,
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for topic in outcome.rows.iter().filter_map(|row| row.text(&self.column)) {
            *counts.entry(topic).or_default() += 1;
        }
        let counts = json!(counts);
        outcome.figures.insert("rows".to_string(), counts);
        Ok(outcome)
    }
}

impl Topics {
    fn template(&self) -> Result<Template> {
        Template::showing("prompt", &self.prompt, &["topics", "dialogue"])
    }

    fn classified(
        &self,
        rows: Vec<Row>,
        dialogues: &[Dialogue],
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let list = self.topics.iter().map(|topic| format!("- {topic}")).collect::<Vec<_>>();
        let list = list.join("\n");
        let (template, asking) =
            (self.template()?, Asking::likeliest(&self.teacher, self.max_new_tokens));
        let question = |said: &Dialogue| {
            let text = template.render(&json!({"topics": list, "dialogue": said.shown()}))?;
            Ok(asking.once(&text))
        };
        let questions: Vec<_> = dialogues.iter().map(question).collect::<Result<_>>()?;
        let answers = asking.ask(&questions, run, &mut outcome.figures)?;
        for (mut row, answer) in rows.into_iter().zip(answers) {
            let topic = match &answer {
                Ok(answer) => self.named(after_thinking(answer.text())),
                Err(error) => Err(("no answer", error.to_string())),
            };
            match topic {
                Ok(topic) => {
                    let before = row.clone();
                    row.set(&self.column, topic);
                    asking.sign(&mut row, "topics", run, &template.hash, &[&before]);
                    outcome.rows.push(row);
                }
                Err(_) if self.keep_unclassified => outcome.rows.push(row),
                Err((reason, detail)) => outcome.removed.push(Removed { row, reason, detail }),
            }
        }
        Ok(())
    }

    /// The topic that an answer is, whole; case, quotes and a full stop do not count.
    fn named(&self, said: &str) -> Result<&str, (&'static str, String)> {
        let plain = |text: &str| {
            let marks = ['-', '*', '_', '`', '"', '\'', '.', ' ', '\n', '\t'];
            text.trim_matches(marks).to_lowercase()
        };
        let wanted = plain(said);
        let found = self.topics.iter().find(|topic| plain(topic) == wanted);
        found.map(String::as_str).ok_or_else(|| {
            ("no topic", format!("expected one of the topics, got `{}`", excerpt(said, 80)))
        })
    }

    fn clustered(
        &self,
        rows: Vec<Row>,
        dialogues: &[Dialogue],
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let texts: Vec<String> = dialogues.iter().map(|said| said.text(self.of)).collect();
        let all: Vec<usize> = (0..texts.len()).collect();
        let mut sample = drawn(&all, LEARNT_FROM, run.seed);
        sample.sort_unstable();
        let words = split(&texts);
        let learnt: Vec<Vec<String>> = sample.iter().map(|&at| words[at].clone()).collect();
        let tfidf = TfIdf::learn(&learnt);
        let of = match &self.model {
            Some(folder) => {
                let bert = Bert::open(folder, None, &device::open(&self.device)?)?;
                run.progress.begin("embedding", texts.len() as u64, Unit::Rows);
                let (progress, interrupt) = (&mut *run.progress, run.interrupt);
                let vectors = bert.embed(&texts, &mut |done| {
                    progress.advance(done as u64, "");
                    interrupt.check()
                });
                run.progress.finish();
                cluster(&vectors?, self.clusters, run.seed, || run.interrupt.check())?.of
            }
            None => {
                let vectors = tfidf.vectors(&learnt);
                let found = cluster(&vectors, self.clusters, run.seed, || run.interrupt.check())?;
                let mut of = Vec::with_capacity(words.len());
                for chunk in words.chunks(CHUNK) {
                    run.interrupt.check()?;
                    of.extend(found.nearest(&tfidf.vectors(chunk)));
                }
                of
            }
        };
        let names = self.cluster_names(&tfidf, &learnt, &sample, &of);
        for (mut row, cluster) in rows.into_iter().zip(of) {
            row.set(&self.column, names[cluster].as_str());
            outcome.rows.push(row);
        }
        Ok(())
    }

    /// Clusters are named by the words that stand out in them.
    fn cluster_names(
        &self,
        tfidf: &TfIdf,
        learnt: &[Vec<String>],
        sample: &[usize],
        of: &[usize],
    ) -> Vec<String> {
        let vectors = tfidf.vectors(learnt);
        let of: Vec<usize> = sample.iter().map(|&at| of[at]).collect();
        joined(&tfidf.names(&vectors, &of, self.clusters, 3))
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, refused, removed, run, try_run};
    use crate::row::Row;

    fn of(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.text("topic").unwrap_or("none")).collect()
    }

    #[test]
    fn a_teacher_chooses_among_the_stated_topics_and_nothing_else() {
        let rows: Vec<_> = ["one", "two", "three", "four"].map(|prompt| chat(prompt, "x")).to_vec();
        let script = vec![
            ("[user]\none", "Maths"),
            ("[user]\ntwo", "<think>hm</think>**maths**."),
            ("[user]\nthree", "It is maths"),
        ];
        let options = "topics = ['maths', 'law']";
        let outcome = try_run("topics", options, rows.clone(), script.clone()).unwrap();
        assert_eq!(of(&outcome.rows), ["maths", "maths"]);
        let reasons: Vec<_> = removed(&outcome).into_iter().map(|(_, reason, _)| reason).collect();
        assert_eq!(reasons, ["no topic", "no answer"]);
        assert_eq!(outcome.figures["rows"]["maths"], 2);
        let options = "topics = ['maths', 'law']\nkeep_unclassified = true";
        let outcome = try_run("topics", options, rows, script).unwrap();
        assert_eq!(of(&outcome.rows), ["maths", "maths", "none", "none"]);
    }

    #[test]
    fn without_topics_rows_are_clustered_by_their_words() {
        let mut rows = Vec::new();
        for at in 0..10 {
            rows.push(chat(
                &format!("Why does my cat {at} scratch?"),
                "A cat needs to scratch wood.",
            ));
            rows.push(chat(&format!("Solve equation {at}"), "The equation has one solution, x."));
        }
        let outcome = run("topics", "clusters = 2", rows.clone());
        let topics = of(&outcome.rows);
        assert_ne!(topics[0], topics[1]);
        assert!(topics.chunks(2).all(|pair| pair == &topics[..2]), "{topics:?}");
        assert!(topics[0].contains("cat") && topics[1].contains("equation"), "{topics:?}");
        assert_eq!(outcome, run("topics", "clusters = 2", rows));
    }

    #[test]
    fn options_are_checked() {
        for options in ["topics = ['a']", "clusters = 0", "template = 'x'", "topics = ['a', ' ']"] {
            refused("topics", options);
        }
    }
}
