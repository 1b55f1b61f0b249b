use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;

fn temporary() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    (dir, store)
}

/// Runs an ignored test of this binary in a process of its own, with `ARGUS_TEST_PATH` set.
fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", &format!("store::tests::{test}"), "--ignored", "--nocapture"])
        .env("ARGUS_TEST_PATH", path)
        .stdin(Stdio::null());
    command
}

fn child_path() -> PathBuf {
    env::var_os("ARGUS_TEST_PATH").expect("run by another test").into()
}

#[test]
fn what_is_put_is_read_back_deleted_and_kept_over_a_reopen() {
    let (dir, store) = temporary();
    let path = dir.path().join("db");
    store.put(Table::Meta, b"a", b"1", Durability::Buffered).unwrap();
    store.put(Table::Peers, b"a", b"2", Durability::Synced).unwrap();
    store.put_json(Table::Meta, b"json", &vec![1u8, 2], Durability::Buffered).unwrap();
    store.delete(Table::Peers, b"nothing", Durability::Buffered).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get(Table::Meta, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(Table::Peers, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(store.get_json::<Vec<u8>>(Table::Meta, b"json").unwrap(), Some(vec![1, 2]));
    store.delete(Table::Peers, b"a", Durability::Synced).unwrap();
    assert_eq!(store.get(Table::Peers, b"a").unwrap(), None);
    assert_eq!(store.get_json::<String>(Table::Peers, b"a").unwrap(), None);
    let wrong = store.get_json::<String>(Table::Meta, b"json").unwrap_err();
    assert_eq!(wrong.reason(), "value");
}

#[test]
fn a_new_database_is_empty_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, store) = temporary();
    for table in Table::ALL {
        assert_eq!(store.scan(table, b"", 10).unwrap(), []);
    }
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn scans_keep_to_prefix_order_and_limit() {
    let (_dir, store) = temporary();
    for key in [&b"a"[..], b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"] {
        store.put(Table::Scores, key, key, Durability::Buffered).unwrap();
    }
    let keys = |entries: Entries| entries.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
    let scan = |prefix: &[u8], limit| keys(store.scan(Table::Scores, prefix, limit).unwrap());
    let back = |prefix: &[u8], limit| keys(store.scan_reverse(Table::Scores, prefix, limit).unwrap());
    assert_eq!(scan(b"a", 9), [&b"a"[..], b"a\x00", b"a\xff", b"a\xff\xff"]);
    assert_eq!(scan(b"a\xff", 9), [&b"a\xff"[..], b"a\xff\xff"]);
    assert_eq!(scan(b"a", 2), [&b"a"[..], b"a\x00"]);
    assert_eq!(scan(b"\xff", 9), [&b"\xff"[..], b"\xff\xff"]);
    assert_eq!(scan(b"", 99).len(), 7);
    assert_eq!(back(b"a", 2), [&b"a\xff\xff"[..], b"a\xff"]);
    assert_eq!(back(b"\xff", 1), [&b"\xff\xff"[..]]);
    let range = |from: &[u8], to: &[u8]| keys(store.range(Table::Scores, from, to, 9).unwrap());
    assert_eq!(range(b"a\x00", b"b"), [&b"a\x00"[..], b"a\xff", b"a\xff\xff"]);
    assert_eq!(range(b"b", b"a"), [[0u8; 0]; 0]);
    store.delete_range(Table::Scores, b"a\x00", b"b", Durability::Buffered).unwrap();
    store.delete_range(Table::Scores, b"z", b"a", Durability::Buffered).unwrap();
    assert_eq!(scan(b"", 9), [&b"a"[..], b"b", b"\xff", b"\xff\xff"]);
}

#[test]
fn a_batch_with_one_bad_operation_writes_nothing() {
    let (_dir, store) = temporary();
    let mut batch = Batch::new();
    batch.put(Table::Meta, b"good", b"1");
    batch.put(Table::Meta, b"bad", &vec![0; limits::VALUE + 1]);
    assert_eq!(store.write(batch, Durability::Synced).unwrap_err().reason(), "too_large");
    assert_eq!(store.get(Table::Meta, b"good").unwrap(), None);
    let long = vec![0; limits::KEY + 1];
    let error = store.put(Table::Meta, &long, b"", Durability::Buffered).unwrap_err();
    assert!(error.to_string().contains("1025 bytes"), "{error}");
}

#[test]
fn a_database_in_use_is_refused_by_open_and_by_repair() {
    let (dir, store) = temporary();
    store.put(Table::Meta, b"a", b"1", Durability::Synced).unwrap();
    // In this process, and in another one: RocksDB words the two differently.
    assert_eq!(Store::open(store.path()).unwrap_err().reason(), "locked");
    assert_eq!(Store::repair(store.path()).unwrap_err().reason(), "locked");
    let status = child("open_is_locked", store.path()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["db"], "a refused repair leaves no copy");
    assert_eq!(store.get(Table::Meta, b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

#[test]
#[ignore = "run by a_database_in_use_is_refused_by_open_and_by_repair, in another process"]
fn open_is_locked() {
    let error = Store::open(&child_path()).unwrap_err();
    assert_eq!(error.reason(), "locked", "{error}");
    assert_eq!(Store::repair(&child_path()).unwrap_err().reason(), "locked");
}

#[test]
fn a_file_in_the_place_of_the_folder_is_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    fs::write(&path, b"not a folder").unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("a folder is needed"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"not a folder");
    assert!(Store::repair(&path).is_err());
}

#[test]
fn a_folder_without_permission_is_refused_clearly() {
    use std::os::unix::fs::PermissionsExt;
    // SAFETY: takes no arguments and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let (dir, store) = temporary();
    let path = store.path().to_owned();
    drop(store);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o500)).unwrap();
    if !root {
        assert_eq!(Store::open(&path).unwrap_err().reason(), "denied");
        return;
    }
    // Root may write everywhere: ask as somebody else, from a copy of this binary where he can read it.
    let binary = dir.path().join("test-binary");
    fs::copy(env::current_exe().unwrap(), &binary).unwrap();
    let status = Command::new(&binary)
        .args(["--exact", "store::tests::open_is_denied", "--ignored", "--nocapture"])
        .env("ARGUS_TEST_PATH", &path)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdout(Stdio::null())
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(error) => eprintln!("SKIPPED: cannot run as another user here: {error}"),
    }
}

