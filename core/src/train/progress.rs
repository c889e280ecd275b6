//! How a recipe tells what it is doing. The library prints nothing: the caller decides how it
//! looks.

/// What a bar counts, so that it can be shown well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Optimizer updates.
    Steps,
    /// Rows of a data set.
    Rows,
    /// Tokens.
    Tokens,
    /// Bytes, shown as MB or GB.
    Bytes,
    /// Anything else, e.g. tensors of an export.
    Items,
}

impl Unit {
    /// The word that follows a count.
    pub fn word(self) -> &'static str {
        match self {
            Unit::Steps => "steps",
            Unit::Rows => "rows",
            Unit::Tokens => "tokens",
            Unit::Bytes => "bytes",
            Unit::Items => "items",
        }
    }
}

/// `1 row`, `2 rows`: a number with what it counts.
pub fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Somebody who watches. One piece of work at a time: `begin`, any number of `advance`, `finish`;
/// `note` at any time.
pub trait Progress: Send {
    /// A line worth keeping on screen.
    fn note(&mut self, line: &str);

    /// A piece of work of `total` units begins; `what` is a short phrase such as `training`.
    /// `total` is 0 where it is not known.
    fn begin(&mut self, what: &str, total: u64, unit: Unit);

    /// `done` units (in all, not since the last call) are through; `figures` is a short text such
    /// as `loss 1.234`.
    fn advance(&mut self, done: u64, figures: &str);

    /// The piece of work is over, well or not.
    fn finish(&mut self);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn note(&mut self, _: &str) {}
    fn begin(&mut self, _: &str, _: u64, _: Unit) {}
    fn advance(&mut self, _: u64, _: &str) {}
    fn finish(&mut self) {}
}

/// Keeps the notes, for tests and for programs that show them later.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Every line noted, in order.
    pub notes: Vec<String>,
    /// Every piece of work, with how far it came.
    pub work: Vec<(String, u64)>,
}

impl Progress for Recorded {
    fn note(&mut self, line: &str) {
        self.notes.push(line.to_string());
    }

    fn begin(&mut self, what: &str, _: u64, _: Unit) {
        self.work.push((what.to_string(), 0));
    }

    fn advance(&mut self, done: u64, _: &str) {
        if let Some((_, reached)) = self.work.last_mut() {
            *reached = done;
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thing_is_not_several() {
        let shown = [0, 1, 2].map(|rows| counted(rows, "row"));
        assert_eq!(shown, ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn what_is_noted_and_how_far_work_came_is_kept() {
        let mut recorded = Recorded::default();
        let watched: &mut dyn Progress = &mut recorded;
        watched.note("base: tiny");
        watched.begin("training", 10, Unit::Steps);
        watched.advance(3, "loss 1.0");
        watched.finish();
        assert_eq!(recorded.notes, ["base: tiny"]);
        assert_eq!(recorded.work, [("training".to_string(), 3)]);
    }
}
