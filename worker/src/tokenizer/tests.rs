//! Conversion of a small vocabulary, read back by the library that routers use.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::vocabulary::{Sampling, SpecialIds, TokenKind, Vocabulary};
use super::*;

/// Every byte, some merges, and one special token of each kind.
fn vocabulary(pretokenizer: &str) -> Vocabulary {
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    // The last one is U+0301 from its two bytes.
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("1", "2"), ("Ì", "ģ")];
    let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned())).to_vec();
    for (left, right) in &merges {
        tokens.push(format!("{left}{right}"));
    }
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for (token, kind) in [("<s>", TokenKind::Control), ("</s>", TokenKind::Control), ("<tool>", TokenKind::UserDefined)]
    {
        tokens.push(token.to_owned());
        kinds.push(kind);
    }
    let id = |text: &str| tokens.iter().position(|token| token == text).map(|id| id as u32);
    let special = SpecialIds { bos: id("<s>"), eos: id("</s>"), eot: id("<tool>"), ..SpecialIds::default() };
    Vocabulary {
        model: "gpt2".into(),
        pretokenizer: pretokenizer.into(),
        special,
        tokens,
        kinds,
        merges,
        template: Some("{{ messages }}".into()),
        context_length: Some(128),
        ..Vocabulary::default()
    }
}

fn json(side: &TextSide, name: &str) -> Value {
    let file = side.files.iter().find(|file| file.name == name).unwrap();
    assert_eq!(file.digest, Digest::of_bytes(&file.bytes));
    serde_json::from_slice(&file.bytes).unwrap()
}

fn tokenizer(side: &TextSide) -> Tokenizer {
    Tokenizer::from_bytes(&side.files[0].bytes).unwrap()
}

fn pieces(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<String> {
    tokenizer.encode(text, special).unwrap().get_tokens().to_vec()
}

#[test]
fn pretokenizers_cut_as_their_models_do() {
    for (name, text, expected) in [
        ("smollm", "hello12", &["hello", "1", "2"][..]),
        ("gpt-2", "hello12", &["hello", "12"]),
        ("qwen2", "hello12", &["hello", "1", "2"]),
        // Llama 3 keeps three digits together, begins with the bos token, and puts a whole word above its merges.
        ("llama-bpe", "hello1212", &["<s>", "hello", "12", "1", "2"]),
        // Qwen 2 composes what it can: é is one character of two bytes, not e and an accent.
        ("qwen2", "e\u{301}", &["Ã", "©"]),
        ("gpt-2", "e\u{301}", &["e", "Ìģ"]),
    ] {
        let side = files::build(&vocabulary(name)).unwrap();
        assert_eq!(pieces(&tokenizer(&side), text, true), expected, "{name} {text:?}");
    }
}

#[test]
fn special_tokens_keep_their_kind() {
    let tokenizer = tokenizer(&files::build(&vocabulary("smollm")).unwrap());
    assert_eq!(pieces(&tokenizer, "he<s><tool>he", false), ["he", "<s>", "<tool>", "he"]);
    let ids = tokenizer.encode("he<s><tool>he", false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "he<tool>he");
    let bytes = "\u{0}é漢🙂\r\n ";
    assert_eq!(tokenizer.decode(tokenizer.encode(bytes, false).unwrap().get_ids(), true).unwrap(), bytes);
}

#[test]
fn what_stands_around_a_text_follows_the_file() {
    let plain = files::build(&vocabulary("smollm")).unwrap();
    assert_eq!(json(&plain, "tokenizer.json")["post_processor"], Value::Null);
    let around = Vocabulary { add_bos: Some(true), add_eos: Some(true), ..vocabulary("smollm") };
    let side = files::build(&around).unwrap();
    assert_eq!(pieces(&tokenizer(&side), "he", true), ["<s>", "he", "</s>"]);
    assert_eq!(json(&side, "tokenizer_config.json")["add_bos_token"], true);
    let mut nothing = around;
    nothing.special.bos = None;
    assert_eq!(
        files::build(&nothing).unwrap_err().to_string(),
        "the tokenizer is broken: it adds a bos token to texts and has none"
    );
}

#[test]
fn the_configs_hold_what_the_file_says_and_nothing_else() {
    let mut vocabulary = vocabulary("smollm");
    vocabulary.sampling = Sampling { temperature: Some(0.5), top_k: Some(20), ..Sampling::default() };
    let side = files::build(&vocabulary).unwrap();
    let config = json(&side, "tokenizer_config.json");
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&"<s>".into(), &"</s>".into()));
    assert_eq!((&config["model_max_length"], &config["chat_template"]), (&128.into(), &"{{ messages }}".into()));
    assert_eq!(config.get("unk_token"), None);
    let generation = json(&side, "generation_config.json");
    let ids = vec![vocabulary.special.eos.unwrap(), vocabulary.special.eot.unwrap()];
    assert_eq!((&side.eos_token_ids, &generation["eos_token_id"]), (&ids, &ids.clone().into()));
    assert_eq!((&generation["temperature"], &generation["top_k"]), (&0.5.into(), &20.into()));
    assert_eq!(generation.get("top_p"), None);
    assert!(side.has_template && side.kind == "gpt2/smollm");
}

#[test]
fn what_is_not_served_is_named() {
    let other = Vocabulary { model: "llama".into(), ..vocabulary("smollm") };
    assert!(files::build(&other).unwrap_err().to_string().starts_with("tokenizer model \"llama\" is not served"));
    let error = files::build(&vocabulary("tekken")).unwrap_err().to_string();
    assert!(error.starts_with("pre-tokenizer \"tekken\" is not served; served are: gpt-2, smollm"), "{error}");
}

#[test]
fn broken_vocabularies_are_refused() {
    type Spoil = fn(&mut Vocabulary);
    let spoil: [(Spoil, &str); 4] = [
        (|v| v.kinds.truncate(3), "have 3 types"),
        (|v| v.tokens[7] = v.tokens[9].clone(), "tokens 7 and 9 are both"),
        (|v| v.merges.push(("q".into(), "q".into())), "\"qq\" is no token"),
        (|v| v.special.eos = Some(1 << 20), "its eos token is outside"),
    ];
    vocabulary("smollm").check().unwrap();
    for (spoil, message) in spoil {
        let mut vocabulary = vocabulary("smollm");
        spoil(&mut vocabulary);
        let error = vocabulary.check().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for wrong in ["", "a", "a ", " b", "a b c"] {
        assert!(vocabulary::merge(wrong).is_err(), "{wrong:?}");
    }
}
