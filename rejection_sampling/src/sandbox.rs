//! Untrusted Python programs, contained: no network, no files but their own, bounded time, memory,
//! processes and output, and nothing left running. What gives which guarantee, and what none gives:
//! `docs/concepts/sandbox.md`.

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod elsewhere;
mod layers;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod linux;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use halter_core::{Error, Result};

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
use elsewhere::Engine;
pub use layers::Guarantee;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
use linux::Engine;

/// What a program may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Time by the clock, the interpreter's start included.
    pub wall: Duration,
    /// Processor time of each process, in seconds.
    pub cpu_seconds: u64,
    /// Address space of each process, in bytes.
    pub memory: u64,
    /// Processes and threads together. Without namespaces threads are bounded by `memory` alone.
    pub tasks: u64,
    /// Whether the program may start processes. `memory` and `cpu_seconds` then hold for each of
    /// them, and namespaces are needed.
    pub processes: bool,
    /// Open files of each process.
    pub open_files: u64,
    /// Bytes in the program's folder. Without namespaces: bytes of each file.
    pub disk: u64,
    /// Bytes of stdout, and as many of stderr.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu_seconds: 10,
            memory: 1 << 30,
            tasks: 64,
            processes: false,
            open_files: 64,
            disk: 64 << 20,
            output: 1 << 20,
        }
    }
}

/// How programs are contained.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The interpreter, looked up on `PATH`, and its options.
    pub interpreter: Vec<String>,
    /// Files and folders that programs may read besides the system's libraries and the interpreter.
    pub readable: Vec<PathBuf>,
    /// What a program may use.
    pub limits: Limits,
    /// Guarantees that are given up where the machine cannot give them.
    pub allow_weaker: Vec<Guarantee>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interpreter: ["python3", "-I", "-S"].map(String::from).to_vec(),
            readable: Vec::new(),
            limits: Limits::default(),
            allow_weaker: Vec::new(),
        }
    }
}

/// A program and what it is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Program {
    /// Python source.
    pub source: String,
    /// What it reads from stdin.
    pub stdin: Vec<u8>,
    /// Files in its folder, which is its working directory: relative path and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

impl Program {
    /// A program that reads nothing.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), ..Self::default() }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this exit status.
    Exited(i32),
    /// By this signal.
    Signal(i32),
    /// At the limit of wall or processor time.
    TimedOut,
    /// With a `MemoryError` that nothing caught.
    OutOfMemory,
    /// At the limit of its output.
    TooMuchOutput,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// What it wrote to stdout, up to the limit.
    pub stdout: String,
    /// What it wrote to stderr, up to the limit.
    pub stderr: String,
    /// Time by the clock.
    pub seconds: f64,
}

/// Runs untrusted programs. One sandbox serves any number of threads at once.
#[derive(Debug)]
pub struct Sandbox {
    engine: Engine,
}

impl Sandbox {
    /// Looks up the interpreter, finds out what this machine offers and runs a program that does
    /// nothing.
    ///
    /// # Errors
    ///
    /// Where there is no interpreter, or a guarantee that `settings` does not give up cannot be
    /// given here.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { engine: Engine::start(settings)? })
    }

    /// Runs `program` until it ends or a limit ends it. Whatever it does is an [`Outcome`].
    ///
    /// # Errors
    ///
    /// Where a process cannot be started, or a path in `program.files` leaves the folder.
    pub fn run(&self, program: &Program) -> Result<Outcome> {
        for (path, _) in &program.files {
            check_inside(path)?;
        }
        self.engine.run(program)
    }
}

fn check_inside(path: &Path) -> Result<()> {
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.as_os_str().is_empty() {
        return Err(Error::config(format!(
            "file `{}` of a program: expected a relative path without `..`",
            path.display()
        )));
    }
    Ok(())
}
