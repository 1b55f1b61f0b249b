//! Reading and writing of files that hold a secret.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::IdentityError;

const PRIVATE: u32 = 0o600;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + '_ {
    move |cause| match cause.kind() {
        ErrorKind::AlreadyExists => IdentityError::Exists { path: path.to_owned() },
        _ => IdentityError::Io { path: path.to_owned(), cause },
    }
}

/// Reads a file that only its owner can read, of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let file = open(path)?;
    let mode = file.metadata().map_err(failed(path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    read_open(file, path, limit)
}

/// Reads a file that may be public.
pub(super) fn read_public(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    read_open(open(path)?, path, limit)
}

fn open(path: &Path) -> Result<File, IdentityError> {
    // A named pipe would keep a plain open waiting for ever.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed(path))?;
    match file.metadata().map_err(failed(path))?.is_file() {
        true => Ok(file),
        false => Err(IdentityError::NotAFile { path: path.to_owned() }),
    }
}

fn read_open(file: File, path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    // Room for everything at once: growing would leave copies behind that nobody erases.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed(path))?;
    match bytes.len() as u64 > limit {
        true => Err(IdentityError::TooLarge { path: path.to_owned(), limit }),
        false => Ok(bytes),
    }
}

/// Writes a new file of mode 0600: afterwards it is whole and on the disk, or not there at all. Folders
/// that are missing are made with mode 0700. An existing file is never touched.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|cause| IdentityError::Io { path: folder.to_owned(), cause })?;
    let unfinished = Unfinished::write(path, bytes)?;
    // Unlike a rename, a link fails when there is a file already.
    fs::hard_link(&unfinished.0, path)
        .or_else(|cause| match cause.kind() {
            ErrorKind::AlreadyExists => Err(cause),
            // File systems without links: the check and the rename are two steps there.
            _ if path.symlink_metadata().is_ok() => Err(ErrorKind::AlreadyExists.into()),
            _ => fs::rename(&unfinished.0, path),
        })
        .map_err(failed(path))?;
    drop(unfinished);
    // The folder's entry has to be on the disk too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

/// A file beside the one to be, removed when done with.
struct Unfinished(PathBuf);

impl Unfinished {
    fn write(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{:016x}.new", rand::random::<u64>()));
        let beside = path.with_file_name(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&beside)
            .map_err(failed(&beside))?;
        let unfinished = Self(beside);
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(path))?;
        Ok(unfinished)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}
