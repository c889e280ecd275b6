//! Models from a Hugging Face hub, through its cache on disk.

use std::path::PathBuf;

use crate::{Error, Result};

/// How a hub is asked. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` and `HF_ENDPOINT` are respected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` where there is none.
    pub revision: Option<String>,
    /// Use the cache only. `HF_HUB_OFFLINE=1` does the same.
    pub offline: bool,
    /// Where the cache is, if not where the environment says.
    pub cache_dir: Option<PathBuf>,
}

impl HubOptions {
    /// Whether the network may not be used.
    pub fn is_offline(&self) -> bool {
        let set = |value: String| {
            matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
        };
        self.offline || std::env::var("HF_HUB_OFFLINE").is_ok_and(set)
    }
}

/// The files that a model needs beside its texts: neither pickles nor other frameworks' weights.
#[cfg(feature = "hub")]
const MODEL_FILES: &[&str] = &[
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// Whether this could be `organisation/name`.
pub(super) fn is_hub_id(spec: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && text.len() <= 96
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    spec.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

/// Fetches what is not in the cache and returns the snapshot's directory.
#[cfg(feature = "hub")]
pub(super) fn fetch(id: &str, options: &HubOptions) -> Result<PathBuf> {
    let explain = |error: hf_hub::HFError| explain(id, options, error);
    let mut builder = hf_hub::HFClient::builder();
    if let Some(dir) = &options.cache_dir {
        builder = builder.cache_dir(dir);
    }
    let client = builder.build_sync().map_err(explain)?;
    let (owner, name) = id.split_once('/').unwrap_or(("", id));
    let names = MODEL_FILES.iter().chain(super::text_files::COPIED);
    let patterns: Vec<String> = names.map(|name| (*name).to_string()).collect();
    client
        .model(owner, name)
        .snapshot_download()
        .maybe_revision(options.revision.clone())
        .allow_patterns(patterns)
        .local_files_only(options.is_offline())
        .send()
        .map_err(explain)
}

#[cfg(feature = "hub")]
fn explain(id: &str, options: &HubOptions, error: hf_hub::HFError) -> Error {
    use hf_hub::HFError;
    let revision = options.revision.as_deref().unwrap_or("main");
    let (message, hint) = match &error {
        HFError::RepoNotFound { .. } => (
            format!("the hub has no model `{id}`"),
            "check the name; a private model needs HF_TOKEN",
        ),
        HFError::RevisionNotFound { .. } => {
            (format!("`{id}` has no revision `{revision}`"), "check the branch, tag or commit")
        }
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => (
            format!("the hub does not give `{id}` to this user"),
            "accept the model's licence on its page and set HF_TOKEN",
        ),
        _ if options.is_offline() => (
            format!("`{id}` at `{revision}` is not in the cache, and the hub may not be asked"),
            "run once without HF_HUB_OFFLINE, or give a directory",
        ),
        _ => (
            format!("cannot fetch `{id}` from the hub"),
            "check the network, or give a directory of an earlier download",
        ),
    };
    Error::new(crate::ErrorKind::Network, message).hint(hint).because(error)
}

/// Without the feature there is no hub.
#[cfg(not(feature = "hub"))]
pub(super) fn fetch(id: &str, _options: &HubOptions) -> Result<PathBuf> {
    Err(Error::model(format!("`{id}` is not a directory here, and this build cannot ask a hub"))
        .hint("build with `--features hub`, or download the model and give its directory"))
}
