//! Who may ask for how much: keys, rates, credits and usage, in memory and in the store.
//!
//! Invariants:
//! - Credits are reserved before the work and charged after it, both under the key's lock, so that
//!   requests side by side cannot spend more than there is and no balance is ever negative.
//! - What is not charged goes back when the reservation is dropped: a request that fails, or whose client
//!   went away, costs nothing.
//! - Creating, changing and revoking a key is on the disk before it is acknowledged.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use subtle::ConstantTimeEq;

use super::{
    keys::{CreatedKey, Credits, Key, KeyChange, KeyError, KeyHash, KeyId, KeyView, NewKey, Secret, Usage},
    limits,
};
use crate::{
    clock::unix_ms,
    store::{Batch, Durability, Store, StoreError, Table},
};

#[cfg(test)]
mod tests;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("there is no key {0}; see `argus keys list`")]
    NotFound(KeyId),
    #[error("there are {} keys already; forget revoked ones with `argus keys revoke --forget`", limits::KEYS)]
    Full,
    #[error("key {0} is revoked; make a new one")]
    Revoked(KeyId),
}

impl LedgerError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            LedgerError::Store(_) => "store",
            LedgerError::Key(_) => "invalid",
            LedgerError::NotFound(_) => "not_found",
            LedgerError::Full => "full",
            LedgerError::Revoked(_) => "revoked",
        }
    }
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("this API key is not known here; check it, or ask the operator for one (`argus keys new`)")]
    UnknownKey,
    #[error("this API key was revoked; ask the operator for a new one")]
    Revoked,
    #[error("more than {per_minute} requests a minute; try again in {} s", retry_after.as_secs() + 1)]
    Rate { per_minute: u32, retry_after: Duration },
    #[error("this key may have {limit} requests at once; wait for one to finish")]
    Concurrency { limit: u32 },
    #[error("this costs {needed} credits and the key has {left} left; ask the operator for more")]
    Credits { needed: Credits, left: Credits },
}

impl Refusal {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::UnknownKey => "unknown_key",
            Refusal::Revoked => "revoked",
            Refusal::Rate { .. } => "rate",
            Refusal::Concurrency { .. } => "concurrency",
            Refusal::Credits { .. } => "credits",
        }
    }
}

/// A token bucket: holds one minute's worth, fills evenly.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let per_second = f64::from(per_minute) / 60.0;
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * per_second).min(f64::from(per_minute));
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - self.tokens) / per_second))
        }
    }
}

#[derive(Debug)]
struct Account {
    key: Key,
    usage: Usage,
    /// Credits of running requests, thousandths.
    reserved: u64,
    in_flight: u32,
    bucket: Bucket,
    /// Removed from the store; requests that still run must not write its usage again.
    forgotten: bool,
}

impl Account {
    fn left(&self) -> Option<Credits> {
        let given = self.key.credits?.0;
        Some(Credits(given.saturating_sub(self.usage.spent_thousandths).saturating_sub(self.reserved)))
    }
}

struct Entry {
    hash: KeyHash,
    account: Mutex<Account>,
}

/// Rate and concurrency of keys that were made without their own.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub requests_per_minute: u32,
    pub concurrent: u32,
}

/// All keys of this node. One per store.
pub struct Ledger {
    store: Store,
    defaults: Defaults,
    entries: RwLock<HashMap<KeyHash, Arc<Entry>>>,
}

impl Ledger {
    pub fn open(store: Store, defaults: Defaults) -> Result<Self, LedgerError> {
        let mut entries = HashMap::new();
        for (hash, value) in store.scan(Table::Keys, &[], limits::KEYS)? {
            let Some(hash) = KeyHash::from_slice(&hash) else {
                continue;
            };
            let key = serde_json::from_slice::<Key>(&value);
            let usage = match store.get(Table::Usage, hash.as_bytes())? {
                Some(value) => serde_json::from_slice::<Usage>(&value),
                None => Ok(Usage::default()),
            };
            match key.and_then(|key| Ok((key, usage?))) {
                Ok((key, usage)) => {
                    entries.insert(hash, Arc::new(Entry::new(hash, key, usage, defaults)));
                }
                // One key out of order must not close the gateway to all others.
                Err(error) => tracing::error!(
                    key = %hash.id(), %error, "a stored key is damaged and opens nothing; make its holder a new one"
                ),
            }
        }
        Ok(Self { store, defaults, entries: RwLock::new(entries) })
    }

