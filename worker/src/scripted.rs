//! A worker without a model: the scripted runner behind a card and a text side of its own, so that a fleet can be
//! rehearsed without weights.

use penstock_engine::batch::BLOCK_TOKENS;
use penstock_engine::runner::ModelRunner as _;
use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use serde_json::{Map, Value, json};

use crate::artifact::Digest;
use crate::config::{Config, KvMemory, Timing};
use crate::lifecycle::Parts;
use crate::model::{Card, Served};
use crate::tokenizer::TextFile;

/// Positions that a sequence may have.
const CONTEXT: usize = 8192;

/// Bytes of one position's keys and values, as if it were a small model: what `--kv-memory` counts in.
const POSITION_BYTES: u64 = 16 << 10;

/// After the 256 bytes, that begin at 0.
const START: u32 = 256;
const END: u32 = 257;

/// What it speaks, beside the end of an answer.
const WORDS: [&str; 62] = [
    "water", "gate", "river", "the", "flows", "turbine", "and", "valve", "pipe", "under", "stone", "a", "mill",
    "turns", "slow", "light", "over", "dam", "basin", "deep", "pressure", "rises", "falls", "north", "south", "bank",
    "of", "rain", "snow", "spring", "to", "wheel", "channel", "sluice", "opens", "closes", "lake", "still", "cold",
    "bright", "from", "hill", "valley", "bridge", "steel", "hums", "night", "day", "wind", "carries", "leaf", "moss",
    "in", "shore", "boat", "drifts", "past", "tower", "clock", "strikes", "seven", "again",
];

/// Everything that a worker serves, made on the spot.
pub(crate) fn parts(config: &Config, timing: Timing) -> Parts {
    let vocab_size = END + 1 + WORDS.len() as u32;
    let files = files();
    let script = Script {
        vocab_size: vocab_size as usize,
        context_length: CONTEXT,
        kv_blocks: kv_blocks(config),
        speaks: END..vocab_size,
        step: timing.step,
        row: std::time::Duration::from_secs(1) / timing.tokens_per_second.get(),
    };
    let runner = ScriptedRunner::new(script);
    let card = Card {
        name: config.served_name.as_ref().map_or_else(|| config.model.clone(), ToString::to_string),
        digest: files[0].digest,
        architecture: "scripted".to_owned(),
        quantisation: "none".to_owned(),
        parameters: 0,
        context_length: CONTEXT as u32,
        vocab_size,
        eos_token_ids: vec![END],
        numerics: runner.shape().numerics.clone(),
    };
    tracing::info!(
        model = card.name,
        kv_blocks = runner.shape().kv_blocks,
        "a stand-in for a model: it has no weights"
    );
    Parts {
        name: config.name.clone(),
        served: Served { card, files },
        runner: Box::new(runner),
        engine: config.engine(vec![END]),
        drain_timeout: config.drain_timeout,
    }
}

fn kv_blocks(config: &Config) -> usize {
    let blocks = match config.kv {
        KvMemory::Auto => config.max_sequences.saturating_mul(CONTEXT / BLOCK_TOKENS),
        KvMemory::Bytes(bytes) => usize::try_from(bytes / (POSITION_BYTES * BLOCK_TOKENS as u64)).unwrap_or(usize::MAX),
    };
    // Beyond what all sequences could fill there is nothing to rehearse.
    blocks.clamp(1, config.max_sequences.max(1).saturating_mul(CONTEXT / BLOCK_TOKENS))
}

pub(crate) fn files() -> Vec<TextFile> {
    let template = "{% for m in messages %}{{ '<|start|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}";
    vec![
        file("tokenizer.json", &tokenizer()),
        file("tokenizer_config.json", &json!({ "eos_token": "<|end|>", "chat_template": template })),
        file("generation_config.json", &json!({ "eos_token_id": END })),
    ]
}

fn file(name: &'static str, value: &Value) -> TextFile {
    let bytes = value.to_string().into_bytes();
    TextFile { name, digest: Digest::of_bytes(&bytes), bytes: bytes.into() }
}

/// A token a byte, in the spelling of byte-level BPE: bytes that print stand for themselves, the others for the
/// characters from U+0100 on. No merges: words are only ever spoken.
fn tokenizer() -> Value {
    let mut vocab = Map::new();
    let mut next = 256;
    for byte in 0..=255u8 {
        let prints = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if prints { u32::from(byte) } else { next };
        next += u32::from(!prints);
        let spelling = char::from_u32(code).expect("below the surrogates");
        vocab.insert(spelling.to_string(), byte.into());
    }
    vocab.insert("<|start|>".to_owned(), START.into());
    vocab.insert("<|end|>".to_owned(), END.into());
    vocab.extend(WORDS.iter().zip(END + 1..).map(|(word, id)| (format!("Ġ{word}"), id.into())));
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(START, "<|start|>"), special(END, "<|end|>")],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokenizers::Tokenizer;

    use super::*;

    fn tokenizer_of_the_files() -> Tokenizer {
        Tokenizer::from_bytes(&files()[0].bytes).unwrap()
    }

    #[test]
    fn any_text_is_its_bytes_and_comes_back() {
        let tokenizer = tokenizer_of_the_files();
        let text = "Water, 水 and\n🌊!";
        let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(tokenizer.decode(&[END + 1, END + 2], false).unwrap(), " water gate");
        assert_eq!(tokenizer.get_vocab_size(true), END as usize + 1 + WORDS.len());
    }

    #[test]
    fn its_words_are_all_different_and_its_pool_is_what_the_memory_gives() {
        assert_eq!(WORDS.iter().collect::<BTreeSet<_>>().len(), WORDS.len());
        let name = penstock_proto::WorkerName::new("w").unwrap();
        let with = |kv| Config { kv, max_sequences: 2, ..Config::new(name.clone(), "m", "/tmp") };
        assert_eq!(kv_blocks(&with(KvMemory::Auto)), 512);
        assert_eq!(kv_blocks(&with(KvMemory::Bytes(1 << 20))), 2);
        assert_eq!(kv_blocks(&with(KvMemory::Bytes(1))), 1);
        assert_eq!(kv_blocks(&with(KvMemory::Bytes(u64::MAX))), 512);
    }
}
