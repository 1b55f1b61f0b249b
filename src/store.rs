//! What a node keeps on disk: one RocksDB database, and nobody else knows RocksDB.
//!
//! Invariants:
//! - A [`Durability::Synced`] write that returned `Ok` is there after a kill, a crash or a power cut; a
//!   [`Durability::Buffered`] one survives a kill of the process, not always a power cut.
//! - A [`Batch`] is written whole or not at all.
//! - No call waits for space or for compaction: a full disk is [`StoreError::Full`] at once, and writing
//!   works again some seconds after there is space (RocksDB looks every five).
//! - A database that cannot be opened gets an error that says what to do, never a panic, and is never
//!   silently replaced by an empty one.
//! - Memory is bounded (`limits`): a home node pays some twenty megabytes at most.
//!
//! Calls block for as long as the disk takes. Reads are mostly served from memory; a synced write waits
//! for the disk and belongs into `spawn_blocking` where latency matters.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};

mod error;
mod repair;
mod seal;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use repair::Repaired;

/// Everything that bounds the database's use of memory, files and time.
mod limits {
    use std::time::Duration;

    /// The longest key, bytes.
    pub const KEY: usize = 1024;
    /// The largest value, bytes.
    pub const VALUE: usize = 4 << 20;
    /// Blocks of tables, their indexes and filters, in memory.
    pub const CACHE: usize = 8 << 20;
    /// Writes of one table not yet in a file.
    pub const WRITE_BUFFER: usize = 1 << 20;
    /// Writes of all tables not yet in files.
    pub const WRITE_BUFFERS: usize = 8 << 20;
    /// The write-ahead log; beyond that the oldest tables are flushed.
    pub const LOG: u64 = 16 << 20;
    pub const OPEN_FILES: i32 = 128;
    /// Less free space than this, and a write that would have to wait is reported as a full disk.
    pub const FREE_SPACE: u64 = 4 << 20;
    /// How often, and with which pause, a write is tried again while RocksDB is behind.
    pub const WRITE_ATTEMPTS: u32 = 5;
    pub const WRITE_PAUSE: Duration = Duration::from_millis(20);
}

/// One key space each. Names are part of the format on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Signed hotkey records of the DHT.
    Records,
    /// The address book.
    Peers,
    /// Period scores.
    Periods,
    /// Receipts of answered queries.
    Receipts,
    /// Scores of single answers.
    Scores,
    /// API keys (hashes).
    Keys,
    /// What API keys used.
    Usage,
    /// What is about to be sent to the chain.
    Intents,
    /// Small facts about the node itself.
    Meta,
    /// State of the development chain.
    ChainState,
    /// Blocks of the development chain.
    ChainBlocks,
}

impl Table {
    const ALL: [Table; 11] = [
        Table::Records,
        Table::Peers,
        Table::Periods,
        Table::Receipts,
        Table::Scores,
        Table::Keys,
        Table::Usage,
        Table::Intents,
        Table::Meta,
        Table::ChainState,
        Table::ChainBlocks,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Records => "records",
            Table::Peers => "peers",
            Table::Periods => "periods",
            Table::Receipts => "receipts",
            Table::Scores => "scores",
            Table::Keys => "keys",
            Table::Usage => "usage",
            Table::Intents => "intents",
            Table::Meta => "meta",
            Table::ChainState => "chain_state",
            Table::ChainBlocks => "chain_blocks",
        }
    }
}

/// What a finished write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk itself: survives a power cut.
    Synced,
    /// With the operating system: survives the end of the process, however it ends.
    Buffered,
}

/// Keys and values, in the order of the keys.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes that happen together or not at all.
#[derive(Default)]
pub struct Batch {
    operations: Vec<Operation>,
}

enum Operation {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    DeleteRange(Table, Vec<u8>, Vec<u8>),
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> &mut Self {
        self.operations.push(Operation::Put(table, key.to_vec(), value.to_vec()));
        self
    }

    pub fn put_json<T: Serialize>(
        &mut self,
        table: Table,
        key: &[u8],
        value: &T,
    ) -> Result<&mut Self, StoreError> {
        let value = to_json(table, value)?;
        self.operations.push(Operation::Put(table, key.to_vec(), value));
        Ok(self)
    }

    pub fn delete(&mut self, table: Table, key: &[u8]) -> &mut Self {
        self.operations.push(Operation::Delete(table, key.to_vec()));
        self
    }

    /// All keys from `from` on and before `to`.
    pub fn delete_range(&mut self, table: Table, from: &[u8], to: &[u8]) -> &mut Self {
        self.operations.push(Operation::DeleteRange(table, from.to_vec(), to.to_vec()));
        self
    }
}

fn to_json<T: Serialize>(table: Table, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Value { table: table.name(), detail: e.to_string() })
}

/// An open database. Cheap to clone; closed when the last clone goes.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    db: DB,
    path: PathBuf,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
        if let Err(error) = seal::write(&self.db, &self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the database closes without a seal");
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish()
    }
}

