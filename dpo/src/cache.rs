//! Log-probs of the reference that were taken beforehand, and the file that keeps them.
//!
//! The file says of which reference they are, and ends in a BLAKE3 sum of all of it. What a
//! completion's number is kept under is made of the tokens themselves, so nothing in it can be out
//! of date: a row, a template or an option that changes asks for another key.
//!
//! ```text
//! magic (8) · fingerprint of the reference (32) · n × (key (16) · f64) · BLAKE3 (32)
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use halter_core::data::branched::Branch;
use halter_core::train::files::atomic_write;
use halter_core::{Error, Result};

use crate::step::Completions;

const MAGIC: &[u8; 8] = b"HALTREF1";
const FINGERPRINT_BYTES: usize = 32;
const KEY_BYTES: usize = 16;
const ENTRY_BYTES: usize = KEY_BYTES + size_of::<f64>();
const SUM_BYTES: usize = blake3::OUT_LEN;

/// What the summed log-prob of a completion follows from, hashed: its tokens, those before it, and
/// their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The key of a completion behind `prompt`; `weights` are those of its targets.
    pub fn new(prompt: &[u32], branch: &Branch, weights: &[f64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for tokens in [prompt, &branch.tokens] {
            hasher.update(&tokens.len().to_le_bytes());
            hasher.update(&tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        }
        hasher.update(&branch.mask.iter().map(|&counts| counts.into()).collect::<Vec<u8>>());
        hasher.update(&weights.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<u8>>());
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..KEY_BYTES]);
        Self(key)
    }
}

/// Summed log-probs of completions, given by one reference.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceCache {
    /// [`halter_core::model::Decoder::fingerprint`] of the reference.
    fingerprint: String,
    sums: HashMap<Key, f64>,
}

impl ReferenceCache {
    /// None yet, of the reference with this fingerprint.
    pub fn new(fingerprint: &str) -> Self {
        Self { fingerprint: fingerprint.to_string(), sums: HashMap::new() }
    }

    /// Reads what is in the file at `path` for this reference; else an empty one, and why where
    /// there was a file: it is damaged, or of another reference.
    ///
    /// # Errors
    /// A file of another kind, which is not to be written over, or one that cannot be read.
    pub fn read(path: &Path, fingerprint: &str) -> Result<(Self, Option<&'static str>)> {
        let none = Self::new(fingerprint);
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((none, None)),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        if !bytes.starts_with(MAGIC) {
            return Err(Error::data("not a file of a reference's log-probs")
                .in_file(path)
                .hint("give another `--ref-log-probs`, or take the file away"));
        }
        let Some((all, sum)) = bytes.split_last_chunk::<SUM_BYTES>() else {
            return Ok((none, Some("is damaged")));
        };
        if blake3::hash(all).as_bytes() != sum {
            return Ok((none, Some("is damaged")));
        }
        let entries = match all[MAGIC.len()..].split_at_checked(FINGERPRINT_BYTES) {
            Some((of, entries)) if of == fingerprint.as_bytes() => entries,
            _ => return Ok((none, Some("is of another reference"))),
        };
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        let entry = |entry: &[u8; ENTRY_BYTES]| {
            let (mut key, mut sum) = ([0; KEY_BYTES], [0; size_of::<f64>()]);
            key.copy_from_slice(&entry[..KEY_BYTES]);
            sum.copy_from_slice(&entry[KEY_BYTES..]);
            (Key(key), f64::from_le_bytes(sum))
        };
        let sums = entries.iter().map(entry).collect();
        Ok((Self { sums, ..none }, None))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.fingerprint.as_bytes());
        let mut sorted: Vec<_> = self.sums.iter().collect();
        sorted.sort_unstable_by_key(|(key, _)| **key);
        for (Key(key), sum) in sorted {
            bytes.extend(key);
            bytes.extend(sum.to_le_bytes());
        }
        bytes.extend(blake3::hash(&bytes).as_bytes());
        atomic_write(path, &bytes)
    }

    /// How many completions it knows.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Whether it knows a completion.
    pub fn has(&self, key: Key) -> bool {
        self.sums.contains_key(&key)
    }

    /// Takes in a completion.
    pub fn insert(&mut self, key: Key, sum: f64) {
        self.sums.insert(key, sum);
    }

    /// What it has of `completions`, `(completions,)`.
    ///
    /// # Errors
    /// A completion that it does not know.
    pub fn sums(&self, completions: &Completions, device: &Device) -> Result<Tensor> {
        let known = |key: &Key| {
            self.sums.get(key).copied().ok_or_else(|| {
                Error::data("no log-prob of the reference was taken of a completion of this step")
                    .hint("its row was changed while the run went on: put it back and `--resume`")
            })
        };
        let sums =
            completions.compared.iter().map(|c| known(&c.key)).collect::<Result<Vec<f64>>>()?;
        Ok(Tensor::new(sums, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "0123456789abcdef0123456789abcdef";

    fn key(prompt: &[u32], tokens: &[u32], mask: &[bool], weights: &[f64]) -> Key {
        Key::new(prompt, &Branch { tokens: tokens.to_vec(), mask: mask.to_vec() }, weights)
    }

    #[test]
    fn everything_that_a_sum_follows_from_changes_its_key() {
        let of = key(&[1, 2], &[3, 4], &[true, true], &[1.0, 1.0]);
        assert_eq!(of, key(&[1, 2], &[3, 4], &[true, true], &[1.0, 1.0]));
        for other in [
            key(&[1, 5], &[3, 4], &[true, true], &[1.0, 1.0]),
            key(&[1, 2], &[3, 5], &[true, true], &[1.0, 1.0]),
            key(&[1], &[2, 3, 4], &[false, true, true], &[1.0, 1.0]),
            key(&[1, 2], &[3, 4], &[false, true], &[1.0]),
            key(&[1, 2], &[3, 4], &[true, true], &[1.0, 0.0]),
        ] {
            assert_ne!(of, other);
        }
    }

    #[test]
    fn a_file_comes_back_to_the_bit_and_a_damaged_one_is_noticed_at_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.logps");
        let mut cache = ReferenceCache::new(FINGERPRINT);
        cache.insert(key(&[1], &[2], &[true], &[1.0]), -123.456_789_012_345_67);
        cache.insert(key(&[1], &[3], &[true], &[1.0]), f64::MIN_POSITIVE);
        assert_eq!(
            ReferenceCache::read(&path, FINGERPRINT).unwrap(),
            (ReferenceCache::new(FINGERPRINT), None),
            "no file"
        );
        cache.write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 8 + 32 + 2 * 24 + 32);
        assert_eq!(ReferenceCache::read(&path, FINGERPRINT).unwrap(), (cache, None));
        let other = FINGERPRINT.replace('0', "f");
        let (none, why) = ReferenceCache::read(&path, &other).unwrap();
        assert!(none.is_empty() && why == Some("is of another reference"));
        let mut checked = 0;
        let mut read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let (found, why) = ReferenceCache::read(&path, FINGERPRINT).unwrap();
            assert!(found.is_empty() && why == Some("is damaged"), "{why:?}");
            checked += 1;
        };
        for len in MAGIC.len()..whole.len() {
            read(&whole[..len]);
        }
        for at in MAGIC.len()..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            read(&flipped);
        }
        assert_eq!(checked, 2 * (whole.len() - MAGIC.len()));
    }

    #[test]
    fn a_file_of_another_kind_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = ReferenceCache::read(&path, FINGERPRINT).unwrap_err();
        assert_eq!(error.message(), "not a file of a reference's log-probs");
    }
}
