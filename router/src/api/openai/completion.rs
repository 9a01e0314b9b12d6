//! The body of a text completion.

use super::{Ask, Choices, delivery, logprobs, model, sampling, structure, unserved};
use crate::api::json::{Field, Object};
use crate::request::{Failure, Input, Tools};

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
    sampling.top_logprobs = logprobs::of_completion(object)?;
    let constraint = structure::decode(object, ignored)?;
    let echo = object.take("echo").filter(|field| field.json() != "false");
    let echo = match echo {
        Some(field) if field.bool()? && sampling.top_logprobs.is_some() => {
            return Err(field.refuse("together with logprobs is not served: there are none of a prompt"));
        }
        echo => echo.is_some(),
    };
    let stop = sampling::stop(object)?;
    let delivery = delivery(object, ignored)?;
    let choices = Choices::of_completion(object, delivery)?;
    unserved::check(object, unserved::COMMON)?;
    unserved::check(object, unserved::COMPLETION)?;
    unserved::ABOUT.iter().for_each(|name| drop(object.take(name)));
    let tools = Tools::default();
    Ok(Ask { model, inputs, choices, tools, echo, sampling, stop, constraint, delivery, max_tokens_name })
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
    fn the_best_are_chosen_among_as_many_or_more_and_a_prompt_is_echoed_without_logprobs() {
        let decoded = |json: &str| {
            let json = format!(r#"{{"model":"m","prompt":"a",{json}}}"#);
            let ask = decode(&mut Object::body(json.as_bytes()).unwrap(), &mut Vec::new());
            ask.map(|ask| (ask.choices, ask.echo)).map_err(|failure| failure.param.unwrap_or_default())
        };
        let choices = |shown, made| Choices { shown, made };
        assert_eq!(decoded(r#""n":3"#), Ok((choices(3, 3), false)));
        assert_eq!(decoded(r#""n":2,"best_of":16,"echo":true"#), Ok((choices(2, 16), true)));
        assert_eq!(decoded(r#""echo":false,"logprobs":2"#), Ok((choices(1, 1), false)));
        for (json, param) in [
            (r#""n":0"#, "n"),
            (r#""n":17"#, "n"),
            (r#""n":2,"best_of":1"#, "best_of"),
            (r#""best_of":17"#, "best_of"),
            (r#""best_of":2,"stream":true"#, "best_of"),
            (r#""echo":true,"logprobs":0"#, "echo"),
            (r#""echo":1"#, "echo"),
        ] {
            assert_eq!(decoded(json), Err(param.to_owned()), "{json}");
        }
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
