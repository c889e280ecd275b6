//! The recipe: supervised fine-tuning from configuration to verified export, read downward.
//!
//! Departures from "The Llama 3 Herd of Models", section 4.1.3: none in the loss (cross-entropy on
//! the target tokens, prompt masked). Sources are weighted by the user, not by the paper's mix.

use std::time::Instant;

use halter_core::data::ledger::Ledger;
use halter_core::data::record::Row;
use halter_core::model::Decoder;
use halter_core::model::param::Grads;
use halter_core::ops::dropout::hash;
use halter_core::train::checkpoint::CheckpointStore;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::metrics::{MetricsWriter, StepMetrics};
use halter_core::train::optimizer::AdamW;
use halter_core::train::progress::{Progress, Unit};
use halter_core::train::run_dir::{RunDir, Start};
use halter_core::train::schedule::Schedule;
use halter_core::train::tensorboard::TensorboardWriter;
use halter_core::{Error, ErrorKind, Result};

use crate::evaluation::Answers;
use crate::finish::{self, Finished, Outcome};
pub use crate::prepare::Prepared;
use crate::rows::RowFeed;
use crate::state::State;
use crate::step::{StepOptions, accumulate};

/// Runs a prepared run, or resumes it.
///
/// # Errors
/// A row that would train wrongly, a loss or gradient that is not finite, a full disk; after the
/// first checkpoint the run can be resumed from it. [`ErrorKind::Interrupted`] when the user asked
/// to stop: a checkpoint was saved, unless the first step was still to come.
pub fn run(
    prepared: Prepared,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let Prepared {
        config,
        start,
        source,
        encoder,
        data,
        evaluation,
        model,
        began_at,
        plan,
        total_steps,
    } = prepared;
    plan.check()?;
    let mut dir = RunDir::create(&config.output, start)?;
    dir.notices().iter().for_each(|notice| progress.note(notice));

    // The state of a fresh run, or that of the newest checkpoint.
    let store = CheckpointStore::open(dir.checkpoints(), config.keep_checkpoints)?;
    let mut optimizer = AdamW::new(config.adam(), model.trained())?;
    let mut contents = data.contents()?;
    contents.extend(evaluation.contents().clone());
    let mut state = State {
        began_at,
        data: data.mixture.fingerprint(),
        contents,
        base: model.frozen_fingerprint()?,
        ..State::default()
    };
    if start == Start::Resume {
        let found = store.latest()?;
        found.notices.iter().for_each(|notice| progress.note(notice));
        if found.checkpoint.is_none() && !found.notices.is_empty() {
            let message = "every checkpoint of the run is damaged".to_string();
            return Err(Error::new(ErrorKind::Io, message)
                .in_file(dir.checkpoints())
                .hint("put one back from a copy, or begin anew in another `--output`"));
        }
        if let Some(checkpoint) = found.checkpoint {
            state = State::load(&checkpoint, &state, &model, &mut optimizer)?;
            progress.note(&format!("resuming after step {}", state.step));
        }
    } else {
        dir.write_config(&config.to_toml()?)?;
    }
    let resumed = state.step > 0;
    let ledger = match resumed {
        true => Ledger::resume(dir.ledger(), state.ledger.clone())?,
        false => Ledger::create(dir.ledger())?,
    };
    let (mut metrics, notices) = MetricsWriter::resume(dir.metrics(), state.recorded())?;
    notices.iter().for_each(|notice| progress.note(notice));
    let mut tensorboard = TensorboardWriter::resume(&dir.tensorboard(), state.recorded())?;

    // Before training.
    if !resumed && !evaluation.is_empty() {
        let told = |error| tell_interruption(error, None);
        let held_out = evaluation.loss(&model, plan.evaluation_tokens, interrupt);
        state.loss_before = Some(held_out.map_err(told)?.loss());
        let answers = evaluation.answers(&model, &source, &config, progress, interrupt);
        let answers = answers.map_err(told)?;
        progress.note(&report_evaluation("before", state.loss_before, &answers));
        state.answers_before = answers.completions.into_iter().zip(answers.correct).collect();
    }

    // Training.
    let schedule = Schedule {
        peak: config.learning_rate,
        decay: config.schedule,
        warmup_steps: (config.warmup_ratio * total_steps as f64).ceil() as u64,
        total_steps,
    };
    let epochs = config.max_steps.is_none().then(|| config.epochs.ceil() as u64);
    let stream = data.stream(state.cursor, epochs, &encoder)?;
    let mut feed = RowFeed::new(stream, ledger, state.cursor, state.rows_into_record);
    let mut grads = model.grads()?;
    let ends = source.tokenizer.end_of_turn_tokens();
    // The loss of the newest evaluation with its step, and the step of the newest checkpoint.
    let mut last_evaluation = None;
    let mut saved = resumed.then_some(state.step);
    if state.step >= total_steps {
        let step = state.step;
        progress.note(&format!("the run was complete after step {step}: nothing to train"));
    }
    progress.begin("training", total_steps, Unit::Steps);
    progress.advance(state.step, "");
    while state.step < total_steps || state.unevaluated.is_some() {
        if interrupt.is_set() {
            progress.finish();
            dir.keep();
            save(&state, &mut feed, &metrics, &store, &model, &optimizer)?;
            return Err(interrupted(Some(state.step)));
        }
        let mut line = match state.unevaluated.take() {
            // The checkpoint of this step lacks its evaluation.
            Some(line) => {
                saved = None;
                line
            }
            None => {
                let started = Instant::now();
                let rows = match feed.next_rows(config.batch_size) {
                    Ok(rows) => rows,
                    Err(error) => {
                        progress.finish();
                        // The steps before a wrong row are not lost with it.
                        if state.step > 0 {
                            state.wrong_row = true;
                            save(&state, &mut feed, &metrics, &store, &model, &optimizer)?;
                            let step = state.step;
                            progress.note(&format!(
                                "checkpoint saved after step {step}: `--resume` goes on from there"
                            ));
                        }
                        return Err(error);
                    }
                };
                if rows.is_empty() {
                    if state.step == 0 {
                        return Err(nothing_to_train(&feed));
                    }
                    progress.note(&format!(
                        "the data ended after step {} of {total_steps}: rows were dropped",
                        state.step
                    ));
                    break;
                }
                let options = StepOptions {
                    microbatch_tokens: plan.microbatch_tokens,
                    keep_blocks: plan.keep_blocks,
                    dropout_seed: Some(hash(config.seed, state.step) & !0xffff),
                };
                state.note_ends(&rows, &ends);
                grads.clear()?;
                let figures = accumulate(&model, &rows, options, &grads)?;
                let grad_norm = finite(grads.norm()?, &rows, saved)?;
                let learning_rate = schedule.at(state.step);
                check_gradients(&mut state, &model, &grads, schedule)?;
                let clip = match config.max_grad_norm {
                    0.0 => 1.0,
                    most => (most / (grad_norm + 1e-6)).min(1.0),
                };
                optimizer.update(&model.trained(), &grads, learning_rate, clip)?;

                state.step += 1;
                let seconds = started.elapsed().as_secs_f64();
                state.seconds += seconds;
                state.tokens += figures.tokens as u64;
                state.supervised_tokens += figures.supervised_tokens as u64;
                feed.note_position(&mut state);
                StepMetrics {
                    step: state.step,
                    epoch: feed.epochs(data.mixture.rows_per_epoch()),
                    loss: Some(figures.loss()),
                    grad_norm: Some(grad_norm),
                    learning_rate: Some(learning_rate),
                    num_tokens: Some(state.tokens),
                    supervised_tokens: Some(state.supervised_tokens),
                    tokens_per_second: Some(figures.tokens as f64 / seconds),
                    seconds: Some(seconds),
                    mean_token_accuracy: Some(figures.token_accuracy()),
                    ..StepMetrics::default()
                }
            }
        };
        let is_last = state.step == total_steps;
        let due = config.eval_every > 0 && state.step.is_multiple_of(config.eval_every);
        if !evaluation.is_empty() && (due || is_last) {
            let held_out = match evaluation.loss(&model, plan.evaluation_tokens, interrupt) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    state.unevaluated = Some(line);
                    continue;
                }
                held_out => held_out?,
            };
            line.extra.insert("eval/loss".into(), held_out.loss());
            line.extra.insert("eval/mean_token_accuracy".into(), held_out.token_accuracy());
            last_evaluation = Some((state.step, held_out.loss()));
        }
        metrics.write(&line)?;
        tensorboard.write(&line)?;
        dir.keep();
        progress.advance(state.step, &describe(&line));
        if config.save_every > 0 && state.step.is_multiple_of(config.save_every) {
            save(&state, &mut feed, &metrics, &store, &model, &optimizer)?;
            saved = Some(state.step);
        }
    }
    progress.finish();
    // Rows that were dropped after the last step count as well.
    feed.note_position(&mut state);
    if saved != Some(state.step) {
        save(&state, &mut feed, &metrics, &store, &model, &optimizer)?;
    }
    feed.sync()?;
    let epochs = feed.epochs(data.mixture.rows_per_epoch());
    if config.max_steps.is_none() && epochs < config.epochs {
        progress.note(&format!(
            "the steps ended after {epochs:.2} of {} epochs: `split` made several rows of a \
             record; `--max-steps` trains more",
            config.epochs
        ));
    }
    drop((feed, grads, optimizer));
    model.context().pool().release();

    // After training.
    let mut answers = Answers::default();
    let mut loss_after = None;
    if !evaluation.is_empty() {
        let told = |error| tell_interruption(error, Some(state.step));
        loss_after = match last_evaluation {
            Some((step, loss)) if step == state.step => Some(loss),
            _ => {
                let held_out = evaluation.loss(&model, plan.evaluation_tokens, interrupt);
                Some(held_out.map_err(told)?.loss())
            }
        };
        let given = evaluation.answers(&model, &source, &config, progress, interrupt);
        answers = given.map_err(told)?;
        progress.note(&report_evaluation("after", loss_after, &answers));
    }
    finish::finish(
        Finished {
            config: &config,
            source: &source,
            data: &data,
            evaluation: &evaluation,
            model: &model,
            plan: &plan,
            state: &state,
            loss_after,
            answers_after: answers,
        },
        &dir,
        progress,
    )
}

