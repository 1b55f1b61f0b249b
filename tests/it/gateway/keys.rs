//! The life of a key over restarts, by `argus keys` as people run it: on a running node and on a stopped one.

use std::{path::Path, process::Output};

use argus::gateway::{admin::AdminFile, keys::KeyHash};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{apple, error, settings, start, start_in, value};

async fn argus(dir: &Path, args: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_argus"))
        .args(["keys", "--data-dir"])
        .arg(dir)
        .args(args)
        .env_remove("ARGUS_DATA_DIR")
        .output()
        .await
        .unwrap()
}

async fn json_of(dir: &Path, args: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(args);
    let output = argus(dir, &all).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn refused(dir: &Path, args: &[&str]) -> String {
    let output = argus(dir, args).await;
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_key_lives_over_restarts_and_both_ways_of_reaching_it() {
    let running = start().await;
    let dir = running.dir.path().to_owned();
    let made = json_of(&dir, &["new", "Lena", "--credits", "2.5", "--rate", "100"]).await;
    let (key, id) = (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned());
    assert_eq!((&made["credits_left"], &made["requests_per_minute"]), (&json!(2.5), &json!(100)));
    let request = running.http.post(running.url("/v1/images/generations")).bearer_auth(&key);
    assert_eq!(request.json(&apple()).send().await.unwrap().status(), 200);

    let kept = running.stop().await;
    assert!(AdminFile::read(&dir).unwrap().is_none(), "the file goes with the node");
    let usage = json_of(&dir, &["usage", &id]).await;
    assert_eq!((&usage["credits_left"], &usage["usage"]["images"]), (&json!(1.5), &json!(1)));
    let other = json_of(&dir, &["new", "made while the node is down"]).await;
    json_of(&dir, &["update", &id, "--name", "Lena B.", "--add-credits", "1"]).await;

    let running = start_in(kept, settings()).await;
    let account = value(running.get("/v1/key").bearer_auth(&key).send().await.unwrap()).await;
    assert_eq!((&account["name"], &account["credits_left"]), (&json!("Lena B."), &json!(2.5)));
    let other_key = other["key"].as_str().unwrap();
    assert_eq!(running.get("/v1/key").bearer_auth(other_key).send().await.unwrap().status(), 200);
    json_of(&dir, &["revoke", &id]).await;
    assert_eq!(running.get("/v1/key").bearer_auth(&key).send().await.unwrap().status(), 401);
    let open = json_of(&dir, &["list"]).await;
    assert!(open.as_array().unwrap().iter().all(|view| view["id"] != id.as_str()));
    let all = json_of(&dir, &["list", "--all"]).await;
    assert_eq!(all.as_array().unwrap().len(), open.as_array().unwrap().len() + 1);
    json_of(&dir, &["revoke", "--forget", &id]).await;
    assert!(refused(&dir, &["usage", &id]).await.contains("there is no key"));
    let kept = running.stop().await;
    assert!(refused(kept.path(), &["usage", &id]).await.contains("there is no key"));
}

#[tokio::test]
async fn people_get_a_table_and_the_bare_key() {
    let running = start().await;
    let dir = running.dir.path();
    let output = argus(dir, &["new", "Ada"]).await;
    let key = String::from_utf8(output.stdout).unwrap();
    assert_eq!(key.trim().len(), 6 + 64);
    assert!(String::from_utf8(output.stderr).unwrap().contains("not shown again"));
    let listed = String::from_utf8(argus(dir, &["list"]).await.stdout).unwrap();
    assert!(listed.starts_with("KEY") && listed.contains("Ada") && listed.contains("unlimited"), "{listed}");
    assert!(!listed.contains(&key.trim()[6..20]));
    let id = KeyHash::of(key.trim()).id().to_string();
    let usage = String::from_utf8(argus(dir, &["usage", &id]).await.stdout).unwrap();
    assert!(usage.contains("last used  never"), "{usage}");
}

#[tokio::test]
async fn mistakes_are_explained() {
    let running = start().await;
    let dir = running.dir.path().to_owned();
    assert!(refused(&dir, &["new", ""]).await.contains("a name has 1 to 64"));
    assert!(refused(&dir, &["new", "a", "--rate", "0"]).await.contains("1 to 100000"));
    assert!(refused(&dir, &["new", "a", "--credits=-1"]).await.contains("credits are 0 to"));
    assert!(refused(&dir, &["usage", "nonsense"]).await.contains("ids look like key_"));
    assert!(refused(&dir, &["update", "key_000000000000"]).await.contains("nothing to change"));
    assert!(refused(&dir, &["revoke", "key_000000000000"]).await.contains("there is no key"));
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path(), &["list"]).await.contains("has no validator's data"));
}

