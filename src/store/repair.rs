//! Saving what is left of a damaged database.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rocksdb::{DB, IteratorMode};
use serde::Serialize;

use super::{Store, StoreError, Table, database_options, is_table_file, seal};

/// What a repair did.
#[derive(Clone, Debug, Serialize)]
pub struct Repaired {
    /// The folder as it was before.
    pub copy: PathBuf,
    /// Entries in each table now.
    pub entries: Vec<(&'static str, u64)>,
    /// Table files that could not be read at all; they are in the folder `lost`.
    pub lost: usize,
}

impl Store {
    /// Saves what can be read of a damaged database, after copying the folder aside. Not for a database
    /// that a node has open.
    pub fn repair(path: &Path) -> Result<Repaired, StoreError> {
        if !path.is_dir() {
            return Err(StoreError::Io { path: path.to_owned(), detail: "there is no such folder".into() });
        }
        let copy = copy_aside(path).map_err(|e| StoreError::from_io(&e, path))?;
        if let Err(error) = DB::repair(&database_options(), path) {
            let error = StoreError::from_rocksdb(&error, path);
            if matches!(error, StoreError::Locked { .. }) {
                // Nothing was touched, and a copy of a database in use is worth nothing.
                let _ = fs::remove_dir_all(&copy);
            }
            return Err(error);
        }
        seal::remove(path).map_err(|e| StoreError::from_io(&e, path))?;
        let store = Store::open(path)?;
        let mut entries = Vec::new();
        for table in Table::ALL {
            let found = store.inner.db.iterator_cf(store.table(table), IteratorMode::Start);
            let mut count = 0;
            for entry in found {
                entry.map_err(|e| store.error(&e))?;
                count += 1;
            }
            entries.push((table.name(), count));
        }
        let lost = fs::read_dir(path.join("lost")).map_or(0, |files| {
            files.filter_map(Result::ok).filter(|f| is_table_file(&f.file_name())).count()
        });
        Ok(Repaired { copy, entries, lost })
    }
}

/// Copies the folder beside itself, under a name that is free.
fn copy_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().map_or_else(|| "store".into(), |n| n.to_string_lossy());
    let copy = (1..)
        .map(|n| path.with_file_name(format!("{name}.before-repair-{n}")))
        .find(|copy| !copy.exists())
        .expect("some number is free");
    let unfinished = path.with_file_name(format!("{name}.copying"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir(&unfinished)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Whoever closes any handle of a lock file loses the lock on it: leave it alone.
        if entry.file_type()?.is_file() && entry.file_name() != "LOCK" {
            fs::copy(entry.path(), unfinished.join(entry.file_name()))?;
        }
    }
    fs::rename(&unfinished, &copy)?;
    Ok(copy)
}
