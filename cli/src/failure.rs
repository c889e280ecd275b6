//! How a failure is told: an `error:` line, its causes, a `hint:` line, and the exit code.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use halter_core::{Error, ErrorKind};
use serde_json::json;

use crate::Context;

/// A failure, taken apart for the reader.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    kind: Option<ErrorKind>,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// The reader of our output went away: nobody is left to tell.
    is_broken_pipe: bool,
}

impl Failure {
    /// Takes an error apart. Kind and hint are those of the outermost halter error that has them.
    pub fn of(error: &anyhow::Error) -> Self {
        let ours = || error.chain().filter_map(|cause| cause.downcast_ref::<Error>());
        let is_pipe = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
        let mut messages = error.chain().map(|cause| cause.to_string());
        Self {
            kind: ours().next().map(Error::kind),
            message: messages.next().unwrap_or_default(),
            causes: messages.collect(),
            hint: ours().find_map(Error::remedy).map(str::to_string),
            is_broken_pipe: error.chain().any(|cause| {
                cause.downcast_ref::<io::Error>().is_some_and(is_pipe)
                    || cause
                        .downcast_ref::<serde_json::Error>()
                        .is_some_and(|json| json.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
            }),
        }
    }

    /// 2 for what the command line or a recipe got wrong, 130 for an interruption (as shells count
    /// Ctrl-C), 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            _ if self.is_broken_pipe => 0,
            Some(ErrorKind::Config) => 2,
            Some(ErrorKind::Interrupted) => 130,
            _ => 1,
        }
    }

    /// On stderr for people; with `--json` on stdout for programs as well.
    pub fn print(&self, context: &Context) -> anyhow::Result<()> {
        if self.is_broken_pipe {
            return Ok(());
        }
        let stderr = io::stderr();
        let color =
            stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        stderr.lock().write_all(self.text(color).as_bytes())?;
        context.print_json(&self.json())
    }

    fn text(&self, color: bool) -> String {
        let paint = |code: &str, label: &str| match color {
            true => format!("\x1b[1;{code}m{label}\x1b[0m"),
            false => label.to_string(),
        };
        // Lines after the first of a message stand below its first.
        let indented = |message: &str| message.trim_end().replace('\n', "\n    ");
        let mut text = match self.kind {
            // Not a fault: the user wanted it.
            Some(ErrorKind::Interrupted) => format!("{}\n", indented(&self.message)),
            _ => format!("{} {}\n", paint("31", "error:"), indented(&self.message)),
        };
        for cause in &self.causes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  caused by: {}", indented(cause));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{} {}", paint("36", "hint:"), indented(hint));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "error": {
                "kind": self.kind.map(name_of),
                "message": self.message,
                "causes": self.causes,
                "hint": self.hint,
            },
            "exit_code": self.exit_code(),
        })
    }
}

fn name_of(kind: ErrorKind) -> String {
    format!("{kind:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn failure(error: impl Into<anyhow::Error>) -> Failure {
        Failure::of(&error.into())
    }

    #[test]
    fn place_causes_and_hint_have_lines_of_their_own() {
        let inner = Error::data("`role` is missing").hint("see docs/guide/data.md");
        let outer = Error::data("not a conversation").at("rows.jsonl", 7).because(inner);
        let error = anyhow::Error::from(outer).context("cannot read the data");
        insta::assert_snapshot!(Failure::of(&error).text(false), @r"
        error: cannot read the data
          caused by: rows.jsonl:7: not a conversation
          caused by: `role` is missing
        hint: see docs/guide/data.md
        ");
    }

    #[test]
    fn a_message_of_several_lines_keeps_its_shape() {
        let error = Error::new(ErrorKind::Tensor, "a tensor operation failed")
            .because(io::Error::other("shape mismatch\nlhs [2, 3]\nrhs [4]\n"));
        insta::assert_snapshot!(failure(error).text(false), @r"
        error: a tensor operation failed
          caused by: shape mismatch
            lhs [2, 3]
            rhs [4]
        ");
    }

    #[test]
    fn an_interruption_is_not_called_an_error() {
        let error = Error::new(ErrorKind::Interrupted, "interrupted at step 12; checkpoint saved")
            .hint("`--resume` continues");
        insta::assert_snapshot!(failure(error).text(false), @r"
        interrupted at step 12; checkpoint saved
        hint: `--resume` continues
        ");
    }

    #[test]
    fn the_outermost_hint_wins() {
        let inner = Error::config("inner").hint("inner hint");
        let outer = Error::data("outer").hint("outer hint").because(inner);
        assert_eq!(failure(outer).hint.as_deref(), Some("outer hint"));
    }

    #[test]
    fn exit_codes_tell_usage_failure_and_interruption_apart() {
        let code = |kind| failure(Error::new(kind, "x")).exit_code();
        assert_eq!(code(ErrorKind::Config), 2);
        assert_eq!(code(ErrorKind::Interrupted), 130);
        for kind in [ErrorKind::Data, ErrorKind::Model, ErrorKind::Numeric, ErrorKind::Io] {
            assert_eq!(code(kind), 1, "{kind:?}");
        }
        assert_eq!(failure(anyhow::anyhow!("x")).exit_code(), 1);
        // Context around it does not hide the kind.
        let error = Err::<(), _>(Error::config("x")).context("a").context("b").unwrap_err();
        assert_eq!(Failure::of(&error).exit_code(), 2);
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(failure(error).exit_code(), 0);
        struct Gone;
        impl io::Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(failure(serde_json::to_writer(Gone, "x").unwrap_err()).exit_code(), 0);
    }

    #[test]
    fn color_is_in_the_labels_only() {
        let error = Error::config("x").hint("y");
        let text = failure(error).text(true);
        assert_eq!(text, "\x1b[1;31merror:\x1b[0m x\n\x1b[1;36mhint:\x1b[0m y\n");
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let error = Error::config("unknown device `gpu`").hint("use `cpu`");
        insta::assert_snapshot!(failure(error).json(), @r#"{"error":{"kind":"config","message":"unknown device `gpu`","causes":[],"hint":"use `cpu`"},"exit_code":2}"#);
    }
}
