//! Files that are what a registry says: their size and BLAKE3, checked before anything in them is used.
//!
//! Invariant: bytes that `Pins` let through hash to what is pinned. Nothing is remembered between
//! loads: hashing on all cores is faster than reading the file.

use std::path::Path;
use std::sync::Arc;

use crate::registry::{Blake3Hash, Component, FilePin, ModelId};
use crate::weights::{FileBytes, WeightsError};

/// Why a file is not what is pinned.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    #[error("is missing")]
    Missing,
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("has {found} bytes, not the {expected} of the registry")]
    Size { expected: u64, found: u64 },
    #[error("has BLAKE3 {found}, not the registry's {expected}")]
    Hash { expected: Blake3Hash, found: Blake3Hash },
}

impl FileProblem {
    /// A stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing_file",
            Self::Unreadable(_) => "unreadable",
            Self::Size { .. } => "wrong_size",
            Self::Hash { .. } => "wrong_hash",
        }
    }
}

/// BLAKE3 of bytes, on the threads of the pool that the caller is in.
pub fn blake3_of(bytes: &[u8]) -> Blake3Hash {
    Blake3Hash(*blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes())
}

/// As [`blake3_of`], without the whole file in memory.
fn blake3_of_file(file: &FileBytes) -> Blake3Hash {
    /// Enough for all threads.
    const AT_ONCE: usize = 64 << 20;
    let mut hasher = blake3::Hasher::new();
    for (index, bytes) in file.as_slice().chunks(AT_ONCE).enumerate() {
        hasher.update_rayon(bytes);
        file.release(index * AT_ONCE..index * AT_ONCE + bytes.len());
    }
    Blake3Hash(*hasher.finalize().as_bytes())
}

/// Size and BLAKE3 of a file.
pub fn measure(path: &Path) -> Result<(u64, Blake3Hash), FileProblem> {
    let file = map(path)?;
    Ok((file.as_slice().len() as u64, blake3_of_file(&file)))
}

/// Holds a file, wherever it is, against a pin.
pub fn check_file(path: &Path, pin: &FilePin) -> Result<(), FileProblem> {
    let found = std::fs::metadata(path).map_err(problem)?.len();
    if found != pin.size {
        return Err(FileProblem::Size { expected: pin.size, found });
    }
    let file = map(path)?;
    check(file.as_slice().len(), || blake3_of_file(&file), pin)
}

fn map(path: &Path) -> Result<FileBytes, FileProblem> {
    FileBytes::map(path).map_err(|error| match error {
        WeightsError::Unreadable { source, .. } => problem(source),
        other => FileProblem::Unreadable(std::io::Error::other(other)),
    })
}

fn problem(error: std::io::Error) -> FileProblem {
    match error.kind() {
        std::io::ErrorKind::NotFound => FileProblem::Missing,
        _ => FileProblem::Unreadable(error),
    }
}

fn check(size: usize, hash: impl FnOnce() -> Blake3Hash, pin: &FilePin) -> Result<(), FileProblem> {
    if size as u64 != pin.size {
        return Err(FileProblem::Size { expected: pin.size, found: size as u64 });
    }
    match hash() {
        found if found == pin.blake3 => Ok(()),
        found => Err(FileProblem::Hash { expected: pin.blake3, found }),
    }
}

/// What a component's files must be.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    files: Arc<[FilePin]>,
    /// The command that mends a wrong file.
    mend: Arc<str>,
}

impl Pins {
    /// `None` where the registry pins nothing of the component.
    pub(crate) fn of(model: &ModelId, component: &Component) -> Option<Self> {
        if component.files.is_empty() {
            return None;
        }
        let mend = match component.origin {
            Some(_) => format!("`argus models fetch {model}` gets it again"),
            None => format!(
                "put the right file there, or if you changed it on purpose take it in with `argus models add --replace`, \
                 and see `argus models verify {model}`"
            ),
        };
        Some(Self { files: component.files.as_slice().into(), mend: mend.into() })
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.files.iter().any(|pin| pin.path == path)
    }

    /// The paths of all pinned files.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|pin| pin.path.as_str())
    }

    fn pin(&self, path: &str) -> Result<&FilePin, FileProblem> {
        self.files.iter().find(|pin| pin.path == path).ok_or(FileProblem::Missing)
    }

    /// Holds the bytes of the file at this path against its pin. A file that is not pinned is missing.
    pub(crate) fn check(&self, path: &str, bytes: &[u8]) -> Result<(), FileProblem> {
        check(bytes.len(), || blake3_of(bytes), self.pin(path)?)
    }

    /// As [`Self::check`], for a file that may be large.
    pub(crate) fn check_file(&self, path: &str, file: &FileBytes) -> Result<(), FileProblem> {
        check(file.as_slice().len(), || blake3_of_file(file), self.pin(path)?)
    }

    pub(crate) fn mend(&self) -> &str {
        &self.mend
    }
}
