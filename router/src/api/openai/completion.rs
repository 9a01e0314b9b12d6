//! The body of a text completion.

use super::{Ask, delivery, model, sampling, unserved};
use crate::api::json::{Field, Object};
use crate::request::{Failure, Input};

/// Prompts of one body.
const PROMPTS: usize = 32;

/// `max_tokens` where it is left out, as OpenAI and vLLM have it for this endpoint.
const MAX_TOKENS: u32 = 16;

/// Reads the body; what nobody knows stays in the object, or goes to `ignored` from within.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Ask, Failure> {
    let model = model(object)?;
    let inputs = prompts(&object.need("prompt")?)?;
    let (mut sampling, max_tokens_name) = sampling::decode(object, &["max_tokens"])?;
    sampling.default_max_tokens = Some(MAX_TOKENS);
    let stop = sampling::stop(object)?;
    let delivery = delivery(object, ignored)?;
    unserved::check(object, unserved::COMMON)?;
    unserved::check(object, unserved::COMPLETION)?;
    unserved::ABOUT.iter().for_each(|name| drop(object.take(name)));
    Ok(Ask { model, inputs, sampling, stop, delivery, max_tokens_name })
}

/// A text, texts, token ids, or several arrays of token ids.
fn prompts(field: &Field<'_>) -> Result<Vec<Input>, Failure> {
    match field.kind() {
        "a string" => return Ok(vec![Input::Text(field.string()?)]),
        "an array" => {}
        other => return Err(wrong(field, other)),
    }
    if field.starts_with_number() {
        return Ok(vec![Input::Tokens(field.token_ids(usize::MAX)?)]);
    }
    let items = field.items(PROMPTS)?;
    if items.is_empty() {
        return Err(field.refuse("must have at least one prompt"));
    }
    items.iter().map(prompt).collect()
}

fn prompt(field: &Field<'_>) -> Result<Input, Failure> {
    match field.kind() {
        "a string" => Ok(Input::Text(field.string()?)),
        "an array" => Ok(Input::Tokens(field.token_ids(usize::MAX)?)),
        other => Err(wrong(field, other)),
    }
}

fn wrong(field: &Field<'_>, found: &str) -> Failure {
    field.refuse(format!("must be a string or an array of token ids, or an array of such, not {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(prompt: &str) -> Result<Vec<String>, String> {
        let json = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
        let ask = decode(&mut Object::body(json.as_bytes()).unwrap(), &mut Vec::new());
        let shown = |input: &Input| match input {
            Input::Text(text) => text.clone(),
            Input::Tokens(ids) => format!("{ids:?}"),
            Input::Chat(_) => panic!("a conversation"),
        };
        ask.map(|ask| ask.inputs.iter().map(shown).collect()).map_err(|failure| failure.param.unwrap_or_default())
    }

    #[test]
    fn a_prompt_has_four_forms() {
        assert_eq!(decoded(r#""a""#).unwrap(), ["a"]);
        assert_eq!(decoded(r#"["a","b"]"#).unwrap(), ["a", "b"]);
        assert_eq!(decoded("[1, 2]").unwrap(), ["[1, 2]"]);
        assert_eq!(decoded("[[1],[2, 3]]").unwrap(), ["[1]", "[2, 3]"]);
    }

    #[test]
    fn other_forms_are_refused() {
        for (prompt, param) in [
            ("5", "prompt"),
            ("[]", "prompt"),
            ("null", "prompt"),
            ("{}", "prompt"),
            (r#"[1,"a"]"#, "prompt[1]"),
            (r#"["a",1]"#, "prompt[1]"),
            ("[[1],[-2]]", "prompt[1][0]"),
            ("[[1],{}]", "prompt[1]"),
            ("[-1]", "prompt[0]"),
        ] {
            assert_eq!(decoded(prompt), Err(param.to_owned()), "{prompt}");
        }
        let many = format!("[{}]", vec![r#""a""#; PROMPTS + 1].join(","));
        assert_eq!(decoded(&many), Err("prompt".to_owned()));
    }
}