/// The run stops because it was asked to, after the step of a checkpoint or before there was one.
fn interrupted(saved: Option<u64>) -> Error {
    let (message, hint) = match saved {
        Some(step) => (
            format!("interrupted after step {step}; checkpoint saved"),
            "run the same command with `--resume` to go on",
        ),
        None => (
            "interrupted before the first step: nothing to save".to_string(),
            "run the same command again",
        ),
    };
    Error::new(ErrorKind::Interrupted, message).hint(hint)
}

/// Says of an interrupted evaluation what it means to the run.
fn tell_interruption(error: Error, saved: Option<u64>) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => interrupted(saved),
        _ => error,
    }
}

/// Saves a checkpoint, after the ledger and the metrics that it counts on.
fn save(
    state: &State,
    feed: &mut RowFeed,
    metrics: &MetricsWriter,
    store: &CheckpointStore,
    model: &Decoder,
    optimizer: &AdamW,
) -> Result<()> {
    feed.sync()?;
    metrics.sync()?;
    state.save(store, model, optimizer)
}

/// Every trained parameter must have a gradient once the first update has moved the model (LoRA's
/// A has none before).
fn check_gradients(
    state: &mut State,
    model: &Decoder,
    grads: &Grads,
    schedule: Schedule,
) -> Result<()> {
    let moved = state.step > 0 && schedule.at(state.step - 1) > 0.0;
    if state.gradients_checked || !moved {
        return Ok(());
    }
    for (param, norm) in model.trained().iter().zip(grads.squared_norms()?) {
        if norm == 0.0 {
            let message = format!("`{}` is trained but gets no gradient", param.name());
            return Err(Error::new(ErrorKind::Numeric, message));
        }
    }
    state.gradients_checked = true;
    Ok(())
}

