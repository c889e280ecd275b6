//! A program's folder where there are no mount namespaces.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use halter_core::{Error, Result};

use super::NOBODY;

/// Removed when dropped, whatever the program left there.
pub(super) struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    /// A folder that only the sandboxed user may enter.
    pub(super) fn new(root: bool) -> Result<Self> {
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("halter-sandbox-")
            .tempdir()
            .map_err(|error| Error::io("make a temporary folder", &temporary, error))?;
        if root {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY))
                .map_err(|error| Error::io("give to `nobody`", folder.path(), error))?;
        }
        Ok(Self { folder })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays: no outcome depends on it.
        let _ = flatten(self.folder.path());
    }
}

/// Removes what is in `folder`. A program can nest folders deeper than a stack or a path can
/// follow, so that each folder's folders are moved up before it is removed.
fn flatten(folder: &Path) -> std::io::Result<()> {
    let mut moved = 0_usize;
    loop {
        let mut left = false;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            left = true;
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700))?;
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if inner.file_type()?.is_dir() {
                    // Moving a folder changes its `..`, which takes the right to write to it.
                    fs::set_permissions(inner.path(), fs::Permissions::from_mode(0o700))?;
                    fs::rename(inner.path(), free_name(folder, &mut moved))?;
                } else {
                    fs::remove_file(inner.path())?;
                }
            }
            fs::remove_dir(entry.path())?;
        }
        if !left {
            return Ok(());
        }
    }
}

fn free_name(folder: &Path, moved: &mut usize) -> std::path::PathBuf {
    loop {
        *moved += 1;
        let path = folder.join(format!("moved-{moved}"));
        if path.symlink_metadata().is_err() {
            return path;
        }
    }
}
