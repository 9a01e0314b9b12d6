//! Log-probabilities in OpenAI's two shapes, and the fields that ask for them.

use serde::{Serialize, Serializer};

use super::Kind;
use crate::api::bounds;
use crate::api::json::Object;
use crate::request::{Failure, RankedToken, TokenLogprob};

/// What stands for the logarithm of 0, which JSON cannot say; OpenAI's choice.
const LEAST: f32 = -9999.0;

/// Those of one choice, or of a piece of it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs {
    Chat { content: Vec<Chosen>, refusal: Option<()> },
    Completion(Columns),
}

#[derive(Serialize)]
pub(in crate::api) struct Chosen {
    #[serde(flatten)]
    token: Ranked,
    top_logprobs: Vec<Ranked>,
}

#[derive(Serialize)]
struct Ranked {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The older shape: one list for each property.
#[derive(Default, Serialize)]
pub(super) struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// The chosen token is there even where it is none of the most likely ones.
    top_logprobs: Vec<Named>,
    /// Characters of the answer before each token.
    text_offset: Vec<usize>,
}

/// `logprobs` and `top_logprobs` of a conversation's body.
pub(super) fn of_chat(object: &mut Object<'_>) -> Result<Option<u32>, Failure> {
    let wanted = object.take("logprobs").map(|field| field.bool()).transpose()?.unwrap_or(false);
    match object.take("top_logprobs") {
        None => Ok(wanted.then_some(0)),
        Some(field) if wanted || field.json() == "0" => {
            let count = field.integer(0, i128::from(bounds::TOP_LOGPROBS))?;
            Ok(wanted.then_some(u32::try_from(count).expect("the range was checked")))
        }
        Some(field) => Err(field.refuse("asks for log-probabilities: set logprobs to true")),
    }
}

/// `logprobs` of a completion's body: a number here.
pub(super) fn of_completion(object: &mut Object<'_>) -> Result<Option<u32>, Failure> {
    let Some(field) = object.take("logprobs").filter(|field| field.json() != "false") else { return Ok(None) };
    let count = field.integer(0, i128::from(bounds::TOP_LOGPROBS))?;
    Ok(Some(u32::try_from(count).expect("the range was checked")))
}

/// Log-probabilities by their tokens' names, as an object in their order.
struct Named(Vec<(String, f32)>);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}

impl Logprobs {
    /// Of tokens that stand after `offset` characters, which is moved behind them.
    pub(super) fn new(kind: Kind, tokens: &[TokenLogprob], offset: &mut usize) -> Self {
        match kind {
            Kind::Chat => Self::Chat { content: chosen(tokens), refusal: None },
            Kind::Completion => {
                let mut columns = Columns::default();
                tokens.iter().for_each(|told| columns.push(told, offset));
                Self::Completion(columns)
            }
        }
    }
}

impl Columns {
    fn push(&mut self, told: &TokenLogprob, offset: &mut usize) {
        self.text_offset.push(*offset);
        // A character begins at every byte that does not continue one.
        *offset += told.token.bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        self.tokens.push(name(&told.token.bytes));
        self.token_logprobs.push(finite(told.token.logprob));
        let mut named: Vec<(String, f32)> = Vec::with_capacity(told.top.len() + 1);
        for token in told.top.iter().chain([&told.token]) {
            let name = name(&token.bytes);
            if named.iter().all(|(other, _)| *other != name) {
                named.push((name, finite(token.logprob)));
            }
        }
        self.top_logprobs.push(Named(named));
    }
}

/// Tokens as conversations tell them.
pub(in crate::api) fn chosen(tokens: &[TokenLogprob]) -> Vec<Chosen> {
    let chosen = |told: &TokenLogprob| Chosen {
        token: ranked(&told.token),
        top_logprobs: told.top.iter().map(ranked).collect(),
    };
    tokens.iter().map(chosen).collect()
}

fn ranked(token: &RankedToken) -> Ranked {
    let text = String::from_utf8_lossy(&token.bytes).into_owned();
    Ranked { token: text, logprob: finite(token.logprob), bytes: token.bytes.clone() }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// A token's text; bytes that are no text by themselves are spelled out, so that different tokens have different names.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> TokenLogprob {
        let ranked = |bytes: &[u8], logprob| RankedToken { bytes: bytes.to_vec(), logprob };
        TokenLogprob {
            token: ranked(bytes, logprob),
            top: top.iter().map(|(bytes, logprob)| ranked(bytes, *logprob)).collect(),
        }
    }

    #[test]
    fn a_conversation_has_an_object_for_each_token() {
        let tokens = [told(b"a", -0.5, &[(b"a", -0.5), (b"\xe6", f32::NEG_INFINITY)])];
        let shape = serde_json::to_value(Logprobs::new(Kind::Chat, &tokens, &mut 0)).unwrap();
        let expected = json!({ "content": [{
            "token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [{ "token": "a", "logprob": -0.5, "bytes": [97] },
                             { "token": "\u{fffd}", "logprob": -9999.0, "bytes": [230] }],
        }], "refusal": null });
        assert_eq!(shape, expected);
    }

    #[test]
    fn a_completion_has_a_list_for_each_property_and_counts_characters() {
        let tokens =
            [told("é".as_bytes(), -0.5, &[(b"b", -0.25)]), told(b"\xe6", -1.0, &[]), told(b"\xb0\xb4x", -2.0, &[])];
        let mut offset = 3;
        let shape = serde_json::to_value(Logprobs::new(Kind::Completion, &tokens, &mut offset)).unwrap();
        let expected = json!({
            "tokens": ["é", "bytes:\\xe6", "bytes:\\xb0\\xb4\\x78"],
            "token_logprobs": [-0.5, -1.0, -2.0],
            "top_logprobs": [{ "b": -0.25, "é": -0.5 }, { "bytes:\\xe6": -1.0 }, { "bytes:\\xb0\\xb4\\x78": -2.0 }],
            "text_offset": [3, 4, 5],
        });
        assert_eq!((shape, offset), (expected, 6));
    }

    #[test]
    fn the_fields_ask_for_what_they_may() {
        let chat = |json: &str| of_chat(&mut Object::body(json.as_bytes()).unwrap());
        assert_eq!(chat("{}"), Ok(None));
        assert_eq!(chat(r#"{"logprobs":false,"top_logprobs":0}"#), Ok(None));
        assert_eq!(chat(r#"{"logprobs":true}"#), Ok(Some(0)));
        assert_eq!(chat(r#"{"logprobs":true,"top_logprobs":20}"#), Ok(Some(20)));
        for json in [r#"{"logprobs":true,"top_logprobs":21}"#, r#"{"top_logprobs":2}"#] {
            assert_eq!(chat(json).unwrap_err().param.as_deref(), Some("top_logprobs"), "{json}");
        }
        let completion = |json: &str| of_completion(&mut Object::body(json.as_bytes()).unwrap());
        assert_eq!(completion(r#"{"logprobs":false}"#), Ok(None));
        assert_eq!(completion(r#"{"logprobs":0}"#), Ok(Some(0)));
        for json in [r#"{"logprobs":21}"#, r#"{"logprobs":true}"#] {
            assert_eq!(completion(json).unwrap_err().param.as_deref(), Some("logprobs"), "{json}");
        }
    }
}
