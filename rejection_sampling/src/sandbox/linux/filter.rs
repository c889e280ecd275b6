//! System calls that a program may not make, by seccomp.
//!
//! Calls that are known to be harmful fail with `EPERM`; calls that were unknown when this was
//! written fail with `ENOSYS`, as they would on an older kernel.

use std::collections::BTreeMap;

use halter_core::{Error, Result};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};

/// The last system call that was looked at: `mseal`, Linux 6.10. Numbers of the 32-bit interface of
/// x86-64 lie above it.
const LAST_KNOWN: u32 = 462;
const CLONE3: i64 = 435;

/// A compiled filter.
#[derive(Debug)]
pub(super) struct Filter(BpfProgram);

impl Filter {
    /// Applies it to the calling thread, for good.
    pub(super) fn apply(&self) -> Result<(), ()> {
        seccompiler::apply_filter(&self.0).map_err(|_| ())
    }
}

/// Whether filters can be applied, or why not.
pub(super) fn available() -> Result<(), String> {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the action outlives the call.
    let found = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    match found {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

/// The filters, in the order in which they are applied.
pub(super) fn filters(processes: bool, namespaces: bool) -> Result<Vec<Filter>> {
    let mut forbidden: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut forbid = |calls: &[i64]| {
        for call in calls {
            forbidden.insert(*call, Vec::new());
        }
    };
    forbid(ALWAYS);
    forbid(OF_THIS_PROCESSOR);
    if !processes {
        forbid(FORKS);
    }
    if !namespaces {
        forbid(SIGNALS);
    }
    let failed = |error| Error::config("cannot make a seccomp filter").because(error);
    for (call, rule) in rules(processes).map_err(failed)? {
        forbidden.entry(call).or_default().push(rule);
    }
    // The C library makes threads with `clone` where there is no `clone3`, whose flags lie in
    // memory that a filter cannot read.
    let unknown = BTreeMap::from([(CLONE3, Vec::new())]);
    let compile = |rules, error: libc::c_int| -> Result<Filter, BackendError> {
        let architecture = std::env::consts::ARCH.try_into()?;
        let action = SeccompAction::Errno(error as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?;
        Ok(Filter(filter.try_into()?))
    };
    Ok(vec![
        compile(forbidden, libc::EPERM).map_err(failed)?,
        compile(unknown, libc::ENOSYS).map_err(failed)?,
        newer_calls(),
    ])
}

/// `ENOSYS` for all calls after the last known one.
fn newer_calls() -> Filter {
    const LOAD_NUMBER: u16 = 0x20; // the number is the first word of what a filter sees
    const JUMP_IF_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    Filter(vec![
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_GREATER, 0, 1, LAST_KNOWN),
        instruction(RETURN, 0, 0, missing),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

/// Calls that are forbidden with some arguments.
fn rules(processes: bool) -> Result<Vec<(i64, SeccompRule)>, BackendError> {
    const NEW_NAMESPACES: [libc::c_int; 7] = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    const KIND_OF_SOCKET: u64 = 0xf;
    const SIOCSPGRP: u64 = 0x8902;
    const FIOSETOWN: u64 = 0x8901;
    const F_SETSIG: u64 = 10;
    const F_SETOWN_EX: u64 = 15;
    let when = |call, argument, operator, value: u64| {
        let width = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, width, operator, value)?;
        Ok((call, SeccompRule::new(vec![condition])?))
    };
    let is = |call, argument, value| when(call, argument, SeccompCmpOp::Eq, value);
    let mut rules = vec![
        // Connected pairs are what event loops wake themselves with; a datagram socket of a pair
        // could be pointed elsewhere.
        when(libc::SYS_socketpair, 0, SeccompCmpOp::Ne, libc::AF_UNIX as u64),
        when(
            libc::SYS_socketpair,
            1,
            SeccompCmpOp::MaskedEq(KIND_OF_SOCKET),
            libc::SOCK_DGRAM as u64,
        ),
        when(
            libc::SYS_socketpair,
            1,
            SeccompCmpOp::MaskedEq(KIND_OF_SOCKET),
            libc::SOCK_RAW as u64,
        ),
        // Limits of other processes.
        when(libc::SYS_prlimit64, 0, SeccompCmpOp::Ne, 0),
        // The parent's death ends the program.
        is(libc::SYS_prctl, 0, libc::PR_SET_PDEATHSIG as u64),
        // Signals to other processes when a file becomes readable.
        is(libc::SYS_fcntl, 1, libc::F_SETOWN as u64),
        is(libc::SYS_fcntl, 1, F_SETOWN_EX),
        is(libc::SYS_fcntl, 1, F_SETSIG),
        is(libc::SYS_ioctl, 1, FIOSETOWN),
        is(libc::SYS_ioctl, 1, SIOCSPGRP),
        // Input to a terminal.
        is(libc::SYS_ioctl, 1, libc::TIOCSTI),
    ];
    for flag in NEW_NAMESPACES.map(|flag| flag as u32 as u64) {
        rules.push(when(libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(flag), flag));
    }
    if !processes {
        let thread = libc::CLONE_THREAD as u64;
        rules.push(when(libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(thread), 0));
    }
    rules.into_iter().collect()
}

/// Forbidden to all programs. Calls from 424 on have the same number everywhere.
const ALWAYS: &[i64] = &[
    // The network.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    438, // pidfd_getfd
    440, // process_madvise
    448, // process_mrelease
    // File systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_sync,
    libc::SYS_syncfs,
    428, // open_tree
    429, // move_mount
    430, // fsopen
    431, // fsconfig
    432, // fsmount
    433, // fspick
    442, // mount_setattr
    443, // quotactl_fd
    457, // statmount
    458, // listmount
    // What files are rather than hold, which Landlock does not look at.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utimensat,
    452, // fchmodat2
    // Memory that is no process's, or has no limit.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_memfd_create,
    447, // memfd_secret
    // The kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    425, // io_uring_setup, which makes other calls past a filter
    426, // io_uring_enter
    427, // io_uring_register
];

/// Older forms of the same, and what only this processor has.
#[cfg(target_arch = "x86_64")]
const OF_THIS_PROCESSOR: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
    libc::SYS_sysfs,
];
#[cfg(target_arch = "aarch64")]
const OF_THIS_PROCESSOR: &[i64] = &[];

#[cfg(target_arch = "x86_64")]
const FORKS: &[i64] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(target_arch = "aarch64")]
const FORKS: &[i64] = &[];

/// Forbidden where the program can see the caller's processes.
const SIGNALS: &[i64] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    424, // pidfd_send_signal
    434, // pidfd_open
];
