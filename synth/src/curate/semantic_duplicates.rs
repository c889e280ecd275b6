//! `semantic-duplicates`: rows that mean almost the same (Llama 3, section 4.2.3, semantic
//! deduplication; Abbas et al. 2023, "SemDeDup").

use std::collections::BTreeMap;
use std::path::PathBuf;

use halter_core::train::progress::Unit;
use halter_core::{Result, device};
use serde::Deserialize;
use serde_json::{Map, json};

use super::clusters::{Clusters, Vectors, cluster};
use super::dialogue::{Dialogue, Part};
use super::embed::Embedder;
use super::embed::bert::Bert;
use super::options::{Checked, number, wrong};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Clusters the rows by their embeddings, sorts each cluster by quality × difficulty, and keeps, from
/// the best on, each row whose largest cosine to those kept before is below the threshold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SemanticDuplicates {
    /// A BERT of sentence-transformers: a folder.
    pub model: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Tokens of a row that are read; else as many as the model states.
    pub max_tokens: Option<usize>,
    /// What is compared: `all`, `prompt` or `answer`.
    pub of: Part,
    /// Cosine from which on two rows mean the same.
    pub threshold: f64,
    /// Number of clusters; else √rows.
    pub clusters: Option<usize>,
    /// The column of a row's quality; a row without one counts as 1.
    pub quality: String,
    /// The column of its difficulty; a row without one counts as 1.
    pub difficulty: String,
}

impl Default for SemanticDuplicates {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            device: "cpu".into(),
            max_tokens: None,
            of: Part::All,
            threshold: 0.9,
            clusters: None,
            quality: "quality".into(),
            difficulty: "difficulty".into(),
        }
    }
}

impl Checked for SemanticDuplicates {
    fn check(&self) -> Result<()> {
        if self.model.as_os_str().is_empty() {
            return Err(wrong("model", "the folder of a BERT", ""));
        }
        if !(self.threshold > -1.0 && self.threshold <= 1.0) {
            return Err(wrong("threshold", "a cosine above -1 and at most 1", self.threshold));
        }
        if let Some(few) = self.max_tokens.filter(|most| *most < 4) {
            return Err(wrong("max_tokens", "a number from 4", few));
        }
        match self.clusters {
            Some(0) => Err(wrong("clusters", "a number from 1", 0)),
            _ => Ok(()),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.model.clone()]
    }
}

impl Step for SemanticDuplicates {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let bert = Bert::open(&self.model, self.max_tokens, &device::open(&self.device)?)?;
        self.select(rows, &bert, run)
    }
}

/// A row that goes, the one that stays in its place, and how alike they are.
type Fate = Option<(usize, f32)>;

impl SemanticDuplicates {
    /// As [`Step::run`], with any embedder.
    ///
    /// # Errors
    /// What the embedder says, or an interruption.
    pub fn select(
        &self,
        rows: Vec<Row>,
        embedder: &dyn Embedder,
        run: &mut Run,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let (mut readable, mut texts) = (Vec::new(), Vec::new());
        for row in rows {
            match Dialogue::of(&row) {
                Ok(dialogue) => {
                    texts.push(dialogue.text(self.of));
                    readable.push(row);
                }
                Err(error) => {
                    let detail = error.to_string();
                    outcome.removed.push(Removed { row, reason: "unreadable", detail });
                }
            }
        }
        run.progress.begin("embedding", texts.len() as u64, Unit::Rows);
        let (progress, interrupt) = (&mut *run.progress, run.interrupt);
        let vectors = embedder.embed(&texts, &mut |done| {
            progress.advance(done as u64, "");
            interrupt.check()
        });
        run.progress.finish();
        let vectors = vectors?;
        let count = self.clusters.unwrap_or_else(|| (texts.len() as f64).sqrt().ceil() as usize);
        let clusters = cluster(&vectors, count, run.seed, || run.interrupt.check())?;
        let fates = self.fates(&readable, &vectors, &clusters, run)?;
        let kept: Vec<bool> = fates.iter().map(Option::is_none).collect();
        let ids: BTreeMap<usize, String> =
            fates.iter().flatten().map(|(kept, _)| (*kept, readable[*kept].id())).collect();
        for (row, fate) in readable.into_iter().zip(&fates) {
            match fate {
                None => outcome.rows.push(row),
                Some((kept, cosine)) => {
                    let detail = format!("of {}, cosine {cosine:.3}", ids[kept]);
                    outcome.removed.push(Removed { row, reason: "semantic duplicate", detail });
                }
            }
        }
        outcome.figures = Map::from_iter([
            ("clusters".to_string(), json!(clusters.centres.len())),
            ("kept".to_string(), json!(kept.iter().filter(|kept| **kept).count())),
        ]);
        Ok(outcome)
    }

