//! What a new process does before it becomes the program.
//!
//! It was cloned from a process with many threads, so that any lock may be held by a thread that it
//! does not have: system calls only, no memory is allocated or given back, nothing panics.

use std::ffi::CStr;

use super::plan::{Pipes, Plan};

/// What a new process was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    User = 1,
    Mounts,
    Files,
    Limits,
    Landlock,
    Seccomp,
    Execute,
}

impl Step {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::User,
            Self::Mounts,
            Self::Files,
            Self::Limits,
            Self::Landlock,
            Self::Seccomp,
            Self::Execute,
        ];
        all.into_iter().find(|step| *step as u8 == byte)
    }

    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::User => "change the user",
            Self::Mounts => "make a file system",
            Self::Files => "write the files",
            Self::Limits => "set resource limits",
            Self::Landlock => "restrict itself by Landlock",
            Self::Seccomp => "filter system calls",
            Self::Execute => "start the interpreter",
        }
    }
}

/// A step and the error number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    step: Step,
    number: libc::c_int,
}

impl Failure {
    fn last(step: Step) -> Self {
        // SAFETY: the address is that of this thread's error number.
        Self { step, number: unsafe { *libc::__errno_location() } }
    }
}

/// The result of a system call.
pub(super) fn check(step: Step, result: libc::c_long) -> Result<(), Failure> {
    if result < 0 { Err(Failure::last(step)) } else { Ok(()) }
}

/// Becomes the program, or tells why not through `pipes.failure`.
///
/// # Safety
///
/// Only in a process that was just cloned, with all signals blocked.
pub(super) unsafe fn run(plan: &Plan, pipes: &Pipes, strings: &Strings) -> ! {
    // SAFETY: the caller's promise.
    let result = unsafe { become_program(plan, pipes, strings) };
    if let Err(failure) = result {
        let mut message = [0; 5];
        message[0] = failure.step as u8;
        message[1..].copy_from_slice(&failure.number.to_ne_bytes());
        // SAFETY: the message outlives the call.
        unsafe { libc::write(pipes.failure, message.as_ptr().cast(), message.len()) };
    }
    // SAFETY: ends this process and runs nothing of the parent's.
    unsafe { libc::_exit(127) }
}

/// Arguments and environment as `execve` takes them.
pub(super) struct Strings {
    pub(super) arguments: Vec<*const libc::c_char>,
    pub(super) environment: Vec<*const libc::c_char>,
}

unsafe fn become_program(plan: &Plan, pipes: &Pipes, strings: &Strings) -> Result<(), Failure> {
    // SAFETY: system calls on memory of `plan` and `strings`, which this process has a copy of.
    unsafe {
        libc::close(pipes.go_writer);
        reset_signals();
        let mut go = 0_u8;
        if libc::read(pipes.go, (&raw mut go).cast(), 1) != 1 {
            libc::_exit(127); // the parent is gone
        }
        libc::setsid();
        match &plan.mounts {
            Some(mounts) => mounts.enter()?,
            None if plan.root => become_user(super::NOBODY, Step::User)?,
            None => {}
        }
        check(Step::Files, libc::chdir(plan.folder.as_ptr()).into())?;
        write_files(plan)?;
        for (fd, target) in [(pipes.stdin, 0), (pipes.stdout, 1), (pipes.stderr, 2)] {
            check(Step::Files, libc::dup2(fd, target).into())?;
        }
        let no = 0 as libc::c_ulong;
        let no_new_privileges = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, no, no, no);
        check(Step::User, no_new_privileges.into())?;
        drop_capabilities()?;
        if let Some((ruleset, rights)) = plan.rules {
            restrict_files(ruleset, rights)?;
        }
        // No sooner: the caller's open files count as well until `execve`.
        for (resource, limit) in plan.limits {
            let both = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            check(Step::Limits, libc::setrlimit(resource as _, &raw const both).into())?;
        }
        let signal = libc::SIGKILL as libc::c_ulong;
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, no, no, no);
        let mut go = libc::pollfd { fd: pipes.go, events: 0, revents: 0 };
        if libc::poll(&raw mut go, 1, 0) != 0 {
            libc::_exit(127); // the parent went before it could take this process with it
        }
        let (first, last, how) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(Step::Files, libc::syscall(libc::SYS_close_range, first, last, how))?;
        for filter in plan.filters {
            filter.apply().map_err(|()| Failure::last(Step::Seccomp))?;
        }
        let executable = *strings.arguments.as_ptr();
        let (arguments, environment) = (strings.arguments.as_ptr(), strings.environment.as_ptr());
        check(Step::Execute, libc::execve(executable, arguments, environment).into())
    }
}

/// Handlers end with `execve`, but what is ignored stays ignored.
unsafe fn reset_signals() {
    const LAST: libc::c_int = 64;
    // SAFETY: the structures are plain data, for which zeros are valid.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=LAST {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Becomes `user`, with the group of the same number and no other. The C library's functions would
/// do it for threads that are not there.
pub(super) unsafe fn become_user(user: u32, step: Step) -> Result<(), Failure> {
    // SAFETY: system calls on numbers. The first is refused to ordinary users, who keep their
    // groups.
    unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>());
        check(step, libc::syscall(libc::SYS_setresgid, user, user, user))?;
        check(step, libc::syscall(libc::SYS_setresuid, user, user, user))
    }
}

unsafe fn drop_capabilities() -> Result<(), Failure> {
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0_u32; 6];
    // SAFETY: header and sets of version 3, which outlive the call.
    let dropped = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    check(Step::User, dropped)
}

unsafe fn write_files(plan: &Plan) -> Result<(), Failure> {
    // SAFETY: paths and contents outlive the calls.
    unsafe {
        libc::umask(0o077);
        for folder in &plan.files.folders {
            libc::mkdir(folder.as_ptr(), 0o700); // a failure shows when its files are written
        }
        for (path, content) in &plan.files.files {
            write_file(path, content)?;
        }
    }
    Ok(())
}

unsafe fn write_file(path: &CStr, content: &[u8]) -> Result<(), Failure> {
    // SAFETY: path and content outlive the calls.
    unsafe {
        let how = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
        let fd = libc::open(path.as_ptr(), how, 0o600);
        check(Step::Files, fd.into())?;
        let mut written = 0;
        while written < content.len() {
            let rest = content.as_ptr().add(written);
            let count = libc::write(fd, rest.cast(), content.len() - written);
            if count <= 0 {
                return Err(Failure::last(Step::Files));
            }
            written += count as usize;
        }
        libc::close(fd);
    }
    Ok(())
}

/// The kernel's `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    rights: u64,
    fd: libc::c_int,
}

unsafe fn restrict_files(ruleset: libc::c_int, rights: u64) -> Result<(), Failure> {
    const PATH_BENEATH: libc::c_int = 1;
    // SAFETY: string and structure outlive the calls.
    unsafe {
        let how = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let fd = libc::open(c".".as_ptr(), how);
        check(Step::Landlock, fd.into())?;
        let rule = Beneath { rights, fd };
        let call = libc::SYS_landlock_add_rule;
        let added = libc::syscall(call, ruleset, PATH_BENEATH, &raw const rule, 0);
        check(Step::Landlock, added)?;
        libc::close(fd);
        let call = libc::SYS_landlock_restrict_self;
        check(Step::Landlock, libc::syscall(call, ruleset, 0))
    }
}