#[test]
#[ignore = "run by a_folder_without_permission_is_refused_clearly, as another user"]
fn open_is_denied() {
    let error = Store::open(&child_path()).unwrap_err();
    assert_eq!(error.reason(), "denied", "{error}");
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let (_dir, store) = temporary();
    let path = store.path().to_owned();
    drop(store);
    let mut tables: Vec<_> = Table::ALL.iter().map(|t| t.name()).collect();
    tables.push("tomorrow");
    drop(DB::open_cf(&database_options(), &path, tables).unwrap());
    let error = Store::open(&path).unwrap_err();
    assert_eq!(error.reason(), "newer", "{error}");
}

/// Entries in files and entries in the log alone, then closed.
fn filled(path: &Path) {
    let store = Store::open(path).unwrap();
    for n in 0..500u32 {
        let value = blake3::hash(&n.to_be_bytes());
        store.put(Table::Scores, &n.to_be_bytes(), value.as_bytes(), Durability::Buffered).unwrap();
    }
    store.inner.db.flush_cf(store.table(Table::Scores)).unwrap();
    for n in 0..50u32 {
        store.put(Table::Receipts, &n.to_be_bytes(), b"receipt", Durability::Synced).unwrap();
    }
}

fn files(path: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| wanted(p.file_name().unwrap().to_str().unwrap()))
        .collect();
    found.sort();
    found
}

fn entries(store: &Store, table: Table) -> usize {
    store.scan(table, b"", 10_000).unwrap().len()
}

#[test]
fn without_its_manifest_a_database_is_damaged_and_repair_brings_all_back() {
    for remove_current in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        filled(&path);
        for file in files(&path, |n| n.starts_with("MANIFEST") || remove_current && n == "CURRENT") {
            fs::remove_file(file).unwrap();
        }
        let error = Store::open(&path).unwrap_err();
        assert_eq!(error.reason(), "damaged", "{error}");
        assert!(error.to_string().contains("argus store repair"), "{error}");
        let repaired = Store::repair(&path).unwrap();
        assert!(repaired.copy.is_dir());
        let store = Store::open(&path).unwrap();
        assert_eq!(entries(&store, Table::Scores), 500);
        assert_eq!(entries(&store, Table::Receipts), 50, "what was in the log alone");
    }
}

