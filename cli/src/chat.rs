//! `halter chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use halter_core::Error;
use halter_core::data::record::Message;
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Request};
use halter_core::generate::session::Session;

use crate::answering::{MAX_NEW_TOKENS, ModelArgs, SamplingArgs, job};
use crate::interrupt::INTERRUPTED;
use crate::{Context, progress};

const HELP: &str = "\
/reset        forget the conversation
/system TEXT  begin anew with this system message (without TEXT: with none)
/help         these lines
/quit         end (as does Ctrl-D)
Ctrl-C ends an answer; at the prompt it ends the program.";

/// Talk to a model
///
/// Lines of stdin are messages; the model sees the whole conversation. /help lists what else a line
/// may say.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// What a line of the user means.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Reset,
    System(&'a str),
    Help,
    Quit,
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Line::Nothing,
            "/reset" => Line::Reset,
            "/system" => Line::System(rest.trim()),
            "/help" => Line::Help,
            "/quit" | "/exit" => Line::Quit,
            _ if word.starts_with('/') => Line::Unknown(word),
            _ => Line::Say(line),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    if context.json {
        return Err(Error::config("`json` is given, and a chat has no summary")
            .hint("`halter generate` writes JSON")
            .into());
    }
    let mut progress = progress::to_stderr();
    let sampling = args.sampling.sampling(0.7)?;
    let generator = args.model.open(None)?;
    progress.note(&format!("model: {} (/help lists commands)", generator.name));
    let options = args.model.engine(&generator, None);
    let request = Request {
        id: 0,
        prompt: Vec::new(),
        completions: 1,
        max_new_tokens: args.sampling.max_new_tokens.unwrap_or(4 * MAX_NEW_TOKENS),
        stop_tokens: args.sampling.stop_tokens(&generator)?,
        sampling,
        seed: args.sampling.seed,
        row: 0,
        top_logprobs: 0,
    };
    let mut chat = Chat {
        args,
        generator: &generator,
        options,
        session: Session::new(&generator, options),
        request,
        messages: args.system.iter().map(|text| Message::new("system", text)).collect(),
        stop: stop_on_ctrl_c()?,
    };
    let is_terminal = std::io::stdin().is_terminal();
    let mut line = String::new();
    loop {
        if is_terminal {
            write!(std::io::stderr(), "> ")?;
        }
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match Line::parse(&line) {
            Line::Nothing => {}
            Line::Quit => return Ok(()),
            Line::Help => progress.note(HELP),
            Line::Unknown(word) => progress.note(&format!("no command `{word}`: /help lists them")),
            Line::Reset => chat.messages.retain(|message| message.role() == "system"),
            Line::System(text) => {
                chat.messages.clear();
                chat.messages.extend((!text.is_empty()).then(|| Message::new("system", text)));
            }
            Line::Say(text) => {
                if let Err(error) = chat.say(text) {
                    if !is_terminal {
                        return Err(error);
                    }
                    progress.note(&format!("{error:#} (/reset forgets the conversation)"));
                }
            }
        }
    }
}

struct Chat<'a> {
    args: &'a Args,
    generator: &'a Generator,
    options: EngineOptions,
    /// Kept, so that the conversation so far is not computed again.
    session: Session<'a>,
    request: Request,
    messages: Vec<Message>,
    stop: Arc<Stop>,
}

impl Chat<'_> {
    /// Shows the answer as it comes. Where there is none, the message is forgotten.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", text));
        let answered = self.answer();
        match &answered {
            Ok(answer) => self.messages.push(Message::new("assistant", answer)),
            Err(_) => _ = self.messages.pop(),
        }
        answered.map(drop)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let prompt = self.generator.chat_prompt(&self.messages, None)?;
        self.request.id += 1;
        // Other answers to the same question follow from other rows.
        self.request.row = self.request.id - 1;
        let sampling = &self.args.sampling;
        let job = job(self.generator, &self.options, prompt, false, sampling, &self.request)?;
        self.session.submit(job)?;
        let answering = self.stop.answering();
        let answer = self.show();
        drop(answering);
        if answer.is_err() {
            // What it was in the middle of is not known.
            self.session = Session::new(self.generator, self.options);
        }
        answer
    }

    /// Writes what has been submitted as it comes.
    fn show(&mut self) -> anyhow::Result<String> {
        let mut answer = String::new();
        let mut out = std::io::stdout().lock();
        while !self.session.is_idle() {
            for update in self.session.step()? {
                answer += &update.text;
                out.write_all(update.text.as_bytes())?;
            }
            out.flush()?;
            if self.stop.pressed.swap(false, Ordering::SeqCst) {
                self.session.cancel(self.request.id);
            }
        }
        writeln!(out)?;
        out.flush()?;
        Ok(answer)
    }
}

/// What Ctrl-C means, and whether it was pressed.
#[derive(Debug, Default)]
struct Stop {
    answering: AtomicBool,
    pressed: AtomicBool,
}

/// While it is there, Ctrl-C ends the answer alone.
struct Answering(Arc<Stop>);

impl Stop {
    fn answering(self: &Arc<Self>) -> Answering {
        self.pressed.store(false, Ordering::SeqCst);
        self.answering.store(true, Ordering::SeqCst);
        Answering(Arc::clone(self))
    }

    /// Ctrl-C; whether it ends the program.
    fn press(&self) -> bool {
        let is_second = self.pressed.swap(true, Ordering::SeqCst);
        is_second || !self.answering.load(Ordering::SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::SeqCst);
        self.0.pressed.store(false, Ordering::SeqCst);
    }
}

/// Ctrl-C ends an answer, or the program where there is none.
fn stop_on_ctrl_c() -> anyhow::Result<Arc<Stop>> {
    let stop = Arc::new(Stop::default());
    let shared = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if shared.press() {
            std::process::exit(INTERRUPTED);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_ends_the_answer_that_is_given_and_no_other() {
        let stop = Arc::new(Stop::default());
        let answer = || -> Result<(), ()> {
            let _answering = stop.answering();
            assert!(!stop.pressed.load(Ordering::SeqCst), "the answer before was ended");
            assert!(!stop.press());
            assert!(stop.press(), "the second one ends the program");
            Err(())
        };
        assert!(answer().is_err() && answer().is_err());
        assert!(stop.press(), "there is no answer to end");
    }

    #[test]
    fn lines_that_begin_with_a_slash_are_commands() {
        for (line, want) in [
            ("  \n", Line::Nothing),
            ("hello there\n", Line::Say("hello there")),
            ("/reset\n", Line::Reset),
            ("/system Be brief. \n", Line::System("Be brief.")),
            ("/system\n", Line::System("")),
            ("/exit\n", Line::Quit),
            ("/sytem x\n", Line::Unknown("/sytem")),
            ("1/2 is half\n", Line::Say("1/2 is half")),
        ] {
            assert_eq!(Line::parse(line), want, "{line:?}");
        }
    }
}
