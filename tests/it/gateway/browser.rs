//! A headless Chromium, spoken to by the DevTools protocol over pipes: no port, no websocket.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Browser {
    _child: Child,
    _profile: TempDir,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    calls: u64,
    /// Exceptions and messages of the page that say something is wrong; failed requests are left out.
    pub errors: Vec<String>,
}

/// The browser of this machine.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("ARGUS_CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let installed = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    named.into_iter().chain(installed).find(|file| file.is_file())
}

impl Browser {
    pub async fn start(program: PathBuf) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol is on handles 3 and 4; the shell puts ours there.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 >/dev/null 2>&1"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut browser = Self {
            _child: child,
            _profile: profile,
            input,
            output: BufReader::new(output),
            session: None,
            calls: 0,
            errors: Vec::new(),
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// Calls a method of the protocol and returns its result.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).await.unwrap();
        loop {
            let mut bytes = Vec::new();
            let read = tokio::time::timeout(PATIENCE, self.output.read_until(0, &mut bytes)).await;
            let read = read.unwrap_or_else(|_| panic!("the browser does not answer {method}")).unwrap();
            assert!(read > 0, "the browser ended at {method}");
            bytes.pop();
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            self.note(&answer);
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let wrong = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => {
                let entry = &event["params"]["entry"];
                entry["level"] == "error" && entry["source"] != "network"
            }
            _ => false,
        };
        if wrong {
            self.errors.push(event["params"].to_string());
        }
    }

    pub async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
        self.until("document.documentElement?.dataset.ready === 'true'").await;
    }

    /// The value of an expression in the page.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// The text of an element.
    pub async fn text(&mut self, id: &str) -> String {
        let text = self.eval(&format!("document.getElementById('{id}').textContent")).await;
        text.as_str().unwrap().to_owned()
    }

    pub async fn until(&mut self, condition: &str) {
        let end = std::time::Instant::now() + PATIENCE;
        let mut last = Value::Null;
        while std::time::Instant::now() < end {
            // While a page loads there may be no document to ask.
            let params = json!({ "expression": condition, "awaitPromise": true, "returnByValue": true });
            let result = self.call("Runtime.evaluate", params).await;
            if result["result"]["value"] == true {
                return;
            }
            last = result;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        panic!("waited in vain for {condition}: {last} {:?}", self.errors);
    }

    pub async fn click(&mut self, id: &str) {
        let expression = format!("document.getElementById('{id}').click()");
        self.eval(&expression).await;
    }

    /// Puts the focus on a field, empties it and types as a keyboard would.
    pub async fn type_into(&mut self, id: &str, text: &str) {
        let focus = format!("{{ const f = document.getElementById('{id}'); f.focus(); f.select(); }}");
        self.eval(&focus).await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    pub async fn press(&mut self, key: &str, code: u32, control: bool) {
        for kind in ["rawKeyDown", "keyUp"] {
            let params = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "modifiers": if control { 2 } else { 0 }
            });
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }

    pub async fn width(&mut self, width: u32) {
        let params = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", params).await;
    }
}
