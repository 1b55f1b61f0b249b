//! What a node says once it is up.

use std::io::Write;

use serde_json::json;

use crate::node::Ready;

/// With `--json` one line `{"event":"ready",…}`; otherwise what a person copies from.
pub fn announce(up: &Ready, json: bool) {
    let text = if json {
        let mut line = json!(up);
        line["event"] = "ready".into();
        format!("{line}\n")
    } else {
        let mut text = format!("{:?} is up, peer {}\n", up.role, up.peer);
        if let Some(hotkey) = up.hotkey {
            text += &format!("  hotkey   {hotkey}\n");
        }
        for address in &up.addresses {
            text += &format!("  address  {address}\n");
        }
        if let Some(api) = up.api {
            text += &format!("  studio   http://{api}/\n  API      http://{api}/v1\n");
        }
        text + &format!("  metrics  http://{}/metrics\n", up.admin)
    };
    say(&text);
}

/// Prints at once. Whoever started us may have closed the pipe; that must not end the node.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
