//! A file system of its own for a program: what it may read, read-only, and an empty folder.
//!
//! `Mounts::enter` runs between `clone` and `execve`, where only system calls are allowed; all that
//! it needs is prepared by `Mounts::new`.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use halter_core::Result;

use super::child::{Failure, Step, check};
use super::interpreter::DEVICES;
use super::plan::c_string;

/// The program's folder, as the program sees it.
pub(super) const FOLDER: &str = "/tmp";

const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_int = 0x8000;
const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

struct Tree {
    source: CString,
    /// Relative to the new root.
    target: CString,
    /// Folders above `target`, outermost first.
    parents: Vec<CString>,
    is_file: bool,
    attributes: u64,
    /// A copy of the mount, once it is made.
    fd: Cell<libc::c_int>,
}

pub(super) struct Mounts {
    trees: Vec<Tree>,
    folder_options: CString,
}

impl Mounts {
    pub(super) fn new(readable: &[PathBuf], disk: u64) -> Result<Self> {
        const BYTES_OF_A_FILE: u64 = 4096; // as many files as have one page
        let files = disk / BYTES_OF_A_FILE + 16;
        let options = format!("mode=0700,size={disk},nr_inodes={files}");
        let plain = readable.iter().map(|path| Tree::new(path, RDONLY | NOSUID | NODEV));
        let devices = DEVICES.iter().map(|path| Tree::new(path.as_ref(), RDONLY | NOSUID));
        let trees = plain.chain(devices).collect::<Result<_>>()?;
        Ok(Self { trees, folder_options: c_string(options.as_ref())? })
    }

    /// Leaves the caller's file system for one in memory that holds the trees and the folder.
    ///
    /// # Safety
    ///
    /// Only in a process with a user and a mount namespace of its own.
    pub(super) unsafe fn enter(&self) -> Result<(), Failure> {
        let at = |result: libc::c_long| check(Step::Mounts, result);
        let null = std::ptr::null();
        // SAFETY: system calls on strings and structures that outlive them.
        unsafe {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            at(libc::mount(null, c"/".as_ptr(), null, private, null.cast()).into())?;
            for tree in &self.trees {
                tree.copy()?;
            }
            // Files in memory belong to the maker, who has to be known in this namespace.
            super::child::become_user(0, Step::Mounts)?;
            mount_memory(c"/tmp", 0, c"mode=0755,size=1m,nr_inodes=1k")?;
            at(libc::chdir(c"/tmp".as_ptr()).into())?;
            at(libc::mkdir(c"tmp".as_ptr(), 0o755).into())?;
            mount_memory(c"tmp", libc::MS_NOEXEC, &self.folder_options)?;
            for tree in &self.trees {
                tree.place()?;
            }
            let here = c".".as_ptr();
            at(libc::syscall(libc::SYS_pivot_root, here, here))?;
            at(libc::umount2(here, libc::MNT_DETACH).into())?;
            at(libc::chdir(c"/".as_ptr()).into())?;
            set_attributes(libc::AT_FDCWD, c"/", 0, RDONLY)
        }
    }
}

impl Tree {
    fn new(path: &Path, attributes: u64) -> Result<Self> {
        let target = path.strip_prefix("/").unwrap_or(path);
        let above = target.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        let mut parents = above.map(c_string).collect::<Result<Vec<_>>>()?;
        parents.reverse();
        Ok(Self {
            source: c_string(path)?,
            target: c_string(target)?,
            parents,
            is_file: !path.is_dir(),
            attributes,
            fd: Cell::new(-1),
        })
    }

    unsafe fn copy(&self) -> Result<(), Failure> {
        let flags =
            OPEN_TREE_CLONE | AT_RECURSIVE as libc::c_uint | libc::O_CLOEXEC as libc::c_uint;
        // SAFETY: the string outlives the calls.
        unsafe {
            let call = libc::SYS_open_tree;
            let fd = libc::syscall(call, libc::AT_FDCWD, self.source.as_ptr(), flags);
            check(Step::Mounts, fd)?;
            self.fd.set(fd as libc::c_int);
            let how = libc::AT_EMPTY_PATH | AT_RECURSIVE;
            set_attributes(self.fd.get(), c"", how, self.attributes)
        }
    }

    unsafe fn place(&self) -> Result<(), Failure> {
        // SAFETY: the strings outlive the calls. Folders that are there already are no failure;
        // where one could not be made, `move_mount` fails.
        unsafe {
            for parent in &self.parents {
                libc::mkdir(parent.as_ptr(), 0o755);
            }
            let target = self.target.as_ptr();
            if self.is_file {
                libc::close(libc::open(target, libc::O_CREAT | libc::O_CLOEXEC, 0o644));
            } else {
                libc::mkdir(target, 0o755);
            }
            let fd = self.fd.get();
            let (cwd, how) = (libc::AT_FDCWD, MOVE_MOUNT_F_EMPTY_PATH);
            let moved = libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), cwd, target, how);
            libc::close(fd);
            check(Step::Mounts, moved)
        }
    }
}

unsafe fn mount_memory(target: &CStr, flags: libc::c_ulong, options: &CStr) -> Result<(), Failure> {
    let kind = c"tmpfs".as_ptr();
    let flags = flags | libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: the strings outlive the call.
    let mounted =
        unsafe { libc::mount(kind, target.as_ptr(), kind, flags, options.as_ptr().cast()) };
    check(Step::Mounts, mounted.into())
}

unsafe fn set_attributes(
    at: libc::c_int,
    path: &CStr,
    how: libc::c_int,
    set: u64,
) -> Result<(), Failure> {
    let attributes = Attributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    let (call, size) = (libc::SYS_mount_setattr, size_of::<Attributes>());
    // SAFETY: path and structure outlive the call.
    let result =
        unsafe { libc::syscall(call, at, path.as_ptr(), how, &raw const attributes, size) };
    check(Step::Mounts, result)
}
