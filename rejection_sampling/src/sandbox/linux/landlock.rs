//! Which files a program may touch, by Landlock.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use halter_core::{Error, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope, path_beneath_rules,
};

use super::interpreter::DEVICES;

/// A ruleset to which the program's folder is still to be added, and the rights there.
pub(super) struct Rules {
    pub(super) fd: OwnedFd,
    pub(super) folder: u64,
}

/// Landlock's version, or why there is none.
pub(super) fn version() -> Result<i32, String> {
    const VERSION: u32 = 1;
    // SAFETY: asks for the version, and takes no structure.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION)
    };
    i32::try_from(version)
        .ok()
        .filter(|version| *version > 0)
        .ok_or_else(|| std::io::Error::last_os_error().to_string())
}

impl Rules {
    /// Everything that version `version` of Landlock knows is forbidden but reading and running
    /// what is `readable`.
    pub(super) fn new(version: i32, readable: &[PathBuf]) -> Result<Self> {
        let abi = match version {
            ..=1 => ABI::V1,
            2 => ABI::V2,
            3 | 4 => ABI::V3,
            _ => ABI::V5,
        };
        let devices = AccessFs::ReadFile | AccessFs::WriteFile;
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
        let folder = AccessFs::from_all(abi) & !special;
        let create = || -> Result<Option<OwnedFd>, RulesetError> {
            let ruleset = Ruleset::default()
                .handle_access(AccessFs::from_all(abi))?
                .handle_access(AccessNet::from_all(ABI::V4))?
                .scope(Scope::from_all(ABI::V6))?
                .create()?
                .add_rules(path_beneath_rules(readable, AccessFs::from_read(abi)))?
                .add_rules(path_beneath_rules(DEVICES, devices))?;
            Ok(ruleset.into())
        };
        let failed = || Error::config("cannot make a Landlock ruleset");
        let fd = create().map_err(|error| failed().because(error))?.ok_or_else(failed)?;
        Ok(Self { fd, folder: BitFlags::bits(folder) })
    }
}
