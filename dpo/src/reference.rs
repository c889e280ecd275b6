//! Whose log-probs the policy's are compared with.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::Tensor;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::TokenCount;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Param;
use halter_core::model::{Base, Decoder};
use halter_core::train::progress::{Progress, Unit, counted};
use halter_core::train::run::Beginning;
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, ErrorKind, Result};

use crate::cache::ReferenceCache;
use crate::config::DpoConfig;
use crate::step::{Completions, Counting, host};

/// The file of log-probs in a run directory.
const FILE: &str = "reference.logps";

/// The reference of a run.
#[derive(Debug)]
pub struct Reference {
    held: Held,
    /// What it was when the run began; `None` where a checkpoint of the run knows it anyway.
    fingerprint: Option<String>,
    /// What is held for it at the same time as the optimizer's moments and the gradients.
    bytes: usize,
    /// Where log-probs taken beforehand are kept, if not in the run directory.
    file: Option<PathBuf>,
    sync: Option<Sync>,
}

/// How it is held.
#[derive(Debug)]
enum Held {
    /// The loss needs none.
    None,
    /// The policy without its fresh adapter, which is what it was before training.
    WithoutAdapter,
    /// A model of its own.
    Model(Box<Decoder>),
    /// To be taken beforehand, from this model or from the policy as it begins.
    Awaited(Option<Box<Decoder>>, PassMode),
    /// Taken beforehand.
    Taken(ReferenceCache),
}

/// TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656): after every `steps` steps the reference
/// becomes `alpha` · policy + (1 − `alpha`) · reference.
#[derive(Debug, Clone, Copy)]
struct Sync {
    alpha: f64,
    steps: u64,
}

impl Reference {
    /// The reference that `config` asks for, for a policy made from `source`.
    ///
    /// # Errors
    /// A model that cannot be read, or one that does not go with the policy.
    pub fn open(config: &DpoConfig, source: &Source, policy: &Decoder) -> Result<Self> {
        let options = &config.method;
        let mut reference = Self {
            held: Held::None,
            fingerprint: None,
            bytes: 0,
            file: options.ref_log_probs.clone(),
            sync: options.sync_ref_model.then_some(Sync {
                alpha: options.ref_model_mixup_alpha,
                steps: options.ref_model_sync_steps,
            }),
        };
        if !options.loss.needs_reference() {
            return Ok(reference);
        }
        let model = match &options.ref_model {
            Some(name) => Some(Box::new(reference_model(name, config, source, policy)?)),
            None if config.train.lora_rank > 0 || options.precompute_ref_log_probs => None,
            None => Some(Box::new(policy.frozen_copy()?)),
        };
        let without_adapter = model.is_none() && config.train.lora_rank > 0;
        let whole = model.as_deref().unwrap_or(policy);
        reference.bytes = model.as_deref().map_or(0, Decoder::bytes);
        if options.precompute_ref_log_probs {
            reference.fingerprint = Some(whole.fingerprint(!without_adapter)?);
            let trained: usize = policy.trained().into_iter().map(Param::elem_count).sum();
            let moments = config.train.optim.bytes_per_parameter() * trained as f64;
            // It is gone when they come.
            reference.bytes = reference.bytes.saturating_sub(moments as usize);
            reference.held =
                Held::Awaited(model, PassMode { without_adapter, ..PassMode::EVALUATE });
            return Ok(reference);
        }
        reference.held = match model {
            Some(model) => {
                reference.fingerprint = Some(model.frozen_fingerprint()?);
                Held::Model(model)
            }
            None => Held::WithoutAdapter,
        };
        Ok(reference)
    }

    /// Bytes that it holds beside the policy, by name.
    pub fn memory(&self) -> Vec<(&'static str, usize)> {
        if self.bytes > 0 { vec![("reference", self.bytes)] } else { Vec::new() }
    }

    /// Whether each step computes it.
    pub fn is_held(&self) -> bool {
        matches!(self.held, Held::WithoutAdapter | Held::Model(_))
    }

