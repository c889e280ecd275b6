//! A student made from its teacher: some of its blocks ("Compact Language Models via Pruning and
//! Knowledge Distillation", Muralidharan et al. 2024, section 2).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use halter_core::model::config::{ModelConfig, ParamSpec};
use halter_core::model::merge::refuse_occupied;
use halter_core::model::weights::ModelFiles;
use halter_core::model::weights::export::{ExportOptions, ParamData, write_model};
use halter_core::{Error, Result};

use crate::narrow::Narrowed;

/// Which blocks of a teacher stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocks {
    /// All of them.
    All,
    /// These, counted from 0, in their order.
    Keep(Vec<Range<usize>>),
    /// All but every n-th.
    DropEvery(usize),
    /// So many, evenly spread; the first and the last are among them.
    Spread(usize),
}

/// `0-9,20-29` or `5`: blocks and spans of them, the last one included.
impl FromStr for Blocks {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::config(format!("`{text}` names no blocks"))
                .hint("expected numbers and spans, as `0-9,20-29`")
        };
        let span = |part: &str| -> Result<Range<usize>> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().map_err(|_| bad());
            let (first, last) = (number(first)?, number(last)?);
            if first <= last && last < usize::MAX { Ok(first..last + 1) } else { Err(bad()) }
        };
        Ok(Self::Keep(text.split(',').map(span).collect::<Result<_>>()?))
    }
}

impl Blocks {
    /// The blocks of a teacher that has so many.
    ///
    /// # Errors
    /// None, one that is not there, or one that is named twice or before an earlier one.
    pub fn of(&self, blocks: usize) -> Result<Vec<usize>> {
        let kept: Vec<usize> = match self {
            Self::All => (0..blocks).collect(),
            Self::Keep(spans) => {
                let end = spans.iter().map(|span| span.end).max().unwrap_or(0);
                if end > blocks {
                    let last = end - 1;
                    return Err(Error::config(format!("there is no block `{last}`"))
                        .hint(format!("the model has blocks 0 to {}", blocks.saturating_sub(1))));
                }
                spans.iter().cloned().flatten().collect()
            }
            Self::DropEvery(n) if *n > 1 => (0..blocks).filter(|at| at % n != n - 1).collect(),
            Self::DropEvery(_) => Vec::new(),
            Self::Spread(1) => vec![0],
            Self::Spread(count) if *count <= blocks => {
                let step = |at: usize| (at * (blocks - 1) + (count - 1) / 2) / (count - 1).max(1);
                (0..*count).map(step).collect()
            }
            Self::Spread(count) => {
                let message = format!("`{count}` blocks are wanted of `{blocks}`");
                return Err(Error::config(message));
            }
        };
        if kept.is_empty() {
            return Err(Error::config("no block stays: expected one or more"));
        }
        match kept.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(Error::config(format!(
                "block `{}` comes after `{}`: expected each once, in their order",
                pair[1], pair[0]
            ))),
            None => Ok(kept),
        }
    }
}

/// Writes the model of those blocks of `teacher` into `output`, narrowed where that is said, its
/// weights else as they are, tokenizer and template with them. Returns the files written.
///
/// # Errors
/// Blocks that are not there, an output that is not an empty directory, a full disk.
pub fn keep_blocks(
    teacher: &ModelFiles,
    blocks: &Blocks,
    narrowed: Option<&Narrowed>,
    options: &ExportOptions,
    output: &Path,
) -> Result<Vec<PathBuf>> {
    refuse_occupied(output)?;
    let kept = blocks.of(teacher.config.num_hidden_layers)?;
    let mut config = config_of(&teacher.config, &kept);
    if let Some(narrowed) = narrowed {
        config = narrowed.config(&config);
    }
    write_model(output, &config, &teacher.text.side_files, options, |param| {
        let stored = teacher.weights.get(&name_in_teacher(param, &kept))?;
        match narrowed {
            Some(narrowed) => narrowed.cut(&stored).map(ParamData::Tensor),
            None => Ok(ParamData::Stored(stored)),
        }
    })
}

