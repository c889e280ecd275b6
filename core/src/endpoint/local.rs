//! A model in this process that answers questions.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::budget::Meter;
use super::cache::Key;
use super::{Answer, Listener, Question, Source, TeacherConfig, Told, Usage};
use crate::data::record::{Message, Turn};
use crate::generate::Generator;
use crate::generate::engine::{EngineOptions, Finish, Request};
use crate::generate::logprobs::Logprobs;
use crate::generate::session::{Completion, Job, complete_rows};
use crate::train::source::SourceSpec;
use crate::{Error, Result, device};

/// Completions at once where nothing is said.
const BATCH: usize = 64;

/// A generator with its engine's size.
pub(super) struct Local {
    generator: Generator,
    options: EngineOptions,
    fingerprint: String,
}

impl Local {
    /// Loads the model. `now` is the time that its chat template is told.
    pub fn open(model: &str, config: &TeacherConfig, now: i64) -> Result<Self> {
        let spec = SourceSpec {
            model: Some(model.into()),
            adapter: config.adapter.clone(),
            now: Some(now),
            ..SourceSpec::default()
        };
        let device = device::open(config.device.as_deref().unwrap_or("cpu"))?;
        let generator = Generator::open(&spec, &device)?;
        let batch = config.batch_size.map_or(BATCH, usize::from);
        let options = generator.engine_options(batch, config.cache_tokens.map(usize::from));
        let fingerprint = generator.fingerprint()?;
        Ok(Self { generator, options, fingerprint })
    }

    /// What is to be generated. Equal prompts share their pages in the engine.
    fn job(&self, question: &Question) -> Result<(usize, Job)> {
        let tools = question.tools.as_deref();
        let prompt = match &question.prompt {
            Turn::Messages(messages) => self.generator.chat_prompt(messages, tools)?,
            Turn::Text(text) => self.generator.text_prompt(text)?,
        };
        let room = self.generator.room_after(prompt.len(), &self.options)?;
        let tokens = prompt.len();
        let request = Request {
            id: 0,
            prompt,
            completions: 1,
            max_new_tokens: question.max_new_tokens.min(room),
            stop_tokens: Vec::new(),
            sampling: question.sampling,
            seed: seed(question),
            row: question.draw,
            top_logprobs: question.top_logprobs.unwrap_or(0),
        };
        let is_text = matches!(question.prompt, Turn::Text(_));
        Ok((tokens, Job { request, stop: question.stop.clone(), is_text }))
    }

    fn told(&self, question: &Question, prompt_tokens: usize, completion: &Completion) -> Told {
        let told = completion.tokens.iter().zip(&completion.logprobs).zip(&completion.top);
        let told = told.map(|((&token, &logprob), top)| (token, Some((logprob, &top[..]))));
        let form = Logprobs { tokenizer: &self.generator.tokenizer, token_ids: false };
        let logprobs = question.top_logprobs.map(|_| match &question.prompt {
            Turn::Messages(_) => form.chat(told),
            Turn::Text(_) => form.text(told, &mut 0),
        });
        let finish = match completion.finish {
            Some(Finish::Stop) => "stop",
            Some(Finish::Length) | None => "length",
        };
        let usage = Usage {
            prompt_tokens: prompt_tokens as u64,
            completion_tokens: completion.tokens.len() as u64,
        };
        let answer = Answer {
            message: Message::new("assistant", &completion.text),
            finish: finish.into(),
            logprobs,
            usage,
            model: self.generator.name.clone(),
        };
        Told { answer, usage, cost: 0.0 }
    }
}

impl Source for Local {
    fn name(&self) -> &str {
        &self.generator.name
    }

    fn key(&self, question: &Question) -> Result<Key> {
        question.sampling.validate()?;
        let is_text = matches!(question.prompt, Turn::Text(_));
        let fault = match question {
            Question { response_format: Some(_), .. } => "`response_format` is for servers only",
            Question { tools: Some(_), .. } if is_text => {
                "tools are declared to a text: expected a conversation"
            }
            Question { max_new_tokens: 0, .. } => "no token is wanted: expected at least one",
            Question { stop, .. } if stop.iter().any(String::is_empty) => {
                "a `stop` is empty: expected a text"
            }
            _ => {
                let key =
                    json!(["halter question 1", self.fingerprint, plain(question), question.draw]);
                return Ok(blake3::hash(key.to_string().as_bytes()));
            }
        };
        Err(Error::data(fault))
    }

    fn ask(
        &self,
        questions: &[&Question],
        meter: &Meter,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let spent = RefCell::new(None);
        let listener = RefCell::new(listener);
        let jobs =
            questions.iter().enumerate().map_while(|(index, question)| match self.job(question) {
                Ok((tokens, job)) => match meter.take() {
                    Ok(()) => Some(((index, tokens), Ok(job))),
                    Err(error) => {
                        *spent.borrow_mut() = Some(error);
                        None
                    }
                },
                Err(error) => Some(((index, 0), Err(error))),
            });
        complete_rows(
            &self.generator,
            self.options,
            jobs.fuse(),
            |(index, tokens), outcome| {
                let told = outcome.and_then(|completions| {
                    let none = || Error::data("the model gave no completion");
                    let completion = completions.first().ok_or_else(none)?;
                    Ok(self.told(questions[index], tokens, completion))
                });
                if let Ok(Told { usage, cost, .. }) = &told {
                    meter.pay(*usage, *cost);
                }
                listener.borrow_mut().settled(index, told)
            },
            |_| listener.borrow_mut().tick(),
        )?;
        listener.into_inner().tick()?;
        spent.into_inner().map_or(Ok(()), Err)
    }
}

/// The question without its draw, as JSON.
fn plain(question: &Question) -> Value {
    let prompt = match &question.prompt {
        Turn::Text(text) => json!(text),
        Turn::Messages(messages) => messages.iter().map(|m| Value::Object(m.0.clone())).collect(),
    };
    let sampling = question.sampling;
    // By their bits: no two numbers are written alike.
    let numbers =
        [sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty];
    json!([
        prompt,
        question.tools,
        numbers.map(f32::to_bits),
        sampling.top_k,
        question.max_new_tokens,
        question.stop,
        question.top_logprobs,
    ])
}

/// The seed of all draws of a question; the draw itself takes the place of a row.
fn seed(question: &Question) -> u64 {
    let hash = blake3::hash(plain(question).to_string().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
