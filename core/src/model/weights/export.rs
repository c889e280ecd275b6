//! The export: a directory that transformers loads as it is.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Map, Value, json};

pub use super::write_safetensors::ParamData;
use super::write_safetensors::{self, Pending};
use crate::model::config::{ModelConfig, ParamSpec};
use crate::{Error, Result};

/// Transformers' own default.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A file that goes with the weights: tokenizer, template, generation settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name in the export.
    pub name: String,
    /// What it holds.
    pub content: SideContent,
}

/// Contents of a [`SideFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SideContent {
    /// A copy of this file.
    File(PathBuf),
    /// This text.
    Text(String),
}

impl SideFile {
    /// A file with this text.
    pub fn text(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.into(), content: SideContent::Text(text.into()) }
    }

    /// A file with this object.
    pub fn json(name: &str, object: &Map<String, Value>) -> Self {
        Self::text(name, format!("{:#}\n", Value::Object(object.clone())))
    }

    /// A copy of `path` under its own name; `None` where there is no such file.
    pub fn copy(path: PathBuf) -> Option<Self> {
        Self::copy_as(path.file_name()?.to_str()?, &path)
    }

    /// A copy of `path` under another name; `None` where there is no such file.
    pub fn copy_as(name: &str, path: &Path) -> Option<Self> {
        let file = || Self { name: name.into(), content: SideContent::File(path.into()) };
        path.is_file().then(file)
    }
}

/// How an export is written.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Type of the weights: f32, f16 or bf16.
    pub dtype: DType,
    /// Weights beyond this many bytes go to the next file.
    pub max_shard_bytes: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, max_shard_bytes: MAX_SHARD_BYTES }
    }
}

/// Writes weights, `config.json` and the side files into `dir`, which is made if need be.
///
/// `get` is asked for each of `config.params()`, in that order, once. Everything is written under
/// temporary names and synced first, then renamed, so that an export is whole or not there; what
/// an earlier export left of other shards is removed. Returns the files written.
///
/// # Errors
/// A directory that cannot be written, a full disk, a parameter of the wrong shape or with values
/// that are not finite. Nothing of a failed export remains.
pub fn write_model(
    dir: impl AsRef<Path>,
    config: &ModelConfig,
    side_files: &[SideFile],
    options: &ExportOptions,
    mut get: impl FnMut(&ParamSpec) -> Result<ParamData>,
) -> Result<Vec<PathBuf>> {
    let dir = dir.as_ref();
    let config_json = config.to_json(options.dtype)?;
    let new_dir = make_dir(dir)?;
    let written = write_pending(dir, config, config_json, side_files, options, &mut get)
        .and_then(|pending| pending.into_iter().map(Pending::keep).collect::<Result<Vec<_>>>());
    match &written {
        Ok(files) => {
            remove_stale(dir, files)?;
            sync_dir(dir)?;
        }
        Err(_) => remove_empty(new_dir.as_deref(), dir),
    }
    written
}

/// Writes side files alone into `dir`, which must be there: beside an adapter.
///
/// # Errors
/// A file that cannot be read, a directory that cannot be written, a full disk.
pub fn write_side_files(dir: impl AsRef<Path>, side_files: &[SideFile]) -> Result<()> {
    let dir = dir.as_ref();
    let pending =
        side_files.iter().map(|file| write_side_file(dir, file)).collect::<Result<Vec<_>>>()?;
    pending.into_iter().try_for_each(|file| file.keep().map(drop))?;
    sync_dir(dir)
}

/// Makes a directory; returns the topmost one that was not there.
pub(super) fn make_dir(dir: &Path) -> Result<Option<PathBuf>> {
    let first = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).last();
    let first = first.map(Path::to_path_buf);
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    Ok(first)
}