#[test]
fn a_truncated_manifest_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    filled(&path);
    let manifest = files(&path, |n| n.starts_with("MANIFEST")).pop().unwrap();
    let length = fs::metadata(&manifest).unwrap().len();
    fs::OpenOptions::new().write(true).open(&manifest).unwrap().set_len(length / 3).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert_eq!(error.reason(), "damaged", "{error}");
    Store::repair(&path).unwrap();
    assert_eq!(entries(&Store::open(&path).unwrap(), Table::Scores), 500);
}

#[test]
fn a_log_cut_short_while_closed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    filled(&path);
    let log = files(&path, |n| n.ends_with(".log")).pop().unwrap();
    let length = fs::metadata(&log).unwrap().len();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(length / 2).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains(&format!("had {length} bytes")), "{error}");
    Store::repair(&path).unwrap();
    let left = entries(&Store::open(&path).unwrap(), Table::Receipts);
    assert!((10..40).contains(&left), "{left}");
}

#[test]
fn damaged_tables_are_errors_and_repair_saves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    filled(&path);
    // The largest file is the flushed table of scores.
    let table = files(&path, |n| n.ends_with(".sst"))
        .into_iter()
        .max_by_key(|p| fs::metadata(p).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&table).unwrap();
    for byte in bytes.iter_mut().take(4096) {
        *byte ^= 0x5a;
    }
    fs::write(&table, &bytes).unwrap();
    // The size is right: only reading it shows the damage.
    match Store::open(&path) {
        Err(error) => assert_eq!(error.reason(), "damaged", "{error}"),
        Ok(store) => {
            let error = store.scan(Table::Scores, b"", 1000).unwrap_err();
            assert_eq!(error.reason(), "damaged", "{error}");
        }
    }
    fs::write(&table, b"").unwrap();
    let error = match Store::open(&path) {
        Err(error) => error,
        Ok(store) => store.scan(Table::Scores, b"", 1000).unwrap_err(),
    };
    assert_eq!(error.reason(), "damaged", "{error}");
    let repaired = Store::repair(&path).unwrap();
    assert_eq!(repaired.lost, 1, "{repaired:?}");
    let store = Store::open(&path).unwrap();
    assert_eq!(entries(&store, Table::Receipts), 50);
    store.put(Table::Scores, b"new", b"1", Durability::Synced).unwrap();
}

#[test]
fn garbage_in_any_file_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    filled(&good);
    // Without the seal, RocksDB has to notice itself.
    seal::remove(&good).unwrap();
    for (number, file) in files(&good, |n| n != "LOCK").into_iter().enumerate() {
        let bytes = fs::read(&file).unwrap();
        let bad = [Vec::new(), vec![0xa5; bytes.len() + 7], bytes[..bytes.len() / 2].to_vec()];
        for (kind, bad) in bad.into_iter().enumerate() {
            let copy = dir.path().join(format!("{number}-{kind}"));
            fs::create_dir(&copy).unwrap();
            for file in files(&good, |_| true) {
                fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
            fs::write(copy.join(file.file_name().unwrap()), bad).unwrap();
            match Store::open(&copy) {
                // A log cut short opens, so do files that only inform.
                Ok(store) => {
                    let _ = store.scan(Table::Scores, b"", 1000);
                }
                Err(error) => {
                    let name = file.display();
                    assert!(["damaged", "newer"].contains(&error.reason()), "{name}: {error}");
                }
            }
        }
    }
}

/// Kills the child when the test ends early.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut written: Vec<(u32, u32)> = Vec::new();
    for round in 0..3u32 {
        let child = child("write_for_ever", &path)
            .env("ARGUS_TEST_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        for line in lines {
            let Ok(line) = line else { break };
            let Some(number) = line.strip_prefix("written ") else { continue };
            let number = number.parse().unwrap();
            written.push((round, number));
            acknowledged += 1;
            if acknowledged == 40 {
                child.0.kill().unwrap();
            }
        }
        drop(child);
        assert!(acknowledged >= 40, "{acknowledged}");
        let store = Store::open(&path).unwrap();
        for (round, number) in &written {
            let key = [round.to_be_bytes(), number.to_be_bytes()].concat();
            let [a, b] = [Table::Periods, Table::Intents].map(|t| store.get(t, &key).unwrap());
            assert_eq!(a, Some(number.to_be_bytes().to_vec()), "{round} {number}");
            assert_eq!(a, b, "a batch is whole");
        }
    }
}

