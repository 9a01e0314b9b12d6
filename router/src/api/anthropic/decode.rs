//! The bodies of `/v1/messages` and `/v1/messages/count_tokens`.

use super::{tools, turns};
use crate::api::bounds::{self, Range};
use crate::api::face::Asked;
use crate::api::json::{Field, Object};
use crate::api::openai::model;
use crate::api::openai::unserved::{self, Unserved};
use crate::request::{Chat, Failure, Input, Sampling, Stop};

/// Anthropic's range.
pub(in crate::api) const TEMPERATURE: Range = Range::Within(0.0, 1.0);

/// Fields that Anthropic knows and nobody here serves.
pub(in crate::api) const UNSERVED: &[Unserved] = &[
    ("thinking", &[r#"{"type":"disabled"}"#]),
    ("service_tier", &[r#""auto""#, r#""standard_only""#]),
    ("container", &[]),
    ("context_management", &[]),
    ("mcp_servers", &["[]"]),
    ("output_config", &["{}"]),
    ("output_format", &[]),
    ("inference_geo", &[]),
    ("speed", &[r#""standard""#]),
    ("diagnostics", &[]),
];

/// Fields that change no answer, and of which nothing is kept. Prefixes are cached whether they are marked or not.
pub(in crate::api) const ABOUT: &[&str] = &["metadata", "cache_control", "user_profile_id"];

/// Reads the body of a message: what it asks for and whether as events. What nobody knows goes to `ignored`.
pub(in crate::api) fn message(body: &[u8], ignored: &mut Vec<String>) -> Result<(Asked, bool), Failure> {
    let mut object = Object::body(body)?;
    let mut asked = prompt(&mut object, ignored)?;
    asked.sampling = sampling(&mut object)?;
    asked.stop.texts = object.read("stop_sequences", stops)?.unwrap_or_default();
    let streams = object.read("stream", Field::bool)?.unwrap_or(false);
    rest(object, ignored)?;
    Ok((asked, streams))
}

/// Reads the body of a count.
pub(in crate::api) fn count(body: &[u8], ignored: &mut Vec<String>) -> Result<Asked, Failure> {
    let mut object = Object::body(body)?;
    let asked = prompt(&mut object, ignored)?;
    rest(object, ignored)?;
    Ok(asked)
}

/// What the prompt is made of.
fn prompt(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Asked, Failure> {
    let model = model(object)?;
    let tools = tools::decode(object, ignored)?;
    let messages = turns::decode(object, ignored)?;
    let input = Input::Chat(Chat { messages, add_generation_prompt: true, template_kwargs: serde_json::Map::new() });
    let (sampling, stop) = (Sampling::default(), Stop::default());
    Ok(Asked { model, input, sampling, stop, constraint: None, tools })
}

fn sampling(object: &mut Object<'_>) -> Result<Sampling, Failure> {
    Ok(Sampling {
        max_tokens: Some(object.need("max_tokens")?.count(1)?),
        temperature: object.read("temperature", |field| field.number(TEMPERATURE))?,
        top_p: object.read("top_p", |field| field.number(bounds::TOP_P))?,
        top_k: object.read("top_k", |field| field.count(0))?,
        ..Sampling::default()
    })
}

fn stops(field: &Field<'_>) -> Result<Vec<String>, Failure> {
    field.items(bounds::STOPS)?.iter().map(|item| bounds::stop_text(item.path(), item.string()?)).collect()
}

fn rest(mut object: Object<'_>, ignored: &mut Vec<String>) -> Result<(), Failure> {
    unserved::check(&mut object, UNSERVED)?;
    ABOUT.iter().for_each(|name| drop(object.take(name)));
    ignored.extend(object.left());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HI: &str = r#""model":"m","messages":[{"role":"user","content":"hi"}]"#;

    fn decoded(fields: &str) -> Result<(Asked, bool, Vec<String>), Failure> {
        let mut ignored = Vec::new();
        let (asked, streams) = message(format!("{{{HI},{fields}}}").as_bytes(), &mut ignored)?;
        Ok((asked, streams, ignored))
    }

    #[test]
    fn every_field_arrives() {
        let (asked, streams, ignored) = decoded(
            r#""max_tokens":9,"temperature":0,"top_p":0.5,"top_k":7,"stop_sequences":["a","b"],"stream":true,
               "metadata":{"user_id":"u"},"cache_control":{"type":"ephemeral"},"thinking":{"type":"disabled"},
               "service_tier":"auto","mood":1"#,
        )
        .unwrap();
        let expected = Sampling {
            max_tokens: Some(9),
            temperature: Some(0.0),
            top_p: Some(0.5),
            top_k: Some(7),
            ..Sampling::default()
        };
        assert_eq!((asked.sampling, asked.stop.texts, streams), (expected, vec!["a".into(), "b".into()], true));
        assert_eq!(ignored, ["mood"]);
    }

    #[test]
    fn what_is_out_of_range_or_not_served_is_named() {
        for (fields, param) in [
            (r#""top_k":1"#, "max_tokens"),
            (r#""max_tokens":0"#, "max_tokens"),
            (r#""max_tokens":1,"temperature":1.1"#, "temperature"),
            (r#""max_tokens":1,"top_p":0"#, "top_p"),
            (r#""max_tokens":1,"top_k":-1"#, "top_k"),
            (r#""max_tokens":1,"stop_sequences":"a""#, "stop_sequences"),
            (r#""max_tokens":1,"stop_sequences":["a",""]"#, "stop_sequences[1]"),
            (r#""max_tokens":1,"thinking":{"type":"enabled","budget_tokens":1024}"#, "thinking"),
            (r#""max_tokens":1,"mcp_servers":[{}]"#, "mcp_servers"),
            (r#""max_tokens":1,"stream":"yes""#, "stream"),
        ] {
            assert_eq!(decoded(fields).map(|_| ()).unwrap_err().param.as_deref(), Some(param), "{fields}");
        }
    }

    #[test]
    fn a_count_needs_no_max_tokens() {
        let mut ignored = Vec::new();
        assert!(count(format!("{{{HI}}}").as_bytes(), &mut ignored).is_ok());
        assert!(ignored.is_empty());
    }
}
