//! Where the operations of a pass are called from, and how small ones share their work.

use std::cell::Cell;
use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use rayon::prelude::*;

/// So often a thread looks for a task before it lets others have its processor.
const PATIENCE: u32 = 1 << 12;

thread_local! {
    /// The team that this thread leads.
    static LED: Cell<Option<&'static Team>> = const { Cell::new(None) };
}

/// Runs `f` on a worker thread. Every operation inside splits its work from there: a thread that
/// is no worker would go to sleep and be woken at each of them.
pub(crate) fn on_a_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Runs `f` on a worker thread while the others stay awake for what it gives to [`for_each`]: waking
/// them takes as long as a small operation does.
pub(crate) fn together<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if LED.get().is_some() {
        return f();
    }
    let team = Team::default();
    rayon::scope(|scope| {
        if rayon::current_num_threads() > 1 {
            scope.spawn_broadcast(|_, _| team.help());
        }
        // SAFETY: the thread forgets the team when `_led` goes, which is before `team` does.
        let _led = Led::by_this_thread(unsafe { &*ptr::from_ref(&team) });
        f()
    })
}

/// Calls `f` with every number below `tasks`, on all threads.
pub(crate) fn for_each(tasks: usize, f: impl Fn(usize) + Send + Sync) {
    match LED.take() {
        Some(team) => {
            team.share(tasks, &f);
            LED.set(Some(team));
        }
        None => (0..tasks).into_par_iter().with_max_len(1).for_each(f),
    }
}

/// Threads that look for tasks without going to sleep.
#[derive(Default)]
struct Team {
    /// What is done; it is there while tasks of it are.
    job: AtomicPtr<Job<'static>>,
    /// Tasks that nobody has taken.
    left: AtomicUsize,
    done: AtomicUsize,
    is_over: AtomicBool,
}

struct Job<'a> {
    tasks: usize,
    run: &'a (dyn Fn(usize) + Sync),
}

impl Team {
    /// Takes tasks until the team is over.
    fn help(&self) {
        let mut looked = 0;
        while !self.is_over.load(Ordering::Acquire) {
            looked = if self.take_task() { 0 } else { looked + 1 };
            wait(looked);
        }
    }

    /// Does `tasks` tasks with whoever helps.
    fn share(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        let job = Job { tasks, run };
        self.done.store(0, Ordering::Relaxed);
        self.job.store(ptr::from_ref(&job).cast_mut().cast(), Ordering::Relaxed);
        self.left.store(tasks, Ordering::Release);
        // Nobody has the job any more when this goes, whatever happens in a task.
        let _whole = Whole { team: self, tasks };
        while self.take_task() {}
    }

    /// Does one task; false where none is left.
    fn take_task(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        let Ok(left) = self.left.fetch_update(Ordering::Acquire, Ordering::Relaxed, less) else {
            return false;
        };
        // SAFETY: `share` does not return before this task is counted as done.
        let job = unsafe { &*self.job.load(Ordering::Relaxed) };
        let _counted = Counted(&self.done);
        (job.run)(job.tasks - left);
        true
    }
}

/// Waits for a moment, after having `looked` so often in vain.
fn wait(looked: u32) {
    match looked < PATIENCE {
        true => spin_loop(),
        false => std::thread::yield_now(),
    }
}

struct Led(&'static Team);

impl Led {
    fn by_this_thread(team: &'static Team) -> Self {
        LED.set(Some(team));
        Self(team)
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        LED.set(None);
        self.0.is_over.store(true, Ordering::Release);
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

struct Whole<'a> {
    team: &'a Team,
    tasks: usize,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        // None, unless a task of this thread has panicked.
        let untaken = self.team.left.swap(0, Ordering::Relaxed);
        let mut looked = 0;
        while self.team.done.load(Ordering::Acquire) + untaken < self.tasks {
            looked += 1;
            wait(looked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_whoever_does_it() {
        for tasks in [0, 1, 2, 7, 1000] {
            let count = || {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for_each(tasks, |task| {
                    done[task].fetch_add(1, Ordering::Relaxed);
                });
                done.iter().all(|done| done.load(Ordering::Relaxed) == 1)
            };
            assert!(count() && on_a_worker(count), "{tasks} tasks without a team");
            assert!(together(|| (0..200).all(|_| count())), "{tasks} tasks with one");
        }
    }

    #[test]
    fn tasks_may_share_work_of_their_own() {
        let done = AtomicUsize::new(0);
        together(|| {
            for_each(3, |_| {
                for_each(5, |_| {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
            together(|| for_each(2, |_| _ = done.fetch_add(1, Ordering::Relaxed)));
            for_each(4, |_| _ = done.fetch_add(1, Ordering::Relaxed));
        });
        assert_eq!(done.into_inner(), 3 * 5 + 2 + 4);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_when_no_task_runs_any_more() {
        for culprit in [0, 5, 49] {
            let running = AtomicUsize::new(0);
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                together(|| {
                    for_each(50, |task| {
                        let _running = Counted(&running);
                        assert_ne!(task, culprit);
                    });
                });
            }));
            assert!(caught.is_err());
            let counted = running.load(Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert_eq!(running.load(Ordering::Relaxed), counted);
        }
    }
}
