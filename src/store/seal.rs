//! Notices a database that lost part of a file while nobody had it open.
//!
//! RocksDB takes a manifest or log that ends early for the trace of a crash, and quietly goes on with what
//! is left: right after a crash, wrong after a disk fault or a copy cut short. A database that was closed
//! in order therefore leaves the sizes of its files in `SEAL`; the next to open it compares them first.
//! After a crash there is no seal, or (when something else than Argus opened it since) one that names
//! another manifest; then nothing is compared.

use std::{collections::BTreeMap, fs, io, path::Path};

use rocksdb::DB;
use serde::{Deserialize, Serialize};

const NAME: &str = "SEAL";

#[derive(Default, Serialize, Deserialize)]
struct Seal {
    /// Every opening begins a new one.
    manifest: String,
    /// Of the files that matter, bytes.
    sizes: BTreeMap<String, u64>,
}

/// Writes the seal. The database must have stopped its background work and still hold its lock.
pub(super) fn write(db: &DB, path: &Path) -> io::Result<()> {
    let live = db.live_files().map_err(io::Error::other)?;
    let mut names: Vec<String> =
        live.iter().map(|file| file.name.trim_start_matches('/').to_owned()).collect();
    let manifest = current_manifest(path)?;
    names.push(manifest.clone());
    names.extend(newest_log(path)?);
    let mut sizes = BTreeMap::new();
    for name in names {
        let size = fs::metadata(path.join(&name))?.len();
        sizes.insert(name, size);
    }
    let unfinished = path.join("SEAL.new");
    fs::write(&unfinished, serde_json::to_vec(&Seal { manifest, sizes })?)?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(unfinished, path.join(NAME))
}

fn current_manifest(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path.join("CURRENT"))?.trim().to_owned())
}

/// Older logs may be deleted while the database closes.
fn newest_log(path: &Path) -> io::Result<Option<String>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") {
            logs.push(name);
        }
    }
    Ok(logs.into_iter().max())
}

/// Compares the files with the seal and removes it, or says what is different.
pub(super) fn take(path: &Path) -> io::Result<Option<String>> {
    let Ok(bytes) = fs::read(path.join(NAME)) else { return Ok(None) };
    // An unreadable seal proves nothing about the rest.
    let seal: Seal = serde_json::from_slice(&bytes).unwrap_or_default();
    let stale = current_manifest(path).is_ok_and(|manifest| manifest != seal.manifest);
    let sizes = if stale { BTreeMap::new() } else { seal.sizes };
    for (name, expected) in sizes {
        match fs::metadata(path.join(&name)).map(|m| m.len()) {
            Ok(size) if size == expected => {}
            Ok(size) => {
                return Ok(Some(format!("{name} had {expected} bytes when it was closed, now {size}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(format!("{name} is gone")));
            }
            Err(error) => return Err(error),
        }
    }
    remove(path).map(|()| None)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
