//! A real Chromium for the tests of the pages, driven over its debugging pipe. It is killed after five minutes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// File descriptors 3 and 4 are where Chromium has its debugging pipe. It needs its own profile, since it would
/// hand the page to another Chromium of the same user otherwise; and no sandbox, which containers forbid.
const START: &str = "exec timeout --kill-after=5 300 \"$(command -v chromium || command -v chromium-browser || \
    command -v google-chrome || echo chromium)\" --headless --no-sandbox --disable-gpu --no-first-run \
    --disable-dev-shm-usage --user-data-dir=\"$1\" --remote-debugging-pipe 3<&0 4>&1 </dev/null >/dev/null";

/// A browser with one open page.
pub(super) struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// Everything that the page and the browser logged: errors, warnings, and what the script threw.
    pub(super) logged: Vec<String>,
    folder: TempDir,
}

impl Browser {
    /// Opens a page from a file, with or without its scripts.
    pub(super) fn open(html: &str, with_scripts: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let page = folder.path().join("page.html");
        std::fs::write(&page, html).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", START, "sh"])
            .arg(folder.path().join("profile"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (from, logged) = (BufReader::new(from), Vec::new());
        let mut browser = Self { child, to, from, session: None, last_id: 0, logged, folder };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        let size = json!({ "width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", &size);
        let scripts = json!({ "value": !with_scripts });
        browser.call("Emulation.setScriptExecutionDisabled", &scripts);
        browser.send("Page.navigate", &json!({ "url": format!("file://{}", page.display()) }));
        while browser.receive()["method"] != "Page.loadEventFired" {}
        browser
    }

    /// The value of a JavaScript expression in the page.
    pub(super) fn eval(&mut self, expression: &str) -> Value {
        let arguments = json!({ "expression": expression, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", &arguments);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Presses a key.
    pub(super) fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", &json!({ "type": kind, "key": key }));
        }
    }

    /// Moves the mouse to a place of the window.
    pub(super) fn point_at(&mut self, x: f64, y: f64) {
        let at = json!({ "type": "mouseMoved", "x": x, "y": y });
        self.call("Input.dispatchMouseEvent", &at);
    }

    fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        self.last_id
    }

    /// Calls a method of the debugging protocol, and waits for its result.
    pub(super) fn call(&mut self, method: &str, params: &Value) -> Value {
        let id = self.send(method, params);
        loop {
            let message = self.receive();
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    fn receive(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "Chromium has ended, or is missing: run `make test-deps`");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        let logs = ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"];
        if logs.iter().any(|log| message["method"] == *log) {
            self.logged.push(message["params"].to_string());
        }
        message
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends after this time, or `timeout` ends it. The profile's folder is removed after it.
        self.session = None;
        let close = json!({ "id": 0, "method": "Browser.close" });
        drop(self.to.write_all(format!("{close}\0").as_bytes()));
        drop(self.child.wait());
        let _removed_next = &self.folder;
    }
}
