//! Secrets in files: one line whose text is the secret.
//!
//! A missing secret is made on first start, so no gateway runs with a secret that others know. The text itself is the
//! key, so other programs that need it only read a line.

mod file;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::durable;

pub(crate) use file::KeyFile;
pub use file::KeyFileError;

/// Shortest secret, in bytes: as many as the hash of HS256 has.
pub const SECRET_BYTES_MIN: usize = 32;

/// Permissions that a secret's file must not give. Its group may read it, whoever its owner is: orchestrators
/// give secrets to a process that is not root in this way. Its group may not change it, even if the owner is
/// alone in the group: the file does not show it, and the members may change later. Other users have no access.
const FORBIDDEN_MODE: u32 = 0o027;

/// Random bytes of a new secret. In hexadecimal it is twice as long.
const RANDOM_BYTES: usize = 32;

/// Why there is no secret. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("can't read the secret {path}: {cause}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: KeyFileError,
    },
    /// The file does not exist, and can't be made.
    #[error(
        "there is no secret {path}, and it can't be made: {cause}; put one there with \
         `(umask 077; openssl rand -hex 32 > {path})`, or name another file",
        path = path.display()
    )]
    NotMade {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is a link to a file that does not exist.
    #[error("the secret {path} is a symbolic link to nothing: remove it, or make what it names", path = path.display())]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// The file's mode lets its group change it, or other users read or change it.
    #[error(
        "the secret {path} gives too much access (mode {mode:03o}): only its owner may change it, and only its owner \
         and group may read it; {hint}",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// How to fix it.
        hint: String,
    },
    /// The file does not hold UTF-8 text.
    #[error(
        "{path} holds no secret: it must be text, one line of at least {SECRET_BYTES_MIN} bytes; \
         `openssl rand -hex 32` makes one",
        path = path.display()
    )]
    Binary {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold one line of the right length.
    #[error(
        "{path} holds no secret: it must be one line of at least {SECRET_BYTES_MIN} bytes, this has \
         {bytes} bytes in {lines} lines; `openssl rand -hex 32` makes one, or remove the file and start \
         again",
        path = path.display()
    )]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Bytes in it, without white space at its ends.
        bytes: usize,
        /// Lines in it.
        lines: usize,
    },
}

impl SecretError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Unreadable { cause, .. } if cause.is_not_found())
    }
}

/// Reads a secret. Where there is no file, makes one: 32 random bytes in hexadecimal, mode 0600, in a folder that only
/// its owner may enter. Several processes that start at the same time all get the same secret.
///
/// A file that exists may be readable for its group: modes 0600, 0640, 0400 and 0440 are accepted. None may be
/// writable for its group, or give other users anything.
///
/// # Errors
/// [`SecretError`] when the file can't be read or made, when its mode gives too much access, or when it holds no
/// line of at least [`SECRET_BYTES_MIN`] bytes.
pub fn load_or_create_secret(path: &Path) -> Result<String, SecretError> {
    match read(path) {
        Err(error) if error.is_not_found() => {
            create(path).map_err(|cause| SecretError::NotMade { path: path.to_owned(), cause })?;
            read(path).map_err(|error| match error.is_not_found() {
                // The link itself prevents making the file.
                true => SecretError::Dangling { path: path.to_owned() },
                false => error,
            })
        }
        other => other,
    }
}

/// Reads a secret that exists.
///
/// # Errors
/// As [`load_or_create_secret`]; also where there is no file.
pub fn load_secret(path: &Path) -> Result<String, SecretError> {
    read(path)
}

/// Checks a secret that exists, and that a missing one can be made. Makes none.
///
/// # Errors
/// As [`load_or_create_secret`].
pub fn check_secret(path: &Path) -> Result<(), SecretError> {
    match read(path) {
        Err(error) if error.is_not_found() && fs::symlink_metadata(path).is_ok() => {
            Err(SecretError::Dangling { path: path.to_owned() })
        }
        Err(error) if error.is_not_found() => file::can_be_made(path)
            .map_err(|cause| SecretError::NotMade { path: path.to_owned(), cause }),
        other => other.map(drop),
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    let file = KeyFile::read(path)
        .map_err(|cause| SecretError::Unreadable { path: path.to_owned(), cause })?;
    if file.mode & FORBIDDEN_MODE != 0 {
        let (mode, hint) = (file.mode, file.way_to_hide(path));
        return Err(SecretError::Exposed { path: path.to_owned(), mode, hint });
    }
    let text =
        String::from_utf8(file.bytes).map_err(|_| SecretError::Binary { path: path.to_owned() })?;
    let secret = text.trim();
    let (bytes, lines) = (secret.len(), secret.lines().count());
    if bytes < SECRET_BYTES_MIN || lines != 1 {
        return Err(SecretError::Unfit { path: path.to_owned(), bytes, lines });
    }
    Ok(secret.to_owned())
}

/// Makes the file atomically: it is written under another name and then linked to its own. Unlike a rename, a link does
/// not replace a file that another process made meanwhile. The file survives a power cut: tokens that were signed with
/// the secret would be refused without it.
fn create(path: &Path) -> io::Result<()> {
    let folder = durable::folder_of(path);
    durable::create_folders(folder, 0o700)?;
    let secret = random_hex()?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", &random_hex()?[..16]));
    let draft = PathBuf::from(draft);
    let written = write(&draft, &secret).and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => removed.and_then(|()| durable::sync_folder(folder)),
    }
}

