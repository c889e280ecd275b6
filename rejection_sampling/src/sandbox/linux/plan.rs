//! All that a new process needs, made before it is cloned, and the cloning.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use halter_core::{Error, ErrorKind, Result};

use super::child::{self, Step, Strings};
use super::filter::Filter;
use super::interpreter::SOURCE;
use super::mounts::{FOLDER, Mounts};
use super::{NOBODY, system_error};
use crate::sandbox::{Limits, Program};

/// What the new process does, in terms of system calls.
pub(super) struct Plan<'a> {
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) folder: CString,
    pub(super) files: Files,
    pub(super) limits: [(u32, u64); 9],
    /// With namespaces.
    pub(super) mounts: Option<Mounts>,
    /// Landlock's ruleset, and the rights to the folder.
    pub(super) rules: Option<(libc::c_int, u64)>,
    pub(super) filters: &'a [Filter],
    pub(super) root: bool,
}

/// The new process's ends of the pipes, and the parent's end of the first.
pub(super) struct Pipes {
    pub(super) go: libc::c_int,
    pub(super) go_writer: libc::c_int,
    pub(super) failure: libc::c_int,
    pub(super) stdin: libc::c_int,
    pub(super) stdout: libc::c_int,
    pub(super) stderr: libc::c_int,
}

/// A process that was started.
pub(super) struct Running {
    pub(super) pid: libc::pid_t,
    /// Readable once the process has ended.
    pub(super) ended: OwnedFd,
    pub(super) failure: PipeReader,
    pub(super) stdout: PipeReader,
    pub(super) stderr: PipeReader,
    /// Closed with the parent, whatever ends it.
    pub(super) _go: PipeWriter,
}

/// Why a program was not started.
#[derive(Debug)]
pub(in crate::sandbox) enum Start {
    /// There are no namespaces here, for this reason.
    Namespaces(String),
    /// Anything else.
    Refused(Error),
}

impl From<Error> for Start {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Start {
    pub(in crate::sandbox) fn into_error(self) -> Error {
        match self {
            Self::Namespaces(why) => Error::new(ErrorKind::Io, format!("no namespaces: {why}"))
                .hint("another program may have used them up: run fewer sandboxes at once"),
            Self::Refused(error) => error,
        }
    }

    /// A new process's own account of its failure.
    pub(super) fn from_child(message: [u8; 5]) -> Self {
        let [step, number @ ..] = message;
        let why = std::io::Error::from_raw_os_error(i32::from_ne_bytes(number));
        match Step::from_byte(step) {
            Some(step @ Step::Mounts) => {
                Self::Namespaces(format!("cannot {}: {why}", step.doing()))
            }
            Some(step) => {
                let message = format!("a sandboxed process cannot {}: {why}", step.doing());
                let error = Error::config(message);
                Self::Refused(match step {
                    Step::User => error.hint("run as an ordinary user instead of root"),
                    Step::Files => error.hint("raise `disk`"),
                    Step::Execute => {
                        error.hint("name an interpreter that every user may run in `interpreter`")
                    }
                    _ => error,
                })
            }
            None => Self::Refused(Error::new(ErrorKind::Io, "a sandboxed process failed oddly")),
        }
    }
}

/// A program's files.
pub(super) struct Files {
    /// Outermost first.
    pub(super) folders: Vec<CString>,
    pub(super) files: Vec<(CString, Vec<u8>)>,
}

impl Files {
    pub(super) fn new(program: &Program) -> Result<Self> {
        let above =
            |path: &Path| path.ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<_>>();
        let folders: BTreeSet<_> = program.files.iter().flat_map(|(path, _)| above(path)).collect();
        let named = folders.iter().filter(|folder| !folder.as_os_str().is_empty());
        let mut files = vec![(c_string(SOURCE.as_ref())?, program.source.clone().into_bytes())];
        for (path, content) in &program.files {
            files.push((c_string(path)?, content.clone()));
        }
        Ok(Self { folders: named.map(|folder| c_string(folder)).collect::<Result<_>>()?, files })
    }
}

/// A string without zero bytes.
pub(super) fn c_string(text: &Path) -> Result<CString> {
    CString::new(text.as_os_str().as_bytes())
        .map_err(|_| Error::config(format!("`{}` holds a zero byte", text.display())))
}

/// The only variables that a program gets.
pub(super) fn environment(folder: Option<&Path>) -> Result<Vec<CString>> {
    let folder = folder.unwrap_or(FOLDER.as_ref()).display();
    let variables = [
        "PATH=/usr/local/bin:/usr/bin:/bin".to_string(),
        "LANG=C.UTF-8".to_string(),
        format!("HOME={folder}"),
        format!("TMPDIR={folder}"),
    ];
    variables.iter().map(|variable| c_string(variable.as_ref())).collect()
}

/// Numbers and values; none is above what the caller has itself.
pub(super) fn resource_limits(limits: &Limits, namespaces: bool) -> [(u32, u64); 9] {
    const STACK: u64 = 8 << 20;
    // Elsewhere the count is of all that the user runs, not of the program's alone.
    let tasks = if namespaces { limits.tasks } else { u64::MAX };
    [
        (libc::RLIMIT_CPU, limits.cpu_seconds),
        (libc::RLIMIT_AS, limits.memory),
        (libc::RLIMIT_NPROC, tasks),
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_FSIZE, limits.disk),
        (libc::RLIMIT_STACK, STACK),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
    ]
    .map(|(resource, wanted)| {
        let mut has = libc::rlimit { rlim_cur: 0, rlim_max: u64::MAX };
        // SAFETY: the structure outlives the call, which leaves it alone where it fails.
        unsafe { libc::getrlimit(resource, &raw mut has) };
        (resource, wanted.min(has.rlim_max))
    })
}

