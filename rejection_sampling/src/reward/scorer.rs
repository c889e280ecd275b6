//! A reward model among the scorers.

use halter_core::data::record::{Message, Turn};
use halter_core::train::source::SourceSpec;
use halter_core::{Error, Result};

use super::model::RewardModel;
use crate::scorer::{Item, Score, Scorer};

/// Scores of a reward model.
pub struct RewardScorer {
    name: String,
    model: RewardModel,
}

impl RewardScorer {
    /// Loads the reward model at `path`, on the CPU. Its chat template is told the time `now`, in
    /// seconds since 1970, or else the clock's.
    ///
    /// # Errors
    /// As [`RewardModel::open`].
    pub fn load(path: &str, now: Option<i64>) -> Result<Self> {
        let spec = SourceSpec { model: Some(path.into()), now, ..SourceSpec::default() };
        Ok(Self { name: format!("reward:{path}"), model: RewardModel::open(&spec, "cpu")? })
    }

    fn scores(&self, items: &[Item]) -> Result<Vec<f64>> {
        let completions: Vec<_> = items.iter().map(asked).collect::<Result<_>>()?;
        self.model.score(&completions)
    }
}

fn asked(item: &Item) -> Result<(Vec<Message>, String)> {
    match item.prompt {
        Turn::Messages(messages) if !messages.is_empty() => {
            Ok((messages.clone(), item.completion.to_string()))
        }
        _ => Err(Error::data("a reward model scores answers in a conversation, got a text")
            .hint("give prompts as `messages`")),
    }
}

impl Scorer for RewardScorer {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let scores = self.scores(&[*item])?;
        scores.first().copied().map(Score::new).ok_or_else(|| Error::data("no score"))
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        self.model.fingerprint().map(Some)
    }

    /// One at a time only where the batch cannot be scored, so that an error costs its row.
    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        match self.scores(items) {
            Ok(scores) => scores.into_iter().map(|score| Ok(Score::new(score))).collect(),
            Err(_) => items.iter().map(|item| self.score(item)).collect(),
        }
    }
}
