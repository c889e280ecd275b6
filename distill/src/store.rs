//! What a teacher said of rows, kept in a file: its likeliest tokens at every position that is
//! trained, and the mass of all others.
//!
//! The file names the teacher, so no two can be mixed up, and a row is found by its tokens, so nothing
//! in it can be out of date. It grows at its end; what a killed process left half written is cut off
//! when it is opened again.
//!
//! ```text
//! magic (8) · length of the header (4) · header (JSON) · records
//! record: key (16) · positions (4) · positions × (k × entry (4) · rest (4)) · sum of all before (8)
//! entry:  token in the high bits, as many as the vocabulary needs; −log-prob in the others, 0 to 32
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use halter_core::data::batch::PackedBatch;
use halter_core::ops::divergence::TopLogps;
use halter_core::{Error, Result};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"HALTTOP1";
const KEY_BYTES: usize = 16;
const SUM_BYTES: usize = 8;
/// Most of a header that is read.
const HEADER_LIMIT: usize = 1 << 16;
/// Log-probs below −32 count as −32.
const RANGE: f32 = 32.0;

/// Whose log-probs a file holds, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The teacher as the user named it.
    pub teacher: String,
    /// [`halter_core::model::Decoder::fingerprint`] of its weights.
    pub weights: String,
    /// [`halter_core::text::tokenizer::Tokenizer::fingerprint`].
    pub tokenizer: String,
    /// Tokens of its vocabulary.
    pub vocab_size: usize,
    /// Likeliest tokens of a position.
    pub k: usize,
    /// Under which they were taken.
    pub temperature: f64,
}

impl Header {
    /// Bits of an entry that hold the log-prob.
    fn logp_bits(&self) -> u32 {
        self.vocab_size.max(2).saturating_sub(1).leading_zeros() - (usize::BITS - u32::BITS)
    }

    /// Log-prob that a step of an entry stands for.
    fn step(&self) -> f32 {
        RANGE / ((1u64 << self.logp_bits()) - 1) as f32
    }

    /// Bytes of a position.
    pub fn position_bytes(&self) -> usize {
        4 * self.k + 4
    }

    /// The bytes of row `row` of `told`.
    fn pack(&self, told: &TopLogps, row: usize, bytes: &mut Vec<u8>) {
        let (bits, step, k) = (self.logp_bits(), self.step(), self.k);
        let entries = row * k..(row + 1) * k;
        for (&id, &logp) in told.ids[entries.clone()].iter().zip(&told.logps[entries]) {
            let steps = (-logp.max(-RANGE) / step).round().max(0.0) as u32;
            bytes.extend((id << bits | steps.min((1 << bits) - 1)).to_le_bytes());
        }
        bytes.extend(told.rest[row].to_le_bytes());
    }

    /// Adds the row that `position` holds to `all`.
    fn unpack(&self, position: &[u8], all: &mut TopLogps) {
        let (bits, step) = (self.logp_bits(), self.step());
        let (words, _) = position.as_chunks::<4>();
        let start = all.logps.len();
        for &word in &words[..self.k] {
            let word = u32::from_le_bytes(word);
            all.ids.push(word >> bits);
            all.logps.push(-((word & ((1 << bits) - 1)) as f32) * step);
        }
        let rest = f32::from_le_bytes(words[self.k]);
        // What rounding took or gave.
        let inside: f64 = all.logps[start..].iter().map(|&logp| f64::from(logp).exp()).sum();
        let all_mass = (inside + f64::from(rest).exp()).ln() as f32;
        all.logps[start..].iter_mut().for_each(|logp| *logp -= all_mass);
        all.rest.push(rest - all_mass);
    }

    /// `told` as it will be read.
    pub(crate) fn rounded(&self, told: &TopLogps) -> TopLogps {
        let mut all = TopLogps { k: self.k, ..TopLogps::default() };
        let mut bytes = Vec::new();
        for row in 0..told.rest.len() {
            bytes.clear();
            self.pack(told, row, &mut bytes);
            self.unpack(&bytes, &mut all);
        }
        all
    }

