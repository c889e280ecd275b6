//! Training from configuration to verified export, read downward.

use std::time::Instant;

use crate::data::ledger::Ledger;
use crate::model::config::Head;
use crate::model::param::Grads;
use crate::ops::dropout::hash;
use crate::train::checkpoint::CheckpointStore;
use crate::train::interrupt::Interrupt;
use crate::train::metrics::{MetricsWriter, StepMetrics};
use crate::train::optimizer::AdamW;
use crate::train::progress::{Progress, Unit};
use crate::train::run_dir::{RunDir, Start};
use crate::train::schedule::Schedule;
use crate::train::tensorboard::TensorboardWriter;
use crate::{Error, ErrorKind, Result};

use super::evaluation::Answers;
use super::finish::{self, Finished, Outcome};
use super::messages::{self, interrupted, tell_interruption};
use super::prepare::Prepared;
use super::rows::RowFeed;
use super::state::State;
use crate::train::method::{Backward, Figures, Method, StepOptions};
use crate::train::step::update_in_backward;

/// Runs a prepared run, or resumes it.
///
/// # Errors
/// A row that would train wrongly, a loss or gradient that is not finite, a full disk; after the
/// first checkpoint the run can be resumed from it. [`ErrorKind::Interrupted`] when the user asked
/// to stop: a checkpoint was saved, unless the first step was still to come.
pub fn run<M: Method>(
    prepared: Prepared<M>,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    prepared.plan.check()?;
    let mut training = Training::open(prepared, progress, interrupt)?;
    training.all_steps()?;
    training.finish()
}

/// What a run holds while it trains.
struct Training<'a, M: Method> {
    prepared: Prepared<M>,
    progress: &'a mut dyn Progress,
    interrupt: &'a Interrupt,
    state: State,
    feed: RowFeed<M::Row>,
    grads: Grads,
    optimizer: AdamW,
    schedule: Schedule,
    /// Texts and ids of the tokens that end a turn.
    ends: Vec<(String, u32)>,
    metrics: MetricsWriter,
    tensorboard: TensorboardWriter,
    store: CheckpointStore,
    /// Step and figures of the newest evaluation.
    evaluated: Option<(u64, Figures)>,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    /// Dropped last: a run that fails before its first step takes its directory with it.
    dir: RunDir,
}

/// What an optimizer update did.
struct Update {
    figures: Figures,
    grad_norm: f64,
    learning_rate: f64,
}

impl<'a, M: Method> Training<'a, M> {
    /// Opens a run or resumes it, and evaluates the model before its first step.
    fn open(
        mut prepared: Prepared<M>,
        progress: &'a mut dyn Progress,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let dir = RunDir::create(&prepared.config.train.output, prepared.start)?;
        dir.notices().iter().for_each(|notice| progress.note(notice));
        if prepared.start == Start::Fresh {
            dir.write_config(&prepared.config.to_toml()?)?;
        }
        prepared
            .begin(dir.path(), progress, interrupt)
            .map_err(|error| tell_interruption(error, None))?;
        let Prepared { config: whole, data, model, source, .. } = &prepared;
        let config = &whole.train;
        let store = CheckpointStore::open(dir.checkpoints(), config.keep_checkpoints)?;
        let mut optimizer = AdamW::with_moments(config.adam(), config.optim, model.trained())?;
        let mut state = prepared.fresh_state()?;
        if prepared.start == Start::Resume {
            state = newest_state(state, &prepared, &store, &mut optimizer, &dir, progress)?;
        }
        let resumed = state.step > 0;
        let ledger = match resumed {
            true => Ledger::resume(dir.ledger(), state.ledger.clone())?,
            false => Ledger::create(dir.ledger())?,
        };
        let (metrics, notices) = MetricsWriter::resume(dir.metrics(), state.recorded())?;
        notices.iter().for_each(|notice| progress.note(notice));
        let tensorboard = TensorboardWriter::resume(&dir.tensorboard(), state.recorded())?;
        if !resumed && !prepared.evaluation.is_empty() {
            evaluate_before(&mut state, &prepared, progress, interrupt)?;
        }
        let grads = match config.optimizer_in_backward {
            true => model.rolling_grads()?,
            false => model.grads()?,
        };
        let stream = data.stream(state.cursor, prepared.epochs(), &prepared.encoder)?;
        let mut training = Self {
            feed: RowFeed::new(stream, ledger, state.cursor, state.rows_into_record),
            grads,
            schedule: Schedule {
                peak: config.learning_rate,
                decay: config.schedule,
                warmup_steps: (config.warmup_ratio * prepared.total_steps as f64).ceil() as u64,
                total_steps: prepared.total_steps,
            },
            ends: source.tokenizer.end_of_turn_tokens(),
            evaluated: None,
            saved: resumed.then_some(state.step),
            prepared,
            progress,
            interrupt,
            state,
            optimizer,
            metrics,
            tensorboard,
            store,
            dir,
        };
        training.prepared.method.restore(&training.state.method)?;
        Ok(training)
    }

