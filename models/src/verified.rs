//! Files that are what a registry says: their size and BLAKE3, checked before anything in them is used.
//!
//! Invariant: bytes that `Pins::check` let through hash to what is pinned. Nothing is remembered between
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

/// Size and BLAKE3 of a file.
pub fn measure(path: &Path) -> Result<(u64, Blake3Hash), FileProblem> {
    let bytes = map(path)?;
    Ok((bytes.as_slice().len() as u64, blake3_of(bytes.as_slice())))
}

/// Holds a file, wherever it is, against a pin.
pub fn check_file(path: &Path, pin: &FilePin) -> Result<(), FileProblem> {
    let found = std::fs::metadata(path).map_err(problem)?.len();
    if found != pin.size {
        return Err(FileProblem::Size { expected: pin.size, found });
    }
    check(map(path)?.as_slice(), pin)
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

fn check(bytes: &[u8], pin: &FilePin) -> Result<(), FileProblem> {
    if bytes.len() as u64 != pin.size {
        return Err(FileProblem::Size { expected: pin.size, found: bytes.len() as u64 });
    }
    match blake3_of(bytes) {
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

    /// Holds the bytes of the file at this path against its pin. A file that is not pinned is missing.
    pub(crate) fn check(&self, path: &str, bytes: &[u8]) -> Result<(), FileProblem> {
        let pin = self.files.iter().find(|pin| pin.path == path).ok_or(FileProblem::Missing)?;
        check(bytes, pin)
    }

    pub(crate) fn mend(&self) -> &str {
        &self.mend
    }
}
