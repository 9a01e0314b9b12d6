//! Fields that OpenAI or vLLM know and nobody here serves yet: refused by name, unless their value asks for nothing.

use serde_json::Value;

use crate::api::json::Object;
use crate::request::Failure;

/// A field and the values of it, as JSON, that ask for nothing; null always does.
pub(super) type Unserved = (&'static str, &'static [&'static str]);

/// Of both calls.
pub(super) const COMMON: &[Unserved] = &[
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("early_stopping", &["false"]),
    ("prompt_logprobs", &[]),
    ("logits_processors", &["[]"]),
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("skip_special_tokens", &["true"]),
    ("spaces_between_special_tokens", &["true"]),
    ("lora_request", &[]),
    ("service_tier", &[r#""auto""#, r#""default""#]),
];

/// Of chat completions.
pub(super) const CHAT: &[Unserved] = &[
    ("functions", &["[]"]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("modalities", &[r#"["text"]"#]),
    ("audio", &[]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &[r#""none""#]),
    ("verbosity", &[r#""medium""#]),
    ("store", &["false"]),
    ("documents", &["[]"]),
    ("chat_template", &[]),
    ("continue_final_message", &["false"]),
    ("add_special_tokens", &["false"]),
];

/// Of text completions.
pub(super) const COMPLETION: &[Unserved] =
    &[("suffix", &[r#""""#]), ("prompt_embeds", &[]), ("add_special_tokens", &["true"])];

/// Of a message.
pub(super) const MESSAGE: &[Unserved] =
    &[("function_call", &[]), ("audio", &[]), ("refusal", &[]), ("annotations", &["[]"])];

/// Fields that say who asks and what for: they change no answer, and nothing is kept of them.
pub(super) const ABOUT: &[&str] =
    &["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store"];

/// Values longer than this ask for something.
const NOTHING_LIMIT: usize = 64;

/// Takes the fields of a list, and refuses the first that asks for something.
pub(super) fn check(object: &mut Object<'_>, fields: &[Unserved]) -> Result<(), Failure> {
    for (name, nothing) in fields {
        let Some(field) = object.take(name) else { continue };
        let json = field.json();
        let value = if json.len() > NOTHING_LIMIT { None } else { serde_json::from_str::<Value>(json).ok() };
        let asks_nothing =
            |value: &Value| nothing.iter().any(|json| serde_json::from_str(json).ok().as_ref() == Some(value));
        if !value.as_ref().is_some_and(asks_nothing) {
            let but = if nothing.is_empty() { String::new() } else { format!(" (but for {})", nothing.join(" or ")) };
            return Err(field.refuse(format!("is not served{but}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(json: &str) -> Result<(), Failure> {
        let mut object = Object::body(json.as_bytes()).unwrap();
        [COMMON, CHAT].iter().try_for_each(|fields| check(&mut object, fields))
    }

    #[test]
    fn what_asks_for_nothing_is_let_through() {
        let json =
            r#"{"functions":[ ],"function_call":"none","modalities":[ "text" ],"prediction":null,"store":false}"#;
        assert_eq!(check_all(json), Ok(()));
    }

    #[test]
    fn what_asks_for_something_is_refused_by_name() {
        for (name, json) in [
            ("functions", r#"{"functions":[{"name":"f"}]}"#),
            ("best_of", r#"{"best_of":2}"#),
            ("best_of", r#"{"best_of":"1"}"#),
            ("echo", r#"{"echo":true}"#),
            ("store", r#"{"store":true}"#),
        ] {
            assert_eq!(check_all(json).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
