//! Data sets of the Hugging Face hub: which of a repository's files hold a split, and where the
//! cache keeps them.

use std::collections::BTreeSet;
#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;

use super::reader::ENDINGS;
use crate::{Error, Result};

/// Names of splits.
const SPLITS: [&str; 7] = ["train", "test", "validation", "valid", "val", "dev", "eval"];

/// A hub data set: `org/name[/config][:split]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Who owns it.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// The configuration asked for: the folder that its files lie in.
    pub config: Option<String>,
    /// The split asked for; `train` where none was. Of `test|validation` the first that is there.
    pub split: Option<String>,
}

impl HubId {
    /// Reads `org/name[/config][:split]`; `None` if the text cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, split) = match text.split_once(':') {
            Some((id, split)) => (id, Some(split.to_string())),
            None => (text, None),
        };
        let parts: Vec<&str> = id.split('/').collect();
        let (owner, name, config) = match parts[..] {
            [owner, name] => (owner, name, None),
            [owner, name, config] => (owner, name, Some(config)),
            _ => return None,
        };
        let word = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let last = config.unwrap_or(name);
        let is_file = ENDINGS.iter().any(|ending| last.ends_with(&format!(".{ending}")));
        let splits = split.as_deref().is_none_or(|split| split.split('|').all(word));
        let sound = parts.iter().all(|part| word(part)) && splits && !is_file;
        let config = config.map(str::to_string);
        sound.then(|| Self { owner: owner.into(), name: name.into(), config, split })
    }

    /// The files of the repository that are asked for, sorted. Names on the hub carry their split as
    /// a word (`data/train-00000-of-00002.parquet`, `test.jsonl`); without a split asked for it is
    /// `train`, or everything where no file names a split. Folders above that word are a
    /// configuration (`main/test-0.parquet`); files in none are taken before all others. Where a
    /// split is there in several kinds of file, Parquet is taken before JSON Lines before JSON, as
    /// the kinds repeat one another.
    ///
    /// # Errors
    /// If no file holds the split, or those of several configurations do, which are not mixed; the
    /// hint lists what there is.
    pub fn files(&self, files: &[String]) -> Result<Vec<String>> {
        let mut data: Vec<&String> =
            files.iter().filter(|file| ENDINGS.iter().any(|end| is_of_kind(file, end))).collect();
        if data.is_empty() {
            return Err(Error::data(
                "the repository holds no `.jsonl`, `.json` or `.parquet` file",
            ));
        }
        let wanted: Vec<&str> = self.split.as_deref().unwrap_or("train").split('|').collect();
        let folder = |file: &str| folder(file, &wanted);
        if let Some(config) = &self.config {
            let all: BTreeSet<String> = data.iter().map(|file| folder(file)).collect();
            data.retain(|file| folder(file) == *config);
            if data.is_empty() {
                return Err(Error::data(format!("the repository has no configuration `{config}`"))
                    .hint(format!("there are {}", shown(&all))));
            }
        }
        let of_split = |split: &str| -> Vec<&String> {
            data.iter().copied().filter(|file| words(file).any(|word| word == split)).collect()
        };
        let mut found = wanted.iter().map(|split| of_split(split));
        let mut found = found.find(|found| !found.is_empty()).unwrap_or_default();
        let is_split = |word: &str| SPLITS.iter().any(|split| word.starts_with(split));
        let mixes = found.is_empty()
            && self.split.is_none()
            && !data.iter().any(|file| words(file).any(is_split));
        if mixes {
            found = data.clone();
        }
        for kind in ["parquet", "jsonl", "ndjson", "json"] {
            if found.iter().any(|file| is_of_kind(file, kind)) {
                found.retain(|file| is_of_kind(file, kind));
                break;
            }
        }
        if found.is_empty() {
            let wanted = wanted.join("` or `");
            let shown = shown(data.iter().copied());
            return Err(Error::data(format!("no file of the repository holds split `{wanted}`"))
                .hint(format!("name a split as `org/name:split`; there are {shown}")));
        }
        let mut configs: BTreeSet<String> = found.iter().map(|file| folder(file)).collect();
        if !mixes && configs.remove("") {
            found.retain(|file| folder(file).is_empty());
        } else if !mixes && configs.len() > 1 {
            let Self { owner, name, split, .. } = self;
            let split = split.as_ref().map_or(String::new(), |split| format!(":{split}"));
            return Err(Error::data(format!(
                "`{owner}/{name}` has the split in several configurations"
            ))
            .hint(format!(
                "name one, as `{owner}/{name}/config{split}`; there are {}",
                shown(&configs)
            )));
        }
        let mut found: Vec<String> = found.into_iter().cloned().collect();
        found.sort();
        Ok(found)
    }
}

