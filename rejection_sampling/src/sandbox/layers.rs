//! Which layers a machine has, and which guarantees they give.
#![cfg_attr(not(target_os = "linux"), allow(dead_code))]

use std::fmt;

use halter_core::{Error, Result};

/// What is promised of every program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// No connection to anything, on this machine or another.
    NoNetwork,
    /// Nothing is changed outside the program's folder.
    NoWritesOutside,
    /// Nothing is read but the system's libraries, the interpreter, `readable` and the folder.
    NoReadsOutside,
    /// A bounded number of processes, and none left running.
    NoProcessesLeft,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNetwork => "no network",
            Self::NoWritesOutside => "no writes outside the program's folder",
            Self::NoReadsOutside => "no reads outside the program's folder",
            Self::NoProcessesLeft => "bounded processes, none left running",
        })
    }
}

/// What the kernel offers; `Err` tells why not.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    /// User, process, network, mount and IPC namespaces.
    pub(super) namespaces: Result<(), String>,
    /// Landlock's version.
    pub(super) landlock: Result<i32, String>,
    /// System call filters.
    pub(super) seccomp: Result<(), String>,
}

impl Layers {
    /// Refuses where a guarantee is neither given by a layer nor given up.
    pub(super) fn check(&self, processes: bool, given_up: &[Guarantee]) -> Result<()> {
        const TRUNCATE: i32 = 3; // before this version, Landlock lets files be cut
        let namespaces = self.namespaces.clone().map_err(|why| format!("namespaces: {why}"));
        let seccomp = self.seccomp.clone().map_err(|why| format!("seccomp: {why}"));
        let landlock = |version| match &self.landlock {
            Ok(has) if *has >= version => Ok(()),
            Ok(has) => Err(format!("Landlock: version {has}, expected {version} or later")),
            Err(why) => Err(format!("Landlock: {why}")),
        };
        let single = match processes {
            true => Err("seccomp: cannot bound a program that starts processes".into()),
            false => seccomp.clone(),
        };
        let without_namespaces = [
            (Guarantee::NoNetwork, seccomp.clone()),
            (Guarantee::NoWritesOutside, landlock(TRUNCATE).and(seccomp)),
            (Guarantee::NoReadsOutside, landlock(1)),
            (Guarantee::NoProcessesLeft, single),
        ];
        for (guarantee, otherwise) in without_namespaces {
            if let (Err(first), Err(second)) = (&namespaces, otherwise)
                && !given_up.contains(&guarantee)
            {
                return Err(Error::config(format!(
                    "programs cannot be contained here, `{guarantee}` is missing ({first}; {second})"
                ))
                .hint(
                    "run as a user who may create user namespaces, on Linux 6.2 or later with \
                     Landlock; or give the guarantee up with `allow_weaker` (in a scorer's text: \
                     `code:allow-network`, `allow-writes`, `allow-reads`, `allow-processes`)",
                ));
            }
        }
        Ok(())
    }
}