fn write(path: &Path, secret: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")?;
    file.sync_data()
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::durable::fault::with_failing;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_missing_secret_is_made_once_and_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/secret");
        let starters: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || load_or_create_secret(&path).unwrap())
            })
            .collect();
        let secrets: Vec<_> = starters.into_iter().map(|one| one.join().unwrap()).collect();
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        assert_eq!(secrets[0].len(), 2 * RANDOM_BYTES);
        assert_eq!(load_or_create_secret(&path).unwrap(), secrets[0]);
        let parent = path.parent().unwrap();
        assert_eq!((mode(&path), mode(parent)), (0o600, 0o700));
        assert_eq!(fs::read_dir(parent).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_new_secret_survives_a_power_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let create = || load_or_create_secret(&path);
        let unsynced = with_failing(libc::SYS_fdatasync, create);
        assert!(matches!(unsynced, Err(SecretError::NotMade { .. })), "{unsynced:?}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "its bytes come before its name"
        );
        let unsynced = with_failing(libc::SYS_fsync, create);
        assert!(matches!(unsynced, Err(SecretError::NotMade { .. })), "{unsynced:?}");
        assert_eq!(read(&path).unwrap().len(), 2 * RANDOM_BYTES, "its name is synced last");
    }

    #[test]
    fn a_secrets_group_may_read_it_and_not_change_it_and_others_may_do_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for mode in [0o400, 0o440, 0o600, 0o640] {
            write_with_mode(&path, GOOD.as_bytes(), mode);
            assert_eq!(load_or_create_secret(&path).unwrap(), GOOD, "{mode:o}");
            check_secret(&path).unwrap();
        }
        // The modes of a file that a shell makes with the usual umasks 0002, 0007 and 0022 are among them.
        for mode in [0o664, 0o660, 0o644, 0o666, 0o620, 0o604, 0o602, 0o601] {
            write_with_mode(&path, GOOD.as_bytes(), mode);
            let error = refusal(&path);
            let rule = "only its owner may change it, and only its owner and group may read it";
            assert!(error.contains(&format!("mode {mode:o}")) && error.contains(rule), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn an_unfit_secret_is_refused_with_how_to_fix_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let with = |text: &str| {
            write_with_mode(&path, text.as_bytes(), 0o600);
            let loaded = load_or_create_secret(&path).map_err(|error| error.to_string());
            let checked = check_secret(&path).map_err(|error| error.to_string());
            assert_eq!(checked.err(), loaded.clone().err());
            loaded
        };
        let good = "0123456789abcdef0123456789abcdef";
        check_secret(&path).unwrap();
        assert!(!path.exists(), "a check makes none");
        assert_eq!(with(&format!("{good}\n")).unwrap(), good);
        assert!(with("").unwrap_err().contains("at least 32 bytes"));
        assert!(with(&good[1..]).unwrap_err().contains("31 bytes"));
        assert!(with(&format!("{good}\n{good}")).unwrap_err().contains("2 lines"));
    }

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    /// What both say that a start and a check of this secret would fail with.
    #[track_caller]
    fn refusal(path: &Path) -> String {
        let error = load_or_create_secret(path).unwrap_err().to_string();
        assert_eq!(check_secret(path).unwrap_err().to_string(), error);
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    }

    fn write_with_mode(path: &Path, text: &[u8], mode: u32) {
        // Only root may write to a file that its owner may only read.
        drop(fs::remove_file(path));
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A volume as Kubernetes makes it: links to a folder whose name changes with each version.
    #[test]
    fn a_secret_that_kubernetes_mounts_for_all_says_which_mode_to_mount_it_with() {
        let volume = tempfile::tempdir().unwrap();
        let version = volume.path().join("..2026_01_01");
        fs::create_dir(&version).unwrap();
        write_with_mode(&version.join("token"), GOOD.as_bytes(), 0o644);
        symlink("..2026_01_01", volume.path().join("..data")).unwrap();
        let path = volume.path().join("token");
        symlink("..data/token", &path).unwrap();
        let error = refusal(&path);
        assert!(error.contains("mode 644"), "the file's mode, not the link's: {error}");
        assert!(error.contains("defaultMode: 0400") && error.contains("fsGroup"), "{error}");
        assert!(!error.contains("chmod"), "{error}");
        for mode in [0o400, 0o440, 0o600, 0o640] {
            write_with_mode(&version.join("token"), GOOD.as_bytes(), mode);
            assert_eq!(load_or_create_secret(&path).unwrap(), GOOD, "{mode:o}");
        }
    }

    #[test]
    fn a_path_that_is_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        symlink("/dev/zero", path("device")).unwrap();
        for (name, kind) in [
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("directory", "a directory"),
            ("device", "a device"),
        ] {
            let error = refusal(&path(name));
            assert!(error.contains(kind) && error.contains("not a file"), "{error}");
        }
    }

    #[test]
    fn an_invalid_secret_is_refused_with_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write_with_mode(&path, &[0xff; 32], 0o600);
        let error = refusal(&path);
        assert!(error.contains("text") && error.contains("openssl rand -hex 32"), "{error}");
        write_with_mode(&path, &[b'x'; 70_000], 0o600);
        assert!(refusal(&path).contains("longer than 64 KiB"));
        fs::remove_file(&path).unwrap();
        symlink("nowhere", &path).unwrap();
        assert!(refusal(&path).contains("symbolic link to nothing"));
    }

    #[test]
    fn a_secret_that_cant_be_made_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.join("secret"), file.join("more/secret")] {
            let (loaded, checked) = (load_or_create_secret(&path), check_secret(&path));
            for error in [loaded.unwrap_err().to_string(), checked.unwrap_err().to_string()] {
                assert!(error.contains(path.to_str().unwrap()), "{error}");
            }
        }
        // Nobody can make a folder there.
        let error = load_or_create_secret(Path::new("/proc/nowhere/secret"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("openssl rand -hex 32 >"), "{error}");
    }
}
