//! Reads key files: only regular files, without waiting, and with a hint for their owner where that fails.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags, access, fstatvfs};
use rustix::process::{getegid, geteuid};

/// Longest key file that is read, in bytes: a public key of 16,384 bits has 3 KiB.
const BYTES_MAX: u64 = 64 * 1024;

/// Why a key file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system refuses it.
    #[error("{cause}{hint}")]
    System {
        /// Its error.
        cause: io::Error,
        /// How to fix it: empty, or text that begins with a colon.
        hint: String,
    },
    /// It is not a regular file.
    #[error("it is {kind}, not a file")]
    NoFile {
        /// What it is.
        kind: &'static str,
    },
    /// It is too long for a key.
    #[error("it is longer than {} KiB: {what} is shorter", bytes_max / 1024)]
    TooLong {
        /// How long it may be.
        bytes_max: u64,
        /// What it should hold.
        what: &'static str,
    },
}

impl KeyFileError {
    /// Whether the file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::System { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// A key file that was read.
pub(crate) struct KeyFile {
    pub(crate) bytes: Vec<u8>,
    /// Its permission bits: the file's own, where `path` is a link.
    pub(crate) mode: u32,
    file: File,
    metadata: Metadata,
}

impl KeyFile {
    /// Reads a file. It never waits for a FIFO or a device.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyFileError> {
        Self::read_at_most(path, BYTES_MAX, "a key")
    }

    /// As [`Self::read`], for a file of another length, which holds `what`.
    pub(crate) fn read_at_most(
        path: &Path,
        bytes_max: u64,
        what: &'static str,
    ) -> Result<Self, KeyFileError> {
        let system = |cause| KeyFileError::System { hint: way_in(path, &cause), cause };
        // Opening a FIFO would wait for a writer. For a file this flag changes nothing.
        let nonblocking = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = nonblocking.map_err(|cause| match cause.raw_os_error() {
            // A socket can't be opened.
            Some(libc::ENXIO) => KeyFileError::NoFile { kind: "a socket or a device" },
            _ => system(cause),
        })?;
        let metadata = file.metadata().map_err(system)?;
        if let Some(kind) = other_kind(&metadata) {
            return Err(KeyFileError::NoFile { kind });
        }
        let mut bytes = Vec::new();
        (&file).take(bytes_max + 1).read_to_end(&mut bytes).map_err(system)?;
        if bytes.len() as u64 > bytes_max {
            return Err(KeyFileError::TooLong { bytes_max, what });
        }
        Ok(Self { bytes, mode: metadata.mode() & 0o777, file, metadata })
    }

    /// How to take from other users, or from the group, access that they must not have.
    pub(crate) fn way_to_hide(&self, path: &Path) -> String {
        let read_only = fstatvfs(&self.file)
            .is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY));
        if is_projected(path) || read_only {
            return "it is mounted read-only, so say there who may read it. Kubernetes: \
                    `defaultMode: 0400` for the secret's volume, and `fsGroup` in the pod's \
                    securityContext if the gateway does not run as root. Docker, Podman: mode 0440"
                .to_owned();
        }
        let owner = self.metadata.uid();
        let user = geteuid().as_raw();
        if user != 0 && user != owner {
            let group = getegid().as_raw();
            return format!(
                "its owner, user {owner}, may run `chgrp {group} {path} && chmod 440 {path}`; this \
                 process runs as user {user}, in group {group}",
                path = path.display()
            );
        }
        format!("chmod 600 {}", path.display())
    }
}

/// Whether Kubernetes manages the file's volume: the file is a link to `..data/<name>`, and `..data` links to
/// the folder of the current version.
fn is_projected(path: &Path) -> bool {
    path.parent().is_some_and(|folder| fs::symlink_metadata(folder.join("..data")).is_ok())
}

fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    let kinds = [
        (kind.is_dir(), "a directory"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device() || kind.is_block_device(), "a device"),
    ];
    kinds.into_iter().find_map(|(is, name)| is.then_some(name))
}

/// How to fix that a file can't be opened or read.
fn way_in(path: &Path, cause: &io::Error) -> String {
    if cause.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let runs_as = format!("this process runs as user {user}, in group {group}");
    match fs::metadata(path) {
        Ok(file) => format!(
            ": it belongs to user {} and group {}, mode {:03o}, and {runs_as}; let that group read it: \
             `chgrp {group} {path} && chmod 440 {path}`, or fsGroup: {group} in Kubernetes",
            file.uid(),
            file.gid(),
            file.mode() & 0o777,
            path = path.display()
        ),
        Err(_) => format!(": {runs_as}, and may not enter its folder"),
    }
}

/// Whether a file could be made; otherwise the error that the system would give.
pub(crate) fn can_be_made(path: &Path) -> io::Result<()> {
    let named = path
        .ancestors()
        .skip(1)
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    for folder in named {
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => {
                return Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?);
            }
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