    fn validate(&self) -> Result<()> {
        let fits = self.vocab_size > 0
            && self.vocab_size <= 1 << 24
            && (1..=self.vocab_size).contains(&self.k)
            && self.temperature > 0.0
            && self.temperature.is_finite();
        if fits {
            return Ok(());
        }
        Err(Error::data("the header's `vocab_size`, `k` or `temperature` has no meaning"))
    }
}

/// What a row is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; KEY_BYTES]);

/// The sequences of `batch` that have targets: their key, and how many rows predict a target.
pub fn sequences(batch: &PackedBatch) -> Vec<(Key, usize)> {
    let mut targets = batch.targets.iter().peekable();
    let mut found = Vec::new();
    for span in &batch.spans {
        let range = span.range();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(span.len as u64).to_le_bytes());
        let ids = &batch.tokens[range.clone()];
        hasher.update(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        let mut positions = 0;
        while let Some(target) = targets.next_if(|target| range.contains(&(target.row as usize))) {
            hasher.update(&(target.row - span.start as u32).to_le_bytes());
            positions += 1;
        }
        if positions > 0 {
            let mut key = [0; KEY_BYTES];
            key.copy_from_slice(&hasher.finalize().as_bytes()[..KEY_BYTES]);
            found.push((Key(key), positions));
        }
    }
    found
}

/// A file that is read.
#[derive(Debug)]
pub struct Store {
    /// Whose log-probs they are.
    pub header: Header,
    path: PathBuf,
    map: Mmap,
    /// Where the positions of each row begin, and how many there are.
    index: HashMap<Key, (usize, usize)>,
    /// Where the records begin.
    start: usize,
    /// Where the whole ones end.
    end: usize,
}

impl Store {
    /// Opens the file at `path` and checks every record.
    ///
    /// # Errors
    /// A file that is not there, is of another kind, or has a damaged header. A damaged record ends
    /// what is read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        // SAFETY: the map is read only; that nobody truncates the file meanwhile is as for weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))?;
        let (header, start) = read_header(&map).map_err(|error| error.in_file(path))?;
        let mut index = HashMap::new();
        let mut end = start;
        while let Some((key, positions, next)) = record(&map, end, &header) {
            index.insert(key, (end + KEY_BYTES + 4, positions));
            end = next;
        }
        Ok(Self { header, path: path.to_path_buf(), map, index, start, end })
    }

    /// Rows that it knows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes behind the last whole record.
    pub fn damaged_bytes(&self) -> usize {
        self.map.len() - self.end
    }

    /// Whether it knows a row.
    pub fn has(&self, key: Key) -> bool {
        self.index.contains_key(&key)
    }

    /// What the teacher says of the rows of `batch` that predict a target, in their order.
    ///
    /// # Errors
    /// A row that it does not know.
    pub fn read(&self, batch: &PackedBatch) -> Result<TopLogps> {
        let mut all = TopLogps { k: self.header.k, ..TopLogps::default() };
        for (key, positions) in sequences(batch) {
            let known = self.index.get(&key).filter(|(_, known)| *known == positions);
            let &(start, _) = known.ok_or_else(|| {
                Error::data("the teacher said nothing of a row of this run")
                    .in_file(&self.path)
                    .hint("capture it with the same data and options (`halter distill capture`)")
            })?;
            let bytes = &self.map[start..start + positions * self.header.position_bytes()];
            for position in bytes.chunks_exact(self.header.position_bytes()) {
                self.header.unpack(position, &mut all);
            }
        }
        Ok(all)
    }
}

/// A file that grows.
#[derive(Debug)]
pub struct StoreWriter {
    header: Header,
    path: PathBuf,
    file: File,
}

