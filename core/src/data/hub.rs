//! Data sets of the Hugging Face hub: which of a repository's files hold a split, and where the
//! cache keeps them.

#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;

use super::reader::ENDINGS;
use crate::{Error, Result};

/// A hub data set: `org/name`, perhaps `org/name:split`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Who owns it.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// The split asked for; `train` where none was.
    pub split: Option<String>,
}

impl HubId {
    /// Reads `org/name[:split]`; `None` if the text cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, split) = match text.split_once(':') {
            Some((id, split)) => (id, Some(split.to_string())),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/')?;
        let word = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let is_file = ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}")));
        let sound = word(owner) && word(name) && split.as_deref().is_none_or(word) && !is_file;
        sound.then(|| Self { owner: owner.into(), name: name.into(), split })
    }
}

/// The files of a repository that hold `split`, sorted. Names on the hub carry their split as a
/// word (`data/train-00000-of-00002.parquet`, `test.jsonl`); without a split asked for it is
/// `train`, or everything where no file names a split. Where a split is there in several kinds of
/// file, Parquet is taken before JSON Lines before JSON, as the kinds repeat one another.
///
/// # Errors
/// If no file holds the split; the hint lists what there is.
pub fn files_of_split(files: &[String], split: Option<&str>) -> Result<Vec<String>> {
    let data: Vec<&String> =
        files.iter().filter(|file| ENDINGS.iter().any(|end| is_of_kind(file, end))).collect();
    if data.is_empty() {
        return Err(Error::data("the repository holds no `.jsonl`, `.json` or `.parquet` file"));
    }
    let named = |file: &str, split: &str| words(file).any(|word| word == split);
    let known = ["train", "test", "validation", "valid", "val", "dev", "eval"];
    let wanted = split.unwrap_or("train");
    let mut found: Vec<&String> = data.iter().copied().filter(|file| named(file, wanted)).collect();
    let no_split_named = || {
        !data.iter().any(|file| words(file).any(|word| known.iter().any(|k| word.starts_with(k))))
    };
    if found.is_empty() && split.is_none() && no_split_named() {
        found = data.clone();
    }
    for kind in ["parquet", "jsonl", "ndjson", "json"] {
        if found.iter().any(|file| is_of_kind(file, kind)) {
            found.retain(|file| is_of_kind(file, kind));
            break;
        }
    }
    if found.is_empty() {
        let shown: Vec<_> = data.iter().take(8).map(|file| format!("`{file}`")).collect();
        return Err(Error::data(format!("no file of the repository holds split `{wanted}`"))
            .hint(format!("name a split as `org/name:split`; there are {}", shown.join(", "))));
    }
    let mut found: Vec<String> = found.into_iter().cloned().collect();
    found.sort();
    Ok(found)
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
        return Ok(files_of_split(&files, id.split.as_deref())?
            .iter()
            .map(|file| folder.join(file))
            .collect());
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
    files_of_split(&files, id.split.as_deref())?
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

    fn split(files: &[&str], split: Option<&str>) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        files_of_split(&files, split)
    }

    #[test]
    fn a_hub_id_is_an_owner_a_name_and_perhaps_a_split() {
        let id = HubId::parse("HuggingFaceH4/ultrachat_200k:train_sft").unwrap();
        assert_eq!((id.owner.as_str(), id.name.as_str()), ("HuggingFaceH4", "ultrachat_200k"));
        assert_eq!(id.split.as_deref(), Some("train_sft"));
        assert!(HubId::parse("trl-lib/Capybara").unwrap().split.is_none());
        for not in ["data.jsonl", "a/b/c", "../data", "./data", "dir/rows.jsonl", "/abs", "a/b:c d"]
        {
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