    pub fn create(&self, new: NewKey) -> Result<CreatedKey, LedgerError> {
        new.validate()?;
        // Held to the end, so that two calls can neither pass the limit nor take the same id.
        let mut entries = self.entries.write();
        if entries.len() >= limits::KEYS {
            return Err(LedgerError::Full);
        }
        let secret = loop {
            let secret = Secret::generate()?;
            if !entries.keys().any(|hash| hash.id() == secret.hash().id()) {
                break secret;
            }
        };
        let hash = secret.hash();
        let key = Key {
            name: new.name,
            created_ms: unix_ms(),
            revoked_ms: None,
            rate: new.rate,
            concurrent: new.concurrent,
            credits: new.credits,
        };
        self.put_key(&hash, &key)?;
        let entry = Arc::new(Entry::new(hash, key, Usage::default(), self.defaults));
        let view = entry.view(self.defaults);
        entries.insert(hash, entry);
        Ok(CreatedKey { key: secret.expose().to_owned(), view })
    }

    /// All keys, oldest first.
    pub fn list(&self) -> Vec<KeyView> {
        let mut views: Vec<_> = self.entries.read().values().map(|entry| entry.view(self.defaults)).collect();
        views.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        views
    }

    pub fn get(&self, id: &KeyId) -> Result<KeyView, LedgerError> {
        Ok(self.find(id)?.view(self.defaults))
    }

    pub fn change(&self, id: &KeyId, change: KeyChange) -> Result<KeyView, LedgerError> {
        change.validate()?;
        let entry = self.find(id)?;
        let mut account = entry.account.lock();
        if account.key.revoked_ms.is_some() {
            return Err(LedgerError::Revoked(id.clone()));
        }
        let mut key = account.key.clone();
        if let Some(name) = change.name {
            key.name = name;
        }
        key.rate = change.rate.or(key.rate);
        key.concurrent = change.concurrent.or(key.concurrent);
        if change.unlimited {
            key.credits = None;
        } else if let Some(Credits(more)) = change.add_credits {
            // A key without limit that is given credits has just those from now on.
            let given = key.credits.map_or(account.usage.spent_thousandths, |credits| credits.0);
            let total = given.checked_add(more).filter(|total| *total <= limits::CREDITS);
            key.credits = Some(Credits(total.ok_or(KeyError::Credits)?));
        }
        self.put_key(&entry.hash, &key)?;
        account.key = key;
        Ok(view_of(&entry.hash, &account, self.defaults))
    }

    /// From now on the key opens nothing. Requests that are running end as they would have.
    pub fn revoke(&self, id: &KeyId) -> Result<KeyView, LedgerError> {
        let entry = self.find(id)?;
        let mut account = entry.account.lock();
        if account.key.revoked_ms.is_none() {
            let key = Key { revoked_ms: Some(unix_ms()), ..account.key.clone() };
            self.put_key(&entry.hash, &key)?;
            account.key = key;
        }
        Ok(view_of(&entry.hash, &account, self.defaults))
    }

    /// Revokes the key and removes it with its usage.
    pub fn forget(&self, id: &KeyId) -> Result<KeyView, LedgerError> {
        let entry = self.find(id)?;
        let mut account = entry.account.lock();
        let mut batch = Batch::new();
        batch.delete(Table::Keys, entry.hash.as_bytes());
        batch.delete(Table::Usage, entry.hash.as_bytes());
        self.store.write(batch, Durability::Synced)?;
        account.key.revoked_ms.get_or_insert_with(unix_ms);
        account.forgotten = true;
        let view = view_of(&entry.hash, &account, self.defaults);
        // The map is never locked under an account: `list` does it the other way round.
        drop(account);
        self.entries.write().remove(&entry.hash);
        Ok(view)
    }

    /// Looks a key up by its text, without counting a request.
    pub fn holder(&self, text: &str) -> Result<KeyView, Refusal> {
        Ok(self.authenticate(text)?.view(self.defaults))
    }

    /// Lets a request in, if the key is good and within its rate and concurrency.
    pub fn admit(self: &Arc<Self>, text: &str, now: Instant) -> Result<Admission, Refusal> {
        let entry = self.authenticate(text)?;
        let mut account = entry.account.lock();
        let limit = account.key.concurrent.unwrap_or(self.defaults.concurrent);
        let per_minute = account.key.rate.unwrap_or(self.defaults.requests_per_minute);
        if account.in_flight >= limit {
            account.usage.refused += 1;
            return Err(Refusal::Concurrency { limit });
        }
        if let Err(retry_after) = account.bucket.take(per_minute, now) {
            account.usage.refused += 1;
            return Err(Refusal::Rate { per_minute, retry_after });
        }
        account.in_flight += 1;
        account.usage.requests += 1;
        account.usage.last_used_ms = Some(unix_ms());
        drop(account);
        Ok(Admission { ledger: Arc::clone(self), entry })
    }

