//! A teacher that keeps its answers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::budget::Meter;
use super::cache::{Cache, Key};
use super::{Answer, Budget, Listener, Question, Source, Spent, Teacher, Told, again};
use crate::{Error, Result};

/// Looks every question up, asks those that are new once, and keeps what is answered.
pub(super) struct Kept {
    name: String,
    source: Box<dyn Source>,
    cache: Cache,
    meter: Meter,
    /// One call at a time: else two could ask the same.
    turn: Mutex<()>,
    notes: Mutex<Vec<String>>,
}

impl Kept {
    /// `open` makes the source from the cache's beginning, in seconds since 1970.
    pub fn open(
        name: &str,
        directory: &Path,
        budget: Budget,
        open: impl FnOnce(i64) -> Result<Box<dyn Source>>,
    ) -> Result<Self> {
        let mut cache = Cache::open(directory)?;
        let source = open(cache.began_at)?;
        let meter = Meter::new(&format!("teacher `{name}`"), budget, cache.spent);
        let notes = Mutex::new(std::mem::take(&mut cache.notes));
        let name = source.name().to_string();
        Ok(Self { name, source, cache, meter, turn: Mutex::new(()), notes })
    }
}

impl Teacher for Kept {
    fn name(&self) -> &str {
        &self.name
    }

    fn answer(
        &self,
        questions: &[Question],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers: Vec<Option<Result<Answer>>> = questions.iter().map(|_| None).collect();
        // The places of each question that is new, in the order of the first.
        let mut asked: Vec<(Key, Vec<usize>)> = Vec::new();
        let mut numbers: HashMap<Key, usize> = HashMap::new();
        for (at, question) in questions.iter().enumerate() {
            let key = match self.source.key(question) {
                Ok(key) => key,
                Err(error) => {
                    answers[at] = Some(Err(error));
                    continue;
                }
            };
            if let Some(&number) = numbers.get(&key) {
                asked[number].1.push(at);
            } else if let Some(answer) = self.cache.get(&key)? {
                answers[at] = Some(Ok(answer));
            } else {
                numbers.insert(key, asked.len());
                asked.push((key, vec![at]));
            }
        }
        let count = answers.iter().flatten().count();
        done(count)?;
        let new: Vec<&Question> = asked.iter().map(|(_, places)| &questions[places[0]]).collect();
        let mut keeper = Keeper { cache: &self.cache, asked: &asked, answers, count, done };
        let outcome = match new.is_empty() {
            true => Ok(()),
            false => self.source.ask(&new, &self.meter, &mut keeper),
        };
        let answers = keeper.answers;
        self.cache.sync()?;
        outcome?;
        let unasked = || Err(Error::data("the question was not answered"));
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(unasked)).collect())
    }

    fn spent(&self) -> Spent {
        self.meter.spent()
    }

    fn take_notes(&self) -> Vec<String> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes = std::mem::take(&mut *notes);
        notes.extend(self.source.take_notes());
        notes
    }
}

/// Puts answers where they belong.
struct Keeper<'a> {
    cache: &'a Cache,
    asked: &'a [(Key, Vec<usize>)],
    answers: Vec<Option<Result<Answer>>>,
    /// Answered or refused.
    count: usize,
    done: &'a mut dyn FnMut(usize) -> Result<()>,
}

impl Listener for Keeper<'_> {
    fn settled(&mut self, index: usize, outcome: Result<Told>) -> Result<()> {
        let (key, places) = &self.asked[index];
        if let Ok(told) = &outcome {
            self.cache.put(key, told)?;
        }
        for &at in places {
            self.answers[at] = Some(match &outcome {
                Ok(told) => Ok(told.answer.clone()),
                Err(error) => Err(again(error)),
            });
        }
        self.count += places.len();
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        (self.done)(self.count)
    }
}
