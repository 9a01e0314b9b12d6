//! The way back: a folder's `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` as GGUF metadata.

use std::path::Path;

use penstock_engine::weights::Entry;
use serde_json::Value;

use super::Error;
use super::pretokenizer::Pretokenizer;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The metadata of a folder's tokenizer, for a model of at least `vocab_size` tokens.
pub fn metadata_of(folder: &Path, vocab_size: usize) -> Result<Vec<(&'static str, Entry)>, Error> {
    let files = Files {
        tokenizer: json(folder, "tokenizer.json")?
            .ok_or_else(|| Error::Broken("the folder has no tokenizer.json".to_owned()))?,
        config: json(folder, "tokenizer_config.json")?.unwrap_or_default(),
        generation: json(folder, "generation_config.json")?.unwrap_or_default(),
    };
    let model = &files.tokenizer["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        return Err(Error::Model { found: model["type"].as_str().unwrap_or("none").to_owned() });
    }
    let pretokenizer = Pretokenizer::of_json(&files.tokenizer["normalizer"], &files.tokenizer["pre_tokenizer"])?;
    let (tokens, kinds) = files.tokens(vocab_size)?;
    let id = |text: Option<&str>| text.and_then(|text| tokens.iter().position(|token| token == text));
    let role = |role: &str| id(files.text(role));
    let (bos, eos) = (role("bos_token"), role("eos_token").or_else(|| files.ends().first().copied()));
    let others: Vec<usize> = files.ends().into_iter().filter(|end| Some(*end) != eos).collect();
    let roles = [
        ("tokenizer.ggml.bos_token_id", bos),
        ("tokenizer.ggml.eos_token_id", eos),
        ("tokenizer.ggml.eot_token_id", others.first().copied()),
        ("tokenizer.ggml.eom_token_id", others.get(1).copied()),
        ("tokenizer.ggml.unknown_token_id", role("unk_token")),
        ("tokenizer.ggml.padding_token_id", role("pad_token")),
    ];
    let around = |text: Option<&str>| text.is_some_and(|text| puts_around(&files.tokenizer["post_processor"], text));
    let merges = model["merges"].as_array().ok_or_else(|| Error::Broken("tokenizer.json has no merges".to_owned()))?;
    let mut entries = vec![
        ("tokenizer.ggml.model", Entry::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Entry::Text(pretokenizer.to_owned())),
        ("tokenizer.ggml.merges", Entry::Texts(merges.iter().map(merge).collect::<Result<_, _>>()?)),
        ("tokenizer.ggml.add_bos_token", Entry::Bool(around(files.text("bos_token")))),
        ("tokenizer.ggml.add_eos_token", Entry::Bool(around(files.text("eos_token")))),
    ];
    for (key, id) in roles {
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            entries.push((key, Entry::U32(id)));
        }
    }
    let template = std::fs::read_to_string(folder.join("chat_template.jinja")).ok();
    if let Some(template) = template.or_else(|| files.config["chat_template"].as_str().map(str::to_owned)) {
        entries.push(("tokenizer.chat_template", Entry::Text(template)));
    }
    entries.push(("tokenizer.ggml.tokens", Entry::Texts(tokens)));
    entries.push(("tokenizer.ggml.token_type", Entry::I32s(kinds)));
    Ok(entries)
}

struct Files {
    tokenizer: Value,
    config: Value,
    generation: Value,
}

impl Files {
    /// All tokens by id, and what each is for.
    fn tokens(&self, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>), Error> {
        let vocab = self.tokenizer["model"]["vocab"].as_object();
        let vocab = vocab.ok_or_else(|| Error::Broken("tokenizer.json has no vocabulary".to_owned()))?;
        let added = self.tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let known = vocab.iter().map(|(token, id)| (Some(token.as_str()), id.as_u64(), NORMAL)).chain(
            added.iter().map(|token| {
                let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
                (token["content"].as_str(), token["id"].as_u64(), kind)
            }),
        );
        let mut tokens: Vec<Option<(&str, i32)>> = vec![None; vocab_size];
        for (token, id, kind) in known {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab_size);
            let (Some(token), Some(id)) = (token, id) else {
                return Err(Error::Broken(format!("token {token:?} has no id below the model's {vocab_size} tokens")));
            };
            tokens[id] = Some((token, kind));
        }
        let named = tokens.into_iter().enumerate().map(|(id, token)| match token {
            Some((token, kind)) => (token.to_owned(), kind),
            None => (format!("[PAD{id}]"), UNUSED),
        });
        Ok(named.unzip())
    }

    /// The text of the token with a role: a text or an object with one.
    fn text(&self, role: &str) -> Option<&str> {
        let value = &self.config[role];
        value.as_str().or_else(|| value["content"].as_str())
    }

    /// Every id that ends an answer.
    fn ends(&self) -> Vec<usize> {
        let ends = &self.generation["eos_token_id"];
        let ids = ends.as_array().map_or(std::slice::from_ref(ends), Vec::as_slice);
        ids.iter().filter_map(|id| usize::try_from(id.as_u64()?).ok()).collect()
    }
}

fn json(folder: &Path, name: &str) -> Result<Option<Value>, Error> {
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Broken(format!("{name}: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Broken(format!("{name}: {error}"))),
    }
}

/// Older files have `a b`, newer ones `["a", "b"]`.
fn merge(merge: &Value) -> Result<String, Error> {
    let pair = || match merge.as_array()?.as_slice() {
        [left, right] => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
        _ => None,
    };
    let text = merge.as_str().map(str::to_owned).or_else(pair);
    text.ok_or_else(|| Error::Broken(format!("{merge} is no merge of two tokens")))
}

/// Whether a post-processor puts the token `text` around a text by itself.
fn puts_around(processor: &Value, text: &str) -> bool {
    let own = processor["single"].as_array().into_iter().flatten().any(|piece| piece["SpecialToken"]["id"] == text);
    own || processor["processors"].as_array().into_iter().flatten().any(|processor| puts_around(processor, text))
}
