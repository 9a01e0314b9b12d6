//! The model's path against references that nobody here wrote: data in this folder, each file with the script that made
//! it from the same model file. Needs the model (`make test-model`).

mod batching;
mod logits;
mod quantise;
mod templates;
mod tokenizer;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The default model's file: `PENSTOCK_TEST_MODEL`, else the one that `make test-model` puts under `target`.
fn model_path() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("PENSTOCK_TEST_MODEL").map_or_else(default, PathBuf::from);
    assert!(path.is_file(), "no model at {}: run `make test-model`, or set PENSTOCK_TEST_MODEL", path.display());
    path
}

/// A file of this folder.
fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Token ids in JSON.
fn ids(value: &Value) -> Vec<u32> {
    let items = value.as_array().expect("an array of ids");
    items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).expect("a token id")).collect()
}