/// Removes what [`make_dir`] made, as far as it is empty.
pub(super) fn remove_empty(first: Option<&Path>, dir: &Path) {
    let Some(first) = first else { return };
    for made in dir.ancestors() {
        // Not empty, or gone already: either way there is nothing left to do.
        if std::fs::remove_dir(made).is_err() || made == first {
            return;
        }
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    // Only Unix can sync a directory, and there a rename is not durable without it.
    if cfg!(unix) {
        let handle = std::fs::File::open(dir).map_err(|e| Error::io("open", dir, e))?;
        handle.sync_all().map_err(|e| Error::io("sync", dir, e))?;
    }
    Ok(())
}

fn write_pending(
    dir: &Path,
    config: &ModelConfig,
    config_json: Map<String, Value>,
    side_files: &[SideFile],
    options: &ExportOptions,
    get: &mut dyn FnMut(&ParamSpec) -> Result<ParamData>,
) -> Result<Vec<Pending>> {
    let mut pending = Vec::new();
    // Small files first: a bad one is found before gigabytes are written.
    for file in side_files {
        pending.push(write_side_file(dir, file)?);
    }
    pending.push(write_json(&dir.join("config.json"), &Value::Object(config_json))?);
    let (_, size) = write_safetensors::type_name(options.dtype)?;
    let bytes = |param: &ParamSpec| (param.shape.iter().product::<usize>() * size) as u64;
    let shards = shards(config.params(), options.max_shard_bytes, bytes);
    if let [params] = shards.as_slice() {
        let path = dir.join("model.safetensors");
        pending.push(write_shard(&path, params, options.dtype, get)?);
        return Ok(pending);
    }
    let mut weight_map = Map::new();
    let mut total = 0;
    for (i, params) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        for param in params {
            total += bytes(param);
            weight_map.insert(param.name.clone(), name.clone().into());
        }
        pending.push(write_shard(&dir.join(&name), params, options.dtype, get)?);
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    pending.push(write_json(&dir.join("model.safetensors.index.json"), &index)?);
    Ok(pending)
}

fn write_shard(
    path: &Path,
    params: &[ParamSpec],
    dtype: DType,
    get: &mut dyn FnMut(&ParamSpec) -> Result<ParamData>,
) -> Result<Pending> {
    Pending::fill(path, |out| write_safetensors::write(out, path, params, dtype, get))
}

/// Fills shards one after another; a parameter larger than the limit has one of its own.
fn shards(
    params: Vec<ParamSpec>,
    limit: u64,
    bytes: impl Fn(&ParamSpec) -> u64,
) -> Vec<Vec<ParamSpec>> {
    let mut shards: Vec<Vec<ParamSpec>> = vec![Vec::new()];
    let mut filled = 0;
    for param in params {
        let size = bytes(&param);
        if filled > 0 && filled + size > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(shard) = shards.last_mut() {
            shard.push(param);
        }
    }
    shards
}

fn write_side_file(dir: &Path, file: &SideFile) -> Result<Pending> {
    let path = dir.join(&file.name);
    match &file.content {
        SideContent::Text(text) => write_text(&path, text),
        SideContent::File(source) => {
            let bytes = std::fs::read(source).map_err(|e| Error::io("read", source, e))?;
            Pending::fill(&path, |out| {
                out.write_all(&bytes).map_err(|e| Error::io("write", &path, e))
            })
        }
    }
}

fn write_text(path: &Path, text: &str) -> Result<Pending> {
    Pending::fill(path, |out: &mut dyn Write| {
        out.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e))
    })
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<Pending> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::model("cannot write JSON").because(e).in_file(path))?;
    write_text(path, &(text + "\n"))
}

/// Removes weights of an earlier export under other names, which would be loaded in place of
/// these, or beside them.
fn remove_stale(dir: &Path, written: &[PathBuf]) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let weights = name == "model.safetensors"
            || name == "model.safetensors.index.json"
            || is_shard(&name);
        let path = dir.join(&*name);
        if weights && !written.contains(&path) {
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(i, n)| number(i) && number(n))
}