/// The folders above the split in a file's path, `data` left off: its configuration.
fn folder(file: &str, wanted: &[&str]) -> String {
    let folders = file.rsplit_once('/').map_or("", |(folders, _)| folders);
    let is_split = |word: &str| wanted.contains(&word) || SPLITS.contains(&word);
    let above = folders.split('/').take_while(|part| !words(part).any(is_split));
    let above: Vec<&str> = above.collect();
    above.strip_prefix(&["data"]).unwrap_or(&above).join("/")
}

/// The first of some names.
fn shown<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let shown: Vec<_> = names.into_iter().take(8).map(|name| format!("`{name}`")).collect();
    shown.join(", ")
}

fn is_of_kind(file: &str, ending: &str) -> bool {
    file.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case(ending))
}

/// The words of a path, a shard number at the end of one left off.
fn words(file: &str) -> impl Iterator<Item = &str> {
    file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(|word| {
        let bare = word.trim_end_matches(|c: char| c.is_ascii_digit());
        bare.strip_suffix('_').unwrap_or(word)
    })
}

/// Fetches the files of a hub data set into the cache (or finds them there) and gives their paths.
///
/// `HF_HOME`, `HF_TOKEN` and `HF_ENDPOINT` are honoured; with `HF_HUB_OFFLINE` set, nothing but
/// the cache is looked at.
///
/// # Errors
/// If the hub cannot be reached or refuses, the split is not there, or this build has no hub.
#[cfg(feature = "hub")]
pub fn fetch(id: &HubId) -> Result<Vec<PathBuf>> {
    fetch_with(id, hf_hub::HFClient::builder(), offline())
}

#[cfg(feature = "hub")]
fn fetch_with(id: &HubId, client: hf_hub::HFClientBuilder, offline: bool) -> Result<Vec<PathBuf>> {
    let name = format!("{}/{}", id.owner, id.name);
    let failed = |error: hf_hub::HFError| {
        Error::new(crate::ErrorKind::Network, format!("cannot fetch data set `{name}`"))
            .hint(
                "check the name; set HF_TOKEN for a gated data set, or give a path to a local copy",
            )
            .because(error)
    };
    let client = client.build_sync().map_err(failed)?;
    let repository = client.dataset(&id.owner, &id.name);
    if offline {
        let folder =
            repository.snapshot_download().local_files_only(true).send().map_err(|error| {
                failed(error).hint("HF_HUB_OFFLINE is set and the cache has no copy")
            })?;
        let mut files = Vec::new();
        list(&folder, "", 0, &mut files)?;
        return Ok(id.files(&files)?.iter().map(|file| folder.join(file)).collect());
    }
    let files: Vec<String> = repository
        .list_tree()
        .recursive(true)
        .send()
        .map_err(failed)?
        .into_iter()
        .filter_map(|entry| match entry {
            hf_hub::repository::RepoTreeEntry::File { path, .. } => Some(path),
            hf_hub::repository::RepoTreeEntry::Directory { .. } => None,
        })
        .collect();
    id.files(&files)?
        .into_iter()
        .map(|file| repository.download_file().filename(file).send().map_err(failed))
        .collect()
}

/// Without the feature there is only the error.
///
/// # Errors
/// Always.
#[cfg(not(feature = "hub"))]
pub fn fetch(id: &HubId) -> Result<Vec<PathBuf>> {
    let what =
        format!("`{}/{}` is no local path, and this build cannot reach the hub", id.owner, id.name);
    Err(Error::config(what).hint("build with `--features hub`, or give a path to a local copy"))
}

#[cfg(feature = "hub")]
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| {
        matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
    })
}

