//! Files of these commands: none is read that is larger than they are.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, bail};

/// A model's files in its folder.
pub(super) const MODEL: &str = "model.json";
pub(super) const CARD: &str = "card.json";

/// The largest that is read: a data set of a million pairs.
const MAX_BYTES: u64 = 512 << 20;

pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let read = read.with_context(|| format!("cannot read {}", path.display()))?;
    if read as u64 > MAX_BYTES {
        bail!("{} has more than {MAX_BYTES} bytes", path.display());
    }
    Ok(bytes)
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
