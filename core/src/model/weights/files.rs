//! All tensors of a checkpoint, by name, memory-mapped.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::gguf::Gguf;
use super::safetensors_header::{self, short};
use super::stored::StoredTensor;
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint. Cheap to clone.
#[derive(Clone)]
pub struct WeightFiles {
    tensors: Arc<BTreeMap<String, StoredTensor>>,
    files: Vec<PathBuf>,
    gguf: Option<Arc<Gguf>>,
}

impl WeightFiles {
    /// Opens a directory with `model.safetensors` (or its index and shards), a `.safetensors`
    /// file, or a `.gguf` file. Tensors of a GGUF file go by their Hugging Face names.
    ///
    /// # Errors
    /// Files that are missing, truncated, inconsistent or of a type that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_dir(path);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "gguf" => Self::from_gguf(Gguf::open(path)?),
            "safetensors" => {
                Self::collect(vec![(path.to_path_buf(), safetensors_header::open(path)?)])
            }
            _ if !path.exists() => Err(Error::model("no such file or directory").in_file(path)),
            _ => Err(Error::model("not a model: expected a directory, `.safetensors` or `.gguf`")
                .in_file(path)),
        }
    }

    /// The tensors of a GGUF file under their Hugging Face names.
    ///
    /// # Errors
    /// An architecture or a tensor that is not supported.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let path = gguf.path().to_path_buf();
        let config = gguf.model_config()?;
        let tensors = gguf.hf_tensors(&config)?;
        let mut files = Self::collect(vec![(path, tensors)])?;
        files.gguf = Some(Arc::new(gguf));
        Ok(files)
    }

    /// Tensors in memory.
    ///
    /// # Errors
    /// A name that comes twice.
    pub fn from_tensors(tensors: impl IntoIterator<Item = StoredTensor>) -> Result<Self> {
        Self::collect(vec![(PathBuf::new(), tensors.into_iter().collect())])
    }

    fn collect(files: Vec<(PathBuf, Vec<StoredTensor>)>) -> Result<Self> {
        let mut all = BTreeMap::new();
        let mut paths = Vec::with_capacity(files.len());
        for (path, tensors) in files {
            for tensor in tensors {
                if let Some(first) = all.insert(tensor.name().to_string(), tensor) {
                    let name = short(first.name());
                    return Err(Error::model(format!("`{name}` is in two places")).in_file(path));
                }
            }
            // A file that is in memory has no path.
            if !path.as_os_str().is_empty() {
                paths.push(path);
            }
        }
        Ok(Self { tensors: Arc::new(all), files: paths, gguf: None })
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.exists() {
            let tensors = safetensors_header::open(&single)?;
            return Self::collect(vec![(single, tensors)]);
        }
        let index = dir.join(INDEX);
        if index.exists() {
            return Self::open_sharded(dir, &index);
        }
        let error = Error::model(format!("found neither `{SINGLE}` nor `{INDEX}`")).in_file(dir);
        Err(match guess(dir) {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(|e| Error::io("read", index, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(index, e.line()))?;
        let Some(Value::Object(map)) = value.get("weight_map") else {
            return Err(Error::model("lacks `weight_map`, an object of tensor and file names")
                .in_file(index));
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, file) in map {
            let file = file.as_str().filter(|file| is_plain_name(file)).ok_or_else(|| {
                let shown = short(&file.to_string());
                Error::model(format!("`weight_map` puts `{}` in {shown}", short(name)))
                    .in_file(index)
                    .hint("expected the plain name of a `.safetensors` file beside the index")
            })?;
            shards.entry(file).or_default().push(name);
        }
        let missing: Vec<_> = shards.keys().filter(|file| !dir.join(file).exists()).collect();
        if let Some(first) = missing.first() {
            return Err(Error::model(format!(
                "{} of {} shards are missing, the first is `{first}`",
                missing.len(),
                shards.len()
            ))
            .in_file(dir)
            .hint("fetch the missing files, or delete the index if it is left over"));
        }
        let mut files = Vec::with_capacity(shards.len());
        for (file, names) in &shards {
            let path = dir.join(file);
            let tensors = safetensors_header::open(&path)?;
            let there: std::collections::HashSet<_> = tensors.iter().map(|t| t.name()).collect();
            if let Some(name) = names.iter().find(|name| !there.contains(*name)) {
                return Err(Error::model(format!(
                    "`{}` is not in this file, though `{INDEX}` says so",
                    short(name)
                ))
                .in_file(path));
            }
            files.push((path, tensors));
        }
        Self::collect(files)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.values()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<StoredTensor> {
        self.tensors.get(name).cloned().ok_or_else(|| {
            let error = Error::model(format!("the checkpoint has no tensor `{}`", short(name)));
            match self.files.first() {
                Some(path) => error.in_file(path),
                None => error,
            }
        })
    }

    /// The files that were opened; none for tensors in memory.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The GGUF file, where it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }
}

/// A file name without any directory: an index must not lead out of its own.
fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    file.ends_with(".safetensors")
        && matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// What lies in a directory that has no weights we know.
fn guess(dir: &Path) -> Option<&'static str> {
    let names: Vec<String> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let has = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    if has(&|name| name.starts_with("adapter_model.")) {
        Some("this is an adapter: give its base with `--model` and this with `--adapter`")
    } else if has(&|name| name.ends_with(".gguf")) {
        Some("there is a `.gguf` file: give its own path")
    } else if has(&|name| name.ends_with(".safetensors")) {
        Some("the shards have no index: fetch `model.safetensors.index.json` too")
    } else if has(&|name| name.ends_with(".bin") || name.ends_with(".pth")) {
        Some("pickled weights are not read: save them as safetensors with transformers")
    } else {
        None
    }
}