/// The files under a folder, by their paths in it.
#[cfg(feature = "hub")]
fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::io("list", folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        if path.is_dir() && depth < 8 {
            list(&path, &format!("{name}/"), depth + 1, files)?;
        } else if path.is_file() {
            files.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str, files: &[&str]) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        HubId::parse(id).unwrap().files(&files)
    }

    fn split(files: &[&str], split: Option<&str>) -> Result<Vec<String>> {
        of(&split.map_or("org/name".into(), |split| format!("org/name:{split}")), files)
    }

    #[test]
    fn a_hub_id_is_an_owner_a_name_and_perhaps_a_split() {
        let id = HubId::parse("HuggingFaceH4/ultrachat_200k:train_sft").unwrap();
        assert_eq!((id.owner.as_str(), id.name.as_str()), ("HuggingFaceH4", "ultrachat_200k"));
        assert_eq!(id.split.as_deref(), Some("train_sft"));
        assert!(HubId::parse("trl-lib/Capybara").unwrap().split.is_none());
        let id = HubId::parse("openai/gsm8k/main:test").unwrap();
        assert_eq!((id.config.as_deref(), id.split.as_deref()), (Some("main"), Some("test")));
        for not in [
            "data.jsonl",
            "a/b/c/d",
            "a/b/c.jsonl",
            "a/b:c|",
            "../data",
            "./data",
            "dir/rows.jsonl",
            "/abs",
            "a/b:c d",
        ] {
            assert_eq!(HubId::parse(not), None, "{not}");
        }
    }

    #[test]
    fn the_split_is_a_word_of_the_path() {
        let files = [
            "README.md",
            "data/train_sft-00001-of-00002.parquet",
            "data/train_sft-00000-of-00002.parquet",
            "data/test_sft-00000-of-00001.parquet",
        ];
        assert_eq!(split(&files, Some("train_sft")).unwrap(), [files[2], files[1]]);
        let error = split(&files, None).unwrap_err();
        assert_eq!(error.to_string(), "no file of the repository holds split `train`");
        assert!(error.remedy().unwrap().contains("test_sft-00000"));
        assert_eq!(split(&["train_0001.jsonl", "test.jsonl"], None).unwrap(), ["train_0001.jsonl"]);
        assert_eq!(split(&["a.json", "b.json"], None).unwrap(), ["a.json", "b.json"]);
    }

    #[test]
    fn kinds_that_repeat_one_another_are_not_mixed() {
        let files = ["train.jsonl", "train.json", "data/train-0.parquet"];
        assert_eq!(split(&files, None).unwrap(), ["data/train-0.parquet"]);
    }

    #[test]
    fn configurations_are_not_mixed() {
        let gsm8k = [
            "README.md",
            "main/test-00000-of-00001.parquet",
            "main/train-00000-of-00001.parquet",
            "socratic/test-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ];
        let error = of("openai/gsm8k:test", &gsm8k).unwrap_err();
        assert_eq!(error.to_string(), "`openai/gsm8k` has the split in several configurations");
        let hint = "name one, as `openai/gsm8k/config:test`; there are `main`, `socratic`";
        assert_eq!(error.remedy(), Some(hint));
        assert_eq!(of("openai/gsm8k/main:test", &gsm8k).unwrap(), [gsm8k[1]]);
        assert_eq!(of("openai/gsm8k/socratic", &gsm8k).unwrap(), [gsm8k[4]]);
        let error = of("openai/gsm8k/mian:test", &gsm8k).unwrap_err();
        assert_eq!(error.to_string(), "the repository has no configuration `mian`");
        // Folders that hold parts of a split, and one configuration alone.
        let parts = ["data/train/000/0.parquet", "data/train/001/0.parquet", "data/test/0.parquet"];
        assert_eq!(of("org/name", &parts).unwrap(), parts[..2]);
        assert_eq!(of("org/name", &["plain_text/train-0.parquet"]).unwrap().len(), 1);
        let more = ["train.jsonl", "extra/train.jsonl"];
        assert_eq!(of("org/name", &more).unwrap(), ["train.jsonl"]);
        assert_eq!(of("org/name/extra", &more).unwrap(), ["extra/train.jsonl"]);
    }

    #[test]
    fn the_first_split_that_is_there_is_taken() {
        let files = ["test.jsonl", "validation.jsonl", "train.jsonl"];
        assert_eq!(of("org/name:test|validation", &files).unwrap(), ["test.jsonl"]);
        assert_eq!(of("org/name:test|validation", &files[1..]).unwrap(), ["validation.jsonl"]);
        let error = of("org/name:test|validation", &files[2..]).unwrap_err();
        let told = "no file of the repository holds split `test` or `validation`";
        assert_eq!(error.to_string(), told);
    }

    #[cfg(feature = "hub")]
    #[test]
    fn without_a_network_the_cache_is_read_and_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("datasets--org--name");
        let snapshot = repository.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        std::fs::create_dir_all(snapshot.join("data")).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        std::fs::write(repository.join("refs/main"), commit).unwrap();
        for file in ["data/train-0.jsonl", "data/test-0.jsonl", "README.md"] {
            std::fs::write(snapshot.join(file), "{\"text\": \"a\"}\n").unwrap();
        }
        let client = || hf_hub::HFClient::builder().cache_dir(cache.path());
        let fetch = |id: &str| fetch_with(&HubId::parse(id).unwrap(), client(), true);
        assert_eq!(fetch("org/name").unwrap(), [snapshot.join("data/train-0.jsonl")]);
        assert_eq!(fetch("org/name:test").unwrap(), [snapshot.join("data/test-0.jsonl")]);
        let error = fetch("org/other").unwrap_err();
        assert_eq!(error.to_string(), "cannot fetch data set `org/other`");
        assert_eq!(error.remedy(), Some("HF_HUB_OFFLINE is set and the cache has no copy"));
    }
}
