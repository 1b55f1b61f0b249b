//! Named files out of a zip (a wheel is one) or a gzipped tar.
//!
//! Invariant: whatever the archive says, no more is written than the members' pinned sizes, no more entries
//! and bytes are looked through than the limits here, and no name in it becomes a path.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::{DeflateDecoder, GzDecoder};
use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive};

use super::{FetchError, disk};

/// The most entries of an archive that are looked through.
const MAX_ENTRIES: usize = 200_000;
/// The most bytes that a gzipped tar is unpacked to while it is looked through.
const MAX_UNPACKED_BYTES: u64 = 64 << 30;

/// A file of an archive, and where it goes.
pub(super) struct Member<'a> {
    pub(super) path: &'a str,
    /// Bytes, by its pin.
    pub(super) size: u64,
    pub(super) target: PathBuf,
}

/// Unpacks the members, all of them or none that counts.
pub(super) fn unpack(archive: &Path, members: &[Member]) -> Result<(), FetchError> {
    let mut magic = [0; 4];
    let mut file = File::open(archive).map_err(disk(archive))?;
    file.read_exact(&mut magic).map_err(|_| bad("it is no archive"))?;
    let file = File::open(archive).map_err(disk(archive))?;
    let mut found = vec![false; members.len()];
    match magic {
        [b'P', b'K', 3, 4] => unpack_zip(file, members, &mut found)?,
        [0x1f, 0x8b, ..] => unpack_tar(file, members, &mut found)?,
        _ => return Err(bad("it is neither a zip nor a gzipped tar")),
    }
    match members.iter().zip(&found).find(|(_, found)| !**found) {
        Some((member, _)) => Err(FetchError::NoMember(member.path.to_owned())),
        None => Ok(()),
    }
}

fn unpack_zip(file: File, members: &[Member], found: &mut [bool]) -> Result<(), FetchError> {
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_file(file, &mut buffer).map_err(bad)?;
    let mut entries = archive.entries(&mut buffer);
    let mut looked_at = 0;
    while let Some(entry) = entries.next_entry().map_err(bad)? {
        looked_at += 1;
        if looked_at > MAX_ENTRIES {
            return Err(bad(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let Some(index) = members.iter().position(|m| m.path.as_bytes() == entry.file_path().as_bytes())
        else {
            continue;
        };
        let (method, member) = (entry.compression_method(), &members[index]);
        let data = archive.get_entry(entry.wayfinder()).map_err(bad)?;
        match method {
            CompressionMethod::STORE => write(data.verifying_reader(data.reader()), member)?,
            CompressionMethod::DEFLATE => {
                write(data.verifying_reader(DeflateDecoder::new(data.reader())), member)?;
            }
            other => return Err(bad(format!("{} is compressed by {other:?}", member.path))),
        }
        found[index] = true;
    }
    Ok(())
}

fn unpack_tar(file: File, members: &[Member], found: &mut [bool]) -> Result<(), FetchError> {
    let mut archive = tar::Archive::new(GzDecoder::new(file).take(MAX_UNPACKED_BYTES));
    for (looked_at, entry) in archive.entries().map_err(bad)?.enumerate() {
        if looked_at >= MAX_ENTRIES {
            return Err(bad(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry.map_err(bad)?;
        let path = entry.path_bytes();
        let index = members.iter().position(|member| member.path.as_bytes() == path.as_ref());
        drop(path);
        let Some(index) = index else { continue };
        if !entry.header().entry_type().is_file() {
            return Err(bad(format!("{} is no regular file", members[index].path)));
        }
        write(&mut entry, &members[index])?;
        found[index] = true;
        if found.iter().all(|found| *found) {
            break;
        }
    }
    Ok(())
}

/// Writes a member, and no more than its size.
fn write(from: impl Read, member: &Member) -> Result<(), FetchError> {
    let mut file = File::create(&member.target).map_err(disk(&member.target))?;
    let mut limited = from.take(member.size.saturating_add(1));
    let mut buffer = vec![0; 1 << 16];
    let mut written = 0;
    loop {
        let read = limited.read(&mut buffer).map_err(|error| bad(format!("{}: {error}", member.path)))?;
        if read == 0 {
            break;
        }
        written += read as u64;
        if written > member.size {
            return Err(FetchError::TooLarge { what: member.path.to_owned(), limit: member.size });
        }
        file.write_all(&buffer[..read]).map_err(disk(&member.target))?;
    }
    file.sync_all().map_err(disk(&member.target))
}

fn bad(error: impl std::fmt::Display) -> FetchError {
    FetchError::Archive(error.to_string())
}
