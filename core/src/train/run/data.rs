//! Rows for the steps and for the evaluation.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use crate::Result;
use crate::data::dataset::{DataOptions, DataSpec, Dataset};
use crate::data::encoded::Encoded;
use crate::data::format::{Columns, Format};
use crate::data::mixture::{Cursor, Mixture};
use crate::data::record::{Origin, Record};
use crate::data::stream::{RowStream, StreamOptions};
use crate::train::config::TrainConfig;
use crate::train::method::RowEncoder;

/// Records that are sampled next to one another.
const NEIGHBOURS: usize = 4;

/// Data sets that were opened.
#[derive(Debug)]
pub struct Data {
    /// The data sets.
    pub sets: Arc<Vec<Dataset>>,
    /// Their order.
    pub mixture: Mixture,
}

impl Data {
    /// Opens the data sets that `specs` name.
    ///
    /// # Errors
    /// One that cannot be read, or whose format is not known.
    pub fn open(specs: &[String], config: &TrainConfig, shuffle: bool) -> Result<Self> {
        let format = config.format.as_deref().map(Format::from_str).transpose()?;
        let options = DataOptions { format, columns: Columns::parse(&config.column)? };
        let specs = specs.iter().map(|s| DataSpec::from_str(s)).collect::<Result<Vec<_>>>()?;
        let sets = specs
            .iter()
            .map(|spec| Dataset::open(&spec.path, &options))
            .collect::<Result<Vec<_>>>()?;
        let parts: Vec<(usize, f64)> =
            sets.iter().zip(&specs).map(|(set, spec)| (set.len(), spec.weight)).collect();
        let mixture = Mixture::new(&parts, config.seed, shuffle)?;
        Ok(Self { sets: Arc::new(sets), mixture })
    }

    /// The fingerprint of each data set, by its name.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn contents(&self) -> Result<BTreeMap<String, String>> {
        self.sets.iter().map(|set| Ok((set.name().to_string(), set.fingerprint()?))).collect()
    }

    /// Rows from `cursor` on, encoded in the background.
    ///
    /// # Errors
    /// A cursor of other data.
    pub fn stream<R: Send + 'static>(
        &self,
        cursor: Cursor,
        epochs: Option<u64>,
        encoder: &RowEncoder<R>,
    ) -> Result<RowStream<Encoded<Vec<R>>>> {
        let order = self.mixture.rows_from(cursor, epochs)?;
        let encoder = Arc::clone(encoder);
        let encode = move |origin: &Origin, record: Record| encoder(origin, &record);
        RowStream::start(Arc::clone(&self.sets), order, encode, StreamOptions::default())
    }

    /// About `count` records, a few neighbours at a time, spread evenly over the data sets by their
    /// share of an epoch. Neighbours mostly share a row group of Parquet, which is decoded whole.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn sample(&self, count: usize) -> impl Iterator<Item = Result<(Origin, Record)>> {
        let epoch = self.mixture.rows_per_epoch() as f64;
        self.sets.iter().zip(self.mixture.rows_of_each()).flat_map(move |(set, rows)| {
            let share = (count as f64 * rows as f64 / epoch).round() as usize;
            let taken = share.clamp(1, set.len());
            (0..taken).map(move |at| {
                let neighbour = at % NEIGHBOURS;
                read(set, (at - neighbour) * set.len() / taken + neighbour)
            })
        })
    }

    /// All records, in the order of their files.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn records(&self) -> impl Iterator<Item = Result<(Origin, Record)>> {
        self.sets.iter().flat_map(|set| (0..set.len()).map(|row| read(set, row)))
    }
}

fn read(set: &Dataset, row: usize) -> Result<(Origin, Record)> {
    Ok((set.origin(row), set.record(row)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn a_sample_is_spread_evenly_over_the_data_sets_by_their_share() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str, rows: usize, weight: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "{\"text\": \"a\"}\n".repeat(rows)).unwrap();
            format!("{}{weight}", path.display())
        };
        let specs =
            [spec("a.jsonl", 100, ""), spec("b.jsonl", 50, ":6"), spec("c.jsonl", 3, ":0.5")];
        let data = Data::open(&specs, &TrainConfig::default(), true).unwrap();
        let lines = |name: &str| -> Vec<usize> {
            let origins = data.sample(32).map(|record| record.unwrap().0);
            let of_set = origins.filter(|origin| origin.path.ends_with(name));
            of_set.map(|origin| origin.line).collect()
        };
        assert_eq!(lines("a.jsonl"), [1, 2, 3, 4, 51, 52, 53, 54]);
        let b = lines("b.jsonl");
        assert_eq!((b.len(), b.first(), b.last()), (24, Some(&1), Some(&45)));
        assert_eq!(lines("c.jsonl"), [1], "one at least");
    }
}
