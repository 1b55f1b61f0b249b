//! Holds the three import rules of ARCHITECTURE.md ("Who may know whom"), and what the text of the tree
//! must not contain.

use std::{fs, path::Path, path::PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    match root.join(under) {
        file if file.is_file() => found.push(file),
        dir => walk(&dir, &mut found),
    }
    assert!(!found.is_empty(), "no sources under {under}");
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_owned(), text)
        })
        .collect()
}

/// A line without its comment and without what is between quotation marks.
fn code_of(line: &str) -> String {
    let outside_strings: Vec<&str> = line.split('"').step_by(2).collect();
    outside_strings.join("\"\"").split("//").next().unwrap_or_default().to_owned()
}

/// Lines of code (comments and strings left out) of `text` that name one of the crates or modules.
fn mentions<'a>(text: &'a str, names: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> + 'a {
    text.lines().enumerate().filter_map(move |(number, line)| {
        let code = code_of(line);
        let named = names.iter().any(|name| {
            code.match_indices(name).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                let after = code[at + name.len()..].chars().next();
                let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                let path = name.ends_with(':');
                !word(before) && (path || !word(after))
            })
        });
        named.then_some((number + 1, line))
    })
}

/// Nothing under `under` names `names`, except in files for which `allowed` says so.
fn forbid(under: &str, names: &[&str], allowed: impl Fn(&str) -> bool) {
    let mut found = Vec::new();
    for (path, text) in sources(under) {
        let path = path.to_str().unwrap().replace('\\', "/");
        if !allowed(&path) {
            found
                .extend(mentions(&text, names).map(|(line, code)| format!("{path}:{line}: {}", code.trim())));
        }
    }
    assert!(found.is_empty(), "{names:?} may not be named here:\n{}", found.join("\n"));
}

#[test]
fn protocols_and_models_know_neither_each_other_nor_the_node() {
    forbid("protocols/src", &["argus_models", "argus::", "tokio", "candle_core"], |_| false);
    forbid("models/src", &["argus_protocols", "argus::", "tokio", "libp2p"], |_| false);
}

#[test]
fn each_heavy_library_has_one_home() {
    forbid("src", &["libp2p"], |path| path.starts_with("src/net/"));
    forbid("src", &["candle_core", "candle_nn", "candle_transformers"], |_| false);
    forbid("src", &["rocksdb"], |path| path == "src/store.rs" || path.starts_with("src/store/"));
    forbid("src", &["bincode"], |_| false);
    forbid("src", &["xgboost_rs"], |path| path == "src/verify/reward/booster.rs");
    forbid("protocols/src", &["bincode"], |path| {
        // The derive macros are named where types are declared; encoding happens in the codec alone.
        path == "protocols/src/codec.rs"
            || sources("protocols/src").iter().any(|(p, text)| {
                p.to_str() == Some(path)
                    && mentions(text, &["bincode"]).all(|(_, line)| line.contains("{Decode, Encode}"))
            })
    });
}

#[test]
fn net_knows_no_miner_validator_store_or_chain() {
    forbid(
        "src/net",
        &[
            "crate::miner",
            "crate::validator",
            "crate::store",
            "crate::chain",
            "crate::gateway",
            "crate::verify",
        ],
        |_| false,
    );
}

#[test]
fn cores_have_no_clock_and_no_io() {
    for core in CORES {
        forbid(
            core,
            &["Instant::now", "SystemTime::now", "unix_ms", "tokio", "std::fs", "rand::rng"],
            |_| false,
        );
    }
}

/// The sans-IO cores: time and randomness come in as arguments, so that one seed replays a run.
const CORES: &[&str] = &[
    "src/chain/yuma.rs",
    "src/miner/admission.rs",
    "src/miner/queue.rs",
    "src/validator/core.rs",
    "src/validator/period.rs",
    "src/validator/round.rs",
    "src/validator/select.rs",
    "src/validator/synthetic/mod.rs",
    "src/validator/synthetic/gallery.rs",
    "src/validator/synthetic/prompts.rs",
    "src/validator/weights.rs",
    "src/verify",
];
