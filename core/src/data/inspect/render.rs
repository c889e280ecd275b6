//! An inspection as text for a terminal.

use std::fmt;

use super::{Inspection, NamedRow};

/// Columns of a full bar.
const BAR: usize = 40;

/// A bar of eighths of a character cell.
fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    // What is there is seen, however little.
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    let mut bar = "█".repeat(eighths / 8);
    if let Some(rest) = (eighths % 8).checked_sub(1) {
        bar.push(['▏', '▎', '▍', '▌', '▋', '▊', '▉'][rest]);
    }
    bar
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn rows(number: usize) -> String {
    format!("{} row{}", grouped(number as u64), if number == 1 { "" } else { "s" })
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<12}{value}")
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        let mut kinds: Vec<_> = self
            .kinds
            .iter()
            .map(|(kind, rows)| format!("{} {kind}", grouped(*rows as u64)))
            .collect();
        if self.refused > 0 {
            kinds.push(format!("{} refused", grouped(self.refused as u64)));
        }
        line(f, "rows", format!("{} ({})", grouped(self.rows as u64), kinds.join(", ")))?;
        if self.rows > self.refused {
            let mean = format!("{:.1} a row", self.mean);
            line(f, self.unit, format!("{}, {mean}", grouped(self.total)))?;
        }
        if let (Some(trained), Some(share)) = (self.trained, self.mask_share) {
            let share = format!("{:.1} %", share * 100.0);
            line(f, "trained", format!("{} ({share} of tokens)", grouped(trained)))?;
        }
        if let Some(rows) = self.untrained_rows.filter(|rows| *rows > 0) {
            line(f, "", format!("{} without a trained token", grouped(rows as u64)))?;
        }
        if let Some(rows) = self.unlike_generation.filter(|rows| *rows > 0) {
            let what = "trained after a context that generation would not be given";
            line(f, "", format!("{} {what}", grouped(rows as u64)))?;
        }
        if let Some(limit) = self.max_seq_len {
            let rows = rows(self.over_long);
            let excess = grouped(self.over_long_excess);
            line(f, "over-long", format!("{rows} beyond {limit}, by {excess} in all"))?;
        }
        self.conversations(f)?;
        self.lengths(f)?;
        if !self.scripts.is_empty() {
            writeln!(f, "\n  scripts")?;
            for (name, share) in &self.scripts {
                writeln!(f, "  {name:>12} {:>6.2} % {}", share * 100.0, bar(*share))?;
            }
        }
        self.named(f)
    }
}

impl Inspection {
    fn conversations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.roles.is_empty() {
            let roles: Vec<_> = self
                .roles
                .iter()
                .map(|(role, count)| format!("{} {role}", grouped(*count as u64)))
                .collect();
            line(f, "messages", roles.join(", "))?;
            let shown: Vec<_> =
                self.turns.iter().take(8).map(|(n, rows)| format!("{n}: {rows}")).collect();
            let more = if self.turns.len() > 8 { ", …" } else { "" };
            line(f, "turns", format!("{}{more}", shown.join(", ")))?;
        }
        if self.with_tools > 0 {
            line(f, "tools", format!("{} with tools declared", rows(self.with_tools)))?;
        }
        Ok(())
    }

    fn lengths(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.histogram.iter().map(|bucket| bucket.rows).max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        writeln!(f, "\n  length in {}", self.unit)?;
        for bucket in &self.histogram {
            let range = format!("{}–{}", bucket.from, bucket.to - 1);
            let bar = bar(bucket.rows as f64 / most as f64);
            writeln!(f, "  {range:>12} {:>8} {bar}", grouped(bucket.rows as u64))?;
        }
        let order = ["min", "p25", "p50", "p75", "p95", "p99", "max"];
        let shown: Vec<_> = order
            .iter()
            .filter_map(|name| self.percentiles.get(name).map(|value| format!("{name} {value}")))
            .collect();
        writeln!(f, "  {:>12} {}", "", shown.join("  "))
    }

    fn named(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |row: &NamedRow| format!("{}:{} ({})", row.path, row.line, row.length);
        let places = |rows: &[NamedRow]| rows.iter().take(3).map(place).collect::<Vec<_>>();
        if !self.longest.is_empty() {
            writeln!(f)?;
            line(f, "longest", places(&self.longest).join(", "))?;
            line(f, "shortest", places(&self.shortest).join(", "))?;
        }
        if self.duplicates > 0 {
            let first = self.duplicate_rows.first();
            let example = first.map(|d| format!(", e.g. {} is {}", d.row, d.first));
            let rows = rows(self.duplicates);
            line(f, "duplicates", format!("{rows}{}", example.unwrap_or_default()))?;
        }
        for error in &self.errors {
            line(f, "refused", error)?;
        }
        if self.refused > self.errors.len() {
            let more = self.refused - self.errors.len();
            line(f, "", format!("and {} more", grouped(more as u64)))?;
        }
        Ok(())
    }
}
