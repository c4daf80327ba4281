//! Files of the kernel below a root: what was read, or why it could not be.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What was read, or why it was not.
pub type Reading<T> = Result<T, Unread>;

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The file, as seen on the machine.
    pub path: String,
    /// The cause.
    pub cause: Cause,
}

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It does not exist: the kernel is too old, was built without it, or shows it in another namespace.
    Absent,
    /// The calling process may not read it.
    Denied,
    /// Its content does not have the expected form.
    Malformed,
    /// Reading failed.
    Failed(String),
}

/// The files below a root: `/`, or a folder of a test.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// The tree below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The machine's own tree.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Path::new("/"))
    }

    /// Whether it is the machine's own tree.
    pub(crate) fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a file of the machine is in this tree.
    pub(crate) fn locate(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, without white space around it.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn text(&self, path: &str) -> Reading<String> {
        let text = fs::read_to_string(self.locate(path)).map_err(|e| Unread::io(path, &e))?;
        Ok(text.trim().to_owned())
    }

    /// A file that holds one number.
    ///
    /// # Errors
    /// When it can't be read, or holds no number.
    pub fn number<T: FromStr>(&self, path: &str) -> Reading<T> {
        self.text(path)?.parse().map_err(|_| Unread::malformed(path))
    }

    /// A file that holds numbers in a row.
    ///
    /// # Errors
    /// When it can't be read, or holds other than `N` numbers.
    pub fn numbers<const N: usize>(&self, path: &str) -> Reading<[u64; N]> {
        let numbers: Option<Vec<u64>> =
            self.text(path)?.split_whitespace().map(|word| word.parse().ok()).collect();
        numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| Unread::malformed(path))
    }

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn names(&self, path: &str) -> Reading<Vec<String>> {
        let failed = |error: io::Error| Unread::io(path, &error);
        let entries = fs::read_dir(self.locate(path)).map_err(failed)?;
        let mut names = entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
            .collect::<Reading<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Whether there is such a file or folder.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.locate(path).exists()
    }
}

impl Unread {
    /// Reading failed with an error of the system.
    #[must_use]
    pub fn io(path: &str, error: &io::Error) -> Self {
        let cause = match error.kind() {
            ErrorKind::NotFound => Cause::Absent,
            ErrorKind::PermissionDenied => Cause::Denied,
            _ => Cause::Failed(error.to_string()),
        };
        Self { path: path.to_owned(), cause }
    }

    /// The content does not have the expected form.
    #[must_use]
    pub fn malformed(path: &str) -> Self {
        Self { path: path.to_owned(), cause: Cause::Malformed }
    }

    /// Whether the file does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.cause == Cause::Absent
    }
}

impl std::error::Error for Unread {}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, cause } = self;
        match cause {
            Cause::Absent => write!(f, "{path} does not exist for this kernel or namespace"),
            Cause::Denied => write!(f, "{path} may not be read: ask as root"),
            Cause::Malformed => write!(f, "{path} does not have the expected form"),
            Cause::Failed(error) => write!(f, "{path}: {error}"),
        }
    }
}