impl Plan<'_> {
    /// Clones this process, and lets the clone become the program.
    pub(super) fn start(&self, stdin: &[u8]) -> Result<Running, Start> {
        let input = input(stdin)?;
        let pipe = || {
            std::io::pipe().map_err(|error| {
                Error::new(ErrorKind::Io, "cannot make a pipe")
                    .because(error)
                    .hint("raise the number of open files (`ulimit -n`)")
            })
        };
        let (go, go_writer) = pipe()?;
        let (failure, failure_writer) = pipe()?;
        let (stdout, stdout_writer) = pipe()?;
        let (stderr, stderr_writer) = pipe()?;
        let pipes = Pipes {
            go: go.as_raw_fd(),
            go_writer: go_writer.as_raw_fd(),
            failure: failure_writer.as_raw_fd(),
            stdin: input.as_raw_fd(),
            stdout: stdout_writer.as_raw_fd(),
            stderr: stderr_writer.as_raw_fd(),
        };
        let pointers = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let strings = Strings {
            arguments: pointers(&self.arguments),
            environment: pointers(&self.environment),
        };
        // SAFETY: the strings end with a null pointer and outlive the clone's use of its copy.
        let pid = unsafe { self.clone_process(&pipes, &strings) };
        if pid < 0 {
            let why = std::io::Error::last_os_error();
            return Err(match self.mounts {
                Some(_) => Start::Namespaces(why.to_string()),
                None => Error::new(ErrorKind::Io, "cannot start a process").because(why).into(),
            });
        }
        match self.let_go(pid, &go_writer) {
            Ok(ended) => Ok(Running { pid, ended, failure, stdout, stderr, _go: go_writer }),
            Err(error) => {
                drop(go_writer); // the clone ends where it reads from it
                // SAFETY: the clone is this process's child, and nothing else waits for it.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, std::ptr::null_mut(), 0);
                }
                Err(error)
            }
        }
    }

    unsafe fn clone_process(&self, pipes: &Pipes, strings: &Strings) -> libc::pid_t {
        const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        let namespaces = if self.mounts.is_some() { NAMESPACES } else { 0 };
        let flags = namespaces | libc::SIGCHLD;
        // SAFETY: signals are blocked, so that no handler runs in the clone. Without `CLONE_VM` the
        // clone has memory of its own and goes on here, on a copy of this stack.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let pid = libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0);
            if pid == 0 {
                child::run(self, pipes, strings);
            }
            let error = *libc::__errno_location();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            *libc::__errno_location() = error;
            pid as libc::pid_t
        }
    }

    /// Says who the clone is in its namespaces, and lets it go on.
    fn let_go(&self, pid: libc::pid_t, mut go: &PipeWriter) -> Result<OwnedFd, Start> {
        // SAFETY: the clone has not been waited for, so that the number is its own.
        let ended = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if ended < 0 {
            return Err(system_error("watch the process").into());
        }
        // SAFETY: it was just opened.
        let ended = unsafe { OwnedFd::from_raw_fd(ended as libc::c_int) };
        let tell = |file: &str, text: &str| fs::write(format!("/proc/{pid}/{file}"), text);
        let _ = tell("oom_score_adj", "1000"); // the first to go where memory is short
        if self.mounts.is_some() {
            // SAFETY: these calls cannot fail.
            let (user, group) = match self.root {
                true => (NOBODY, NOBODY),
                false => unsafe { (libc::geteuid(), libc::getegid()) },
            };
            let maps = || -> std::io::Result<()> {
                if !self.root {
                    tell("setgroups", "deny")?;
                }
                tell("uid_map", &format!("0 {user} 1"))?;
                tell("gid_map", &format!("0 {group} 1"))
            };
            maps().map_err(|why| Start::Namespaces(format!("cannot map the user: {why}")))?;
        }
        // A clone that is gone already is found out when it is waited for.
        let _ = go.write_all(b"g");
        Ok(ended)
    }
}

/// A file in memory that holds `content`: unlike a pipe, it needs nobody who writes.
fn input(content: &[u8]) -> Result<File> {
    // SAFETY: the name outlives the call.
    let fd = unsafe {
        libc::memfd_create(c"stdin".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    };
    if fd < 0 {
        return Err(system_error("make a file for stdin"));
    }
    // SAFETY: it was just opened.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let written = file.write_all(content).and_then(|()| file.rewind());
    written.map_err(|_| system_error("write stdin"))?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the file is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(system_error("seal stdin"));
    }
    Ok(file)
}