impl StoreWriter {
    /// Begins the file at `path`, or goes on behind its last whole record; with it what is known
    /// already.
    ///
    /// # Errors
    /// A file of another teacher or of another kind, or one that cannot be written.
    pub fn open(path: &Path, header: &Header) -> Result<(Self, Option<Store>)> {
        header.validate()?;
        let told = |error| Error::io("write", path, error);
        let known = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told(error)),
            Ok(_) => Some(Store::open(path)?),
        };
        // One in which nothing was said is nobody's.
        let is_other = |store: &Store| store.header != *header;
        let known = known.filter(|store| !(is_other(store) && store.map.len() == store.start));
        if known.as_ref().is_some_and(is_other) {
            return Err(Error::data("the file holds what another teacher said, or in another way")
                .in_file(path)
                .hint("give another `--output`, or the same `--teacher` and options"));
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(known.is_none())
            .write(true)
            .open(path)
            .map_err(told)?;
        match &known {
            Some(store) => {
                file.set_len(store.end as u64).map_err(told)?;
                io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(told)?;
            }
            None => {
                let json = serde_json::to_vec(header)
                    .map_err(|error| Error::data("a header").because(error))?;
                let mut bytes = MAGIC.to_vec();
                bytes.extend((json.len() as u32).to_le_bytes());
                bytes.extend(json);
                file.write_all(&bytes).map_err(told)?;
            }
        }
        Ok((Self { header: header.clone(), path: path.to_path_buf(), file }, known))
    }

    /// Adds a row: rows `range` of `told`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, key: Key, told: &TopLogps, range: Range<usize>) -> Result<()> {
        let mut bytes = key.0.to_vec();
        bytes.extend((range.len() as u32).to_le_bytes());
        range.for_each(|row| self.header.pack(told, row, &mut bytes));
        bytes.extend(&blake3::hash(&bytes).as_bytes()[..SUM_BYTES]);
        self.file.write_all(&bytes).map_err(|error| Error::io("write", &self.path, error))
    }

    /// Waits until all of it is on the disk; a file without rows does not stay.
    ///
    /// # Errors
    /// What the file system says.
    pub fn close(self, rows: usize) -> Result<()> {
        let done = match rows {
            0 => std::fs::remove_file(&self.path),
            _ => self.file.sync_all(),
        };
        done.map_err(|error| Error::io("write", &self.path, error))
    }
}

fn read_header(bytes: &[u8]) -> Result<(Header, usize)> {
    let other = || {
        Error::data("not a file of a teacher's log-probs")
            .hint("`halter distill capture` writes them")
    };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(other)?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(other)?;
    let len = u32::from_le_bytes(*len) as usize;
    let json = rest.get(..len).filter(|_| len <= HEADER_LIMIT).ok_or_else(other)?;
    let header: Header = serde_json::from_slice(json)
        .map_err(|error| Error::data("the header cannot be read").because(error))?;
    header.validate()?;
    Ok((header, MAGIC.len() + 4 + len))
}

