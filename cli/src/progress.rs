//! What people see while a run goes on: a bar on a terminal, a plain line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use halter_core::train::progress::{Progress, Unit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is written.
const EVERY: Duration = Duration::from_secs(5);

/// A bar if stderr is a terminal, plain lines if it is a file or a pipe.
pub fn to_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bars::default())
    } else {
        Box::new(Lines::new(std::io::stderr(), EVERY))
    }
}

#[derive(Default)]
struct Bars {
    bar: Option<ProgressBar>,
    moved: bool,
}

impl Bars {
    fn template(total: u64, unit: Unit) -> String {
        let counts = match (unit, total) {
            (Unit::Bytes, 0) => "{bytes} · {binary_bytes_per_sec}".to_string(),
            (Unit::Bytes, _) => "{bytes}/{total_bytes} · {binary_bytes_per_sec}".to_string(),
            (_, 0) => format!("{{human_pos}} {}", unit.word()),
            _ => format!("{{human_pos}}/{{human_len}} {}", unit.word()),
        };
        match total {
            0 => format!("{{prefix}} {{spinner}} {counts} · {{elapsed}}{{msg}}"),
            _ => format!("{{prefix}} {{bar:28.cyan/black.bright}} {counts} · {{eta}} left{{msg}}"),
        }
    }

    fn style(total: u64, unit: Unit) -> ProgressStyle {
        // The templates are ours and tested; the default bar would show the same counts.
        ProgressStyle::with_template(&Self::template(total, unit))
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸━")
    }
}

impl Progress for Bars {
    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => _ = writeln!(std::io::stderr(), "{line}"),
        }
    }

    fn begin(&mut self, what: &str, total: u64, unit: Unit) {
        self.finish();
        let length = (total > 0).then_some(total);
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        bar.set_style(Self::style(total, unit));
        bar.set_prefix(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(250));
        (self.bar, self.moved) = (Some(bar), false);
    }

    fn advance(&mut self, done: u64, figures: &str) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(done);
        if !figures.is_empty() {
            bar.set_message(format!(" · {figures}"));
        }
        // A resumed run begins far along; that was not done in these seconds.
        if !std::mem::replace(&mut self.moved, true) {
            bar.reset_eta();
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.disable_steady_tick();
            bar.abandon();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Plain lines, for logs.
struct Lines<W> {
    out: W,
    every: Duration,
    work: Option<Work>,
}

struct Work {
    what: String,
    total: u64,
    unit: Unit,
    /// When the first count came, and what it was: the rate counts from there.
    first: Option<(Instant, u64)>,
    done: u64,
    figures: String,
    written: Option<(Instant, u64)>,
}

impl<W: Write> Lines<W> {
    fn new(out: W, every: Duration) -> Self {
        Self { out, every, work: None }
    }

    // A log that cannot be written must not end the run.
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn note(&mut self, line: &str) {
        self.line(line);
    }

    fn begin(&mut self, what: &str, total: u64, unit: Unit) {
        self.finish();
        let what = what.to_string();
        let (first, figures, written) = (None, String::new(), None);
        self.work = Some(Work { what, total, unit, first, done: 0, figures, written });
    }

    fn advance(&mut self, done: u64, figures: &str) {
        let Some(work) = &mut self.work else { return };
        let now = Instant::now();
        work.first.get_or_insert((now, done));
        work.done = done;
        figures.clone_into(&mut work.figures);
        if work.written.is_none_or(|(at, _)| now - at >= self.every) {
            work.written = Some((now, done));
            let line = work.line(now);
            self.line(&line);
        }
    }

    fn finish(&mut self) {
        let Some(work) = self.work.take() else { return };
        if work.first.is_some() && work.written.is_none_or(|(_, done)| done != work.done) {
            self.line(&work.line(Instant::now()));
        }
    }
}

impl Work {
    /// `training: 312/600 steps, 4.1 steps/s, 1 min 10 s left, loss 0.61`.
    fn line(&self, now: Instant) -> String {
        let word = self.unit.word();
        let mut line = match self.total {
            0 => format!("{}: {} {word}", self.what, self.done),
            total => format!("{}: {}/{total} {word}", self.what, self.done),
        };
        let (begun, at_first) = self.first.unwrap_or((now, self.done));
        let rate = (self.done - at_first.min(self.done)) as f64 / (now - begun).as_secs_f64();
        if rate.is_finite() && rate > 0.0 {
            line += &format!(", {} {word}/s", short(rate));
            let left = self.total.saturating_sub(self.done) as f64 / rate;
            if left > 0.0 && left < 1e9 {
                line += &format!(", {} left", duration(Duration::from_secs_f64(left)));
            }
        }
        if !self.figures.is_empty() {
            line += ", ";
            line += &self.figures;
        }
        line
    }
}

/// Three digits are enough for a rate.
fn short(rate: f64) -> String {
    match rate {
        _ if rate >= 100.0 => format!("{rate:.0}"),
        _ if rate >= 10.0 => format!("{rate:.1}"),
        _ => format!("{rate:.2}"),
    }
}

/// `12 s`, `3 min 5 s`, `2 h 10 min`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &Lines<Vec<u8>>) -> String {
        String::from_utf8(lines.out.clone()).unwrap()
    }

    #[test]
    fn plain_lines_come_now_and_then_and_at_the_end() {
        let mut lines = Lines::new(Vec::new(), Duration::from_secs(3600));
        lines.note("base: tiny");
        lines.begin("training", 600, Unit::Steps);
        for step in 1..=600 {
            lines.advance(step, &format!("loss {:.1}", 1.0 / step as f64));
        }
        lines.finish();
        lines.finish();
        let text = text(&lines);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "base: tiny");
        assert_eq!(lines[1], "training: 1/600 steps, loss 1.0");
        assert!(lines[2].starts_with("training: 600/600 steps, "), "{text}");
        assert!(lines[2].ends_with(" steps/s, loss 0.0"), "nothing is left: {text}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_rate_of_a_resumed_run_counts_its_own_steps_only() {
        let now = Instant::now();
        let work = Work {
            what: "training".into(),
            total: 1000,
            unit: Unit::Steps,
            first: Some((now, 900)),
            done: 920,
            figures: String::new(),
            written: None,
        };
        let line = work.line(now + Duration::from_secs(10));
        assert_eq!(line, "training: 920/1000 steps, 2.00 steps/s, 40 s left");
    }

    #[test]
    fn work_without_a_total_or_an_advance_is_no_trouble() {
        let mut lines = Lines::new(Vec::new(), Duration::ZERO);
        lines.advance(3, "nobody began");
        lines.begin("reading", 0, Unit::Rows);
        lines.begin("writing", 0, Unit::Bytes);
        lines.advance(7, "");
        lines.advance(5, "");
        drop(lines.work.take());
        assert_eq!(text(&lines), "writing: 7 bytes\nwriting: 5 bytes\n");
    }

    #[test]
    fn every_bar_has_a_template_that_parses() {
        for unit in [Unit::Steps, Unit::Rows, Unit::Tokens, Unit::Bytes, Unit::Items] {
            for total in [0, 10] {
                let template = Bars::template(total, unit);
                assert!(ProgressStyle::with_template(&template).is_ok(), "{template}");
            }
        }
    }

    #[test]
    fn durations_are_short() {
        let shown = [0, 59, 185, 7_800].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(shown, ["0 s", "59 s", "3 min 5 s", "2 h 10 min"]);
    }
}
