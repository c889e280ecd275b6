//! The thread that owns the engine: takes requests, steps, and hands tokens to those who asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use halter_core::generate::Generator;
use halter_core::generate::engine::EngineOptions;
use halter_core::generate::score::{Scoring, TokenScore};
use halter_core::generate::session::{Job, Session, Update};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::fault::Fault;

/// How often an idle worker looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);

/// What is wanted of the worker.
pub struct Task {
    pub jobs: Vec<Job>,
    /// Prompts are scored, with so many of the likeliest tokens.
    pub score: Option<usize>,
    /// Where answers go; who no longer listens has cancelled.
    pub answers: UnboundedSender<Answer>,
    /// The place that the request has among those taken on.
    pub place: Arc<OwnedSemaphorePermit>,
}

/// Something for one who asked.
pub enum Answer {
    /// A token, of the prompt of that number.
    Update { prompt: usize, update: Update },
    /// Scores of a prompt's tokens.
    Scores { prompt: usize, scores: Vec<TokenScore> },
    /// Nothing more comes.
    Failed(Fault),
}

/// A prompt under way.
struct Open {
    prompt: usize,
    answers: UnboundedSender<Answer>,
    /// Completions that go on.
    left: usize,
    /// Shared by the prompts of a request: its place is free when all of them have ended.
    _place: Arc<OwnedSemaphorePermit>,
}

/// A prompt that is to be scored before it is completed.
struct Scored<'g> {
    job: Job,
    open: Open,
    top: usize,
    /// What was computed so far.
    scoring: Option<Scoring<'g>>,
}

/// Works until nobody can ask any more, or `abort` is set.
pub fn work(
    generator: &Generator,
    options: EngineOptions,
    tasks: &Receiver<Task>,
    abort: &AtomicBool,
) {
    let mut worker = Worker::new(generator, options);
    loop {
        if abort.load(Ordering::SeqCst) {
            return worker.fail(&Fault::shutting_down());
        }
        if worker.open.is_empty() && worker.scored.is_empty() {
            match tasks.recv_timeout(IDLE) {
                Ok(task) => worker.begin(task),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        while let Ok(task) = tasks.try_recv() {
            worker.begin(task);
        }
        worker.cancel_unheard();
        worker.score();
        worker.step();
    }
}

struct Worker<'g> {
    generator: &'g Generator,
    options: EngineOptions,
    session: Session<'g>,
    open: BTreeMap<u64, Open>,
    /// In the order in which they came: the first one is scored between steps.
    scored: VecDeque<Scored<'g>>,
    next: u64,
}

impl<'g> Worker<'g> {
    fn new(generator: &'g Generator, options: EngineOptions) -> Self {
        let session = Session::new(generator, options);
        let (open, scored) = (BTreeMap::new(), VecDeque::new());
        Self { generator, options, session, open, scored, next: 0 }
    }

    fn begin(&mut self, task: Task) {
        for (prompt, job) in task.jobs.into_iter().enumerate() {
            let (answers, _place) = (task.answers.clone(), Arc::clone(&task.place));
            let open = Open { prompt, answers, left: job.request.completions, _place };
            match task.score {
                Some(top) => self.scored.push_back(Scored { job, open, top, scoring: None }),
                None => self.submit(job, open),
            }
        }
    }

    fn submit(&mut self, mut job: Job, open: Open) {
        if job.request.max_new_tokens == 0 {
            return;
        }
        job.request.id = self.next;
        match self.session.submit(job) {
            Ok(()) => _ = self.open.insert(self.next, open),
            Err(error) => open.fail(Fault::of("prompt", &error)),
        }
        self.next += 1;
    }

    /// Scores some tokens of the first prompt that waits for it.
    fn score(&mut self) {
        let Some(mut first) = self.scored.pop_front() else { return };
        match first.step(self.generator) {
            Ok(None) => self.scored.push_front(first),
            Ok(Some(scores)) => {
                let answer = Answer::Scores { prompt: first.open.prompt, scores };
                // Who no longer listens is noticed before the next step.
                let _ = first.open.answers.send(answer);
                self.submit(first.job, first.open);
            }
            Err(error) => first.open.fail(Fault::of("prompt", &error)),
        }
    }

    fn cancel_unheard(&mut self) {
        self.scored.retain(|scored| !scored.open.answers.is_closed());
        let session = &mut self.session;
        self.open.retain(|&id, open| {
            let is_heard = !open.answers.is_closed();
            if !is_heard {
                session.cancel(id);
            }
            is_heard
        });
    }

    fn step(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let updates = match self.session.step() {
            Ok(updates) => updates,
            Err(error) => {
                // What the engine was in the middle of is not known.
                self.session = Session::new(self.generator, self.options);
                return self.fail(&Fault::of("prompt", &error));
            }
        };
        for update in updates {
            let id = update.event.request;
            let Some(open) = self.open.get_mut(&id) else { continue };
            open.left -= usize::from(update.event.finish.is_some());
            let (answers, answer) =
                (open.answers.clone(), Answer::Update { prompt: open.prompt, update });
            if open.left == 0 {
                // Its place is free before anybody knows that it has ended.
                self.open.remove(&id);
            }
            // Who no longer listens is noticed before the next step.
            let _ = answers.send(answer);
        }
    }

    /// Tells all that nothing more comes.
    fn fail(&mut self, fault: &Fault) {
        let scored = std::mem::take(&mut self.scored).into_iter().map(|scored| scored.open);
        for open in std::mem::take(&mut self.open).into_values().chain(scored) {
            open.fail(fault.clone());
        }
    }
}

impl Open {
    fn fail(self, fault: Fault) {
        let _ = self.answers.send(Answer::Failed(fault));
    }
}

impl<'g> Scored<'g> {
    /// Scores some more tokens; all scores when these were the last.
    fn step(&mut self, generator: &'g Generator) -> halter_core::Result<Option<Vec<TokenScore>>> {
        let scoring = match &mut self.scoring {
            Some(scoring) => scoring,
            none => {
                let tokens = self.job.request.prompt.clone();
                none.insert(Scoring::new(&generator.model, tokens, self.top)?)
            }
        };
        Ok(scoring.step()?.then(|| std::mem::take(&mut scoring.scores)))
    }
}
