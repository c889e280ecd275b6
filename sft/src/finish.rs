//! What a finished run leaves: export, model card, summary and report.

use std::collections::HashMap;

use halter_core::data::dataset::Dataset;
use halter_core::memory::plan::{Plan, gigabytes};
use halter_core::memory::system::peak_memory;
use halter_core::model::Decoder;
use halter_core::model::param::Param;
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::adapter::{AdapterConfig, Factor, write_adapter};
use halter_core::model::weights::export::{
    ExportOptions, ParamData, write_model, write_side_files,
};
use halter_core::train::card::{Card, Named};
use halter_core::train::progress::{Progress, counted};
use halter_core::train::report::Report;
use halter_core::train::run_dir::RunDir;
use halter_core::train::source::Source;
use halter_core::train::summary::{Figure, LedgerCount, Prediction, Sample, Summary};
use halter_core::{Error, Result};
use serde::Serialize;

use crate::config::SftConfig;
use crate::data::Data;
use crate::evaluation::{Answers, Evaluation};
use crate::state::State;

/// A run after its last step.
pub struct Finished<'a> {
    /// Its configuration.
    pub config: &'a SftConfig,
    /// What it started from.
    pub source: &'a Source,
    /// Its data.
    pub data: &'a Data,
    /// Its evaluation.
    pub evaluation: &'a Evaluation,
    /// The trained model.
    pub model: &'a Decoder,
    /// What was predicted.
    pub plan: &'a Plan,
    /// Where it stands.
    pub state: &'a State,
    /// Evaluation loss.
    pub loss_after: Option<f64>,
    /// Answers to the evaluation's prompts.
    pub answers_after: Answers,
}

/// The figures of a run, for programs (`--json`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Run directory.
    pub output: std::path::PathBuf,
    /// Steps done.
    pub steps: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Trained tokens.
    pub supervised_tokens: u64,
    /// Tokens a second over all steps.
    pub tokens_per_second: f64,
    /// Most memory held, in bytes.
    pub peak_memory: Option<usize>,
    /// Memory that the plan predicted, in bytes.
    pub predicted_memory: usize,
    /// Evaluation loss before and after.
    pub eval_loss: (Option<f64>, Option<f64>),
    /// Accuracy of the answers before and after.
    pub accuracy: (Option<f64>, Option<f64>),
}

/// Writes what the run leaves, and reads the export again.
///
/// # Errors
/// A full disk, or an export that does not come back as it was.
pub fn finish(run: Finished, dir: &RunDir, progress: &mut dyn Progress) -> Result<Outcome> {
    let before = Answers {
        completions: run.state.answers_before.iter().map(|(text, _)| text.clone()).collect(),
        correct: run.state.answers_before.iter().map(|(_, correct)| *correct).collect(),
    };
    let seconds = run.state.seconds.max(1e-9);
    export(&run, dir, progress)?;
    progress.note("export: read again and equal");
    let outcome = Outcome {
        output: dir.path().to_path_buf(),
        steps: run.state.step,
        tokens: run.state.tokens,
        supervised_tokens: run.state.supervised_tokens,
        tokens_per_second: run.state.tokens as f64 / seconds,
        peak_memory: peak_memory(),
        predicted_memory: run.plan.peak_bytes(),
        eval_loss: (run.state.loss_before, run.loss_after),
        accuracy: (before.accuracy(), run.answers_after.accuracy()),
    };
    let summary = summary(&run, &outcome, &before);
    summary.write(&dir.summary())?;
    card(&run, &summary).write(&dir.card())?;
    Report::from_run(dir)?.write(&dir.report())?;
    for Prediction { name, predicted, measured } in &summary.prediction {
        progress.note(&format!("{name}: predicted {predicted}, measured {measured}"));
    }
    progress.note(&run.state.ledger.totals.to_string());
    progress.note(&format!("report: {}", dir.report().display()));
    Ok(outcome)
}

