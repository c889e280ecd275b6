//! `metrics.jsonl`: a line for each step, the record of a run.
//!
//! JSON has no NaN and no infinity: a value that is not finite is written as `null` and read back
//! as NaN (as pandas does), and a value that was not measured is left out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::sync_parent;
use crate::{Error, Result};

/// What was measured at one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer updates done; 0 before the first.
    pub step: u64,
    /// Passes over the data, with the fraction.
    pub epoch: f64,
    /// Mean over the step's trained tokens (or pairs), before the update.
    pub loss: Option<f64>,
    /// Norm of the gradient of all trained parameters, before clipping.
    pub grad_norm: Option<f64>,
    /// Learning rate of this update.
    pub learning_rate: Option<f64>,
    /// Tokens through the model since the run began, prompts included.
    pub num_tokens: Option<u64>,
    /// Trained tokens since the run began.
    pub supervised_tokens: Option<u64>,
    /// Tokens through the model in this step, by its wall time.
    pub tokens_per_second: Option<f64>,
    /// Wall time of this step.
    pub seconds: Option<f64>,
    /// Share of the trained tokens that were the model's first guess.
    pub mean_token_accuracy: Option<f64>,
    /// The method's own: `eval/loss`, `rewards/margins`, …
    pub extra: BTreeMap<String, f64>,
}

impl StepMetrics {
    /// Every measured value under its key, in the file's order, without `step`.
    pub fn values(&self) -> Vec<(&str, f64)> {
        let count = |count: Option<u64>| count.map(|count| count as f64);
        let fixed = [
            ("epoch", Some(self.epoch)),
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
            ("num_tokens", count(self.num_tokens)),
            ("supervised_tokens", count(self.supervised_tokens)),
            ("tokens_per_second", self.tokens_per_second),
            ("seconds", self.seconds),
            ("mean_token_accuracy", self.mean_token_accuracy),
        ];
        let fixed = fixed.into_iter().filter_map(|(key, value)| Some((key, value?)));
        fixed.chain(self.extra.iter().map(|(key, &value)| (key.as_str(), value))).collect()
    }

    fn to_line(&self) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("step".into(), self.step.into());
        for (key, value) in self.values() {
            let whole = match key {
                "num_tokens" => self.num_tokens,
                "supervised_tokens" => self.supervised_tokens,
                _ => None,
            };
            // `Value::from` makes null of a float that is not finite.
            let value = whole.map_or_else(|| Value::from(value), Value::from);
            // A method's own key never hides one of the fixed ones.
            map.entry(key).or_insert(value);
        }
        let mut line = Value::Object(map).to_string().into_bytes();
        line.push(b'\n');
        line
    }

    fn from_line(line: &[u8]) -> std::result::Result<Self, String> {
        let map: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let mut metrics = Self::default();
        let mut step = None;
        for (key, value) in map {
            let number = match &value {
                Value::Null => f64::NAN,
                value => value.as_f64().ok_or_else(|| format!("`{key}` is not a number"))?,
            };
            match key.as_str() {
                "step" => step = value.as_u64(),
                "epoch" => metrics.epoch = number,
                "loss" => metrics.loss = Some(number),
                "grad_norm" => metrics.grad_norm = Some(number),
                "learning_rate" => metrics.learning_rate = Some(number),
                "num_tokens" => metrics.num_tokens = value.as_u64(),
                "supervised_tokens" => metrics.supervised_tokens = value.as_u64(),
                "tokens_per_second" => metrics.tokens_per_second = Some(number),
                "seconds" => metrics.seconds = Some(number),
                "mean_token_accuracy" => metrics.mean_token_accuracy = Some(number),
                _ => {
                    metrics.extra.insert(key, number);
                }
            }
        }
        metrics.step = step.ok_or("`step` is missing or not a whole number")?;
        Ok(metrics)
    }
}

/// Appends to `metrics.jsonl`. A line goes out in one write, so that somebody who follows the
/// file sees whole lines.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    last: Option<u64>,
}

impl MetricsWriter {
    /// Begins an empty file.
    ///
    /// # Errors
    /// When the file is there already, or cannot be written.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
        sync_parent(&path)?;
        Ok(Self { path, file, last: None })
    }

    /// Goes on after `step`, the step of the checkpoint (0 without one): later lines, and a line
    /// that was cut off, are removed, because those steps will be done again. Returns what the
    /// user should be told.
    ///
    /// # Errors
    /// A line before that which cannot be read, or what the file system says.
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<(Self, Vec<String>)> {
        let path = path.into();
        let io = |error| Error::io("read", &path, error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let (mut kept, mut last) = (0, None);
        for (number, line) in whole_lines(&bytes) {
            match StepMetrics::from_line(line) {
                Ok(metrics) if metrics.step > step => break,
                Ok(metrics) => last = Some(metrics.step),
                // Damage in the last line is a write that was cut off; before it, something else.
                Err(_) if kept + line.len() + 1 == bytes.len() => break,
                Err(error) => return Err(Error::data(error).at(&path, number)),
            }
            kept += line.len() + 1;
        }
        let cut = |error| Error::io("shorten", &path, error);
        file.set_len(kept as u64).map_err(cut)?;
        file.seek(SeekFrom::Start(kept as u64)).map_err(cut)?;
        file.sync_all().map_err(cut)?;
        let mut notices = Vec::new();
        let reached = last.unwrap_or(0);
        if reached < step {
            notices.push(format!(
                "{} ends at step {reached}, the checkpoint is of step {step}: the lines between \
                 are lost",
                path.display()
            ));
        }
        Ok((Self { path, file, last }, notices))
    }

    /// Appends a line. A step's line goes out before its checkpoint is saved.
    ///
    /// # Errors
    /// A step that is not after the last one (a line would be doubled), or a full disk.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        if let Some(last) = self.last
            && metrics.step <= last
        {
            let message = format!("metrics of step {} after those of step {last}", metrics.step);
            return Err(Error::data(message).in_file(&self.path));
        }
        let io = |error| Error::io("write", &self.path, error);
        self.file.write_all(&metrics.to_line()).map_err(io)?;
        self.last = Some(metrics.step);
        Ok(())
    }

    /// Waits until every line is on the disk: before a checkpoint, which relies on them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))
    }
}