    fn fates(
        &self,
        rows: &[Row],
        vectors: &Vectors,
        clusters: &Clusters,
        run: &mut Run,
    ) -> Result<Vec<Fate>> {
        let worth = |at: usize| {
            let of = |column: &str| number(&rows[at], column).unwrap_or(1.0);
            of(&self.quality) * of(&self.difficulty)
        };
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); clusters.centres.len()];
        clusters.of.iter().enumerate().for_each(|(at, cluster)| members[*cluster].push(at));
        let mut fates = vec![None; rows.len()];
        for mut members in members {
            members.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
            let mut kept: Vec<usize> = Vec::new();
            for at in members {
                run.interrupt.check()?;
                let alike = kept.iter().map(|&other| (other, vectors.cosine(at, other)));
                let nearest = alike.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
                match nearest.filter(|(_, cosine)| f64::from(*cosine) >= self.threshold) {
                    Some(nearest) => fates[at] = Some(nearest),
                    None => kept.push(at),
                }
            }
        }
        Ok(fates)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use halter_core::train::interrupt::Interrupt;
    use halter_core::train::progress::Silent;

    use super::*;
    use crate::curate::testing::{chat, prompts, refused, removed, with};

    /// Directions by the words before a colon: `3,4:` is (0.6, 0.8).
    struct Stated;

    impl Embedder for Stated {
        fn embed(
            &self,
            texts: &[String],
            done: &mut dyn FnMut(usize) -> Result<()>,
        ) -> Result<Vectors> {
            let mut vectors = Vectors::new(2);
            for text in texts {
                let (head, _) = text.split_once(':').unwrap();
                vectors.push(&head.split(',').map(|n| n.parse().unwrap()).collect::<Vec<f32>>());
            }
            done(texts.len())?;
            Ok(vectors)
        }
    }

    fn select(options: &str, rows: Vec<Row>) -> Outcome {
        let options = format!("model = 'x'\nof = 'prompt'\n{options}");
        let step: SemanticDuplicates = toml::from_str(&options).unwrap();
        let (teachers, interrupt, mut progress) = (BTreeMap::new(), Interrupt::new(), Silent);
        let mut run =
            Run { teachers: &teachers, seed: 1, progress: &mut progress, interrupt: &interrupt };
        step.select(rows, &Stated, &mut run).unwrap()
    }

    #[test]
    fn the_best_of_what_means_the_same_stays() {
        let row = |prompt: &str, quality: f64, difficulty: f64| {
            with(with(chat(prompt, "x"), "quality", quality), "difficulty", difficulty)
        };
        // Cosines: a–b 0.995, a–c 0.6, d far from all.
        let rows = vec![
            row("1,0:a", 0.5, 1.0),
            row("10,1:b", 0.4, 2.0),
            row("3,4:c", 1.0, 1.0),
            row("-1,0:d", 0.1, 1.0),
        ];
        let outcome = select("clusters = 1", rows.clone());
        assert_eq!(prompts(&outcome.rows), ["10,1:b", "3,4:c", "-1,0:d"]);
        let told = removed(&outcome);
        assert_eq!(told[0].1, "semantic duplicate");
        assert_eq!(told[0].2, format!("of {}, cosine 0.995", rows[1].id()));
        // The cosine must stay below the threshold.
        assert_eq!(select("clusters = 1\nthreshold = 0.59", rows.clone()).rows.len(), 2);
        assert_eq!(select("clusters = 1\nthreshold = 0.999", rows).rows.len(), 4);
    }

    #[test]
    fn a_row_is_held_to_what_is_kept_not_to_what_was_removed() {
        // Each is near the next, but the first and the third are far enough apart.
        let rows = ["1,0:a", "0.92,0.39:b", "0.7,0.71:c"].map(|prompt| chat(prompt, "x")).to_vec();
        assert_eq!(prompts(&select("clusters = 1", rows).rows), ["1,0:a", "0.7,0.71:c"]);
    }

    #[test]
    fn options_are_checked() {
        for options in ["", "model = 'x'\nthreshold = 1.5", "model = 'x'\nclusters = 0"] {
            refused("semantic-duplicates", options);
        }
    }

    #[test]
    fn a_folder_without_a_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Bert::open(folder.path(), None, &candle_core::Device::Cpu).err().unwrap();
        assert!(error.to_string().contains("config.json: cannot read"), "{error}");
        let config = |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            Bert::open(folder.path(), None, &candle_core::Device::Cpu).err().unwrap().to_string()
        };
        assert!(config("{\"model_type\": \"llama\"}").contains("expected `model_type` `bert`"));
        assert!(config("{}").contains("not a configuration of BERT"));
        assert!(config("[").contains("not JSON"));
    }
}
