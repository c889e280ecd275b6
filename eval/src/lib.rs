//! What a model can do, in figures: multiple choice by log-likelihood, and completions judged by
//! verifiers. Contexts, log-likelihoods and accuracies of multiple choice are those of
//! lm-evaluation-harness (Gao et al., EleutherAI).

pub mod choice;
pub mod encode;
pub mod format;
mod formats;
pub mod open;
pub mod question;
pub mod results;
pub mod task;
