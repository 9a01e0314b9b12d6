//! Official clients and the shell.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::up::{MODEL, PENSTOCK, Up, python};

/// Runs a file of tests against a penstock.
fn passes(up: &Up, file: &str) {
    let output = Command::new(python())
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", &format!("tests/clients/{file}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PENSTOCK_URL", &up.url)
        .env("PENSTOCK_OPS", &up.ops)
        .env("PENSTOCK_GRPC", &up.grpc)
        .env("PENSTOCK_MODEL", MODEL)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&output.stderr), up.log());
    assert!(text.contains(" passed"), "no test ran: {text}");
}

#[test]
fn official_openai_and_grpc_clients_work_unchanged() {
    let up = Up::start(&[]);
    passes(&up, "test_openai.py");
    passes(&up, "test_responses.py");
    passes(&up, "test_tools.py");
    passes(&up, "test_grpc.py");
}

#[test]
fn the_official_javascript_client_works_unchanged() {
    let up = Up::start(&[]);
    let output = Command::new(Path::new(&python()).with_file_name("node"))
        .args(["--test", "--test-reporter=tap", "tests/clients/npm/openai.test.js"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PENSTOCK_URL", &up.url)
        .env("PENSTOCK_MODEL", MODEL)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&output.stderr), up.log());
    assert!(text.contains("\n# pass 5\n"), "not every test ran: {text}");
}

#[test]
fn structure_log_probabilities_and_choices_are_what_the_official_client_expects() {
    passes(&Up::start(&[]), "test_structure.py");
}

#[test]
fn the_official_anthropic_client_works_unchanged() {
    passes(&Up::start(&[]), "test_anthropic.py");
}

#[test]
fn frameworks_work_as_clients() {
    passes(&Up::start(&[]), "test_frameworks.py");
}

#[test]
fn the_description_of_the_faces_is_whole_and_true() {
    passes(&Up::start(&[]), "test_openapi.py");
}

#[test]
fn the_curl_line_of_the_banner_works_as_pasted() {
    let up = Up::start(&[]);
    let line = up.banner.lines().map(str::trim).find(|line| line.starts_with("curl ")).expect(&up.banner);
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("\"choices\""), "{line}\n{text}");
}

#[test]
fn chat_answers_on_the_terminal() {
    let up = Up::start(&[]);
    let ask = ["chat", "--url", &up.url, "--temperature", "0", "What is the capital of France?"];
    let output = Command::new(PENSTOCK).args(ask).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("Paris"), "{text}");
}

#[test]
fn chat_says_when_nobody_answers() {
    let output = Command::new(PENSTOCK).args(["chat", "--url", "http://127.0.0.1:9", "hello"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("http://127.0.0.1:9 does not answer"), "{text}");
}