#[tokio::test]
async fn a_file_left_by_a_killed_node_is_no_obstacle() {
    let running = start().await;
    let file = std::fs::read(AdminFile::path(running.dir.path())).unwrap();
    let dir = running.stop().await;
    // As after `kill -9`: the file is there, the port is closed.
    std::fs::write(AdminFile::path(dir.path()), file).unwrap();
    assert_eq!(json_of(dir.path(), &["list"]).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_admin_port_opens_only_to_its_token() {
    let running = start().await;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let file = std::fs::metadata(AdminFile::path(running.dir.path())).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }
    let node = AdminFile::read(running.dir.path()).unwrap().unwrap();
    assert!(node.address.ip().is_loopback());
    let url = format!("http://{}/keys", node.address);
    assert_eq!(running.http.get(&url).send().await.unwrap().status(), 401);
    for wrong in [running.key.as_str(), "argus-0", &node.token[..node.token.len() - 1]] {
        assert_eq!(running.http.get(&url).bearer_auth(wrong).send().await.unwrap().status(), 401);
    }
    assert_eq!(running.http.get(&url).bearer_auth(&node.token).send().await.unwrap().status(), 200);
    // The token is no API key, and the admin paths are not on the public port.
    let public = running.get("/v1/key").bearer_auth(&node.token).send().await.unwrap();
    assert_eq!(public.status(), 401);
    assert_eq!(running.get("/keys").bearer_auth(&node.token).send().await.unwrap().status(), 404);
    for (body, status) in [
        (json!({ "name": "x", "admin": true }), StatusCode::BAD_REQUEST),
        (json!({ "name": "x", "credits": -1 }), StatusCode::BAD_REQUEST),
        (json!({ "name": "x".repeat(20_000) }), StatusCode::PAYLOAD_TOO_LARGE),
        (json!({ "name": "x" }), StatusCode::CREATED),
    ] {
        let response = running.http.post(&url).bearer_auth(&node.token).json(&body).send().await.unwrap();
        assert_eq!(response.status(), status, "{body}");
    }
    let bad = running.http.delete(format!("{url}/..%2F")).bearer_auth(&node.token).send().await.unwrap();
    assert_eq!(bad.status(), 400);
    assert!(value(bad).await["error"]["message"].as_str().unwrap().contains("not a key id"));
}

#[tokio::test]
async fn nothing_that_a_client_wrote_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // On this thread alone, which is the only one of this test's runtime.
    let _guard = tracing::subscriber::set_default(subscriber);
    let running = start().await;
    let body = json!({ "prompt": "xyzzy-prompt", "negative_prompt": "plugh-prompt", "user": "frotz-user" });
    let response = running.images(&body).send().await.unwrap();
    let request = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(response.status(), 200);
    let wrong = running.images(&json!({ "prompt": "xyzzy-prompt", "steps": 0 })).send().await.unwrap();
    assert_eq!(error(wrong).await.0, 400);
    let text = String::from_utf8_lossy(&log.0.lock()).into_owned();
    let ours: Vec<_> = text.lines().filter(|line| line.contains("argus::")).collect();
    assert!(ours.iter().any(|line| line.contains(&request)), "{text}");
    for line in ours {
        for secret in ["xyzzy", "plugh", "frotz", &running.key[6..]] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
