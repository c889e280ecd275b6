//! Whether a checkpoint is the one that its configuration describes.

use std::collections::HashSet;

use super::files::WeightFiles;
use super::safetensors_header::short;
use crate::model::config::ModelConfig;
use crate::{Error, Result};

impl WeightFiles {
    /// Compares names and shapes with the configuration's. `lm_head.weight` beside tied
    /// embeddings and stored rotary tables are tolerated, as transformers tolerates them.
    ///
    /// # Errors
    /// The first parameter that is missing, that has another shape, or that the configuration
    /// does not know.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let place = |error: Error| match self.files().first() {
            Some(path) => error.in_file(path),
            None => error,
        };
        let params = config.params();
        let missing: Vec<_> = params.iter().filter(|p| !self.contains(&p.name)).collect();
        if let Some(first) = missing.first() {
            let error = Error::model(format!(
                "{} of {} parameters are missing, the first is `{}` of shape {:?}",
                missing.len(),
                params.len(),
                first.name,
                first.shape
            ));
            return Err(place(self.explain_missing(&first.name, error)));
        }
        for param in &params {
            let tensor = self.get(&param.name)?;
            if tensor.shape() != param.shape {
                return Err(place(Error::model(format!(
                    "`{}` has the shape {:?}: expected {:?} from the configuration",
                    param.name,
                    tensor.shape(),
                    param.shape
                ))));
            }
        }
        let known: HashSet<_> = params.iter().map(|param| param.name.as_str()).collect();
        let unexpected: Vec<_> = self
            .names()
            .filter(|name| !known.contains(name))
            .filter(|name| *name != "lm_head.weight" && !name.ends_with("rotary_emb.inv_freq"))
            .collect();
        if let Some(first) = unexpected.first() {
            let error = Error::model(format!(
                "{} tensors are unknown to the configuration, the first is `{}`",
                unexpected.len(),
                short(first)
            ));
            return Err(place(explain_unexpected(first, error)));
        }
        Ok(())
    }

    /// Refuses NaN and infinity anywhere. Reads every weight once.
    ///
    /// # Errors
    /// Names the first element that is not finite.
    pub fn check_finite(&self) -> Result<()> {
        for tensor in self.tensors() {
            tensor.check_finite().map_err(|error| match self.files().first() {
                Some(path) => error.in_file(path),
                None => error,
            })?;
        }
        Ok(())
    }

    fn explain_missing(&self, name: &str, error: Error) -> Error {
        if name == "lm_head.weight" {
            return error.hint("if the head shares the embedding, set `tie_word_embeddings`");
        }
        let bare = name.strip_prefix("model.").unwrap_or(name);
        if self.contains(bare) {
            return error.hint("the checkpoint was saved without its head, e.g. as `LlamaModel`");
        }
        let wrapped = ["base_model.model.", "module.", "_orig_mod.", "language_model."];
        match wrapped.iter().find(|prefix| self.contains(&format!("{prefix}{name}"))) {
            Some(prefix) => error.hint(format!("every name begins with `{prefix}`: remove it")),
            None => error,
        }
    }
}

fn explain_unexpected(name: &str, error: Error) -> Error {
    if name.contains("lora_") {
        return error.hint("these are LoRA factors: give them with `--adapter`");
    }
    if name.ends_with(".bias") {
        return error.hint("the configuration has no such bias: is `model_type` right?");
    }
    if name.contains("_norm.weight") {
        return error.hint("the configuration has no such norm: is `model_type` right?");
    }
    if name.ends_with("_scale") || name.ends_with("qweight") {
        return error.hint("the checkpoint is quantized: use the unquantized one");
    }
    if name.starts_with("model.layers.") {
        return error.hint("perhaps `num_hidden_layers` is too small");
    }
    error
}
