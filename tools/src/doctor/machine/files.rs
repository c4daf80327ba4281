//! Files of the kernel below a root: what could be read, and why not.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What was read, or why it was not.
pub(in crate::doctor) type Reading<T> = Result<T, Unread>;

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Unread {
    /// The file, as seen on the machine.
    pub(in crate::doctor) path: String,
    /// What was the matter.
    pub(in crate::doctor) cause: Cause,
}

/// What was the matter with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Cause {
    /// It isn't there: the kernel is too old, was built without, or shows it to another namespace.
    Absent,
    /// Who asks may not read it.
    Denied,
    /// It doesn't hold what it should.
    Malformed,
    /// Reading failed.
    Failed(String),
}

/// A tree that looks like the machine's: `/`, or a test's.
#[derive(Clone, Debug)]
pub(in crate::doctor) struct Files {
    root: PathBuf,
}

impl Files {
    /// The tree below `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether it is the machine's own.
    pub(super) fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a file of the machine is in this tree.
    pub(super) fn locate(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, without white space around it.
    pub(super) fn text(&self, path: &str) -> Reading<String> {
        let text = fs::read_to_string(self.locate(path)).map_err(|e| Unread::io(path, &e))?;
        Ok(text.trim().to_owned())
    }

    /// A file that holds one number.
    pub(super) fn number<T: FromStr>(&self, path: &str) -> Reading<T> {
        self.text(path)?.parse().map_err(|_| Unread::malformed(path))
    }

    /// A file that holds numbers in a row.
    pub(super) fn numbers<const N: usize>(&self, path: &str) -> Reading<[u64; N]> {
        let numbers: Option<Vec<u64>> =
            self.text(path)?.split_whitespace().map(|word| word.parse().ok()).collect();
        numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| Unread::malformed(path))
    }

    /// The names in a folder, sorted.
    pub(super) fn names(&self, path: &str) -> Reading<Vec<String>> {
        let failed = |error: io::Error| Unread::io(path, &error);
        let entries = fs::read_dir(self.locate(path)).map_err(failed)?;
        let mut names = entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
            .collect::<Reading<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Whether there is such a file or folder.
    pub(super) fn has(&self, path: &str) -> bool {
        self.locate(path).exists()
    }
}

impl Unread {
    /// Reading failed.
    pub(super) fn io(path: &str, error: &io::Error) -> Self {
        let cause = match error.kind() {
            ErrorKind::NotFound => Cause::Absent,
            ErrorKind::PermissionDenied => Cause::Denied,
            _ => Cause::Failed(error.to_string()),
        };
        Self { path: path.to_owned(), cause }
    }

    /// It doesn't hold what it should.
    pub(super) fn malformed(path: &str) -> Self {
        Self { path: path.to_owned(), cause: Cause::Malformed }
    }

    /// Whether the file isn't there.
    pub(in crate::doctor) fn is_absent(&self) -> bool {
        self.cause == Cause::Absent
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, cause } = self;
        match cause {
            Cause::Absent => write!(f, "{path} is not there for this kernel or namespace"),
            Cause::Denied => write!(f, "{path} may not be read: ask as root"),
            Cause::Malformed => write!(f, "{path} doesn't hold what it should"),
            Cause::Failed(error) => write!(f, "{path}: {error}"),
        }
    }
}
