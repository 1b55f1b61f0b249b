//! What goes wrong with a database, in words that say what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use rocksdb::ErrorKind;

use super::limits;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database {path} is in use by another process: stop that one, or choose another --data-dir")]
    Locked { path: PathBuf },
    #[error(
        "the database {path} is damaged ({detail}). Run `argus store repair {path}` while no node uses it: \
         it keeps a copy, saves what can be read, and says what was lost; or move the folder away to begin anew"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("no permission to use the database {path} ({detail}): give this user read and write access")]
    Denied { path: PathBuf, detail: String },
    #[error("the disk with the database {path} is full: free some space, the node then goes on by itself")]
    Full { path: PathBuf },
    #[error("the database {path} is behind with its writes: try again")]
    Busy { path: PathBuf },
    #[error("the database {path} was written by a newer version of Argus ({detail}): update Argus")]
    Newer { path: PathBuf, detail: String },
    #[error("a {what} of {size} bytes for table {table} is over the limit of {limit}")]
    TooLarge { table: &'static str, what: &'static str, size: usize, limit: usize },
    #[error("a value in table {table} is not what this version of Argus expects: {detail}")]
    Value { table: &'static str, detail: String },
    #[error("the database {path} failed: {detail}")]
    Io { path: PathBuf, detail: String },
}

impl StoreError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            StoreError::Locked { .. } => "locked",
            StoreError::Damaged { .. } => "damaged",
            StoreError::Denied { .. } => "denied",
            StoreError::Full { .. } => "full",
            StoreError::Busy { .. } => "busy",
            StoreError::Newer { .. } => "newer",
            StoreError::TooLarge { .. } => "too_large",
            StoreError::Value { .. } => "value",
            StoreError::Io { .. } => "io",
        }
    }

    /// Whether the same call can succeed later without anybody repairing anything.
    pub fn retryable(&self) -> bool {
        matches!(self, StoreError::Full { .. } | StoreError::Busy { .. })
    }

    pub(super) fn from_rocksdb(error: &rocksdb::Error, path: &Path) -> Self {
        let path = path.to_owned();
        let detail = error.to_string();
        let says = |text: &str| detail.contains(text);
        if says("No space left") || says("Disk quota exceeded") {
            return StoreError::Full { path };
        }
        match error.kind() {
            ErrorKind::Incomplete if free_space(&path) < limits::FREE_SPACE => StoreError::Full { path },
            ErrorKind::Incomplete | ErrorKind::Busy | ErrorKind::TryAgain => StoreError::Busy { path },
            ErrorKind::IOError if says("lock hold") || says("LOCK: Resource temporarily") => {
                StoreError::Locked { path }
            }
            ErrorKind::IOError if says("Permission denied") || says("Read-only file system") => {
                StoreError::Denied { path, detail }
            }
            ErrorKind::InvalidArgument if says("Column families not opened") => {
                StoreError::Newer { path, detail }
            }
            // A file that the manifest names and that is gone or too short.
            ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported => {
                StoreError::Damaged { path, detail }
            }
            ErrorKind::IOError if says("No such file") || says("truncated") => {
                StoreError::Damaged { path, detail }
            }
            _ => StoreError::Io { path, detail },
        }
    }

    pub(super) fn from_io(error: &io::Error, path: &Path) -> Self {
        let path = path.to_owned();
        let detail = error.to_string();
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::Denied { path, detail }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
            _ => StoreError::Io { path, detail },
        }
    }
}

/// Bytes this user may still write there; the largest number when the system does not say.
fn free_space(path: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return u64::MAX;
    };
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a valid C string and a place for the answer, which is read only when the call filled it.
    unsafe {
        if libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) != 0 {
            return u64::MAX;
        }
        let answer = answer.assume_init();
        // Some systems count in 32 bits.
        #[allow(clippy::unnecessary_cast)]
        let free = (answer.f_bavail as u64).saturating_mul(answer.f_frsize as u64);
        free
    }
}