fn export(run: &Finished, dir: &RunDir, progress: &mut dyn Progress) -> Result<()> {
    let (side_files, added) = run.source.export_files(&run.state.trained_ends);
    for id in added {
        let token = run.source.tokenizer.id_to_token(id).unwrap_or_default();
        progress.note(&format!(
            "generation_config.json: `{token}` ends the trained turns and was added to `eos_token_id`"
        ));
    }
    let dtype = run.config.dtype()?;
    let params: HashMap<&str, &Param> =
        run.model.params().into_iter().map(|param| (param.name(), param)).collect();
    let data = |name: &str| -> Result<ParamData> {
        let param = params.get(name).ok_or_else(|| Error::model(format!("no `{name}`")))?;
        Ok(ParamData::Tensor(param.to_f32()?))
    };
    let root = dir.path();
    if run.config.is_lora() {
        let adapter = adapter_config(run)?;
        let factor = |module: &str, factor: Factor| {
            let side = if factor == Factor::A { "A" } else { "B" };
            data(&format!("{module}.lora_{side}.weight"))
        };
        write_adapter(root, &adapter, &run.source.config, candle_core::DType::F32, factor)?;
        // As PEFT's users know it: what the prompts are made with goes with the adapter. So does
        // where answers stop, for a merge.
        write_side_files(root, &side_files)?;
        return verify_adapter(run, root, &params);
    }
    let options = ExportOptions { dtype, ..ExportOptions::default() };
    write_model(root, &run.source.config, &side_files, &options, |spec| data(&spec.name))?;
    let written = WeightFiles::open(root)?;
    written.check(&run.source.config)?;
    for (name, param) in &params {
        let expected = param.to_f32()?.to_dtype(dtype)?.to_dtype(candle_core::DType::F32)?;
        let found = written.get(name)?.to_tensor(&candle_core::Device::Cpu)?;
        same(name, &found, &expected)?;
    }
    Ok(())
}

fn adapter_config(run: &Finished) -> Result<AdapterConfig> {
    let config = run.config;
    let Some(dir) = &config.adapter else { return Ok(config.adapter_config()) };
    let mut adapter = run.source.adapter(dir)?.config;
    // A revision is one of the model that was named with it.
    if config.revision.is_some() {
        (adapter.base_model, adapter.revision) = (config.model.clone(), config.revision.clone());
    }
    Ok(adapter)
}

fn verify_adapter(
    run: &Finished,
    root: &std::path::Path,
    params: &HashMap<&str, &Param>,
) -> Result<()> {
    for (module, factors) in &run.source.adapter(root)?.factors {
        for (side, stored) in [("A", &factors.a), ("B", &factors.b)] {
            let name = format!("{module}.lora_{side}.weight");
            let param =
                params.get(name.as_str()).ok_or_else(|| Error::model(format!("no `{name}`")))?;
            same(&name, &stored.to_tensor(&candle_core::Device::Cpu)?, &param.to_f32()?)?;
        }
    }
    Ok(())
}

fn same(name: &str, found: &candle_core::Tensor, expected: &candle_core::Tensor) -> Result<()> {
    let differing = found.ne(expected)?.to_dtype(candle_core::DType::F32)?.sum_all()?;
    match differing.to_scalar::<f32>()? {
        0.0 => Ok(()),
        count => Err(Error::model(format!(
            "the export is not what was trained: `{name}` differs in {}",
            counted(count as usize, "place")
        ))),
    }
}

