//! Stages as processes of this binary.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use halter_align::run::{Ended, Job, Runner};
use halter_core::train::interrupt::Interrupt;
use halter_core::{Error, Result};

/// How often it is looked whether a process has ended.
const EVERY: Duration = Duration::from_millis(20);

/// Runs processes of this binary.
pub struct Children {
    program: PathBuf,
    /// The lock of the output directory, which they hold as well: were this process killed, nobody
    /// else could begin before the last of them is gone.
    lock: File,
}

impl Children {
    /// Processes that hold `lock`.
    pub fn new(lock: File) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        Ok(Self { program, lock })
    }

    fn start(&self, job: &Job) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&job.arguments)
            // They read nothing from it, and keep it open.
            .stdin(Stdio::from(self.lock.try_clone()?))
            .stdout(File::create(&job.stdout)?);
        detach(&mut command);
        command.spawn()
    }
}

impl Runner for Children {
    fn run(&mut self, job: &Job, interrupt: &Interrupt) -> Result<Ended> {
        let mut child =
            self.start(job).map_err(|error| Error::io("start", &self.program, error))?;
        let mut was_told = false;
        loop {
            if interrupt.is_set() && !was_told {
                was_told = true;
                ask_to_stop(&mut child);
            }
            match wait(&mut child) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => std::thread::sleep(EVERY),
                Err(error) => return Err(Error::io("wait for", &self.program, error)),
            }
        }
    }
}

/// A group of its own keeps the terminal's Ctrl-C from it, so that it is asked to stop once; and the
/// system ends it when this process is gone, however that came.
#[cfg(target_os = "linux")]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id() as libc::pid_t;
    command.process_group(0);
    // SAFETY: prctl and getppid may be called between fork and exec; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 || libc::getppid() != parent
            {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Elsewhere the terminal tells all processes of Ctrl-C itself.
#[cfg(not(target_os = "linux"))]
fn detach(_: &mut Command) {}

#[cfg(target_os = "linux")]
fn ask_to_stop(child: &mut Child) {
    // SAFETY: the process has not been waited for, so its number is not another's.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
}

#[cfg(not(target_os = "linux"))]
fn ask_to_stop(_: &mut Child) {}

/// How the process ended, with the most memory that it held.
#[cfg(target_os = "linux")]
fn wait(child: &mut Child) -> std::io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: plain numbers, for which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let id = child.id() as libc::pid_t;
    // SAFETY: both places live as long as the call, and the process is a child of this one that
    // nobody else waits for.
    match unsafe { libc::wait4(id, &raw mut status, libc::WNOHANG, &raw mut usage) } {
        0 => Ok(None),
        -1 => {
            let error = std::io::Error::last_os_error();
            match error.kind() {
                std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            }
        }
        _ => Ok(Some(Ended {
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            // In kilobytes.
            peak_memory: u64::try_from(usage.ru_maxrss).ok().map(|kilobytes| kilobytes << 10),
        })),
    }
}

#[cfg(not(target_os = "linux"))]
fn wait(child: &mut Child) -> std::io::Result<Option<Ended>> {
    let ended = child.try_wait()?;
    Ok(ended.map(|status| Ended { code: status.code(), peak_memory: None }))
}
