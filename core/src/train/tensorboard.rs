//! TensorBoard event files, written by hand: a TFRecord for each event, each event a protobuf
//! message of a few fields (tensorflow/core/util/event.proto, framework/summary.proto).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::metrics::StepMetrics;
use crate::{Error, Result};

/// `SessionLog { status = 1 }` with `START = 1`.
const SESSION_START: &[u8] = &[0x08, 0x01];
const PREFIX: &str = "events.out.tfevents.";

/// Writes the scalars of a run to one event file.
#[derive(Debug)]
pub struct TensorboardWriter {
    path: PathBuf,
    file: File,
}

impl TensorboardWriter {
    /// Begins an event file in `directory`, which is made where it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        let newest = event_files(directory)?.last().and_then(|path| time_of(path)).unwrap_or(0);
        // Readers go by the name's order: a clock that stands still or goes back must not
        // put this file before an older one.
        let time = (wall_time() as u64).max(newest + 1);
        let path = directory.join(format!("{PREFIX}{time:010}.halter"));
        let file = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
        let mut writer = Self { path, file };
        writer.record(&event(wall_time(), 0, &Payload::FileVersion("brain.Event:2")))?;
        Ok(writer)
    }

    /// Goes on after `step`: later events are removed from the files that are there, and a new
    /// file begins that tells a TensorBoard which is looking on to forget them too.
    ///
    /// # Errors
    /// What the file system says.
    pub fn resume(directory: &Path, step: u64) -> Result<Self> {
        if directory.is_dir() {
            for path in event_files(directory)? {
                truncate_after(&path, step)?;
            }
        }
        let mut writer = Self::create(directory)?;
        writer.record(&event(wall_time(), step + 1, &Payload::SessionStart))?;
        Ok(writer)
    }

    /// Writes what was measured at a step: a method's keys with a `/` as they are if they begin
    /// with `eval/`, everything else under `train/`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        let scalars: Vec<(String, f32)> = metrics
            .values()
            .into_iter()
            .map(|(key, value)| match key.starts_with("eval/") {
                true => (key.to_string(), value as f32),
                false => (format!("train/{key}"), value as f32),
            })
            .collect();
        self.record(&event(wall_time(), metrics.step, &Payload::Scalars(&scalars)))
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked_crc(event).to_le_bytes());
        self.file.write_all(&record).map_err(|error| Error::io("write", &self.path, error))
    }
}

enum Payload<'a> {
    FileVersion(&'a str),
    SessionStart,
    Scalars(&'a [(String, f32)]),
}

/// `Event { wall_time = 1, step = 2, oneof { file_version = 3, summary = 5, session_log = 7 } }`.
fn event(wall_time: f64, step: u64, payload: &Payload<'_>) -> Vec<u8> {
    let mut event = Vec::new();
    tag(&mut event, 1, FIXED64);
    event.extend(wall_time.to_le_bytes());
    tag(&mut event, 2, VARINT);
    varint(&mut event, step);
    match payload {
        Payload::FileVersion(version) => field(&mut event, 3, version.as_bytes()),
        Payload::SessionStart => field(&mut event, 7, SESSION_START),
        Payload::Scalars(scalars) => {
            // `Summary { repeated Value { tag = 1, simple_value = 2 } value = 1 }`.
            let mut summary = Vec::new();
            for (name, value) in *scalars {
                let mut scalar = Vec::new();
                field(&mut scalar, 1, name.as_bytes());
                tag(&mut scalar, 2, FIXED32);
                scalar.extend(value.to_le_bytes());
                field(&mut summary, 1, &scalar);
            }
            field(&mut event, 5, &summary);
        }
    }
    event
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

fn tag(out: &mut Vec<u8>, number: u8, wire: u8) {
    out.push(number << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    tag(out, number, DELIMITED);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// CRC-32C (Castagnoli), rotated and offset as TFRecord asks.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Event files of a directory, oldest first.
fn event_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let io = |error| Error::io("read", directory, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if time_of(&path).is_some() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn time_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Cuts the file before its first event after `step`, or its first damaged record. Steps only
/// rise within a file of ours, so all that goes is later.
fn truncate_after(path: &Path, step: u64) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let mut kept = 0;
    while let Some((event, end)) = record_at(&bytes, kept) {
        // The start of a resumed session carries the step it is about to do.
        let is_start = matches!(field_of(event, 7), Some(Raw::Bytes(SESSION_START)));
        if step_of(event) > step + u64::from(is_start) {
            break;
        }
        kept = end;
    }
    let cut = |error| Error::io("shorten", path, error);
    let file = File::options().write(true).open(path).map_err(cut)?;
    file.set_len(kept as u64).and_then(|()| file.sync_all()).map_err(cut)
}

/// The whole record at `at` and where the next begins.
fn record_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let number = |at: usize| bytes.get(at..at.checked_add(4)?)?.try_into().ok();
    let length: [u8; 8] = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    if u32::from_le_bytes(number(at + 8)?) != masked_crc(&length) {
        return None;
    }
    let begin = at + 12;
    let end = begin.checked_add(usize::try_from(u64::from_le_bytes(length)).ok()?)?;
    let event = bytes.get(begin..end)?;
    (u32::from_le_bytes(number(end)?) == masked_crc(event)).then_some((event, end + 4))
}

/// A field of a message, as its raw number or its bytes.
enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field `wanted` of a message; `None` where it is absent or the message is damaged.
fn field_of(mut message: &[u8], wanted: u64) -> Option<Raw<'_>> {
    fn number(message: &mut &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = message.split_first()?;
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    while !message.is_empty() {
        let key = number(&mut message)?;
        let raw = match (key & 7) as u8 {
            VARINT => Raw::Number(number(&mut message)?),
            FIXED64 | FIXED32 | DELIMITED => {
                let length = match (key & 7) as u8 {
                    FIXED64 => 8,
                    FIXED32 => 4,
                    _ => usize::try_from(number(&mut message)?).ok()?,
                };
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Raw::Bytes(bytes)
            }
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some(raw);
        }
    }
    None
}

fn step_of(event: &[u8]) -> u64 {
    match field_of(event, 2) {
        Some(Raw::Number(step)) => step,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "tensorboard_tests.rs"]
mod tests;
