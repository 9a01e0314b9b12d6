//! A tiny random Llama file, whole and damaged.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A file that goes away with its owner.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("penstock-weights-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes GGUF version 3.
#[derive(Default)]
pub(crate) struct Writer {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Writer {
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, &[&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat());
    }

    pub(crate) fn u32(&mut self, key: &str, value: usize) {
        self.value(key, 4, &(value as u32).to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.value(key, 6, &value.to_le_bytes());
    }

    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.values.extend((key.len() as u64).to_le_bytes());
        self.values.extend(key.as_bytes());
        self.values.extend(kind.to_le_bytes());
        self.values.extend(bytes);
        self.value_count += 1;
    }

    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[usize], kind: u32, bytes: &[u8]) {
        self.tensors.extend((name.len() as u64).to_le_bytes());
        self.tensors.extend(name.as_bytes());
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|&n| self.tensors.extend((n as u64).to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.value_count.to_le_bytes());
        file.extend(self.values);
        file.extend(self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

/// A Llama of two layers with random weights.
#[derive(Clone, Copy)]
pub(crate) struct TinyLlama {
    pub(crate) architecture: &'static str,
    pub(crate) width: usize,
    pub(crate) scaling: Option<&'static str>,
    pub(crate) bias: bool,
    pub(crate) without: &'static str,
    pub(crate) head: bool,
    /// Projections are Q4_1, embeddings Q8_0, as in the default model; else F32.
    pub(crate) quantised: bool,
}

impl Default for TinyLlama {
    fn default() -> Self {
        Self { architecture: "llama", width: 64, scaling: None, bias: false, without: "", head: false, quantised: true }
    }
}

impl TinyLlama {
    pub(crate) fn write(&self) -> TempFile {
        TempFile::new(&self.bytes())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.text("general.architecture", self.architecture);
        writer.text("general.name", "tiny");
        let sizes = [("block_count", 2), ("embedding_length", self.width), ("feed_forward_length", 96)];
        let heads = [("context_length", 256), ("attention.head_count", 4), ("attention.head_count_kv", 2)];
        for (key, value) in sizes.into_iter().chain(heads) {
            writer.u32(&format!("llama.{key}"), value);
        }
        writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        if let Some(kind) = self.scaling {
            writer.text("llama.rope.scaling.type", kind);
        }
        self.tensors(&mut writer);
        writer.finish()
    }

    fn tensors(&self, writer: &mut Writer) {
        self.matrix(writer, "token_embd.weight", [64, 96], 8);
        self.vector(writer, "output_norm.weight", 64);
        if self.head {
            self.matrix(writer, "output.weight", [64, 96], 8);
        }
        for layer in 0..2 {
            let shapes = [("attn_q", 64, 64), ("attn_k", 64, 32), ("attn_v", 64, 32), ("attn_output", 64, 64)];
            let feed = [("ffn_gate", 64, 96), ("ffn_up", 64, 96), ("ffn_down", 96, 64)];
            for (name, cols, rows) in shapes.into_iter().chain(feed) {
                self.matrix(writer, &format!("blk.{layer}.{name}.weight"), [cols, rows], 3);
            }
            self.vector(writer, &format!("blk.{layer}.attn_norm.weight"), 64);
            self.vector(writer, &format!("blk.{layer}.ffn_norm.weight"), 64);
            if self.bias {
                self.vector(writer, &format!("blk.{layer}.attn_q.bias"), 64);
            }
        }
    }

    fn vector(&self, writer: &mut Writer, name: &str, len: usize) {
        let bytes: Vec<u8> = (0..len).flat_map(|i| (1.0 + (i as f32 * 1.7).sin() * 0.3).to_le_bytes()).collect();
        if name != self.without {
            writer.tensor(name, &[len], 0, &bytes);
        }
    }

    fn matrix(&self, writer: &mut Writer, name: &str, [cols, rows]: [usize; 2], kind: u32) {
        if name == self.without {
            return;
        }
        let seed = name.bytes().fold(17u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let half = |x: u16| x.to_le_bytes();
        let mut bytes = Vec::new();
        match (self.quantised, kind) {
            (false, _) => (0..rows * cols).for_each(|_| bytes.extend((f32::from(next()) / 512.0 - 0.25).to_le_bytes())),
            // 0x2c00 is 1/16 as f16, 0xb780 is -15/32: weights of -15/32 to 15/32.
            (true, 3) => (0..rows * cols / 32).for_each(|_| {
                bytes.extend([half(0x2c00), half(0xb780)].concat());
                bytes.extend((0..16).map(|_| next()));
            }),
            // 0x1c00 is 1/256.
            (true, _) => (0..rows * cols / 32).for_each(|_| {
                bytes.extend(half(0x1c00));
                bytes.extend((0..32).map(|_| next()));
            }),
        }
        writer.tensor(name, &[cols, rows], if self.quantised { kind } else { 0 }, &bytes);
    }
}

fn error(bytes: &[u8]) -> Error {
    let file = TempFile::new(bytes);
    match Weights::open(file.path()).and_then(|weights| crate::model::load(&weights)) {
        Ok(_) => panic!("a damaged file was loaded"),
        Err(error) => error,
    }
}

#[test]
fn a_whole_file_is_summed_up() {
    let file = TinyLlama::default().write();
    let weights = Weights::open(file.path()).unwrap();
    let summary = Summary::new(&weights).unwrap();
    assert_eq!((summary.architecture.as_str(), summary.name.as_deref()), ("llama", Some("tiny")));
    let layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3 + 2 * 64;
    assert_eq!(summary.parameters, 96 * 64 + 64 + 2 * layer);
    assert_eq!(summary.quantisation, Format::Q4_1);
    assert_eq!((summary.context_length, summary.vocab_size), (256, 96));
    assert_eq!(summary.kv_bytes_per_token, 2 * 2 * 2 * 16 * 2);
    let model = crate::model::load(&weights).unwrap();
    let vectors = 5 * 64 * 4;
    assert_eq!(model.bytes() as u64, summary.weight_bytes - vectors);
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_no_panic() {
    let bytes = TinyLlama::default().bytes();
    for len in (0..2500).chain((2500..bytes.len()).step_by(97)).chain([bytes.len() - 1]) {
        let found = error(&bytes[..len]);
        let expected = matches!(found, Error::Truncated { .. } | Error::Read { .. } | Error::NotGguf(_));
        assert!(expected || len == 0, "cut at {len}: {found}");
    }
}

#[test]
fn a_file_with_any_flipped_byte_of_its_header_loads_or_is_an_error() {
    let bytes = TinyLlama::default().bytes();
    let header = bytes.windows(8).rposition(|window| window == b"ffn_norm").unwrap() + 60;
    for at in 0..header {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let file = TempFile::new(&bytes);
            let Ok(weights) = Weights::open(file.path()) else { continue };
            let _ = Summary::new(&weights);
            let _ = crate::model::load(&weights);
        }
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let tiny = TinyLlama::default();
    let unknown = error(&TinyLlama { architecture: "mamba", ..tiny }.bytes());
    assert_eq!(unknown.to_string(), "architecture \"mamba\" is not served; served are: llama");
    let missing = error(&TinyLlama { without: "blk.1.ffn_up.weight", ..tiny }.bytes());
    assert!(matches!(missing, Error::MissingTensor(name) if name == "blk.1.ffn_up.weight"));
    let bias = error(&TinyLlama { bias: true, ..tiny }.bytes());
    assert!(matches!(bias, Error::UnexpectedTensor(name) if name == "blk.0.attn_q.bias"));
    let shape = error(&TinyLlama { width: 128, ..tiny }.bytes());
    assert!(matches!(shape, Error::Shape { .. }), "{shape}");
    let scaling = error(&TinyLlama { scaling: Some("yarn"), ..tiny }.bytes());
    assert!(matches!(scaling, Error::Unsupported(what) if what.contains("yarn")));
    let nowhere = Weights::open(Path::new("/nonexistent/model.gguf")).err();
    assert!(nowhere.is_some_and(|error| error.to_string().starts_with("cannot read /nonexistent/model.gguf")));
    assert!(matches!(error(b"GGML, or so it says"), Error::NotGguf(_)));
    let mut bytes = tiny.bytes();
    bytes[4] = 1;
    assert!(matches!(error(&bytes), Error::Version(1)));
    let mut writer = Writer::default();
    writer.tensor("x", &[32], 16, &[0; 64]);
    assert!(matches!(error(&writer.finish()), Error::Type { id: 16, .. }));
}

#[test]
fn counts_beyond_the_file_allocate_nothing() {
    let mut bytes = TinyLlama::default().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(error(&bytes), Error::Truncated { .. }));
    let mut writer = Writer::default();
    let huge = [8u32.to_le_bytes().to_vec(), (1u64 << 60).to_le_bytes().to_vec()].concat();
    writer.value("tokens", 9, &huge);
    assert!(matches!(error(&writer.finish()), Error::Truncated { .. }));
}

#[test]
fn halves_put_pairs_apart() {
    let rows: Vec<u8> = (0..16).collect();
    let order = Order::Halves { head: 8, rotated: 6 };
    assert_eq!(*order.apply(&rows, 16), [0, 2, 4, 1, 3, 5, 6, 7, 8, 10, 12, 9, 11, 13, 14, 15]);
    assert_eq!(*Order::Stored.apply(&rows, 16), rows);
}
