//! Answers in a file, one a line, so that nothing is asked twice.
//!
//! ```text
//! {"format":"halter answers 1","began_at":1760000000}
//! {"key":"…","prompt_tokens":12,"completion_tokens":7,"cost":0.0,"finish":"stop",…,"sum":"…"}
//! ```
//!
//! Lines are only ever added. `sum` is the beginning of the BLAKE3 hash of what stands before it in
//! its line. A damaged line is passed over; at the end of the file it is cut off.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::budget::Spent;
use super::{Answer, Told, Usage};
use crate::data::record::Message;
use crate::text::strftime::Moment;
use crate::train::files::sync_parent;
use crate::train::progress::counted;
use crate::{Error, Result};

/// The file's name in its directory.
const NAME: &str = "answers.jsonl";
/// How the file begins.
const FORMAT: &str = r#"{"format":"halter answers 1","began_at":"#;
/// What stands before a line's checksum.
const SUM: &str = r#","sum":""#;
/// Digits of a checksum.
const DIGITS: usize = 16;
/// Bytes of the longest line.
const MAX_LINE: u64 = 256 << 20;
/// So many answers, or those of so long, are lost in a power cut.
const UNSYNCED: usize = 64;
const UNSYNCED_FOR: Duration = Duration::from_secs(2);

/// The hash of a question and of all that its answer depends on.
pub(super) type Key = blake3::Hash;

/// The answers of a teacher. One process at a time has it.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    /// When the file was begun, in seconds since 1970.
    pub began_at: i64,
    /// What its answers took.
    pub spent: Spent,
    /// What was found damaged.
    pub notes: Vec<String>,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Where each answer's line stands, and its bytes.
    places: HashMap<Key, (u64, u64)>,
    len: u64,
    unsynced: usize,
    synced_at: Instant,
}

/// A line as it is written.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    head: Head,
    finish: String,
    model: String,
    message: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprobs: Option<Value>,
}

/// What of a line is looked at when the file is opened.
#[derive(Serialize, Deserialize)]
struct Head {
    key: String,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost: f64,
}

impl Cache {
    /// Opens the file in `directory`, or begins it.
    ///
    /// # Errors
    /// Another process has it, something else lies there, or what the file system says.
    pub fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        let path = directory.join(NAME);
        let failed = |doing, error| Error::io(doing, &path, error);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = file.map_err(|error| failed("open", error))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::config("another process uses these answers")
                .in_file(&path)
                .hint("wait until it has ended, or name another directory"),
            TryLockError::Error(error) => {
                failed("lock", error).hint("keep the answers on a file system that can lock files")
            }
        })?;
        let began_at = match began_at(&mut file, &path)? {
            Some(began_at) => began_at,
            None => begin(&mut file, &path)?,
        };
        let Scan { places, spent, len, mut notes } =
            scan(&file).map_err(|error| failed("read", error))?;
        let whole = file.metadata().map_err(|error| failed("read", error))?.len();
        if whole > len {
            file.set_len(len).map_err(|error| failed("truncate", error))?;
            let lost = counted((whole - len) as usize, "byte");
            notes.push(format!("its end was damaged: {lost} cut off"));
        }
        notes.iter_mut().for_each(|note| *note = format!("{}: {note}", path.display()));
        let open = Open { file, places, len, unsynced: 0, synced_at: Instant::now() };
        Ok(Self { path, began_at, spent, notes, open: Mutex::new(open) })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer that is kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, key: &Key) -> Result<Option<Answer>> {
        let mut open = self.lock();
        let Some(&(start, len)) = open.places.get(key) else { return Ok(None) };
        let mut line = vec![0; len as usize];
        let read = open.file.seek(SeekFrom::Start(start));
        let read = read.and_then(|_| open.file.read_exact(&mut line));
        read.map_err(|error| Error::io("read", &self.path, error))?;
        let changed = || {
            Error::data("an answer has changed since the file was opened")
                .in_file(&self.path)
                .hint("run it again")
        };
        checked(&line).ok_or_else(changed)?;
        let Line { head, finish, model, message, logprobs } =
            serde_json::from_slice(&line).map_err(|error| changed().because(error))?;
        let usage = head.usage();
        Ok(Some(Answer { message: Message(message), finish, logprobs, usage, model }))
    }

    /// Adds an answer.
    ///
    /// # Errors
    /// A full disk; the answers before are whole.
    pub fn put(&self, key: &Key, told: &Told) -> Result<()> {
        let mut open = self.lock();
        if open.places.contains_key(key) {
            return Ok(());
        }
        let line = line(key, told)?;
        let open = &mut *open;
        if let Err(error) = open.file.write_all(&line) {
            // Opening it again does the same, should this fail too.
            let _ = open.file.set_len(open.len);
            return Err(Error::io("write", &self.path, error)
                .hint("the answers before are whole, and not asked again"));
        }
        open.places.insert(*key, (open.len, line.len() as u64));
        open.len += line.len() as u64;
        open.unsynced += 1;
        if open.unsynced >= UNSYNCED || open.synced_at.elapsed() >= UNSYNCED_FOR {
            self.sync_file(open)?;
        }
        Ok(())
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self) -> Result<()> {
        self.sync_file(&mut self.lock())
    }

    fn sync_file(&self, open: &mut Open) -> Result<()> {
        if open.unsynced > 0 {
            open.file.sync_data().map_err(|error| Error::io("sync", &self.path, error))?;
        }
        (open.unsynced, open.synced_at) = (0, Instant::now());
        Ok(())
    }
}

