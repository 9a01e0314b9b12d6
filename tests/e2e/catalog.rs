//! `penstock up` and its catalogue: applied at start, kept in the data directory, one process at a time.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::up::{PENSTOCK, client, penstock};

const MODEL: &str = "rehearsal";
const PORTS: [&str; 8] =
    ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ops", "127.0.0.1:0"];

/// A running `up` over the stand-in engine; killed when dropped.
struct Rehearsal {
    child: Child,
    addresses: Value,
}

impl Rehearsal {
    fn start(dir: &Path, flags: &[&str]) -> Self {
        let ready = dir.join("ready.json");
        let mut child = Command::new(PENSTOCK)
            .args(["up", "--runner", "scripted", "--model", MODEL])
            .args(PORTS)
            .args(flags)
            .arg("--data-dir")
            .arg(dir)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = lines.map(Result::unwrap).any(|line| line.starts_with("ready"));
        assert!(started, "{}", std::fs::read_to_string(dir.join("log")).unwrap());
        let addresses = serde_json::from_str(&std::fs::read_to_string(&ready).unwrap()).unwrap();
        Self { child, addresses }
    }

    fn operate(&self, dir: &Path, args: &[&str]) -> (Option<i32>, String) {
        let admin = self.addresses["admin"].as_str().unwrap();
        let own = ["--server", admin, "--data-dir", dir.to_str().unwrap()];
        let Output { status, stdout, stderr } = penstock(&[args, &own].concat());
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    async fn ask(&self, key: Option<&str>, model: &str) -> (u16, String) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
        let url = format!("http://{}/v1/chat/completions", self.addresses["http"].as_str().unwrap());
        let request = client().post(url).body(body.to_string());
        let response = key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_catalogue_and_its_keys_outlast_the_process_and_its_members_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, file) = (dir.path(), dir.path().join("bank.yaml"));
    let text = format!("models: [{{name: {MODEL}}}]\nroutes: [{{name: help, targets: [{{model: {MODEL}}}]}}]\n");
    std::fs::write(&file, text).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let up = Rehearsal::start(dir, &config);
    assert_eq!(up.ask(None, "help").await.0, 200);
    let (code, text) = up.operate(dir, &["tenant", "create", "web", "--models", "help", "-o", "table"]);
    assert!(code == Some(0) && text.contains("tenant web has the key k1"), "{text}");
    let key = text.lines().find(|line| line.starts_with("psk_")).unwrap().to_owned();

    let text = penstock(&[&["up", "--data-dir", dir.to_str().unwrap(), "--model", MODEL][..], &PORTS].concat());
    let told = String::from_utf8(text.stderr).unwrap();
    assert!(text.status.code() == Some(1) && told.contains("in use") && told.contains("--data-dir"), "{told}");

    // Without notice; once with the same catalogue, once without one.
    drop(up);
    for flags in [&config[..], &[]] {
        let up = Rehearsal::start(dir, flags);
        assert_eq!(up.ask(Some(&key), "help").await.0, 200);
        assert_eq!(up.ask(None, "help").await.0, 401);
        let (status, told) = up.ask(Some(&key), MODEL).await;
        assert!(status == 404 && told.contains("there are: help"), "{told}");
        let (code, text) = up.operate(dir, &["get", "versions", "-o", "json"]);
        let versions: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, versions.as_array().unwrap().len()), (Some(0), 2), "{text}");
        let (_, text) = up.operate(dir, &["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{text}");
    }
}

#[test]
fn a_catalogue_that_is_not_valid_ends_the_start_with_file_line_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bank.yaml");
    let file = file.to_str().unwrap();
    let missing = "PENSTOCK_TEST_NO_SUCH_VARIABLE";
    for (text, told) in [
        (
            "tenants:\n  - {name: a, modles: []}\n".to_owned(),
            format!("{file}:2: unknown key \"modles\"; did you mean models?"),
        ),
        (
            format!(
                "upstreams:\n  - {{name: a, protocol: openai, url: 'https://a.example', ceiling: public, key: {{env: {missing}}}}}\n"
            ),
            format!("{file}:2: upstream a: "),
        ),
    ] {
        std::fs::write(file, text).unwrap();
        let own = ["up", "--runner", "scripted", "--model", MODEL, "--data-dir", dir.path().to_str().unwrap()];
        let output = penstock(&[&own[..], &["--config", file], &PORTS].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.lines().any(|line| line.starts_with(&told)), "{text}");
    }
}

#[test]
fn every_command_of_operators_has_help_with_an_example() {
    for command in [
        &["apply"][..],
        &["diff"],
        &["get"],
        &["rollback"],
        &["explain"],
        &["session"],
        &["tenant"],
        &["tenant", "create"],
        &["tenant", "list"],
        &["tenant", "rotate-key"],
        &["tenant", "revoke-key"],
        &["tenant", "budget"],
        &["operator"],
        &["operator", "create"],
        &["operator", "revoke"],
    ] {
        let output = penstock(&[command, &["--help"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains("Examples:\n  penstock ") && text.contains("Exit codes:"), "{command:?}: {text}");
    }
}