    /// Trains until the last step, or until the data ends.
    fn all_steps(&mut self) -> Result<()> {
        let total = self.prepared.total_steps;
        if self.state.step >= total {
            let step = self.state.step;
            let note = format!("the run was complete after step {step}: nothing to train");
            self.progress.note(&note);
        }
        self.progress.begin("training", total, Unit::Steps);
        self.progress.advance(self.state.step, "");
        while self.state.step < total || self.state.unevaluated.is_some() {
            if self.interrupt.is_set() {
                self.progress.finish();
                self.dir.keep();
                self.save()?;
                return Err(interrupted(Some(self.state.step)));
            }
            let Some(line) = self.unevaluated_or_next_step()? else { break };
            let Some(line) = self.evaluate_if_due(line)? else { continue };
            self.record(&line)?;
            let every = self.prepared.config.train.save_every;
            if every > 0 && self.state.step.is_multiple_of(every) {
                self.save()?;
                self.saved = Some(self.state.step);
            }
        }
        self.progress.finish();
        // Rows that were dropped after the last step count as well.
        self.feed.note_position(&mut self.state);
        if self.saved != Some(self.state.step) {
            self.save()?;
        }
        self.feed.sync()
    }

    /// The metrics of the step that a checkpoint holds without its evaluation, else of a step that
    /// is done now; `None` where the data ends.
    fn unevaluated_or_next_step(&mut self) -> Result<Option<StepMetrics>> {
        match self.state.unevaluated.take() {
            Some(line) => {
                self.saved = None;
                Ok(Some(line))
            }
            None => self.step(),
        }
    }

    /// One step and its metrics; `None` where the data ends.
    fn step(&mut self) -> Result<Option<StepMetrics>> {
        let started = Instant::now();
        let rows = self.next_rows()?;
        if rows.is_empty() {
            return Ok(None);
        }
        let Update { figures, grad_norm, learning_rate } = self.update(&rows)?;
        let Prepared { model, method, .. } = &mut self.prepared;
        method.after_update(model, self.state.step + 1)?;
        let seconds = started.elapsed().as_secs_f64();
        let state = &mut self.state;
        state.step += 1;
        state.seconds += seconds;
        state.tokens += figures.tokens as u64;
        state.supervised_tokens += figures.supervised_tokens as u64;
        state.note_ends(&rows, &self.ends);
        self.feed.note_position(state);
        Ok(Some(StepMetrics {
            step: state.step,
            epoch: self.feed.epochs(self.prepared.data.mixture.rows_per_epoch()),
            loss: Some(figures.loss()),
            grad_norm: Some(grad_norm),
            learning_rate: Some(learning_rate),
            num_tokens: Some(state.tokens),
            supervised_tokens: Some(state.supervised_tokens),
            tokens_per_second: Some(figures.tokens as f64 / seconds),
            seconds: Some(seconds),
            mean_token_accuracy: (M::HEAD == Head::Language).then(|| figures.token_accuracy()),
            extra: figures.own().map(|(key, value)| (key.to_string(), value)).collect(),
        }))
    }