impl Head {
    fn usage(&self) -> Usage {
        let &Self { prompt_tokens, completion_tokens, .. } = self;
        Usage { prompt_tokens, completion_tokens }
    }
}

/// When the file was begun; `None` where it is still to be, be it that a process was killed then.
fn began_at(file: &mut File, path: &Path) -> Result<Option<i64>> {
    let mut first = Vec::new();
    let read = BufReader::new(file).take(128).read_until(b'\n', &mut first);
    read.map_err(|error| Error::io("read", path, error))?;
    let text = String::from_utf8_lossy(&first);
    let foreign = || {
        Error::data("expected answers of halter, got something else")
            .at(path, 1)
            .hint("name another directory")
    };
    let Some(rest) = text.strip_prefix(FORMAT) else {
        return if FORMAT.starts_with(&*text) { Ok(None) } else { Err(foreign()) };
    };
    match rest.strip_suffix('\n') {
        Some(rest) => {
            let number = rest.strip_suffix('}').and_then(|number| number.parse().ok());
            number.map(Some).ok_or_else(foreign)
        }
        None if first.len() < 128 => Ok(None),
        None => Err(foreign()),
    }
}

/// Writes the first line.
fn begin(file: &mut File, path: &Path) -> Result<i64> {
    let now = Moment::now().0;
    let written =
        file.set_len(0).and_then(|()| file.write_all(format!("{FORMAT}{now}}}\n").as_bytes()));
    written.and_then(|()| file.sync_all()).map_err(|error| Error::io("write", path, error))?;
    sync_parent(path)?;
    Ok(now)
}

struct Scan {
    places: HashMap<Key, (u64, u64)>,
    spent: Spent,
    /// Up to the end of the last line that is whole.
    len: u64,
    notes: Vec<String>,
}

fn scan(mut file: &File) -> std::io::Result<Scan> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut start = reader.read_until(b'\n', &mut line)? as u64;
    let mut scan =
        Scan { places: HashMap::new(), spent: Spent::default(), len: start, notes: Vec::new() };
    // Those at the end do not count: they are cut off.
    let (mut damaged, mut damaged_before) = (0, 0);
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            break;
        }
        match head(&line) {
            Some((key, head)) => {
                scan.spent.requests += 1;
                scan.spent.add(head.usage(), head.cost);
                scan.places.insert(key, (start, read));
                scan.len = start + read;
                damaged_before = damaged;
            }
            None => damaged += 1,
        }
        start += read;
    }
    if damaged_before > 0 {
        let lines = counted(damaged_before, "damaged line");
        scan.notes.push(format!("{lines} passed over"));
    }
    Ok(scan)
}

/// The line of an answer.
fn line(key: &Key, told: &Told) -> Result<Vec<u8>> {
    let Told { answer, usage, cost } = told;
    let head = Head {
        key: key.to_hex().to_string(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cost: *cost,
    };
    let line = Line {
        head,
        finish: answer.finish.clone(),
        model: answer.model.clone(),
        message: answer.message.0.clone(),
        logprobs: answer.logprobs.clone(),
    };
    let mut line = serde_json::to_string(&line)
        .map_err(|error| Error::data("an answer that is not JSON").because(error))?;
    line.pop();
    let sum = sum(line.as_bytes());
    Ok(format!("{line}{SUM}{sum}\"}}\n").into_bytes())
}

fn sum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..DIGITS].to_string()
}

