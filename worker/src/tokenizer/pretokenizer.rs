//! How text is cut before byte pairs are merged: by `tokenizer.ggml.pre`, as the `tokenizer.json` of the models that
//! introduced each name has it.

use serde_json::{Value, json};

use super::Error;

/// A pre-tokenizer that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pretokenizer {
    /// GPT-2: its pattern is built into `ByteLevel`.
    Gpt2,
    /// SmolLM: every digit alone, then as GPT-2.
    SmolLm,
    /// Llama 3: at most three digits together.
    Llama3,
    /// Qwen 2: every digit alone; composed characters (NFC).
    Qwen2,
}

const NAMES: &[(&str, Pretokenizer)] = &[
    ("gpt-2", Pretokenizer::Gpt2),
    ("smollm", Pretokenizer::SmolLm),
    ("llama-bpe", Pretokenizer::Llama3),
    ("llama3", Pretokenizer::Llama3),
    ("llama-v3", Pretokenizer::Llama3),
    ("qwen2", Pretokenizer::Qwen2),
    ("deepseek-r1-qwen", Pretokenizer::Qwen2),
];

impl Pretokenizer {
    pub(super) fn by_name(name: &str) -> Result<Self, Error> {
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, pretokenizer)| *pretokenizer);
        let served = || NAMES.iter().map(|(known, _)| *known).collect();
        found.ok_or_else(|| Error::Pretokenizer { found: name.to_owned(), served: served() })
    }

    /// The name of the one that a `tokenizer.json` describes.
    pub(super) fn of_json(normalizer: &Value, pre_tokenizer: &Value) -> Result<&'static str, Error> {
        let same = |known: &Self| *normalizer == known.normalizer() && plain(pre_tokenizer) == plain(&known.json());
        let found = NAMES.iter().find(|(_, known)| same(known)).map(|(name, _)| *name);
        let served = || NAMES.iter().map(|(known, _)| *known).collect();
        found.ok_or_else(|| Error::Pretokenizer { found: pre_tokenizer.to_string(), served: served() })
    }

    /// `normalizer` of `tokenizer.json`.
    pub(super) fn normalizer(self) -> Value {
        match self {
            Self::Gpt2 | Self::SmolLm | Self::Llama3 => Value::Null,
            Self::Qwen2 => json!({ "type": "NFC" }),
        }
    }

    /// `pre_tokenizer` of `tokenizer.json`.
    pub(super) fn json(self) -> Value {
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence(json!({ "type": "Digits", "individual_digits": true }), byte_level(true)),
            Self::Llama3 => sequence(split(&words_and_numbers("{1,3}")), byte_level(false)),
            Self::Qwen2 => sequence(split(&words_and_numbers("")), byte_level(false)),
        }
    }

    /// Whether a piece of text that is a token as a whole becomes that token, whatever the merges say.
    pub(super) fn ignores_merges(self) -> bool {
        match self {
            Self::Gpt2 | Self::SmolLm | Self::Qwen2 => false,
            Self::Llama3 => true,
        }
    }

    /// Whether texts begin with the bos token where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        match self {
            Self::Gpt2 | Self::SmolLm | Self::Qwen2 => false,
            Self::Llama3 => true,
        }
    }
}

/// Without what concerns the places of tokens in the text alone.
fn plain(pre_tokenizer: &Value) -> Value {
    let mut plain = pre_tokenizer.clone();
    let pieces = plain.get("pretokenizers").and_then(Value::as_array).cloned();
    if let Some(pieces) = pieces {
        plain["pretokenizers"] = pieces.iter().map(self::plain).collect();
    }
    if let Some(fields) = plain.as_object_mut() {
        fields.remove("trim_offsets");
    }
    plain
}

fn sequence(first: Value, second: Value) -> Value {
    json!({ "type": "Sequence", "pretokenizers": [first, second] })
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

/// Contractions; words with what stands before them; digits, so many; signs with the line ends behind them; line ends;
/// white space up to the next word's own. Llama 3 and Qwen 2 publish it with different numbers of digits.
fn words_and_numbers(digits: &str) -> String {
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        &format!(r"\p{{N}}{digits}"),
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}
