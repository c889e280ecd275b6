//! What a finished run leaves: export, model card, summary and report.

use std::collections::{BTreeMap, HashMap};

use crate::data::dataset::Dataset;
use crate::memory::plan::gigabytes;
use crate::memory::system::peak_memory;
use crate::model::config::Head;
use crate::model::param::Param;
use crate::model::weights::WeightFiles;
use crate::model::weights::adapter::{Adapter, AdapterConfig, Part, write_adapter};
use crate::model::weights::export::{ExportOptions, ParamData, write_model, write_side_files};
use crate::train::card::{Card, Named};
use crate::train::progress::{Progress, counted};
use crate::train::report::Report;
use crate::train::run_dir::RunDir;
use crate::train::summary::{Figure, LedgerCount, Prediction, Sample, Summary};
use crate::{Error, Result};
use serde::Serialize;

use super::evaluation::Answers;
use super::prepare::Prepared;
use super::state::State;
use crate::train::method::{Figures, Method};

/// A run after its last step.
pub(super) struct Finished<'a, M: Method> {
    /// The run, with the trained model.
    pub prepared: &'a Prepared<M>,
    /// Where it stands.
    pub state: &'a State,
    /// Figures of the held-out rows.
    pub held_out: Option<Figures>,
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
    /// The method's own figures of the held-out rows.
    pub evaluation: BTreeMap<String, f64>,
}