fn config_of(teacher: &ModelConfig, kept: &[usize]) -> ModelConfig {
    let mut config = teacher.clone();
    config.num_hidden_layers = kept.len();
    config.sliding_window = kept.iter().map(|&at| teacher.sliding_window[at]).collect();
    config.raw.insert("num_hidden_layers".into(), kept.len().into());
    // Qwen's kinds of attention, one for each block.
    if let Some(kinds) = config.raw.get_mut("layer_types").and_then(|kinds| kinds.as_array_mut()) {
        *kinds = kept.iter().filter_map(|&at| kinds.get(at).cloned()).collect();
    }
    config
}

/// `model.layers.3.…` of the student is `model.layers.4.…` where block 3 was left out.
fn name_in_teacher(param: &ParamSpec, kept: &[usize]) -> String {
    let Some(rest) = param.name.strip_prefix("model.layers.") else { return param.name.clone() };
    match rest.split_once('.') {
        Some((at, rest)) => match at.parse::<usize>().ok().and_then(|at| kept.get(at)) {
            Some(at) => format!("model.layers.{at}.{rest}"),
            None => param.name.clone(),
        },
        None => param.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use candle_core::{Device, Tensor};
    use halter_core::data::batch::PackedBatch;
    use halter_core::model::weights::HubOptions;
    use halter_core::model::{Base, Decoder};
    use halter_core::ops::Context;
    use halter_testkit::{golden, max_abs_diff};

    #[test]
    fn blocks_are_named_spread_or_left_out() {
        let of = |blocks: &Blocks, n| blocks.of(n).unwrap();
        assert_eq!(of(&"0-1, 4".parse().unwrap(), 6), [0, 1, 4]);
        assert_eq!(of(&Blocks::DropEvery(3), 7), [0, 1, 3, 4, 6]);
        assert_eq!(of(&Blocks::Spread(3), 9), [0, 4, 8]);
        assert_eq!(of(&Blocks::Spread(1), 9), [0]);
        assert_eq!(of(&Blocks::Spread(20), 30).len(), 20);
        assert_eq!(of(&Blocks::Spread(30), 30), (0..30).collect::<Vec<_>>());
        for (blocks, message) in [
            ("0,6".parse().unwrap(), "there is no block `6`"),
            (
                "1-2,2".parse().unwrap(),
                "block `2` comes after `2`: expected each once, in their order",
            ),
            (Blocks::DropEvery(1), "no block stays: expected one or more"),
            (Blocks::Spread(7), "`7` blocks are wanted of `6`"),
            (Blocks::Spread(0), "no block stays: expected one or more"),
        ] {
            assert_eq!(blocks.of(6).unwrap_err().message(), message);
        }
        for text in ["", "a", "3-1", "1-", "0-18446744073709551615"] {
            Blocks::from_str(text).unwrap_err();
        }
    }

    #[test]
    fn the_student_is_the_teacher_without_the_others() {
        for case in ["llama-tied", "qwen3"] {
            let path = golden("tiny").join(case);
            let teacher = ModelFiles::open(path.to_str().unwrap(), &HubOptions::default()).unwrap();
            let last = teacher.config.num_hidden_layers - 1;
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("student");
            let blocks = last.to_string().parse().unwrap();
            keep_blocks(&teacher, &blocks, None, &ExportOptions::default(), &output).unwrap();
            let student =
                ModelFiles::open(output.to_str().unwrap(), &HubOptions::default()).unwrap();
            let decoder = |files: &ModelFiles| {
                let config = files.config.clone();
                let ctx = Context::new(&Device::Cpu);
                Decoder::load(config, &files.weights, Base::Trainable, ctx).unwrap()
            };
            let mut whole = decoder(&teacher);
            whole.blocks.drain(..last);
            let mut builder = PackedBatch::builder();
            builder.masked_row(&[1, 5, 9, 2, 7], &[true; 5]);
            let batch = builder.build().unwrap();
            let logits = |model: &Decoder| -> Tensor { model.logits(&batch).unwrap() };
            assert_eq!(max_abs_diff(&logits(&decoder(&student)), &logits(&whole)), 0.0, "{case}");
            assert!(
                keep_blocks(&teacher, &blocks, None, &ExportOptions::default(), &output).is_err()
            );
        }
    }

    #[test]
    fn a_narrower_student_is_the_teacher_without_what_was_cut() {
        use crate::narrow::Widths;
        use halter_core::ops::Context;
        for case in ["llama-tied", "llama-bias", "qwen3"] {
            let path = golden("tiny").join(case);
            let files = ModelFiles::open(path.to_str().unwrap(), &HubOptions::default()).unwrap();
            let load = |files: &ModelFiles| {
                let (config, ctx) = (files.config.clone(), Context::new(&Device::Cpu));
                Decoder::load(config, &files.weights, Base::Trainable, ctx).unwrap()
            };
            let teacher = load(&files);
            let mut builder = PackedBatch::builder();
            builder.masked_row(&[1, 5, 9, 2, 7, 30, 31], &[true; 7]);
            let batch = builder.build().unwrap();
            let importance = teacher.importance(std::slice::from_ref(&batch), |_| Ok(())).unwrap();
            let student_of = |widths: Widths| {
                let narrowed = Narrowed::new(&files.config, &importance, widths);
                let folder = tempfile::tempdir().unwrap();
                let output = folder.path().join("student");
                let options = ExportOptions::default();
                keep_blocks(&files, &Blocks::All, Some(&narrowed), &options, &output).unwrap();
                let name = output.to_str().unwrap();
                load(&ModelFiles::open(name, &HubOptions::default()).unwrap())
            };
            let same = student_of(Widths::default());
            let logits = |model: &Decoder| model.logits(&batch).unwrap();
            assert_eq!(max_abs_diff(&logits(&same), &logits(&teacher)), 0.0, "{case}");

            let narrow = Widths {
                num_key_value_heads: Some(1),
                intermediate_size: Some(25),
                ..Widths::default()
            };
            let student = student_of(narrow);
            assert_eq!(student.config.num_attention_heads, 2);
            // The teacher, in which what was cut adds nothing.
            for (block, kept) in teacher.blocks.iter().enumerate() {
                let mute = |weight: &Tensor, stays: &[usize]| {
                    let columns = weight.dim(1).unwrap();
                    let mask = (0..columns).map(|at| f32::from(u8::from(stays.contains(&at))));
                    let mask = Tensor::from_iter(mask, &Device::Cpu).unwrap();
                    let muted = weight.broadcast_mul(&mask).unwrap();
                    weight.slice_set(&muted.contiguous().unwrap(), 0, 0).unwrap();
                };
                let most = |values: &[f64], count: usize| {
                    let mut places: Vec<usize> = (0..values.len()).collect();
                    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
                    places[..count].to_vec()
                };
                let neurons = most(&importance.neurons[block], 25);
                mute(kept.down.weight.dense().unwrap(), &neurons);
                let groups: Vec<f64> =
                    importance.heads[block].chunks(2).map(|group| group.iter().sum()).collect();
                let group = 2 * files.config.head_dim;
                let first = most(&groups, 1)[0] * group;
                let heads: Vec<usize> = (first..first + group).collect();
                mute(kept.o.weight.dense().unwrap(), &heads);
            }
            let apart = max_abs_diff(&logits(&student), &logits(&teacher));
            assert!(apart < 1e-5, "{case}: {apart}");

            let slim = Widths { hidden_size: Some(20), ..narrow };
            let student = student_of(slim);
            assert_eq!(student.embed.dims()[1], 20);
            assert!(logits(&student).sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
    }
}