fn summary(run: &Finished, outcome: &Outcome, before: &Answers) -> Summary {
    let name = run.source.name.clone().unwrap_or_else(|| "fresh weights".into());
    let mut headline = Vec::new();
    let arrow = |before: Option<String>, after: String| match before {
        Some(before) => format!("{before} → {after}"),
        None => after,
    };
    if let Some(after) = outcome.accuracy.1 {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        headline.push(Figure {
            name: "accuracy".into(),
            value: arrow(outcome.accuracy.0.map(percent), percent(after)),
            detail: counted(run.answers_after.score().1, "held-out problem"),
        });
    }
    if let Some(after) = outcome.eval_loss.1 {
        headline.push(Figure {
            name: "evaluation loss".into(),
            value: arrow(outcome.eval_loss.0.map(|l| format!("{l:.3}")), format!("{after:.3}")),
            detail: counted(run.evaluation.rows().len(), "held-out row"),
        });
    }
    headline.push(Figure {
        name: "tokens per second".into(),
        value: format!("{:.0}", outcome.tokens_per_second),
        detail: counted(outcome.tokens as usize, "token"),
    });
    let memory = outcome.peak_memory.map_or_else(|| "unknown".into(), gigabytes);
    headline.push(Figure {
        name: "peak memory".into(),
        value: memory.clone(),
        detail: String::new(),
    });
    let trained: usize = run.model.trained().iter().map(|param| param.elem_count()).sum();
    let steps = run.state.step.max(1) as f64;
    Summary {
        title: format!("Supervised fine-tuning of {name}"),
        headline,
        facts: vec![
            ("base model".into(), name),
            ("data".into(), run.config.data.join(", ")),
            ("steps".into(), run.state.step.to_string()),
            ("parameters trained".into(), trained.to_string()),
            ("trained tokens".into(), run.state.supervised_tokens.to_string()),
            ("device".into(), run.config.device.clone()),
        ],
        samples: samples(run, before),
        ledger: ledger(run),
        prediction: vec![
            Prediction {
                name: "peak memory".into(),
                predicted: gigabytes(run.plan.peak_bytes()),
                measured: memory,
            },
            Prediction {
                name: "seconds per step".into(),
                predicted: format!("{:.2}", run.plan.seconds_per_step),
                measured: format!("{:.2}", run.state.seconds / steps),
            },
        ],
    }
}

fn samples(run: &Finished, before: &Answers) -> Vec<Sample> {
    let prompts = run.evaluation.prompts().iter().enumerate();
    prompts
        .map(|(i, prompt)| Sample {
            prompt: prompt.text.clone(),
            reference: prompt.reference.clone(),
            before: before.completions.get(i).cloned(),
            after: run.answers_after.completions.get(i).cloned(),
            before_correct: before.correct.get(i).copied().flatten(),
            after_correct: run.answers_after.correct.get(i).copied().flatten(),
        })
        .collect()
}

fn ledger(run: &Finished) -> Vec<LedgerCount> {
    let totals = &run.state.ledger.totals;
    let kept = LedgerCount {
        fate: "kept".into(),
        reason: String::new(),
        rows: totals.kept,
        tokens: Some(totals.tokens),
    };
    let others = [("cut", &totals.cut), ("dropped", &totals.dropped), ("refused", &totals.refused)];
    let others = others.into_iter().flat_map(|(fate, by_reason)| {
        by_reason.iter().map(move |(reason, &rows)| LedgerCount {
            fate: fate.into(),
            reason: reason.clone(),
            rows,
            tokens: None,
        })
    });
    std::iter::once(kept).chain(others).collect()
}

fn dataset(set: &Dataset) -> Named {
    match set.hub_id() {
        Some(id) => Named::Hub(id.to_string()),
        None => Named::Local(set.name().to_string()),
    }
}

fn card(run: &Finished, summary: &Summary) -> Card {
    let config = run.config;
    let name = config
        .output
        .file_name()
        .map_or_else(|| "model".to_string(), |name| name.to_string_lossy().into_owned());
    Card {
        name,
        base_model: run.source.name.clone().map(|name| match run.source.is_from_hub {
            true => Named::Hub(name),
            false => Named::Local(name),
        }),
        datasets: run.data.sets.iter().map(dataset).collect(),
        method: "sft".into(),
        description: "Cross-entropy on the completions; prompts are not trained.".into(),
        tags: if config.is_lora() { vec!["lora".into()] } else { Vec::new() },
        is_adapter: config.is_lora(),
        license: String::new(),
        license_notes: Vec::new(),
        hyper_parameters: vec![
            ("steps".into(), run.state.step.to_string()),
            ("batch size".into(), config.batch_size.to_string()),
            ("learning rate".into(), config.learning_rate.to_string()),
            ("schedule".into(), format!("{:?}", config.schedule).to_lowercase()),
            ("seed".into(), config.seed.to_string()),
        ],
        figures: summary.headline.iter().map(|f| (f.name.clone(), f.value.clone())).collect(),
        has_chat_template: run.source.template.is_some(),
    }
}