/// Writes what the run leaves, and reads the export again.
///
/// # Errors
/// A full disk, or an export that does not come back as it was.
pub(super) fn finish<M: Method>(
    run: Finished<M>,
    dir: &RunDir,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
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
        predicted_memory: run.prepared.plan.peak_bytes(),
        eval_loss: (run.state.loss_before, run.held_out.as_ref().map(Figures::loss)),
        accuracy: (before.accuracy(), run.answers_after.accuracy()),
        evaluation: run.held_out.iter().flat_map(Figures::own).map(owned).collect(),
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

fn owned((key, value): (&str, f64)) -> (String, f64) {
    (key.to_string(), value)
}

fn export<M: Method>(run: &Finished<M>, dir: &RunDir, progress: &mut dyn Progress) -> Result<()> {
    let (side_files, added) = run.prepared.source.export_files(&run.state.trained_ends);
    for id in added {
        let token = run.prepared.source.tokenizer.id_to_token(id).unwrap_or_default();
        progress.note(&format!(
            "generation_config.json: `{token}` ends the trained turns and was added to `eos_token_id`"
        ));
    }
    let dtype = run.prepared.config.train.dtype()?;
    let params: HashMap<&str, &Param> =
        run.prepared.model.params().into_iter().map(|param| (param.name(), param)).collect();
    let data = |name: &str| -> Result<ParamData> {
        let param = params.get(name).ok_or_else(|| Error::model(format!("no `{name}`")))?;
        Ok(ParamData::Tensor(param.to_f32()?))
    };
    let (root, config) = (dir.path(), &run.prepared.model.config);
    if run.prepared.config.train.is_lora() {
        let adapter = adapter_config(run)?;
        let part = |module: &str, part: Part| match part {
            Part::A => data(&format!("{module}.lora_A.weight")),
            Part::B => data(&format!("{module}.lora_B.weight")),
            Part::Whole => data(&format!("{module}.weight")),
        };
        write_adapter(root, &adapter, config, candle_core::DType::F32, part)?;
        // As PEFT's users know it: what the prompts are made with goes with the adapter. So does
        // where answers stop, for a merge.
        write_side_files(root, &side_files)?;
        return verify_adapter(run, root, &params);
    }
    let options = ExportOptions { dtype, ..ExportOptions::default() };
    write_model(root, config, &side_files, &options, |spec| data(&spec.name))?;
    let written = WeightFiles::open(root)?;
    written.check(config)?;
    for (name, param) in &params {
        let expected = param.to_f32()?.to_dtype(dtype)?.to_dtype(candle_core::DType::F32)?;
        let found = written.get(name)?.to_tensor(&candle_core::Device::Cpu)?;
        same(name, &found, &expected)?;
    }
    Ok(())
}

fn adapter_config<M: Method>(run: &Finished<M>) -> Result<AdapterConfig> {
    let config = &run.prepared.config.train;
    let with_score = run.prepared.model.config.head == Head::Score;
    let Some(dir) = &config.adapter else {
        return Ok(AdapterConfig { with_score, ..config.adapter_config() });
    };
    let mut adapter = run.prepared.source.adapter(dir)?.config;
    adapter.with_score = with_score;
    // A revision is one of the model that was named with it.
    if config.revision.is_some() {
        (adapter.base_model, adapter.revision) = (config.model.clone(), config.revision.clone());
    }
    Ok(adapter)
}

fn verify_adapter<M: Method>(
    run: &Finished<M>,
    root: &std::path::Path,
    params: &HashMap<&str, &Param>,
) -> Result<()> {
    let written = Adapter::open(root, &run.prepared.model.config)?;
    if let Some(score) = &written.score {
        let param = run.prepared.model.score.as_ref().ok_or_else(|| Error::model("no score"))?;
        same(param.name(), &score.to_tensor(&candle_core::Device::Cpu)?, &param.to_f32()?)?;
    }
    for (module, factors) in &written.factors {
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

fn summary<M: Method>(run: &Finished<M>, outcome: &Outcome, before: &Answers) -> Summary {
    let name = run.prepared.source.name.clone().unwrap_or_else(|| "fresh weights".into());
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
            detail: counted(run.prepared.evaluation.rows().len(), "held-out row"),
        });
    }
    let told = run.held_out.iter().flat_map(|figures| figures.told(M::TOLD));
    for (index, (key, after)) in told.enumerate() {
        let before = run.state.told_before.get(index);
        headline.push(Figure {
            name: key.replace('_', " "),
            value: arrow(before.map(|before| format!("{before:.3}")), format!("{after:.3}")),
            detail: "held-out rows".into(),
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
    let trained: usize = run.prepared.model.trained().iter().map(|param| param.elem_count()).sum();
    let steps = run.state.step.max(1) as f64;
    Summary {
        title: format!("{} of {name}", M::DESCRIPTION.title),
        headline,
        facts: vec![
            ("base model".into(), name),
            ("data".into(), run.prepared.config.train.data.join(", ")),
            ("steps".into(), run.state.step.to_string()),
            ("parameters trained".into(), trained.to_string()),
            ("trained tokens".into(), run.state.supervised_tokens.to_string()),
            ("device".into(), run.prepared.config.train.device.clone()),
        ],
        samples: samples(run, before),
        ledger: ledger(run),
        prediction: vec![
            Prediction {
                name: "peak memory".into(),
                predicted: gigabytes(run.prepared.plan.peak_bytes()),
                measured: memory,
            },
            Prediction {
                name: "seconds per step".into(),
                predicted: format!("{:.2}", run.prepared.plan.seconds_per_step),
                measured: format!("{:.2}", run.state.seconds / steps),
            },
        ],
        calibration: run.held_out.iter().flat_map(|figures| figures.calibration.clone()).collect(),
    }
}

fn samples<M: Method>(run: &Finished<M>, before: &Answers) -> Vec<Sample> {
    let prompts = run.prepared.evaluation.prompts().iter().enumerate();
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

fn ledger<M: Method>(run: &Finished<M>) -> Vec<LedgerCount> {
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

fn card<M: Method>(run: &Finished<M>, summary: &Summary) -> Card {
    let config = &run.prepared.config.train;
    let name = config
        .output
        .file_name()
        .map_or_else(|| "model".to_string(), |name| name.to_string_lossy().into_owned());
    Card {
        name,
        base_model: run.prepared.source.name.clone().map(|name| {
            match run.prepared.source.is_from_hub {
                true => Named::Hub(name),
                false => Named::Local(name),
            }
        }),
        datasets: run.prepared.data.sets.iter().map(dataset).collect(),
        method: M::DESCRIPTION.command.into(),
        description: M::DESCRIPTION.sentence.into(),
        tags: if config.is_lora() { vec!["lora".into()] } else { Vec::new() },
        is_adapter: config.is_lora(),
        is_reward_model: M::HEAD == Head::Score,
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
        has_chat_template: run.prepared.source.template.is_some(),
    }
}
