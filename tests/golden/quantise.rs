//! `model quantize` against the PyPI package gguf, to the bit, and a folder against its logits in numpy.

use std::path::{Path, PathBuf};

use penstock_engine::batch::{Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, ModelRunner, Options};
use penstock_engine::weights::Weights;
use penstock_kernels::{Format, codec};
use penstock_router::prompt::ModelText;
use penstock_worker::quantise::{Error, quantise};
use penstock_worker::tokenizer::TextSide;

use super::{golden, golden_json, ids, model_path};

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A folder of this test's, gone with it.
fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("room for a file")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/folder")
}

#[test]
fn blocks_are_those_of_gguf() {
    let (index, data) = (golden_json("quantise.json"), golden("quantise.bin"));
    let size = |value: &serde_json::Value| value.as_u64().and_then(|size| usize::try_from(size).ok()).expect("a size");
    let (values, mut data) = data.split_at(size(&index["values"]));
    let values = floats(values);
    let mut made = 0;
    for about in index["formats"].as_array().expect("a list") {
        let format = Format::by_name(about["name"].as_str().expect("a name")).expect("a format");
        let (blocks, rest) = data.split_at(size(&about["made"]));
        let (noise, rest) = rest.split_at(size(&about["noise"]));
        let (decoded, rest) = rest.split_at(512 * 4);
        data = rest;
        let mut ours = vec![0.0; 512];
        codec::decode(format, noise, &mut ours);
        assert_eq!(bits(&ours), bits(&floats(decoded)), "{format} is decoded as gguf decodes it");
        if !blocks.is_empty() {
            made += 1;
            let mut ours = Vec::new();
            assert!(codec::encode(format, &values, &mut ours));
            let (mut a, mut b) = (vec![0.0; values.len()], vec![0.0; values.len()]);
            codec::decode(format, &ours, &mut a);
            codec::decode(format, blocks, &mut b);
            assert_eq!(bits(&a), bits(&b), "{format} is made as gguf makes it");
        }
    }
    assert!(data.is_empty());
    assert_eq!(made, 8);
}

fn run(path: &Path, tokens: &[u32]) -> Vec<f32> {
    let options = Options { kv: KvSize::Blocks(8), threads: None, digest: "quantised".to_owned() };
    let mut runner = CandleRunner::load(path, &options).expect("the model loads");
    let mut batch = Batch::new();
    batch.push(tokens, 0, &(0..8).map(BlockId).collect::<Vec<_>>(), tokens.len());
    runner.execute(&batch).expect("the step runs").to_vec()
}

/// The root of the mean square of the difference, as a share of that of the reference.
fn distance(ours: &[f32], reference: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let (error, size) = ours.iter().zip(reference).fold((0.0, 0.0), |(error, size), (ours, reference)| {
        (error + square(ours - reference), size + square(*reference))
    });
    (error / size).sqrt()
}

#[test]
fn a_folder_becomes_a_file_with_the_same_logits() {
    let temp = temp();
    let reference = floats(&golden("folder/logits.bin"));
    let tokens: Vec<u32> = (1..=60).collect();
    // Rows of 64 and 96 elements: K types give way to types of 32. A step of d adds a noise of d / √12 to each weight, and
    // 14 products add up what each adds: about 2 % with 8 bits, 16 % with 5 and 30 % with 4, the head's 8 bits apart.
    let bounds =
        [("F32", 1e-3), ("bf16", 1e-3), ("F16", 1e-3), ("Q8_0", 0.03), ("Q6_K", 0.03), ("q5_1", 0.16), ("Q4_0", 0.35)];
    for (to, bound) in bounds {
        let out = temp.path().join(format!("{to}.gguf"));
        quantise(&folder(), &out, to).expect("it is written");
        let distance = distance(&run(&out, &tokens), &reference);
        println!("{to}: {distance:.5}");
        assert!(distance < bound, "{to}: {distance}");
    }
}

#[test]
fn a_folders_tokenizer_says_the_same() {
    let temp = temp();
    let out = temp.path().join("tiny.gguf");
    quantise(&folder(), &out, "bf16").expect("it is written");
    let side = TextSide::from_gguf(Weights::open(&out).expect("a file").metadata()).expect("a tokenizer");
    assert_eq!((side.kind.as_str(), side.has_template), ("gpt2/smollm", true));
    assert_eq!(side.eos_token_ids, [261, 262]);
    let files = side.files.into_iter().map(|file| (file.name.to_owned(), file.bytes)).collect();
    let text = ModelText::new(&files).expect("the files are read");
    for known in golden_json("folder/texts.json").as_array().expect("a list") {
        let spelled = known["text"].as_str().expect("text");
        assert_eq!(text.tokenize(spelled, true).expect("it is encoded"), ids(&known["ids"]), "{known}");
    }
}

#[test]
fn a_file_in_another_format_says_nearly_the_same_and_keeps_its_text() {
    let temp = temp();
    let tokens = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198];
    let reference = run(&model_path(), &tokens);
    for (to, bound) in [("q8_0", 0.04), ("q5_1", 0.4)] {
        let out = temp.path().join(format!("{to}.gguf"));
        let written = quantise(&model_path(), &out, to).expect("it is written");
        assert_eq!(written.size, std::fs::metadata(&out).expect("a file").len());
        let distance = distance(&run(&out, &tokens), &reference);
        println!("{to}: {distance:.5}");
        assert!(distance < bound, "{to}: {distance}");
        let side = |path: &Path| TextSide::from_gguf(Weights::open(path).expect("a file").metadata()).expect("text");
        assert_eq!(side(&out).files, side(&model_path()).files);
    }
}

#[test]
fn what_cannot_be_written_is_said() {
    let temp = temp();
    let out = temp.path().join("out.gguf");
    let unknown = quantise(&folder(), &out, "q3_1").unwrap_err();
    assert!(unknown.to_string().contains("no format \"q3_1\"; there are F32"), "{unknown}");
    let intermediate = quantise(&folder(), &out, "q8_k").unwrap_err();
    assert!(intermediate.to_string().contains("Q8_K is not written"), "{intermediate}");
    let nowhere = quantise(&temp.path().join("none.gguf"), &out, "q8_0").unwrap_err();
    assert!(nowhere.to_string().contains("none.gguf"), "{nowhere}");
    std::fs::write(&out, b"mine").expect("a file");
    assert!(matches!(quantise(&folder(), &out, "q8_0"), Err(Error::Exists(path)) if path == out));
    std::fs::create_dir(temp.path().join("empty")).expect("a folder");
    let empty = quantise(&temp.path().join("empty"), &temp.path().join("x.gguf"), "q8_0").unwrap_err();
    assert!(empty.to_string().contains("config.json"), "{empty}");
    let left: Vec<_> = std::fs::read_dir(temp.path()).expect("a folder").filter_map(Result::ok).collect();
    assert_eq!(left.len(), 2, "nothing is left behind: {left:?}");
}