impl Store {
    /// Opens the database in this folder, or makes one.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        create_folder(path)?;
        let damaged = |detail| StoreError::Damaged { path: path.to_owned(), detail };
        let fresh = !path.join("CURRENT").exists();
        if fresh && holds_tables(path)? {
            // RocksDB would make a new, empty database over the old files.
            return Err(damaged("its CURRENT file is missing".into()));
        }
        if let Some(difference) = seal::take(path).map_err(|e| StoreError::from_io(&e, path))? {
            return Err(damaged(difference));
        }
        let options = database_options();
        // The unused default family counts too: after a full disk, RocksDB goes on when the largest write
        // buffer of all families would fit.
        let tables = Table::ALL
            .iter()
            .map(|table| table.name())
            .chain([rocksdb::DEFAULT_COLUMN_FAMILY_NAME])
            .map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        let db = DB::open_cf_descriptors(&options, path, tables)
            .map_err(|e| StoreError::from_rocksdb(&e, path))?;
        let store = Store { inner: Arc::new(Inner { db, path: path.to_owned() }) };
        if fresh {
            store.plant()?;
        }
        Ok(store)
    }

    /// Gives each table a first file. Repair learns from files which tables there are; without one, what a
    /// table has in the log alone would be lost with the manifest.
    fn plant(&self) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for table in Table::ALL {
            batch.delete(table, b"\0planted");
        }
        self.write(batch, Durability::Synced)?;
        for table in Table::ALL {
            self.inner.db.flush_cf(self.table(table)).map_err(|e| self.error(&e))?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.db.get_cf(self.table(table), key).map_err(|e| self.error(&e))
    }

    pub fn get_json<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(table, key)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| StoreError::Value { table: table.name(), detail: e.to_string() })
    }

    pub fn put(
        &self,
        table: Table,
        key: &[u8],
        value: &[u8],
        durability: Durability,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(table, key, value);
        self.write(batch, durability)
    }

    pub fn put_json<T: Serialize>(
        &self,
        table: Table,
        key: &[u8],
        value: &T,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put_json(table, key, value)?;
        self.write(batch, durability)
    }

    pub fn delete(&self, table: Table, key: &[u8], durability: Durability) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.delete(table, key);
        self.write(batch, durability)
    }

    /// All keys from `from` on and before `to`.
    pub fn delete_range(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        durability: Durability,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.delete_range(table, from, to);
        self.write(batch, durability)
    }

    /// The first `limit` entries whose keys begin with `prefix`, in the order of the keys.
    pub fn scan(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Entries, StoreError> {
        self.iterate(table, prefix, successor(prefix), false, limit)
    }

    /// The last `limit` entries whose keys begin with `prefix`, last first.
    pub fn scan_reverse(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Entries, StoreError> {
        self.iterate(table, prefix, successor(prefix), true, limit)
    }

    /// The first `limit` entries from `from` on and before `to`.
    pub fn range(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Entries, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        self.iterate(table, from, Some(to.to_vec()), false, limit)
    }

    /// Writes the batch whole or not at all.
    pub fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        options.set_no_slowdown(true);
        let mut attempt = 1;
        loop {
            let result = self.inner.db.write_opt(self.rocksdb_batch(&batch)?, &options);
            match result.map_err(|e| self.error(&e)) {
                Err(StoreError::Busy { .. }) if attempt < limits::WRITE_ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(limits::WRITE_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn rocksdb_batch(&self, batch: &Batch) -> Result<WriteBatch, StoreError> {
        let mut written = WriteBatch::default();
        for operation in &batch.operations {
            match operation {
                Operation::Put(table, key, value) => {
                    bounded(*table, "key", key, limits::KEY)?;
                    bounded(*table, "value", value, limits::VALUE)?;
                    written.put_cf(self.table(*table), key, value);
                }
                Operation::Delete(table, key) => written.delete_cf(self.table(*table), key),
                Operation::DeleteRange(table, from, to) if from < to => {
                    written.delete_range_cf(self.table(*table), from, to);
                }
                Operation::DeleteRange(..) => {}
            }
        }
        Ok(written)
    }

    fn iterate(
        &self,
        table: Table,
        from: &[u8],
        to: Option<Vec<u8>>,
        reverse: bool,
        limit: usize,
    ) -> Result<Entries, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        let mode = if reverse { IteratorMode::End } else { IteratorMode::Start };
        self.inner
            .db
            .iterator_cf_opt(self.table(table), options, mode)
            .take(limit)
            .map(|entry| {
                entry.map(|(key, value)| (key.into_vec(), value.into_vec())).map_err(|e| self.error(&e))
            })
            .collect()
    }

    fn table(&self, table: Table) -> &ColumnFamily {
        self.inner.db.cf_handle(table.name()).expect("every table is opened with the database")
    }

    fn error(&self, error: &rocksdb::Error) -> StoreError {
        StoreError::from_rocksdb(error, &self.inner.path)
    }
}

fn bounded(table: Table, what: &'static str, bytes: &[u8], limit: usize) -> Result<(), StoreError> {
    if bytes.len() > limit {
        return Err(StoreError::TooLarge { table: table.name(), what, size: bytes.len(), limit });
    }
    Ok(())
}

/// The first key after all that begin with `prefix`; none when there is no such key.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let end = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut next = prefix[..=end].to_vec();
    next[end] += 1;
    Some(next)
}

fn database_options() -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(limits::CACHE));
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_bloom_filter(10.0, false);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(limits::WRITE_BUFFER);
    options.set_db_write_buffer_size(limits::WRITE_BUFFERS);
    options.set_max_total_wal_size(limits::LOG);
    options.set_max_open_files(limits::OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    // A torn tail of the log is what a power cut leaves behind unsynced writes.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options
}

fn create_folder(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    if path.exists() && !path.is_dir() {
        return Err(StoreError::Io {
            path: path.to_owned(),
            detail: "there is a file of that name, a folder is needed".into(),
        });
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| StoreError::from_io(&e, path))
}

/// Whether the folder has files that only a database leaves there.
fn holds_tables(path: &Path) -> Result<bool, StoreError> {
    let error = |e: io::Error| StoreError::from_io(&e, path);
    for entry in fs::read_dir(path).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        if is_table_file(&name) || name.to_string_lossy().starts_with("MANIFEST-") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_table_file(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().ends_with(".sst")
}
