//! The command line as a person and a program meet it: errors that say what to do, exit codes, JSON.

use std::process::{Command, Output};

use argus::cli::Cli;
use clap::{CommandFactory, Parser};

fn argus(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_argus"));
    // Only what a test gives, not what the shell around it has.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ARGUS_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
}

/// Runs a command that must fail and gives what it said.
fn refusal(arguments: &[&str]) -> String {
    let output = argus(arguments);
    assert!(!output.status.success(), "argus {arguments:?} succeeded");
    assert!(output.stdout.is_empty(), "an error belongs on standard error");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_unknown_key_in_a_file_is_refused_with_its_line_and_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("miner.toml");
    std::fs::write(&file, "netuid = 1\n\n[engine]\nreplicsa = 2\n").unwrap();
    let said = refusal(&["miner", "--config", file.to_str().unwrap()]);
    assert!(said.contains("line 4") && said.contains("did you mean `replicas`?"), "{said}");
}

#[test]
fn a_missing_hotkey_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let said = refusal(&["miner", "--data-dir", path, "--wallet-path", path]);
    assert!(said.contains("argus wallet new"), "{said}");
}

#[test]
fn a_bad_address_names_its_flag() {
    let said = refusal(&["relay", "--listen", "localhost:80"]);
    assert!(said.contains("--listen localhost:80"), "{said}");
}

#[test]
fn a_lookup_without_a_way_in_says_what_to_give() {
    let hotkey = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    assert!(refusal(&["lookup", hotkey]).contains("--bootstrap"));
    assert!(refusal(&["lookup", "5Grwva"]).contains("5Grwva"));
}

#[test]
fn errors_are_json_when_asked_for() {
    let said = refusal(&["--json", "generate", "x", "--api", "http://127.0.0.1:1"]);
    let error: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(error["error"].as_str().unwrap().contains("is a validator running there?"), "{said}");
}

#[test]
fn status_of_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusal(&["status", "--data-dir", dir.path().to_str().unwrap()]);
    assert!(said.contains("no node runs"), "{said}");
}

#[test]
fn the_options_do_not_contradict_each_other() {
    Cli::command().debug_assert();
}

#[test]
fn every_subcommand_has_help_and_is_completed() {
    let script = String::from_utf8(argus(&["completions", "bash"]).stdout).unwrap();
    for subcommand in Cli::command().get_subcommands() {
        let name = subcommand.get_name();
        assert!(subcommand.get_about().is_some(), "{name} has no help");
        assert!(script.contains(name), "{name} is not completed");
    }
}

#[test]
fn models_are_listed_without_a_network() {
    let listed = argus(&["--json", "models", "list"]);
    let models: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let ids: Vec<_> = models.as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"argus-tiny") && ids.contains(&"clip-tiny"), "{ids:?}");
}

/// Every `argus …` line of the README parses. (What they do, the `network` tests try.)
#[test]
fn the_commands_of_the_readme_are_commands() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let mut inside = false;
    let mut tried = 0;
    for line in readme.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = !inside;
        } else if let Some(at) =
            line.find("argus ").filter(|at| inside && (*at == 0 || line[..*at].ends_with("$(")))
        {
            let command = line[at..].split(" | ").next().unwrap().trim_end_matches(')');
            // "…" stands for flags that were given before.
            let command = command.replace(" … ", " ");
            let words = words(&command.replace("$name", "name").replace("$HOTKEY", HOTKEY));
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("README: {command}\n{error}");
            }
            tried += 1;
        }
    }
    assert!(tried >= 10, "only {tried} commands were found in the README");
}

const HOTKEY: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

/// Splits at spaces outside double quotes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
