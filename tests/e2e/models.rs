//! Model files: pulled, listed, inspected; and what a broken one says.

use std::path::Path;

use serde_json::Value;

use crate::up::{model_file, penstock};

fn json(args: &[&str]) -> Value {
    let output = penstock(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the program, which must end with a code of 1 or 2, and returns what it said.
fn refusal(args: &[&str]) -> String {
    let output = penstock(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?} {text}", output.status);
    text
}

/// What `up` says as it refuses to start with these flags.
fn up(flags: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let ports = ["--http", "--grpc", "--admin", "--ops"].map(|flag| [flag, "127.0.0.1:0"]).concat();
    let own = ["up", "--data-dir", dir.path().to_str().unwrap(), "--log-level", "error"];
    refusal(&[&own[..], &ports, flags].concat())
}

/// What `up` says of a model file with these bytes.
fn up_with(dir: &Path, bytes: &[u8]) -> String {
    let file = dir.join("model.gguf");
    std::fs::write(&file, bytes).unwrap();
    up(&["--model", &format!("m={}", file.display())])
}

#[test]
fn a_file_is_pulled_listed_and_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let source = format!("file:{}", model_file().display());
    let pulled = json(&["model", "pull", &source, "--data-dir", data, "-o", "json"]);
    let listed = json(&["model", "list", "--data-dir", data, "-o", "json"]);
    assert_eq!(listed[0]["digest"], pulled["digest"]);
    assert!(Path::new(listed[0]["path"].as_str().unwrap()).is_file());

    let about = json(&["model", "inspect", model_file().to_str().unwrap(), "-o", "json"]);
    assert_eq!(about["family"], "llama");
    assert_eq!(about["quantisation"], "Q4_1");
    assert_eq!(about["context_length"], 8192);
    assert_eq!(about["parameters"], 134_515_008);
    // 2 (keys, values) × 30 layers × 3 heads × 64 × 2 bytes a token.
    let a_sequence = 2 * 30 * 3 * 64 * 2 * 8192u64;
    let needs = [1, 16, 64].map(|count| serde_json::json!({"sequences": count, "bytes": count * a_sequence}));
    assert_eq!(about["kv"], serde_json::json!(needs));
}

#[test]
fn a_wrong_digest_is_refused_with_both_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("file:{}", model_file().display());
    let data = dir.path().to_str().unwrap();
    let wrong = "0".repeat(64);
    let text = refusal(&["model", "pull", &source, "--sha256", &wrong, "--data-dir", data]);
    assert!(text.contains(&wrong) && text.matches(|c: char| c.is_ascii_hexdigit()).count() >= 128, "{text}");
    assert_eq!(json(&["model", "list", "--data-dir", data, "-o", "json"]), serde_json::json!([]));
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let text = refusal(&["model", "pull", "llama-900b"]);
    assert!(text.contains("llama-900b") && text.contains("smollm2-135m"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let text = up(&["--model", "m=/nowhere/model.gguf"]);
    assert!(text.contains("/nowhere/model.gguf"), "{text}");
}

#[test]
fn truncated_and_corrupted_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(model_file()).unwrap();
    let text = up_with(dir.path(), &whole[..whole.len() - 1000]);
    assert!(text.contains("truncated") || text.contains("past the end"), "{text}");
    let text = up_with(dir.path(), &whole[..5000]);
    assert!(text.contains("model.gguf"), "{text}");
    let text = up_with(dir.path(), b"this is no model");
    assert!(text.contains("GGUF"), "{text}");
    let text = up_with(dir.path(), b"");
    assert!(text.contains("GGUF") || text.contains("empty"), "{text}");
}

#[test]
fn an_unknown_architecture_and_pre_tokenizer_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        let mut bytes = std::fs::read(model_file()).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    // The lengths stay, so that the file is whole but for the word.
    let text = up_with(dir.path(), &replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma"));
    assert!(text.contains("lemma") && text.contains("llama"), "{text}");
    let text = up_with(dir.path(), &replaced(b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0smallm"));
    assert!(text.contains("smallm") && text.contains("smollm"), "{text}");
}

#[test]
fn no_room_in_memory_is_refused_with_the_sizes() {
    let model = format!("m={}", model_file().display());
    let text = up(&["--model", &model, "--kv-memory", "9000GiB"]);
    assert!(text.contains("9216000 for keys and values") && text.contains("available"), "{text}");
}
