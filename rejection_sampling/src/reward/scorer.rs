//! A reward model among the scorers.

use halter_core::{Error, Result};

use super::model::RewardModel;
use crate::scorer::{Item, Score, Scorer};

/// Scores of a reward model.
pub struct RewardScorer {
    name: String,
    model: RewardModel,
}

impl RewardScorer {
    /// Loads the reward model at `path`, on the CPU.
    ///
    /// # Errors
    /// As [`RewardModel::load`].
    pub fn load(path: &str) -> Result<Self> {
        Ok(Self { name: format!("reward:{path}"), model: RewardModel::load(path, "cpu")? })
    }

    fn scores(&self, items: &[Item]) -> Result<Vec<f64>> {
        if items.iter().any(|item| item.prompt.is_empty()) {
            return Err(Error::data("a reward model scores answers in a conversation, got a text")
                .hint("give prompts as `messages`"));
        }
        let completions: Vec<_> =
            items.iter().map(|item| (item.prompt.to_vec(), item.completion.to_string())).collect();
        self.model.score(&completions)
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

    /// One at a time only where the batch cannot be scored, so that an error costs its row.
    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        match self.scores(items) {
            Ok(scores) => scores.into_iter().map(|score| Ok(Score::new(score))).collect(),
            Err(_) => items.iter().map(|item| self.score(item)).collect(),
        }
    }
}
