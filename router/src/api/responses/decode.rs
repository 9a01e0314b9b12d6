//! The body of `/v1/responses`.

use serde_json::Value;

use super::shape::Echo;
use super::{format, items, tools};
use crate::api::bounds;
use crate::api::face::Asked;
use crate::api::json::{Field, Object};
use crate::api::openai::model;
use crate::api::openai::unserved::{self, Unserved};
use crate::request::{Chat, Failure, Input, Sampling, Stop};

/// Fields that OpenAI knows and nobody here serves. Nothing is stored, reasoned or done later.
pub(in crate::api) const UNSERVED: &[Unserved] = &[
    ("store", &["false"]),
    ("previous_response_id", &[]),
    ("conversation", &[]),
    ("background", &["false"]),
    ("prompt", &[]),
    ("truncation", &[r#""disabled""#]),
    ("reasoning", &["{}", r#"{"effort":"none"}"#]),
    ("service_tier", &[r#""auto""#, r#""default""#]),
    ("stream_options", &["{}", r#"{"include_obfuscation":false}"#]),
    ("max_tool_calls", &[]),
    ("context_management", &["[]"]),
    ("moderation", &[]),
    ("access_programs", &[]),
    ("background_options", &[]),
    ("image", &[]),
];

/// Fields that change no answer, and of which nothing is kept. Prefixes are cached whether they are marked or not.
pub(in crate::api) const ABOUT: &[&str] = &["prompt_cache_options"];

/// Of `metadata`: pairs, and bytes of the whole.
const METADATA: (usize, usize) = (16, 16 << 10);
/// Characters of what says who asks.
const WHO: usize = 512;

/// What a body asks for.
pub(in crate::api) struct Asking {
    pub(super) asked: Asked,
    /// What of it the response says again.
    pub(super) echo: Echo,
    pub(super) streams: bool,
}

/// Reads the body; what nobody knows goes to `ignored`.
pub(in crate::api) fn response(body: &[u8], ignored: &mut Vec<String>) -> Result<Asking, Failure> {
    let mut object = Object::body(body)?;
    let asking = read(&mut object, ignored)?;
    ignored.extend(object.left());
    Ok(asking)
}

fn read(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Asking, Failure> {
    let model = model(object)?;
    let instructions = object.read("instructions", Field::string)?;
    let messages = items::decode(&object.need("input")?, instructions.as_deref(), ignored)?;
    let tools = tools::decode(object, ignored)?;
    let format = format::decode(object, ignored)?;
    let sampling = sampling(object)?;
    let streams = object.read("stream", Field::bool)?.unwrap_or(false);
    unserved::check(object, UNSERVED)?;
    ABOUT.iter().for_each(|name| drop(object.take(name)));
    let echo = Echo {
        instructions,
        max_output_tokens: sampling.max_tokens,
        metadata: object.read("metadata", metadata)?.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_logprobs: sampling.top_logprobs.unwrap_or(0),
        text: format.echo,
        tool_choice: tools.choice,
        parallel_tool_calls: tools.tools.parallel,
        tools: tools.echo,
        user: object.read("user", who)?,
        safety_identifier: object.read("safety_identifier", who)?,
        prompt_cache_key: object.read("prompt_cache_key", who)?,
        prompt_cache_retention: object.read("prompt_cache_retention", who)?,
    };
    let chat = Chat { messages, add_generation_prompt: true, template_kwargs: serde_json::Map::new() };
    let asked = Asked {
        model,
        input: Input::Chat(chat),
        sampling,
        stop: Stop::default(),
        constraint: format.constraint,
        tools: tools.tools,
    };
    Ok(Asking { asked, echo, streams })
}

fn sampling(object: &mut Object<'_>) -> Result<Sampling, Failure> {
    let included = object.read("include", include)?.unwrap_or(false);
    let top = object.read("top_logprobs", |field| field.integer(0, i128::from(bounds::TOP_LOGPROBS)))?;
    let top = top.map(|top| u32::try_from(top).expect("the range was checked"));
    Ok(Sampling {
        max_tokens: object.read("max_output_tokens", |field| field.count(1))?,
        temperature: object.read("temperature", |field| field.number(bounds::TEMPERATURE))?,
        top_p: object.read("top_p", |field| field.number(bounds::TOP_P))?,
        // Of themselves the likeliest tokens beside each are worth nothing: OpenAI gives them where they are included.
        top_logprobs: if included || top.is_some_and(|top| top > 0) { Some(top.unwrap_or(0)) } else { None },
        ..Sampling::default()
    })
}

/// Whether log-probabilities are included. What else can be is of tools that do not run here, or of reasoning, of which
/// there is none: asking for it asks for nothing.
fn include(field: &Field<'_>) -> Result<bool, Failure> {
    let mut included = false;
    for item in field.items(16)? {
        match item.string()?.as_str() {
            "message.output_text.logprobs" => included = true,
            "reasoning.encrypted_content"
            | "message.input_image.image_url"
            | "file_search_call.results"
            | "web_search_call.results"
            | "web_search_call.action.sources"
            | "computer_call_output.output.image_url"
            | "code_interpreter_call.outputs" => {}
            _ => return Err(item.refuse("names nothing that can be included")),
        }
    }
    Ok(included)
}

fn metadata(field: &Field<'_>) -> Result<Value, Failure> {
    let (pairs, bytes) = METADATA;
    if field.json().len() > bytes {
        return Err(field.refuse(format!("must have at most {bytes} bytes")));
    }
    let entries = field.entries()?;
    if entries.len() > pairs {
        return Err(field.refuse(format!("must have at most {pairs} pairs, not {}", entries.len())));
    }
    let pair = |(name, value): (String, Field<'_>)| Ok((name, Value::String(value.string()?)));
    Ok(Value::Object(entries.into_iter().map(pair).collect::<Result<_, Failure>>()?))
}

fn who(field: &Field<'_>) -> Result<String, Failure> {
    let who = field.string()?;
    if who.chars().count() > WHO {
        return Err(field.refuse(format!("must have at most {WHO} characters")));
    }
    Ok(who)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(fields: &str) -> Result<(Asking, Vec<String>), Failure> {
        let mut ignored = Vec::new();
        let body = format!(r#"{{"model":"m","input":"hi"{fields}}}"#);
        Ok((response(body.as_bytes(), &mut ignored)?, ignored))
    }

    #[test]
    fn every_field_arrives() {
        let (asking, ignored) = decoded(
            r#","instructions":"be kind","max_output_tokens":9,"temperature":0.5,"top_p":0.9,"stream":true,
               "include":["message.output_text.logprobs"],"top_logprobs":2,"metadata":{"a":"b"},"user":"u",
               "store":false,"previous_response_id":null,"background":false,"truncation":"disabled","reasoning":{},
               "service_tier":"auto","mood":1"#,
        )
        .unwrap();
        let expected = Sampling {
            max_tokens: Some(9),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_logprobs: Some(2),
            ..Sampling::default()
        };
        assert_eq!((asking.asked.sampling, asking.streams), (expected, true));
        assert_eq!(asking.echo.metadata, serde_json::json!({"a": "b"}));
        assert_eq!(asking.echo.instructions.as_deref(), Some("be kind"));
        assert_eq!(ignored, ["mood"]);
        assert_eq!(decoded("").unwrap().0.asked.sampling, Sampling::default());
    }

    #[test]
    fn what_is_out_of_range_or_not_served_is_named() {
        for (fields, param) in [
            (r#","store":true"#, "store"),
            (r#","previous_response_id":"resp_1""#, "previous_response_id"),
            (r#","conversation":"conv_1""#, "conversation"),
            (r#","background":true"#, "background"),
            (r#","truncation":"auto""#, "truncation"),
            (r#","reasoning":{"effort":"high"}"#, "reasoning"),
            (r#","max_output_tokens":0"#, "max_output_tokens"),
            (r#","temperature":-1"#, "temperature"),
            (r#","top_logprobs":21"#, "top_logprobs"),
            (r#","include":["everything"]"#, "include[0]"),
            (r#","metadata":{"a":1}"#, "metadata.a"),
            (r#","user":5"#, "user"),
        ] {
            assert_eq!(decoded(fields).map(|_| ()).unwrap_err().param.as_deref(), Some(param), "{fields}");
        }
    }
}
