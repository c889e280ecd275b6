//! `summary.json`: what a run says about itself at its end, for programs (`--json`) and for the
//! report.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::atomic_write;
use crate::{Error, Result};

/// What a run says about itself beyond its metrics, ledger and configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// e.g. `Supervised fine-tuning of SmolLM2-135M-Instruct`.
    pub title: String,
    /// The few figures that matter most, most important first.
    pub headline: Vec<Figure>,
    /// Names and values: base model, data, parameters trained, device, …
    pub facts: Vec<(String, String)>,
    /// What the model says, before and after.
    pub samples: Vec<Sample>,
    /// What became of the rows, in sums.
    pub ledger: Vec<LedgerCount>,
    /// The plan's figures beside what was measured.
    pub prediction: Vec<Prediction>,
    /// How far the model's confidence can be trusted; empty where it says none.
    pub calibration: Vec<CalibrationBin>,
}

/// Judgements of about the same confidence (a bar of a reliability diagram).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Least confidence.
    pub from: f64,
    /// Most confidence.
    pub to: f64,
    /// How many judgements.
    pub count: usize,
    /// Their mean confidence; 0 where there are none.
    pub confidence: f64,
    /// Share of them that were right; 0 where there are none.
    pub accuracy: f64,
}

/// A figure worth a large type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// e.g. `accuracy`.
    pub name: String,
    /// e.g. `12 % → 71 %`.
    pub value: String,
    /// A few words below it, e.g. `200 held-out problems`; may be empty.
    #[serde(default)]
    pub detail: String,
}

/// One prompt and what was said to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// What was asked.
    pub prompt: String,
    /// The data set's own answer.
    pub reference: Option<String>,
    /// The base model's completion.
    pub before: Option<String>,
    /// The trained model's completion.
    pub after: Option<String>,
    /// Whether the base model's completion was verified as right.
    pub before_correct: Option<bool>,
    /// Whether the trained model's completion was verified as right.
    pub after_correct: Option<bool>,
}

/// A line of the ledger's sums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerCount {
    /// `kept`, or one of the ledger's: `cut`, `dropped`, `refused`.
    pub fate: String,
    /// Why; empty for rows that were simply used.
    pub reason: String,
    /// How many rows.
    pub rows: u64,
    /// Tokens used of rows kept; tokens left out of all others. `None` where nobody counted.
    #[serde(default)]
    pub tokens: Option<u64>,
}

/// A prediction beside the fact, both with their units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// e.g. `peak memory`.
    pub name: String,
    /// e.g. `1.31 GB`.
    pub predicted: String,
    /// e.g. `1.28 GB`.
    pub measured: String,
}

impl Summary {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::io("write", path, error.into()))?;
        bytes.push(b'\n');
        atomic_write(path, &bytes)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// A file that is not there or not a summary.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::data(format!("not a summary: {error}")).in_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.json");
        let sample = Sample { prompt: "1 + 1\u{0}\"<".into(), ..Sample::default() };
        let summary = Summary {
            title: "SFT".into(),
            facts: vec![("base".into(), "tiny".into())],
            samples: vec![sample],
            ..Summary::default()
        };
        summary.write(&path).unwrap();
        assert_eq!(Summary::read(&path).unwrap(), summary);
        std::fs::write(&path, "3").unwrap();
        let error = Summary::read(&path).unwrap_err();
        assert!(error.message().starts_with("not a summary"), "{error}");
    }
}
