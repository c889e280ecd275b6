//! The rows of several data sets, one after the other.

use super::dataset::{DataOptions, DataSpec, Dataset};
use crate::{Error, Result};

/// The rows of several data sets, one after the other, each once.
pub struct Rows(Vec<Dataset>);

impl From<Vec<Dataset>> for Rows {
    fn from(sets: Vec<Dataset>) -> Self {
        Self(sets)
    }
}

impl Rows {
    /// Opens what `data` names.
    ///
    /// # Errors
    /// A data set that cannot be opened, or one with a weight.
    pub fn open(data: &[String], options: &DataOptions) -> Result<Self> {
        let open = |text: &String| {
            let DataSpec { path, weight } = text.parse()?;
            if weight != 1.0 {
                return Err(Error::config(format!("`data` has a weight: `{text}`"))
                    .hint(format!("every row is taken once: give `{path}`")));
            }
            Dataset::open(&path, options)
        };
        Ok(Self(data.iter().map(open).collect::<Result<_>>()?))
    }

    /// The data sets.
    pub fn sets(&self) -> &[Dataset] {
        &self.0
    }

    /// Rows in all.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|set| set.len() as u64).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The data set that holds row `row`, and its place there.
    pub fn find(&self, mut row: u64) -> Option<(&Dataset, usize)> {
        self.0.iter().find_map(|set| {
            let len = set.len() as u64;
            let found = (row < len).then_some((set, row as usize));
            row = row.saturating_sub(len);
            found
        })
    }
}
