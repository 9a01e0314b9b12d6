//! A real `penstock up`, on free ports, with the default model; ended when dropped.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

/// The program under test.
pub(crate) const PENSTOCK: &str = env!("CARGO_BIN_EXE_penstock");
/// The name that the default model is served under.
pub(crate) const MODEL: &str = "smollm2-135m";

/// The default model's file.
pub(crate) fn model_file() -> PathBuf {
    let path = std::env::var_os("PENSTOCK_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    assert!(path.is_file(), "{} is not there: run `make test-model`", path.display());
    path
}

/// The Python that has the official clients.
pub(crate) fn python() -> PathBuf {
    let path = std::env::var_os("PENSTOCK_TEST_PYTHON")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"));
    assert!(path.is_file(), "{} is not there: run `make test-tools`", path.display());
    path
}

/// An HTTP client that follows no proxy.
pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Runs the program to its end.
pub(crate) fn penstock(args: &[&str]) -> Output {
    Command::new(PENSTOCK).args(args).stdin(Stdio::null()).output().unwrap()
}

/// A running `penstock up`.
pub(crate) struct Up {
    child: Child,
    dir: tempfile::TempDir,
    /// What it printed on standard output until it was ready.
    pub(crate) banner: String,
    /// `http://ADDR` of the faces.
    pub(crate) url: String,
    /// `ADDR` of the gRPC face.
    pub(crate) grpc: String,
    /// `http://ADDR` of the ops port.
    pub(crate) ops: String,
    /// Asks it things; it follows no proxy.
    pub(crate) http: reqwest::Client,
}

impl Up {
    /// Starts it with further flags and returns once it is ready.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let ready = dir.path().join("ready.json");
        let mut child = Command::new(PENSTOCK)
            .args([
                "up",
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--ops",
                "127.0.0.1:0",
                "--model",
            ])
            .arg(format!("{MODEL}={}", model_file().display()))
            .arg("--data-dir")
            .arg(dir.path())
            .arg("--ready-file")
            .arg(&ready)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let banner = until_ready(&mut child);
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let text = std::fs::read_to_string(&ready).unwrap_or_else(|_| panic!("up did not start: {banner}\n{}", log()));
        let addresses: Value = serde_json::from_str(&text).unwrap();
        let at = |part: &str| format!("http://{}", addresses[part].as_str().unwrap());
        let (url, ops) = (at("http"), at("ops"));
        let grpc = addresses["grpc"].as_str().unwrap().to_owned();
        let http = client();
        Self { child, dir, banner, url, grpc, ops, http }
    }

    /// Posts a body to a path of the faces.
    pub(crate) async fn post(&self, path: &str, body: impl Into<String>) -> reqwest::Response {
        self.http.post(format!("{}{path}", self.url)).body(body.into()).send().await.unwrap()
    }

    /// Posts a JSON value and returns status and JSON answer.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body.to_string()).await;
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    /// The sum of the metric's series whose line starts with `name`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.ops)).send().await.unwrap().text().await.unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
        assert!(!lines.is_empty(), "no metric {name} in:\n{text}");
        lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Asks until no sequence holds a block and no request is in flight.
    pub(crate) async fn idle(&self) {
        for _ in 0..5_000 {
            let used = self.metric("penstock_kv_blocks{state=\"used\"}").await;
            let sequences = self.metric("penstock_sequences{").await;
            if used == 0.0 && sequences == 0.0 {
                return;
            }
        }
        panic!("still busy:\n{}", self.log());
    }

    /// Sends a signal by name: TERM, INT.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// A line of /proc/PID/status in bytes: `VmHWM` is the peak of its resident memory.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads standard output up to the line that says ready, or to its end.
fn until_ready(child: &mut Child) -> String {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut banner = String::new();
    while out.read_line(&mut banner).unwrap() > 0 {
        if banner.lines().last().is_some_and(|line| line.starts_with("ready")) {
            // Whatever else it prints is read and dropped, so that it never blocks on a full pipe.
            std::thread::spawn(move || out.read_to_string(&mut String::new()));
            return banner;
        }
    }
    banner
}