    /// The rows of the next step; none where the data ends after an earlier one.
    fn next_rows(&mut self) -> Result<Vec<M::Row>> {
        let step = self.state.step;
        let rows = match self.feed.next_rows(self.prepared.config.train.batch_size) {
            Ok(rows) => rows,
            Err(error) => {
                self.progress.finish();
                // The steps before a wrong row are not lost with it.
                if step > 0 {
                    self.state.wrong_row = true;
                    self.save()?;
                    self.progress.note(&format!(
                        "checkpoint saved after step {step}: `--resume` goes on from there"
                    ));
                }
                return Err(error);
            }
        };
        if rows.is_empty() {
            if step == 0 {
                return Err(messages::nothing_to_train(self.feed.totals()));
            }
            let total = self.prepared.total_steps;
            self.progress
                .note(&format!("the data ended after step {step} of {total}: rows were dropped"));
        }
        Ok(rows)
    }

    /// Gradients of the mean loss over `rows`, clipped, and the optimizer's update with them.
    fn update(&mut self, rows: &[M::Row]) -> Result<Update> {
        let step = self.state.step;
        let learning_rate = self.schedule.at(step);
        let Prepared { config, model, plan, method, .. } = &mut self.prepared;
        let config = &config.train;
        let options = StepOptions {
            microbatch_tokens: plan.microbatch_tokens,
            keep_blocks: plan.keep_blocks,
            seed: hash(config.seed, step) & !0xffff,
            learning_rate,
        };
        let inside = config.optimizer_in_backward;
        let with_remedy = |error| messages::with_remedy(error, step, rows);
        let (figures, squared_norms) = if inside {
            let (grads, optimizer) = (&self.grads, &mut self.optimizer);
            let whole = StepOptions { microbatch_tokens: usize::MAX, ..options };
            let each_pass =
                |backward: Backward| method.each_pass(model, rows, whole, grads, backward);
            update_in_backward(model, grads, optimizer, learning_rate, each_pass)
                .map_err(with_remedy)?
        } else {
            self.grads.clear()?;
            let grads = &self.grads;
            let backward: Backward = &mut |pass, loss| pass.backward(loss, grads);
            let figures =
                method.each_pass(model, rows, options, grads, backward).map_err(with_remedy)?;
            (figures, self.grads.squared_norms()?)
        };
        let grad_norm = squared_norms.iter().sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            let message = format!("the gradient norm is `{grad_norm}`");
            return Err(with_remedy(Error::new(ErrorKind::Numeric, message)));
        }
        self.check_gradients(&squared_norms)?;
        if !inside {
            let Prepared { config, model, .. } = &self.prepared;
            let clip = match config.train.max_grad_norm {
                0.0 => 1.0,
                most => (most / (grad_norm + 1e-6)).min(1.0),
            };
            self.optimizer.update(&model.trained(), &self.grads, learning_rate, clip)?;
        }
        Ok(Update { figures, grad_norm, learning_rate })
    }

    /// Every trained parameter must have a gradient once the first update has moved the model
    /// (LoRA's A has none before).
    fn check_gradients(&mut self, squared_norms: &[f64]) -> Result<()> {
        let step = self.state.step;
        let moved = step > 0 && self.schedule.at(step - 1) > 0.0;
        if self.state.gradients_checked || !moved {
            return Ok(());
        }
        for (param, squared_norm) in self.prepared.model.trained().iter().zip(squared_norms) {
            if *squared_norm == 0.0 {
                let message = format!("`{}` is trained but gets no gradient", param.name());
                return Err(Error::new(ErrorKind::Numeric, message));
            }
        }
        self.state.gradients_checked = true;
        Ok(())
    }

    /// Adds the evaluation of its step to `line` where one is due; `None` where it was interrupted
    /// and is still to be done.
    fn evaluate_if_due(&mut self, mut line: StepMetrics) -> Result<Option<StepMetrics>> {
        let Prepared { config, evaluation, total_steps, .. } = &self.prepared;
        let step = self.state.step;
        let every = config.train.eval_every;
        let due = every > 0 && step.is_multiple_of(every);
        if !evaluation.is_empty() && (due || step == *total_steps) {
            let held_out = match self.prepared.held_out(self.interrupt) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    self.state.unevaluated = Some(line);
                    return Ok(None);
                }
                held_out => held_out?,
            };
            line.extra.insert("eval/loss".into(), held_out.loss());
            if M::HEAD == Head::Language {
                line.extra.insert("eval/mean_token_accuracy".into(), held_out.token_accuracy());
            }
            for (key, value) in held_out.own() {
                line.extra.insert(format!("eval/{key}"), value);
            }
            self.evaluated = Some((step, held_out));
        }
        Ok(Some(line))
    }

    /// Writes the metrics of a step and shows them.
    fn record(&mut self, line: &StepMetrics) -> Result<()> {
        self.metrics.write(line)?;
        self.tensorboard.write(line)?;
        self.dir.keep();
        self.progress.advance(self.state.step, &messages::describe(line));
        Ok(())
    }

    /// Saves a checkpoint, after the ledger and the metrics that it counts on.
    fn save(&mut self) -> Result<()> {
        self.feed.sync()?;
        self.metrics.sync()?;
        let Prepared { model, method, .. } = &self.prepared;
        self.state.method = method.state();
        self.state.save(&self.store, model, &self.optimizer, method)
    }

    /// Evaluates the trained model, and leaves export and report.
    fn finish(self) -> Result<Outcome> {
        let Self { prepared, progress, interrupt, state, dir, .. } = self;
        let Prepared { config, source, data, evaluation, model, .. } = &prepared;
        let config = &config.train;
        let epochs = self.feed.epochs(data.mixture.rows_per_epoch());
        if config.max_steps.is_none() && epochs < config.epochs {
            progress.note(&format!(
                "the steps ended after {epochs:.2} of {} epochs: `split` made several rows of a \
                 record; `--max-steps` trains more",
                config.epochs
            ));
        }
        drop((self.feed, self.grads, self.optimizer));
        model.context().pool().release();

        let mut answers = Answers::default();
        let mut held_out = None;
        if !evaluation.is_empty() {
            let told = |error| tell_interruption(error, Some(state.step));
            let figures = match self.evaluated {
                Some((step, figures)) if step == state.step => figures,
                _ => prepared.held_out(interrupt).map_err(told)?,
            };
            let given = evaluation.answers(model, source, config, progress, interrupt);
            answers = given.map_err(told)?;
            let (loss, own) = (Some(figures.loss()), figures.told(M::TOLD));
            progress.note(&messages::report_evaluation("after", loss, &own, &answers));
            held_out = Some(figures);
        }
        let finished =
            Finished { prepared: &prepared, state: &state, held_out, answers_after: answers };
        finish::finish(finished, &dir, progress)
    }
}

