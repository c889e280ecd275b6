//! The interpreter, and what it needs to read.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use halter_core::{Error, Result};

use super::plan::c_string;

/// Prints the program and its prefixes; runs outside the sandbox, as it is the caller's own.
const QUESTION: &str = "import sys; print(sys.executable, sys.prefix, sys.exec_prefix, \
                        sys.base_prefix, sys.base_exec_prefix, sep='\\n')";

/// Where shared libraries are, and the devices that programs expect.
pub(super) const SYSTEM: [&str; 7] =
    ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime"];
pub(super) const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// The program's file, as the program's folder names it.
pub(super) const SOURCE: &str = "program.py";

#[derive(Debug)]
pub(super) struct Interpreter {
    pub(super) executable: PathBuf,
    /// Folders and files, the system's among them; all exist.
    pub(super) readable: Vec<PathBuf>,
}

impl Interpreter {
    /// Asks the interpreter itself: what is on `PATH` may be a script that chooses one.
    pub(super) fn find(command: &[String]) -> Result<Self> {
        let (name, options) =
            command.split_first().ok_or_else(|| Error::config("`interpreter` is empty"))?;
        let hint = "install Python 3, or name another interpreter in `interpreter`";
        let answer =
            Command::new(name).args(options).args(["-c", QUESTION]).output().map_err(|error| {
                Error::config(format!("cannot run `{name}`: {error}")).hint(hint)
            })?;
        let text = String::from_utf8_lossy(&answer.stdout);
        let mut lines = text.lines().map(PathBuf::from);
        let executable = match lines.next() {
            Some(path) if answer.status.success() && path.is_absolute() => path,
            _ => {
                let why = String::from_utf8_lossy(&answer.stderr);
                let message = format!("`{name}` does not run Python: {}", why.trim_end());
                return Err(Error::config(message).hint(hint));
            }
        };
        let mut folders: Vec<PathBuf> = lines.filter(|path| path.is_absolute()).collect();
        let resolved = executable.canonicalize();
        folders.extend(executable.parent().map(Path::to_path_buf));
        folders.extend(resolved.ok().and_then(|path| path.parent().map(Path::to_path_buf)));
        refuse_home(&folders)?;
        let system = SYSTEM.map(PathBuf::from);
        let mut readable: Vec<PathBuf> = Vec::new();
        for path in system.into_iter().chain(folders) {
            if path.exists() && !readable.iter().any(|folder| path.starts_with(folder)) {
                readable.push(path);
            }
        }
        Ok(Self { executable, readable })
    }

    /// Program name, options and source file.
    pub(super) fn arguments(&self, command: &[String]) -> Result<Vec<CString>> {
        let options = command.iter().skip(1).map(|option| c_string(option.as_ref()));
        std::iter::once(c_string(&self.executable))
            .chain(options)
            .chain([c_string(SOURCE.as_ref())])
            .collect()
    }
}

/// A prefix that is the home directory would open all of it.
fn refuse_home(folders: &[PathBuf]) -> Result<()> {
    let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("/root"));
    match folders.iter().find(|folder| home.starts_with(folder)) {
        None => Ok(()),
        Some(folder) => Err(Error::config(format!(
            "the interpreter's folder `{}` holds the home directory",
            folder.display()
        ))
        .hint("name an interpreter with a folder of its own in `interpreter`")),
    }
}