/// No record gave a row.
fn nothing_to_train(feed: &RowFeed) -> Error {
    let reasons: Vec<String> =
        feed.totals().dropped.iter().map(|(reason, count)| format!("`{count}` {reason}")).collect();
    Error::data(format!("no row to train: all were dropped ({})", reasons.join(", ")))
        .hint("raise `--max-seq-len`, or choose another policy with `--overlong`")
}

fn finite(grad_norm: f64, rows: &[Row], saved: Option<u64>) -> Result<f64> {
    if grad_norm.is_finite() {
        return Ok(grad_norm);
    }
    let places: Vec<String> = rows
        .iter()
        .take(4)
        .map(|row| format!("{}:{}", row.origin.path.display(), row.origin.line))
        .collect();
    let hint = match saved {
        Some(step) => {
            format!("lower `--learning-rate`; the checkpoint of step {step} is intact")
        }
        None => "lower `--learning-rate`, and look at these rows".into(),
    };
    Err(Error::new(
        ErrorKind::Numeric,
        format!("the gradient norm is `{grad_norm}` in a step with the rows {}", places.join(", ")),
    )
    .hint(hint))
}

fn describe(line: &StepMetrics) -> String {
    let [loss, grad_norm, speed] =
        [line.loss, line.grad_norm, line.tokens_per_second].map(Option::unwrap_or_default);
    format!("loss {loss:.4} · grad norm {grad_norm:.3} · {speed:.0} tokens/s")
}

fn report_evaluation(when: &str, loss: Option<f64>, answers: &Answers) -> String {
    let mut line = format!("evaluation {when} training:");
    if let Some(loss) = loss {
        line += &format!(" loss {loss:.4}");
    }
    let (right, verified) = answers.score();
    if let Some(accuracy) = answers.accuracy() {
        line += &format!(", accuracy {:.1} % ({right} of {verified} answers)", 100.0 * accuracy);
    }
    line
}