/// The state of the newest checkpoint, whose tensors go into model and `optimizer`; `fresh` where
/// the run was interrupted before there was one.
fn newest_state<M: Method>(
    fresh: State,
    prepared: &Prepared<M>,
    store: &CheckpointStore,
    optimizer: &mut AdamW,
    dir: &RunDir,
    progress: &mut dyn Progress,
) -> Result<State> {
    let found = store.latest()?;
    found.notices.iter().for_each(|notice| progress.note(notice));
    let Some(checkpoint) = found.checkpoint else {
        if found.notices.is_empty() {
            return Ok(fresh);
        }
        return Err(messages::all_damaged(&dir.checkpoints()));
    };
    let state = State::load(&checkpoint, &fresh, &prepared.model, optimizer, &prepared.method)?;
    progress.note(&format!("resuming after step {}", state.step));
    Ok(state)
}

/// Notes in `state` how the model does before it is trained.
fn evaluate_before<M: Method>(
    state: &mut State,
    prepared: &Prepared<M>,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let Prepared { config, source, evaluation, model, .. } = prepared;
    let told = |error| tell_interruption(error, None);
    let figures = prepared.held_out(interrupt).map_err(told)?;
    let own = figures.told(M::TOLD);
    state.loss_before = Some(figures.loss());
    state.told_before = own.iter().map(|(_, value)| *value).collect();
    let answers = evaluation.answers(model, source, &config.train, progress, interrupt);
    let answers = answers.map_err(told)?;
    progress.note(&messages::report_evaluation("before", state.loss_before, &own, &answers));
    state.answers_before = answers.completions.into_iter().zip(answers.correct).collect();
    Ok(())
}
