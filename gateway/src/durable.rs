//! Makes a new name in a folder survive a power cut.
//!
//! A file that is synced keeps its bytes, but its name is data of the folder: until the folder is synced too, a
//! power cut may take the name back. The same holds for a new folder, whose name is in its parent.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// The folder that has the name of `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Makes the folders that are missing, each with this mode less the umask. They survive a power cut.
///
/// # Errors
/// When one can't be made, or its name can't be made to last.
pub(crate) fn create_folders(folder: &Path, mode: u32) -> io::Result<()> {
    let parent = folder_of(folder);
    if folder.is_dir() || parent == folder {
        return Ok(());
    }
    create_folders(parent, mode)?;
    match DirBuilder::new().mode(mode).create(folder) {
        // Another process has made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(parent)
}

/// Makes the names that a folder has survive a power cut, where the folder can be synced. One that may be
/// written and not read can't be, nor can those of some file systems: these may keep names by other means, and
/// nothing more can be done.
///
/// # Errors
/// When the disk fails.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    let cannot_be_synced = |error: &io::Error| {
        matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
            || error.raw_os_error() == Some(libc::EBADF)
    };
    match synced {
        Err(error) if cannot_be_synced(&error) => Ok(()),
        synced => synced,
    }
}

/// Lets a system call fail, as a disk does that breaks.
#[cfg(test)]
pub(crate) mod fault {
    use std::collections::BTreeMap;
    use std::thread;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    /// Does `work` on a thread whose calls of `number` fail with EIO, as do those of threads that it starts.
    pub(crate) fn with_failing<T: Send>(number: i64, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let run = || {
                let rules = BTreeMap::from([(number, Vec::new())]);
                let fails = SeccompAction::Errno(libc::EIO.unsigned_abs());
                let architecture = std::env::consts::ARCH.try_into().unwrap();
                let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, architecture);
                let program: BpfProgram = filter.unwrap().try_into().unwrap();
                apply_filter(&program).unwrap();
                work()
            };
            scope.spawn(run).join().unwrap()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn missing_folders_are_made_with_their_mode() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        for _ in 0..2 {
            create_folders(&folder, 0o700).unwrap();
        }
        for made in [&folder, &root.path().join("a")] {
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(create_folders(&file, 0o700).is_err());
        assert!(create_folders(&file.join("below"), 0o700).is_err());
        assert_eq!(
            (folder_of(Path::new("x")), folder_of(Path::new("/"))),
            (Path::new("."), Path::new("."))
        );
    }
}