#[test]
#[ignore = "run by acknowledged_writes_survive_kill_9, which kills it"]
fn write_for_ever() {
    let round: u32 = env::var("ARGUS_TEST_ROUND").unwrap().parse().unwrap();
    let store = Store::open(&child_path()).unwrap();
    for number in 0u32.. {
        let key = [round.to_be_bytes(), number.to_be_bytes()].concat();
        let mut batch = Batch::new();
        batch.put(Table::Periods, &key, &number.to_be_bytes());
        batch.put(Table::Intents, &key, &number.to_be_bytes());
        let durability = if number % 2 == 0 { Durability::Synced } else { Durability::Buffered };
        store.write(batch, durability).unwrap();
        println!("written {number}");
    }
}

/// Whether this process may mount (in a namespace of its own).
fn may_mount() -> bool {
    let mut command = Command::new("true");
    // SAFETY: one system call, allowed between fork and exec.
    unsafe { command.pre_exec(own_mounts) };
    command.status().is_ok_and(|s| s.success())
}

fn own_mounts() -> io::Result<()> {
    // SAFETY: one system call with constant arguments.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_full_disk_is_an_error_and_no_stall_and_writing_goes_on_when_there_is_space() {
    if !may_mount() {
        eprintln!("SKIPPED: mounting a small file system is not permitted here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = child("fill_a_small_disk", dir.path());
    // SAFETY: one system call, allowed between fork and exec.
    unsafe { command.pre_exec(own_mounts) };
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by the test of a full disk, in a mount namespace of its own"]
fn fill_a_small_disk() {
    let mount = child_path();
    let text = |s: &str| std::ffi::CString::new(s).unwrap();
    let (none, root) = (text("none"), text("/"));
    let (kind, options) = (text("tmpfs"), text("size=32m"));
    let target = text(mount.to_str().unwrap());
    // SAFETY: valid C strings that outlive the calls.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let null = std::ptr::null();
        let result = libc::mount(none.as_ptr(), root.as_ptr(), null, private, null.cast());
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let options = options.as_ptr().cast();
        let result = libc::mount(none.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options);
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
    let ballast = mount.join("ballast");
    fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let path = mount.join("db");
    let store = Store::open(&path).unwrap();
    let value = |n: u32| {
        let mut bytes = vec![0; 64 << 10];
        blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let put =
        |store: &Store, n: u32| store.put(Table::Usage, &n.to_be_bytes(), &value(n), Durability::Synced);
    let mut acknowledged = Vec::new();
    let mut next = 0;
    let error = loop {
        match put(&store, next) {
            Ok(()) => acknowledged.push(next),
            Err(error) => break error,
        }
        next += 1;
        assert!(next < 1000, "64 MB on a disk of 32 MB");
    };
    assert_eq!(error.reason(), "full", "{error}");
    assert!(error.retryable());
    // Still full: answers come at once, reading works.
    for _ in 0..20 {
        next += 1;
        match put(&store, next) {
            Ok(()) => acknowledged.push(next),
            Err(error) => assert_eq!(error.reason(), "full", "{error}"),
        }
        assert!(store.get(Table::Usage, &0u32.to_be_bytes()).unwrap().is_some());
    }
    fs::remove_file(&ballast).unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        next += 1;
        match put(&store, next) {
            Ok(()) => break acknowledged.push(next),
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    check(&store, &acknowledged, value);
    drop(store);
    check(&Store::open(&path).unwrap(), &acknowledged, value);
}

fn check(store: &Store, numbers: &[u32], value: impl Fn(u32) -> Vec<u8>) {
    for number in numbers {
        let found = store.get(Table::Usage, &number.to_be_bytes()).unwrap();
        assert!(found == Some(value(*number)), "entry {number}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]

    #[test]
    fn the_successor_is_above_all_with_the_prefix_and_below_all_others(
        prefix in proptest::collection::vec(0u8..=255, 0..4),
        key in proptest::collection::vec(0u8..=255, 0..6),
    ) {
        let inside = key.starts_with(&prefix);
        let below = successor(&prefix).is_none_or(|end| key < end);
        proptest::prop_assert_eq!(inside, key >= prefix && below);
    }
}
