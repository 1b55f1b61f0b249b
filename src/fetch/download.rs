//! One file over HTTP, resumed where it broke off.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::Response,
    tls::{RootCerts, TlsConfig},
};

use super::{FetchError, Watch, disk};

/// How long a server may take to connect, and to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one answer may take as a whole; the next attempt goes on from there.
const LONGEST: Duration = Duration::from_secs(3600);
/// Between attempts, times their number.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// The largest document of an index, in bytes; PyPI's longest pages have some ten megabytes.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// What is downloaded.
pub(super) struct Remote<'a> {
    pub(super) url: &'a str,
    /// For people.
    pub(super) name: &'a str,
    /// For those who are let in, and not passed on to other hosts.
    pub(super) token: Option<&'a str>,
}

pub(super) fn agent() -> Agent {
    // The system's certificates, so that an operator's own authority counts.
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_send_request(Some(PATIENCE))
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .user_agent(concat!("argus/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// A document of an index.
pub(super) fn document(agent: &Agent, url: &str) -> Result<String, FetchError> {
    let mut response = get(agent, &Remote { url, name: url, token: None }, None)?;
    if response.status() != 200 {
        return Err(FetchError::Status { url: url.to_owned(), status: response.status().as_u16() });
    }
    let text = response.body_mut().with_config().limit(MAX_DOCUMENT_BYTES).read_to_string();
    text.map_err(|error| unreachable(url, error))
}

/// Downloads into a file, going on where it ends. At most `limit` bytes.
pub(super) fn download(
    agent: &Agent,
    remote: &Remote,
    target: &Path,
    limit: u64,
    retries: usize,
    watch: &mut dyn Watch,
) -> Result<(), FetchError> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(target)
        .map_err(disk(target))?;
    let mut attempt = 0;
    loop {
        let begun = file.metadata().map_err(disk(target))?.len();
        let result = attempt_from(agent, remote, target, &mut file, limit, watch);
        watch.end();
        let is_passing = matches!(
            result,
            Err(FetchError::Unreachable { .. }
                | FetchError::Truncated { .. }
                | FetchError::Status { status: 500.., .. })
        );
        if !is_passing {
            return result;
        }
        // An attempt that got further was worth it: only those that got nowhere are counted.
        let got_further = file.metadata().map_err(disk(target))?.len() > begun;
        attempt = if got_further { 1 } else { attempt + 1 };
        if attempt > retries {
            return result;
        }
        std::thread::sleep(PAUSE * attempt as u32);
    }
}

fn attempt_from(
    agent: &Agent,
    remote: &Remote,
    path: &Path,
    file: &mut File,
    limit: u64,
    watch: &mut dyn Watch,
) -> Result<(), FetchError> {
    let Remote { url, name, .. } = *remote;
    let already = file.metadata().map_err(disk(path))?.len();
    if already == limit {
        // It is whole, or else its hash says that it is not.
        return Ok(());
    }
    let mut response = get(agent, remote, (already > 0).then_some(already))?;
    let status = response.status().as_u16();
    let from = match status {
        200 => 0,
        206 if begins_at(&response, already) => already,
        // What is there is no beginning of the file, or all of it: a whole one tells.
        206 | 416 if already > 0 => {
            response = get(agent, remote, None)?;
            match response.status().as_u16() {
                200 => 0,
                status => return Err(FetchError::Status { url: url.to_owned(), status }),
            }
        }
        _ => return Err(FetchError::Status { url: url.to_owned(), status }),
    };
    file.set_len(from).map_err(disk(path))?;
    file.seek(SeekFrom::Start(from)).map_err(disk(path))?;
    let expected = response.body().content_length().map(|rest| from.saturating_add(rest));
    let too_large = || FetchError::TooLarge { what: name.to_owned(), limit };
    if expected.is_some_and(|bytes| bytes > limit) {
        return Err(too_large());
    }
    watch.begin(name, expected.unwrap_or(0), from);
    let mut reader = response.body_mut().as_reader();
    let (mut buffer, mut found) = (vec![0; CHUNK], from);
    loop {
        let read = reader.read(&mut buffer).map_err(|error| match expected {
            Some(expected) => FetchError::Truncated { url: url.to_owned(), expected, found },
            None => unreachable(url, error),
        })?;
        if read == 0 {
            break;
        }
        found += read as u64;
        if found > limit {
            return Err(too_large());
        }
        file.write_all(&buffer[..read]).map_err(disk(path))?;
        watch.advance(read as u64);
    }
    match expected {
        Some(expected) if found < expected => {
            Err(FetchError::Truncated { url: url.to_owned(), expected, found })
        }
        _ => file.sync_all().map_err(disk(path)),
    }
}

fn get(agent: &Agent, remote: &Remote, from: Option<u64>) -> Result<Response<Body>, FetchError> {
    // Compression would make lengths and offsets those of something else.
    let mut request = agent.get(remote.url).header("accept-encoding", "identity");
    if let Some(token) = remote.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(from) = from {
        request = request.header("range", format!("bytes={from}-"));
    }
    let request = request.config().timeout_recv_body(Some(LONGEST)).build();
    request.call().map_err(|error| unreachable(remote.url, error))
}

/// Whether a partial answer begins where it was asked to.
fn begins_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn unreachable(url: &str, error: impl std::fmt::Display) -> FetchError {
    FetchError::Unreachable { url: url.to_owned(), detail: error.to_string() }
}