/// Key and positions of the record at `start`, and where the next one begins; `None` where it is not
/// whole.
fn record(bytes: &[u8], start: usize, header: &Header) -> Option<(Key, usize, usize)> {
    let rest = bytes.get(start..)?;
    let (key, rest) = rest.split_first_chunk::<KEY_BYTES>()?;
    let (positions, _) = rest.split_first_chunk::<4>()?;
    let positions = u32::from_le_bytes(*positions) as usize;
    let end = positions
        .checked_mul(header.position_bytes())
        .and_then(|bytes| start.checked_add(KEY_BYTES + 4)?.checked_add(bytes))?;
    let sum = bytes.get(end..end.checked_add(SUM_BYTES)?)?;
    (blake3::hash(bytes.get(start..end)?).as_bytes()[..SUM_BYTES] == *sum).then_some((
        Key(*key),
        positions,
        end + SUM_BYTES,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use halter_core::data::record::{Origin, Row};

    fn header() -> Header {
        Header {
            teacher: "t".into(),
            weights: "w".into(),
            tokenizer: "k".into(),
            vocab_size: 49_152,
            k: 3,
            temperature: 1.0,
        }
    }

    fn batch(rows: &[(&[u32], usize)]) -> PackedBatch {
        let rows: Vec<Row> = rows
            .iter()
            .map(|(ids, prompt)| Row {
                input_ids: ids.to_vec(),
                completion_mask: (0..ids.len()).map(|at| at >= *prompt).collect(),
                prompt_is_prefix: true,
                origin: Origin { path: std::sync::Arc::default(), line: 1 },
            })
            .collect();
        PackedBatch::from_rows(&rows).unwrap()
    }

    fn told(positions: usize) -> TopLogps {
        let logps = [0.5f32, 0.25, 0.125].map(f32::ln);
        TopLogps {
            k: 3,
            ids: (0..positions as u32 * 3).map(|i| 49_151 - i).collect(),
            logps: logps.repeat(positions),
            rest: vec![0.125f32.ln(); positions],
        }
    }

    /// A file with the rows of `batch`.
    fn written(path: &Path, batch: &PackedBatch) -> TopLogps {
        let (mut writer, _) = StoreWriter::open(path, &header()).unwrap();
        let all = told(batch.targets.len());
        let mut at = 0;
        for (key, positions) in sequences(batch) {
            writer.append(key, &all, at..at + positions).unwrap();
            at += positions;
        }
        writer.close(2).unwrap();
        all
    }

    #[test]
    fn what_was_said_comes_back_to_a_thousandth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.top");
        let both = batch(&[(&[1, 2, 3, 4], 2), (&[5, 6], 1)]);
        let all = written(&path, &both);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.len(), store.damaged_bytes()), (2, 0));
        let read = store.read(&both).unwrap();
        assert_eq!(read.ids, all.ids);
        for (read, all) in read.logps.iter().zip(&all.logps).chain(read.rest.iter().zip(&all.rest))
        {
            assert!((read - all).abs() < 5e-4, "{read} {all}");
        }
        // In any company.
        let other = batch(&[(&[5, 6], 1), (&[1, 2, 3, 4], 2)]);
        assert_eq!(store.read(&other).unwrap().ids[..3], all.ids[6..]);
        // 64 tokens of a vocabulary of 128,256 in less than 300 bytes.
        let llama = Header { vocab_size: 128_256, k: 64, ..header() };
        assert_eq!((llama.position_bytes(), llama.logp_bits()), (260, 15));
    }

    #[test]
    fn a_row_of_other_tokens_or_targets_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.top");
        written(&path, &batch(&[(&[1, 2, 3, 4], 2)]));
        let store = Store::open(&path).unwrap();
        for (ids, prompt) in [(&[1, 2, 3, 5], 2), (&[1, 2, 3, 4], 1), (&[1, 2, 3, 4], 3)] {
            let error = store.read(&batch(&[(ids, prompt)])).unwrap_err();
            assert_eq!(error.message(), "the teacher said nothing of a row of this run");
        }
    }

    #[test]
    fn what_is_damaged_is_cut_off_and_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.top");
        let both = batch(&[(&[1, 2, 3, 4], 2), (&[5, 6], 1)]);
        written(&path, &both);
        let whole = std::fs::read(&path).unwrap();
        let start = read_header(&whole).unwrap().1;
        let first = record(&whole, start, &header()).unwrap().2;
        let mut checked = 0;
        for at in start..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            for bytes in [&flipped[..], &whole[..at]] {
                std::fs::write(&path, bytes).unwrap();
                let store = Store::open(&path).unwrap();
                assert_eq!(store.len(), usize::from(at >= first), "{at}");
                let (mut writer, known) = StoreWriter::open(&path, &header()).unwrap();
                let known = known.unwrap();
                let mut from = 0;
                for (key, positions) in sequences(&both) {
                    if !known.has(key) {
                        writer.append(key, &told(3), from..from + positions).unwrap();
                    }
                    from += positions;
                }
                drop(writer);
                assert_eq!(std::fs::read(&path).unwrap(), whole, "{at}");
                checked += 1;
            }
        }
        assert_eq!(checked, 2 * (whole.len() - start));
    }

    #[test]
    fn other_files_are_refused_and_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for bytes in
            [&b""[..], b"{}", b"HALTTOP1", b"HALTTOP1\xff\xff\xff\xff{}", b"HALTTOP1\x02\0\0\0{}"]
        {
            std::fs::write(&path, bytes).unwrap();
            Store::open(&path).unwrap_err();
            StoreWriter::open(&path, &header()).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        written(&folder.path().join("other"), &batch(&[(&[5, 6], 1)]));
        let others = Header { k: 4, ..header() };
        let error = StoreWriter::open(&folder.path().join("other"), &others).unwrap_err();
        let message = "the file holds what another teacher said, or in another way";
        assert_eq!(error.message(), message);
        // Nobody has said anything in this one.
        let path = folder.path().join("empty");
        StoreWriter::open(&path, &header()).unwrap();
        StoreWriter::open(&path, &others).unwrap();
        assert_eq!(Store::open(&path).unwrap().header, others);
    }
}