    fn authenticate(&self, text: &str) -> Result<Arc<Entry>, Refusal> {
        // The map is asked by hash: how long that takes tells nothing about the key, only about a hash
        // that the asker cannot choose. The comparison is constant-time all the same.
        let hash = KeyHash::of(text);
        let entry = self.entries.read().get(&hash).cloned().ok_or(Refusal::UnknownKey)?;
        if !bool::from(entry.hash.as_bytes().ct_eq(hash.as_bytes())) {
            return Err(Refusal::UnknownKey);
        }
        if entry.account.lock().key.revoked_ms.is_some() {
            return Err(Refusal::Revoked);
        }
        Ok(entry)
    }

    fn find(&self, id: &KeyId) -> Result<Arc<Entry>, LedgerError> {
        let entries = self.entries.read();
        let found = entries.values().find(|entry| entry.hash.id() == *id);
        found.cloned().ok_or_else(|| LedgerError::NotFound(id.clone()))
    }

    fn put_key(&self, hash: &KeyHash, key: &Key) -> Result<(), StoreError> {
        let value = serde_json::to_vec(key).expect("a key is plain data");
        self.store.put(Table::Keys, hash.as_bytes(), &value, Durability::Synced)
    }

    fn put_usage(&self, entry: &Entry, account: &Account) {
        if account.forgotten {
            return;
        }
        let value = serde_json::to_vec(&account.usage).expect("usage is plain data");
        if let Err(error) = self.store.put(Table::Usage, entry.hash.as_bytes(), &value, Durability::Buffered)
        {
            // Memory has the truth and the next request writes all of it.
            tracing::warn!(key = %entry.hash.id(), %error, "the usage of a key could not be written");
        }
    }
}

impl Entry {
    fn new(hash: KeyHash, key: Key, usage: Usage, defaults: Defaults) -> Self {
        let tokens = f64::from(key.rate.unwrap_or(defaults.requests_per_minute));
        let bucket = Bucket { tokens, at: Instant::now() };
        let account = Account { key, usage, reserved: 0, in_flight: 0, bucket, forgotten: false };
        Self { hash, account: Mutex::new(account) }
    }

    fn view(&self, defaults: Defaults) -> KeyView {
        view_of(&self.hash, &self.account.lock(), defaults)
    }
}

fn view_of(hash: &KeyHash, account: &Account, defaults: Defaults) -> KeyView {
    KeyView {
        id: hash.id(),
        name: account.key.name.clone(),
        created_ms: account.key.created_ms,
        revoked_ms: account.key.revoked_ms,
        requests_per_minute: account.key.rate.unwrap_or(defaults.requests_per_minute),
        concurrent: account.key.concurrent.unwrap_or(defaults.concurrent),
        credits: account.key.credits,
        credits_left: account.left(),
        usage: account.usage.clone(),
    }
}

/// A request that was let in. Counts as running until dropped, when its usage is written.
pub struct Admission {
    ledger: Arc<Ledger>,
    entry: Arc<Entry>,
}

impl Admission {
    pub fn key(&self) -> KeyId {
        self.entry.hash.id()
    }

    /// Puts credits aside for work that is about to begin.
    pub fn reserve(self, thousandths: u64) -> Result<Reservation, Refusal> {
        let mut account = self.entry.account.lock();
        if let Some(left) = account.left()
            && left.0 < thousandths
        {
            account.usage.refused += 1;
            return Err(Refusal::Credits { needed: Credits(thousandths), left });
        }
        account.reserved += thousandths;
        drop(account);
        Ok(Reservation { admission: self, left: Mutex::new(thousandths) })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut account = self.entry.account.lock();
        account.in_flight -= 1;
        self.ledger.put_usage(&self.entry, &account);
    }
}

/// What was done and is to be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sold {
    Image,
    Embedding,
    Classification,
}

/// The price of work, thousandths of a credit: a work unit costs one credit.
pub fn thousandths(work_units: f64) -> u64 {
    // Beyond what any key can have is refused as too dear; a float of that size is an integer.
    (work_units * 1000.0).ceil().clamp(1.0, limits::CREDITS as f64) as u64
}

/// Credits put aside. What was not charged goes back on drop.
pub struct Reservation {
    admission: Admission,
    left: Mutex<u64>,
}

impl Reservation {
    /// Pays for work that was done, out of what was put aside.
    pub fn charge(&self, sold: Sold, count: u64, thousandths: u64) {
        let entry = &self.admission.entry;
        let mut left = self.left.lock();
        let mut account = entry.account.lock();
        let price = thousandths.min(*left);
        *left -= price;
        account.reserved -= price;
        account.usage.spent_thousandths += price;
        match sold {
            Sold::Image => account.usage.images += count,
            Sold::Embedding => account.usage.embeddings += count,
            Sold::Classification => account.usage.classifications += count,
        }
        self.admission.ledger.put_usage(entry, &account);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.entry.account.lock().reserved -= *self.left.lock();
    }
}
