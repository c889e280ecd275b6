//! Containment by what Linux has: namespaces, Landlock, seccomp, resource limits.

mod child;
mod filter;
mod folder;
mod interpreter;
mod landlock;
mod mounts;
mod plan;
mod supervise;

use std::os::fd::AsRawFd;
use std::time::Duration;

use halter_core::{Error, ErrorKind, Result};

use super::layers::Layers;
use super::{Outcome, Program, Settings, Status};
use folder::Folder;
use interpreter::Interpreter;
use plan::{Plan, Start};

/// Sandboxed programs run as this user where the caller is root.
const NOBODY: u32 = 65534;

/// What is found out once.
#[derive(Debug)]
pub(super) struct Engine {
    settings: Settings,
    interpreter: Interpreter,
    layers: Layers,
    filters: Vec<filter::Filter>,
}

impl Engine {
    pub(super) fn start(settings: Settings) -> Result<Self> {
        let layers = Layers::found();
        match Self::with_layers(settings.clone(), layers.clone()) {
            Err(Start::Namespaces(why)) => {
                Self::with_layers(settings, Layers { namespaces: Err(why), ..layers })
            }
            started => started,
        }
        .map_err(Start::into_error)
    }

    /// An engine that uses exactly `layers`.
    pub(super) fn with_layers(settings: Settings, layers: Layers) -> Result<Self, Start> {
        layers.check(settings.limits.processes, &settings.allow_weaker)?;
        let interpreter = Interpreter::find(&settings.interpreter)?;
        let filters = match layers.seccomp {
            Ok(()) => filter::filters(settings.limits.processes, layers.namespaces.is_ok())?,
            Err(_) => Vec::new(),
        };
        let engine = Self { settings, interpreter, layers, filters };
        engine.try_out()?;
        Ok(engine)
    }

    /// Runs a program that does nothing.
    fn try_out(&self) -> Result<(), Start> {
        const PATIENCE: Duration = Duration::from_secs(20); // the first start reads from a disk
        let wall = self.settings.limits.wall.max(PATIENCE);
        let outcome = self.run_within(&Program::new("print('ready')"), wall)?;
        if outcome.status == Status::Exited(0) && outcome.stdout.trim_end() == "ready" {
            return Ok(());
        }
        let last = outcome.stderr.lines().last().unwrap_or("nothing on stderr");
        let message = format!(
            "`{}` does not work in the sandbox ({:?}): {last}",
            self.interpreter.executable.display(),
            outcome.status
        );
        Err(Start::Refused(Error::config(message).hint(
            "raise `memory` where it is short; name folders that the interpreter needs besides its \
             own in `readable`",
        )))
    }

    pub(super) fn run(&self, program: &Program) -> Result<Outcome> {
        self.run_within(program, self.settings.limits.wall).map_err(Start::into_error)
    }

    fn run_within(&self, program: &Program, wall: Duration) -> Result<Outcome, Start> {
        // SAFETY: these calls cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        let folder = match self.layers.namespaces {
            Ok(()) => None,
            Err(_) => Some(Folder::new(root)?),
        };
        let readable = self.interpreter.readable.iter().chain(&self.settings.readable);
        let readable: Vec<_> = readable.cloned().collect();
        let ruleset = match self.layers.landlock {
            Ok(version) => Some(landlock::Rules::new(version, &readable)?),
            Err(_) => None,
        };
        let plan = Plan {
            arguments: self.interpreter.arguments(&self.settings.interpreter)?,
            environment: plan::environment(folder.as_ref().map(Folder::path))?,
            folder: plan::c_string(folder.as_ref().map_or(mounts::FOLDER.as_ref(), Folder::path))?,
            files: plan::Files::new(program)?,
            limits: plan::resource_limits(&self.settings.limits, folder.is_none()),
            mounts: match folder {
                None => Some(mounts::Mounts::new(&readable, self.settings.limits.disk)?),
                Some(_) => None,
            },
            rules: ruleset.as_ref().map(|rules| (rules.fd.as_raw_fd(), rules.folder)),
            filters: &self.filters,
            root,
        };
        let running = plan.start(&program.stdin)?;
        supervise::supervise(running, &self.settings.limits, wall)
    }
}

impl Layers {
    /// What there is; whether there are namespaces is found out by using them.
    pub(super) fn found() -> Self {
        Self { namespaces: Ok(()), landlock: landlock::version(), seccomp: filter::available() }
    }
}

/// The last error of a system call, told by what was tried.
fn system_error(doing: &str) -> Error {
    let source = std::io::Error::last_os_error();
    Error::new(ErrorKind::Io, format!("cannot {doing} for a sandboxed program: {source}"))
}
