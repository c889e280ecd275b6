//! Watches a program from outside until it has ended.

use std::io::{PipeReader, Read};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use halter_core::{Error, ErrorKind};

use super::plan::{Running, Start};
use super::system_error;
use crate::sandbox::{Limits, Outcome, Status};

/// How long a killed process may take to be gone.
const GRACE: Duration = Duration::from_secs(5);

/// Reads what the program writes, and ends it at a limit.
pub(super) fn supervise(
    running: Running,
    limits: &Limits,
    wall: Duration,
) -> Result<Outcome, Start> {
    let started = Instant::now();
    let mut process = Process { running, waited: false };
    let mut stdout = Output::new(limits.output);
    let mut stderr = Output::new(limits.output);
    let mut ended_by = None;
    let deadline = started + wall;
    loop {
        let now = Instant::now();
        if now >= deadline {
            ended_by = Some(Status::TimedOut);
            break;
        }
        let ended = process.wait_for_something(deadline - now, &stdout, &stderr)?;
        stdout.read(&mut process.running.stdout);
        stderr.read(&mut process.running.stderr);
        if stdout.too_much || stderr.too_much {
            ended_by = Some(Status::TooMuchOutput);
            break;
        }
        if ended {
            break;
        }
    }
    let (status, processor) = process.end()?;
    stdout.read(&mut process.running.stdout);
    stderr.read(&mut process.running.stderr);
    let mut message = [0; 5];
    let failure = &mut process.running.failure;
    if is_readable(failure) && matches!(failure.read(&mut message), Ok(5)) {
        return Err(Start::from_child(message));
    }
    let (stdout, stderr) = (stdout.text(), stderr.text());
    let status = ended_by.unwrap_or_else(|| match status {
        Status::Signal(libc::SIGKILL | libc::SIGXCPU)
            if processor >= limits.cpu_seconds as f64 - 0.5 =>
        {
            Status::TimedOut
        }
        Status::Exited(code) if code != 0 && ends_with_memory_error(&stderr) => Status::OutOfMemory,
        other => other,
    });
    Ok(Outcome { status, stdout, stderr, seconds: started.elapsed().as_secs_f64() })
}

fn ends_with_memory_error(stderr: &str) -> bool {
    stderr.lines().last().is_some_and(|line| line.starts_with("MemoryError"))
}

/// What is read of a stream, up to a limit.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    open: bool,
    too_much: bool,
}

impl Output {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, open: true, too_much: false }
    }

    /// Reads what is there.
    fn read(&mut self, pipe: &mut PipeReader) {
        let mut buffer = [0; 16 << 10];
        while self.open && !self.too_much && is_readable(pipe) {
            match pipe.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    let room = self.limit - self.bytes.len();
                    self.too_much = count > room;
                    self.bytes.extend_from_slice(&buffer[..count.min(room)]);
                }
                _ => self.open = false,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn is_readable(pipe: &PipeReader) -> bool {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// A process that is killed and waited for when it is dropped.
struct Process {
    running: Running,
    waited: bool,
}

impl Process {
    /// Waits until the process has ended, told by `true`, or has written something.
    fn wait_for_something(
        &self,
        time: Duration,
        stdout: &Output,
        stderr: &Output,
    ) -> Result<bool, Start> {
        let watch = |fd, open| libc::pollfd {
            fd: if open { fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls = [
            watch(self.running.ended.as_raw_fd(), true),
            watch(self.running.stdout.as_raw_fd(), stdout.open),
            watch(self.running.stderr.as_raw_fd(), stderr.open),
        ];
        let milliseconds = time.as_millis().min(i32::MAX as u128 - 1) as i32 + 1;
        // SAFETY: three structures, which outlive the call.
        let count =
            unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, milliseconds) };
        let interrupted = std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        if count < 0 && !interrupted {
            return Err(system_error("wait").into());
        }
        Ok(count > 0 && polls[0].revents != 0)
    }

    /// Kills the process and all that it started, and waits until they are gone.
    fn end(&mut self) -> Result<(Status, f64), Start> {
        self.kill();
        let mut poll =
            libc::pollfd { fd: self.running.ended.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let deadline = Instant::now() + GRACE;
        // SAFETY: one structure, which outlives the calls.
        while unsafe { libc::poll(&raw mut poll, 1, 100) } <= 0 {
            if Instant::now() >= deadline {
                let message = format!("process {} does not end when killed", self.running.pid);
                return Err(Error::new(ErrorKind::Io, message).into());
            }
        }
        self.wait()
    }

    fn kill(&self) {
        let pid = self.running.pid;
        // SAFETY: the process was not waited for, so that both numbers are its own. It is the first
        // of its process namespace, all of which goes with it, or else of its group.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::kill(-pid, libc::SIGKILL);
        }
    }

    fn wait(&mut self) -> Result<(Status, f64), Start> {
        self.waited = true;
        let mut status = 0;
        // SAFETY: the structures outlive the call; zeros are valid for them.
        let (waited, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let pid = self.running.pid;
            (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
        };
        if waited < 0 {
            return Err(system_error("wait").into());
        }
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        let status = match libc::WIFSIGNALED(status) {
            true => Status::Signal(libc::WTERMSIG(status)),
            false => Status::Exited(libc::WEXITSTATUS(status)),
        };
        Ok((status, seconds(usage.ru_utime) + seconds(usage.ru_stime)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.waited {
            self.kill();
        }
    }
}
