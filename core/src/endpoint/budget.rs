//! What was spent, and whether more may be.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Budget, Usage};
use crate::{Error, Result};

/// What a teacher's answers took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// Requests, those that failed included.
    pub requests: u64,
    /// Tokens of prompts and completions.
    pub tokens: u64,
    /// Money, in the unit of the prices.
    pub money: f64,
}

impl Spent {
    /// Adds what an answer took.
    pub(super) fn add(&mut self, usage: Usage, cost: f64) {
        let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        self.tokens = self.tokens.saturating_add(tokens);
        self.money += cost;
    }
}

/// Counts what is spent.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Begins its error.
    label: String,
    budget: Budget,
    spent: Mutex<Spent>,
}

impl Meter {
    /// `spent` is what was spent before.
    pub fn new(label: &str, budget: Budget, spent: Spent) -> Self {
        Self { label: label.into(), budget, spent: Mutex::new(spent) }
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spent(&self) -> Spent {
        *self.lock()
    }

    /// Takes one request.
    ///
    /// # Errors
    /// A budget that is spent.
    pub fn take(&self) -> Result<()> {
        let mut spent = self.lock();
        let Spent { requests, tokens, money } = *spent;
        let Budget { requests: most_requests, tokens: most_tokens, money: most_money } =
            self.budget;
        let reached = [
            (
                "requests",
                most_requests
                    .filter(|&most| requests >= most)
                    .map(|m| (m.to_string(), requests.to_string())),
            ),
            (
                "tokens",
                most_tokens
                    .filter(|&most| tokens >= most)
                    .map(|m| (m.to_string(), tokens.to_string())),
            ),
            (
                "money",
                most_money
                    .filter(|&most| money >= most)
                    .map(|m| (m.to_string(), format!("{money:.4}"))),
            ),
        ];
        for (key, reached) in reached {
            if let Some((most, spent)) = reached {
                let label = &self.label;
                return Err(Error::config(format!(
                    "{label}: `budget.{key}` is spent: `{spent}` of `{most}`"
                ))
                .hint("raise it: what was answered is kept, and not asked again"));
            }
        }
        spent.requests += 1;
        Ok(())
    }

    /// Adds what an answer took.
    pub fn pay(&self, usage: Usage, cost: f64) {
        self.lock().add(usage, cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_first_ends_it() {
        let usage = Usage { prompt_tokens: 30, completion_tokens: 20 };
        for (budget, takes, key) in [
            (Budget { requests: Some(3), ..Budget::default() }, 3, "`budget.requests`"),
            (Budget { tokens: Some(101), ..Budget::default() }, 3, "`budget.tokens`"),
            (Budget { money: Some(0.5), ..Budget::default() }, 2, "`budget.money`"),
            (Budget { requests: Some(0), ..Budget::default() }, 0, "`0` of `0`"),
        ] {
            let meter = Meter::new("teacher `big`", budget, Spent::default());
            let mut taken = 0;
            let error = loop {
                match meter.take() {
                    Ok(()) => meter.pay(usage, 0.25),
                    Err(error) => break error,
                }
                taken += 1;
            };
            assert_eq!(taken, takes, "{budget:?}");
            assert!(error.message().contains(key), "{error}");
            assert!(error.remedy().is_some());
            // What was spent before counts.
            assert!(Meter::new("teacher `big`", budget, meter.spent()).take().is_err());
        }
        let meter = Meter::default();
        (0..1000).for_each(|_| meter.take().unwrap());
        assert_eq!(meter.spent().requests, 1000);
    }
}
