//! The thread that owns the engine: takes requests, steps, and hands tokens to those who asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use halter_core::generate::Generator;
use halter_core::generate::engine::EngineOptions;
use halter_core::generate::score::TokenScore;
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
    pub place: OwnedSemaphorePermit,
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
        if worker.open.is_empty() {
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
        worker.step();
    }
}

struct Worker<'g> {
    generator: &'g Generator,
    options: EngineOptions,
    session: Session<'g>,
    open: BTreeMap<u64, Open>,
    next: u64,
}

impl<'g> Worker<'g> {
    fn new(generator: &'g Generator, options: EngineOptions) -> Self {
        let session = Session::new(generator, options);
        Self { generator, options, session, open: BTreeMap::new(), next: 0 }
    }

    fn begin(&mut self, task: Task) {
        let place = Arc::new(task.place);
        for (prompt, mut job) in task.jobs.into_iter().enumerate() {
            if task.answers.is_closed() {
                return;
            }
            if let Some(top) = task.score {
                let scored = self.generator.score(&job.request.prompt, top);
                let answer = match scored {
                    Ok(scores) => Answer::Scores { prompt, scores },
                    Err(error) => Answer::Failed(Fault::of("prompt", &error)),
                };
                // Who no longer listens is noticed below.
                let _ = task.answers.send(answer);
            }
            if job.request.max_new_tokens == 0 {
                continue;
            }
            job.request.id = self.next;
            self.next += 1;
            let (id, left) = (job.request.id, job.request.completions);
            match self.session.submit(job) {
                Ok(()) => {
                    let (answers, _place) = (task.answers.clone(), Arc::clone(&place));
                    self.open.insert(id, Open { prompt, answers, left, _place });
                }
                Err(error) => {
                    let _ = task.answers.send(Answer::Failed(Fault::of("prompt", &error)));
                }
            }
        }
    }

    fn cancel_unheard(&mut self) {
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
            let is_last = open.left == 0;
            let answer = Answer::Update { prompt: open.prompt, update };
            // Who no longer listens is noticed before the next step.
            let _ = open.answers.send(answer);
            if is_last {
                self.open.remove(&id);
            }
        }
    }

    /// Tells all that nothing more comes.
    fn fail(&mut self, fault: &Fault) {
        for open in std::mem::take(&mut self.open).into_values() {
            let _ = open.answers.send(Answer::Failed(fault.clone()));
        }
    }
}