/// Reads a whole `metrics.jsonl`. A last line without its end, as of a run that is still going
/// on, is left out.
///
/// # Errors
/// A line that is not a step's metrics, with its number.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<StepMetrics>> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    whole_lines(&bytes)
        .map(|(number, line)| {
            StepMetrics::from_line(line).map_err(|error| Error::data(error).at(path, number))
        })
        .collect()
}

/// Lines that end in a line feed, without it, with their numbers from one.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..end].split_inclusive(|&byte| byte == b'\n');
    lines.map(|line| &line[..line.len() - 1]).enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: step as f64 / 3.0,
            loss: Some(1.0 / (step as f64 + 0.3)),
            grad_norm: Some(0.1 + 0.2),
            learning_rate: Some(2e-5),
            num_tokens: Some(u64::MAX - step),
            supervised_tokens: Some(7),
            tokens_per_second: Some(1234.5),
            seconds: Some(0.25),
            mean_token_accuracy: None,
            extra: [("eval/loss".to_string(), 2.5)].into(),
        }
    }

    fn written(path: &Path, steps: std::ops::RangeInclusive<u64>) {
        let mut writer = MetricsWriter::create(path).unwrap();
        steps.for_each(|step| writer.write(&at(step)).unwrap());
        writer.sync().unwrap();
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().map(|metrics| metrics.step).collect()
    }

    #[test]
    fn what_was_written_is_read_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        written(&path, 1..=5);
        assert_eq!(read(&path).unwrap(), (1..=5).map(at).collect::<Vec<_>>());
    }

    #[test]
    fn a_line_reads_as_the_documentation_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        let mut metrics = at(3);
        metrics.loss = Some(f64::NAN);
        metrics.num_tokens = Some(4096);
        metrics.extra.insert("loss".to_string(), 9.0);
        writer.write(&metrics).unwrap();
        insta::assert_snapshot!(fs::read_to_string(&path).unwrap(), @r#"{"step":3,"epoch":1.0,"loss":null,"grad_norm":0.30000000000000004,"learning_rate":0.00002,"num_tokens":4096,"supervised_tokens":7,"tokens_per_second":1234.5,"seconds":0.25,"eval/loss":2.5}"#);
        assert!(read(&path).unwrap()[0].loss.unwrap().is_nan());
    }

    #[test]
    fn a_resumed_run_neither_doubles_nor_loses_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        written(&path, 1..=9);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        written(&path, 1..=9);
        // Killed in the middle of the tenth line, with the checkpoint at the sixth.
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"step\":10,\"epo")
            .unwrap();
        assert_eq!(steps(&path), (1..=9).collect::<Vec<_>>(), "a reader leaves the torn line out");
        let (mut writer, notices) = MetricsWriter::resume(&path, 6).unwrap();
        assert_eq!(notices, Vec::<String>::new());
        assert_eq!(steps(&path), (1..=6).collect::<Vec<_>>());
        assert!(writer.write(&at(6)).is_err(), "a doubled step is refused");
        (7..=9).for_each(|step| writer.write(&at(step)).unwrap());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_file_cut_anywhere_resumes_to_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        written(&path, 1..=4);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let (mut writer, notices) = MetricsWriter::resume(&path, 3).unwrap();
            assert_eq!(notices.is_empty(), lines >= 3, "{cut}: {notices:?}");
            writer.write(&at(5)).unwrap();
            let mut expected: Vec<u64> = (1..=lines.min(3)).collect();
            expected.push(5);
            assert_eq!(steps(&path), expected);
        }
    }

    #[test]
    fn a_resume_without_a_checkpoint_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let (_, notices) = MetricsWriter::resume(&path, 0).unwrap();
        assert!(notices.is_empty() && path.exists());
        fs::remove_file(&path).unwrap();
        written(&path, 1..=3);
        MetricsWriter::resume(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_line_that_is_not_metrics_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for (bad, message) in [
            ("{\"step\":2", "EOF while parsing an object"),
            ("[]", "invalid type: sequence"),
            ("{\"step\":-1}", "`step` is missing or not a whole number"),
            ("{\"step\":2,\"loss\":\"low\"}", "`loss` is not a number"),
            ("{}", "`step` is missing"),
        ] {
            fs::write(&path, format!("{{\"step\":1}}\n{bad}\n{{\"step\":3}}\n")).unwrap();
            for error in [read(&path).unwrap_err(), MetricsWriter::resume(&path, 3).unwrap_err()] {
                assert_eq!(error.location().unwrap().line, Some(2), "{bad}");
                assert!(error.message().starts_with(message), "{bad}: {error}");
            }
        }
    }
}