    /// What it was when the run began, for a checkpoint.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Takes the log-probs of every completion to come, where they are wanted beforehand.
    /// `completions` gives those that a step over its rows needs.
    ///
    /// # Errors
    /// A row that would train wrongly, a file that cannot be written, or an interruption.
    pub fn begin<R: Send + 'static>(
        &mut self,
        policy: &Decoder,
        counting: &Counting,
        beginning: &Beginning<'_, R>,
        progress: &mut dyn Progress,
        completions: impl Fn(&[R]) -> Vec<BranchedRow>,
    ) -> Result<()> {
        let (Held::Awaited(model, mode), Some(fingerprint)) = (&self.held, &self.fingerprint)
        else {
            return Ok(());
        };
        let path = self.file.clone().unwrap_or_else(|| beginning.dir.join(FILE));
        let (cache, why) = ReferenceCache::read(&path, fingerprint)?;
        if let Some(why) = why {
            progress.note(&format!("{} {why}: it is made anew", path.display()));
        }
        let known = cache.len();
        let mut taker = Taker {
            model: model.as_deref().unwrap_or(policy),
            mode: *mode,
            counting,
            limit: beginning.microbatch_tokens,
            waiting: Vec::new(),
            cache,
        };
        let held_out = beginning.held_out.len() as u64;
        let rows = beginning.steps * beginning.batch_size as u64 + held_out;
        progress.begin("reference", rows, Unit::Rows);
        let mut done = 0;
        let mut take = |rows: &[R]| {
            completions(rows).into_iter().try_for_each(|row| taker.take(row))?;
            done += rows.len() as u64;
            progress.advance(done, "");
            beginning.interrupt.check()
        };
        let taken = beginning
            .each_step(&mut take)
            .and_then(|()| beginning.held_out.chunks(beginning.batch_size).try_for_each(&mut take))
            .and_then(|()| taker.flush());
        progress.finish();
        taken?;
        let cache = taker.cache;
        progress.note(&format!(
            "reference: log-probs of {}, {} taken now",
            counted(cache.len(), "completion"),
            cache.len() - known
        ));
        if cache.len() > known {
            cache.write(&path)?;
        }
        // Steps have other sizes and would not use it.
        policy.context().pool().release();
        self.held = Held::Taken(cache);
        Ok(())
    }

    /// Summed log-probs of what is compared of each completion, `(completions,)`; `None` where the
    /// loss needs none.
    ///
    /// # Errors
    /// A token that it does not know, or a completion of which nothing was taken beforehand.
    pub fn sums(&self, policy: &Decoder, completions: &Completions) -> Result<Option<Tensor>> {
        let (model, without_adapter) = match &self.held {
            Held::None => return Ok(None),
            Held::Taken(cache) => return cache.sums(completions, policy.device()).map(Some),
            Held::WithoutAdapter => (policy, true),
            Held::Model(model) => (&**model, false),
            Held::Awaited(..) => {
                let message = "the log-probs of the reference were not taken before the first step";
                return Err(Error::new(ErrorKind::Tensor, message));
            }
        };
        let mode = PassMode { without_adapter, ..PassMode::EVALUATE };
        summed(model, mode, completions).map(Some)
    }

    /// Moves it towards the policy where that is due after `step`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn after_update(&mut self, policy: &Decoder, step: u64) -> Result<()> {
        let (Some(Sync { alpha, steps }), Held::Model(model)) = (self.sync, &self.held) else {
            return Ok(());
        };
        if !step.is_multiple_of(steps) {
            return Ok(());
        }
        let own: HashMap<&str, &Tensor> = dense(model).collect();
        for (name, new) in dense(policy) {
            if let Some(old) = own.get(name) {
                let mixed = ((new * alpha)? + (*old * (1.0 - alpha))?)?;
                old.slice_set(&mixed, 0, 0)?;
            }
        }
        Ok(())
    }

    /// Its tensors, where they change.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        match (&self.held, self.sync) {
            (Held::Model(model), Some(_)) => {
                dense(model).map(|(name, tensor)| (name.to_string(), tensor)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Takes the log-probs of completions that are not known yet, many at once.
struct Taker<'a> {
    model: &'a Decoder,
    mode: PassMode,
    counting: &'a Counting,
    limit: usize,
    waiting: Vec<BranchedRow>,
    cache: ReferenceCache,
}

impl Taker<'_> {
    fn take(&mut self, row: BranchedRow) -> Result<()> {
        if self.counting.compared(&row)?.iter().all(|compared| self.cache.has(compared.key)) {
            return Ok(());
        }
        if self.waiting.tokens() + row.tokens() > self.limit {
            self.flush()?;
        }
        self.waiting.push(row);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let completions = Completions::new(&self.waiting, self.counting, self.model.device())?;
        let sums = host(&summed(self.model, self.mode, &completions)?)?;
        for (compared, sum) in completions.compared.iter().zip(sums) {
            self.cache.insert(compared.key, sum);
        }
        self.waiting.clear();
        Ok(())
    }
}

fn summed(model: &Decoder, mode: PassMode, completions: &Completions) -> Result<Tensor> {
    let (logps, _) = model.evaluate(&completions.branched.packed, mode)?;
    Ok(completions.sums(&logps)?.logps)
}

/// The model that the user names as reference.
fn reference_model(
    name: &str,
    config: &DpoConfig,
    source: &Source,
    policy: &Decoder,
) -> Result<Decoder> {
    let spec = SourceSpec { model: Some(name.into()), ..SourceSpec::default() };
    let mut other = Source::open(&spec)?;
    let (got, expected) = (other.config.vocab_size, source.config.vocab_size);
    if got != expected {
        let message =
            format!("`ref-model` has a vocabulary of `{got}`: expected the policy's `{expected}`");
        return Err(Error::config(message).hint("both must read the same tokens"));
    }
    let sync = config.method.sync_ref_model;
    let base = if sync { Base::Trainable } else { Base::Frozen };
    let model = other.decoder(base, policy.device(), config.train.seed)?;
    let shapes =
        |model| dense(model).map(|(name, tensor)| (name.to_string(), tensor.dims().to_vec()));
    if sync && !shapes(&model).eq(shapes(policy)) {
        return Err(Error::config("`ref-model` is not of the policy's shape")
            .hint("`--sync-ref-model` mixes the two: give a model of the same kind"));
    }
    Ok(model)
}

fn dense(model: &Decoder) -> impl Iterator<Item = (&str, &Tensor)> {
    model.params().into_iter().filter_map(|param| Some((param.name(), param.dense()?)))
}
