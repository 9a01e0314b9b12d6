//! Token ids against llama.cpp and Hugging Face, through the files that the worker makes from the model's metadata.

use std::sync::Arc;

use penstock_engine::weights::Weights;
use penstock_router::prompt::ModelText;
use penstock_router::text::Detokenizer;
use penstock_worker::tokenizer::TextSide;

use super::{golden_json, ids, model_path};

/// Bytes that no token of this vocabulary spells, though text may hold them; the references drop them too.
const UNSPELLABLE: [u8; 8] = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2];

/// The worker's files of the model, by name.
pub(crate) fn text_side() -> TextSide {
    let weights = Weights::open(&model_path()).expect("the model file opens");
    TextSide::from_gguf(weights.metadata()).expect("its tokenizer is served")
}

#[test]
fn ids_are_those_of_llama_cpp_or_hugging_face() {
    let files = text_side().files.into_iter().map(|file| (file.name.to_owned(), file.bytes)).collect();
    let model = ModelText::new(&files).expect("the worker's files are read");
    let golden = golden_json("tokenizer.json");
    let lines = golden.as_array().expect("a list");
    assert!(lines.len() >= 500);
    for line in lines {
        let (text, expected) = line.as_array().and_then(|line| line.split_first()).expect("text, then ids");
        let text = text.as_str().expect("text");
        let ours = model.tokenize(text, false).expect("encodes");
        assert!(expected.iter().any(|expected| ids(expected) == ours), "{text:?}: {ours:?}, not {expected:?}");
        let spelled: Vec<u8> = text.bytes().filter(|byte| !UNSPELLABLE.contains(byte)).collect();
        assert_eq!(model.detokenize(&ours).expect("decodes"), String::from_utf8_lossy(&spelled));
        let mut stream = Detokenizer::new(Arc::clone(model.vocabulary()));
        let streamed: String = ours.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(streamed + &stream.finish(), model.vocabulary().decode(&ours), "{text:?}");
    }
}

#[test]
fn the_models_defaults_come_through() {
    let side = text_side();
    let files = side.files.into_iter().map(|file| (file.name.to_owned(), file.bytes)).collect();
    let model = ModelText::new(&files).expect("the worker's files are read");
    assert_eq!((model.vocabulary().size(), model.eos_ids()), (49152, [2].as_slice()));
    assert_eq!(side.eos_token_ids, model.eos_ids());
}