/// Whether the line is as it was written.
fn checked(line: &[u8]) -> Option<()> {
    let line = line.strip_suffix(b"\"}\n")?;
    let (before, digits) = line.split_at_checked(line.len().checked_sub(DIGITS)?)?;
    let content = before.strip_suffix(SUM.as_bytes())?;
    (sum(content).as_bytes() == digits).then_some(())
}

fn head(line: &[u8]) -> Option<(Key, Head)> {
    checked(line)?;
    let head: Head = serde_json::from_slice(line).ok()?;
    Some((Key::from_hex(&head.key).ok()?, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        blake3::hash(&number.to_le_bytes())
    }

    fn told(number: u64) -> Told {
        let usage = Usage { prompt_tokens: 2, completion_tokens: number };
        let mut message = Message::new("assistant", &format!("l\n\"{number}\" ü\u{2028}"));
        message.0.insert("tool_calls".into(), serde_json::json!([{"a": 1.5e300}]));
        let logprobs = (number.is_multiple_of(2)).then(|| serde_json::json!({"content": [-0.1]}));
        let answer = Answer { message, finish: "stop".into(), logprobs, usage, model: "m".into() };
        Told { answer, usage, cost: 0.1 }
    }

    fn put(cache: &Cache, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| cache.put(&key(number), &told(number)).unwrap());
    }

    fn found(cache: &Cache, most: u64) -> Vec<u64> {
        let is_there = |&number: &u64| {
            let found = cache.get(&key(number)).unwrap();
            assert!(found.as_ref().is_none_or(|found| *found == told(number).answer));
            found.is_some()
        };
        (0..most).filter(is_there).collect()
    }

    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let cache = Cache::open(dir.path()).unwrap();
        put(&cache, 0..4);
        assert_eq!(found(&cache, 5), [0, 1, 2, 3]);
        drop(cache);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let cache = Cache::open(dir.path()).unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let kept = lines.saturating_sub(1);
            assert_eq!(found(&cache, 5), (0..kept).collect::<Vec<_>>(), "cut at {cut}");
            let is_cut = lines > 0 && cut > 0 && whole[cut - 1] != b'\n';
            assert_eq!(cache.notes.len(), usize::from(is_cut), "{cut}: {:?}", cache.notes);
            let tokens = (0..kept).map(|number| 2 + number).sum();
            assert_eq!((cache.spent.requests, cache.spent.tokens), (kept, tokens));
            put(&cache, 0..4);
            drop(cache);
            let again = fs::read(&path).unwrap();
            let after_head = |bytes: &[u8]| bytes.iter().position(|&b| b == b'\n').unwrap();
            // The time in the head may be another.
            assert_eq!(again[after_head(&again)..], whole[after_head(&whole)..], "{cut}");
        }
    }

    #[test]
    fn a_damaged_line_is_passed_over_and_its_question_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        put(&Cache::open(dir.path()).unwrap(), 0..4);
        let whole = fs::read(&path).unwrap();
        let starts: Vec<usize> =
            whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
        for at in starts[1]..starts[2] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let cache = Cache::open(dir.path()).unwrap();
            // Without its end it takes the next one with it.
            let kept = if at + 1 == starts[2] { &[0, 3][..] } else { &[0, 2, 3] };
            assert_eq!(found(&cache, 5), kept, "byte {at}");
            assert!(cache.notes[0].contains("damaged line"), "{:?}", cache.notes);
            put(&cache, 0..5);
            assert_eq!(found(&cache, 5), [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let long = format!("{FORMAT}{}", "1".repeat(500));
        for text in ["{\"a\":1}\n", "x", "\n", "{\"format\":\"halter answers 2\"}\n", &long] {
            fs::write(&path, text).unwrap();
            let error = Cache::open(dir.path()).unwrap_err();
            assert!(error.message().contains("expected answers of halter"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn one_at_a_time_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let error = Cache::open(dir.path()).unwrap_err();
        assert!(error.message().contains("another process"), "{error}");
        let began_at = cache.began_at;
        drop(cache);
        assert_eq!(Cache::open(dir.path()).unwrap().began_at, began_at);
    }

    #[test]
    fn an_answer_that_changes_under_way_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        put(&cache, 0..1);
        let path = dir.path().join(NAME);
        let text = fs::read_to_string(&path).unwrap().replace("assistant", "assistent");
        fs::write(&path, text).unwrap();
        assert!(cache.get(&key(0)).unwrap_err().message().contains("has changed"));
    }
}
