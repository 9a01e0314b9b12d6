//! The fields of a body that say how tokens are chosen, OpenAI's and vLLM's.

use std::collections::BTreeMap;

use crate::api::bounds::{self, Range};
use crate::api::json::{Field, Object};
use crate::request::{Failure, Sampling, Stop};

/// The sampling of a body, and the name under which it gave `max_tokens`.
pub(super) fn decode(
    object: &mut Object<'_>,
    max_tokens_names: &[&'static str],
) -> Result<(Sampling, &'static str), Failure> {
    let (max_tokens, name) = max_tokens(object, max_tokens_names)?;
    let sampling = Sampling {
        temperature: number(object, "temperature", bounds::TEMPERATURE)?,
        top_k: object.take("top_k").map(|field| top_k(&field)).transpose()?,
        top_p: number(object, "top_p", bounds::TOP_P)?,
        min_p: number(object, "min_p", bounds::MIN_P)?,
        repetition_penalty: number(object, "repetition_penalty", bounds::REPETITION_PENALTY)?,
        presence_penalty: number(object, "presence_penalty", bounds::PENALTY)?,
        frequency_penalty: number(object, "frequency_penalty", bounds::PENALTY)?,
        logit_bias: object.take("logit_bias").map(|field| logit_bias(&field)).transpose()?.unwrap_or_default(),
        seed: object.take("seed").map(|field| seed(&field)).transpose()?,
        max_tokens,
        default_max_tokens: None,
        min_tokens: object.take("min_tokens").map(|field| field.count(0)).transpose()?.unwrap_or(0),
        ignore_eos: flag(object, "ignore_eos")?,
        stop_token_ids: object
            .take("stop_token_ids")
            .map(|field| field.token_ids(bounds::STOP_IDS))
            .transpose()?
            .unwrap_or_default(),
        top_logprobs: None,
    };
    Ok((sampling, name))
}

/// `stop` and `include_stop_str_in_output`.
pub(super) fn stop(object: &mut Object<'_>) -> Result<Stop, Failure> {
    let include = flag(object, "include_stop_str_in_output")?;
    let Some(field) = object.take("stop") else { return Ok(Stop { texts: Vec::new(), include }) };
    let texts = match field.kind() {
        "a string" => vec![stop_text(&field)?],
        "an array" => field.items(bounds::STOPS)?.iter().map(stop_text).collect::<Result<_, _>>()?,
        other => return Err(field.refuse(format!("must be a string or an array of strings, not {other}"))),
    };
    Ok(Stop { texts, include })
}

/// A boolean that is false where it is left out.
pub(super) fn flag(object: &mut Object<'_>, name: &str) -> Result<bool, Failure> {
    Ok(object.take(name).map(|field| field.bool()).transpose()?.unwrap_or(false))
}

fn stop_text(field: &Field<'_>) -> Result<String, Failure> {
    bounds::stop_text(field.path(), field.string()?)
}

/// The first of the names that is there; more than one must agree.
fn max_tokens(object: &mut Object<'_>, names: &[&'static str]) -> Result<(Option<u32>, &'static str), Failure> {
    let mut given: Option<(u32, &'static str)> = None;
    for name in names {
        let Some(field) = object.take(name) else { continue };
        let count = field.count(1)?;
        match given {
            Some((other, before)) if other != count => {
                return Err(field.refuse(format!("is {count} where {before} is {other}")));
            }
            Some(_) => {}
            None => given = Some((count, name)),
        }
    }
    Ok((given.map(|(count, _)| count), given.map_or("max_tokens", |(_, name)| name)))
}

fn number(object: &mut Object<'_>, name: &str, range: Range) -> Result<Option<f32>, Failure> {
    object.take(name).map(|field| field.number(range)).transpose()
}

/// vLLM's -1 is off, as 0 is.
fn top_k(field: &Field<'_>) -> Result<u32, Failure> {
    let number = field.integer(-1, i128::from(u32::MAX))?;
    Ok(u32::try_from(number).unwrap_or(0))
}

/// Any number of 64 bits; a negative one by its bits.
fn seed(field: &Field<'_>) -> Result<u64, Failure> {
    let number = field.integer(i128::from(i64::MIN), i128::from(u64::MAX))?;
    Ok(u64::try_from(number).unwrap_or_else(|_| (number as i64).cast_unsigned()))
}

fn logit_bias(field: &Field<'_>) -> Result<BTreeMap<u32, f32>, Failure> {
    let mut biases = BTreeMap::new();
    for (name, bias) in field.entries()? {
        let id = name.parse::<u32>().ok().filter(|id| id.to_string() == name);
        let Some(id) = id else {
            let shown: String = name.chars().take(32).collect();
            return Err(field.refuse(format!("must be keyed by token ids, not {shown:?}")));
        };
        // Under the field's own name, since a client cannot know what an id in a path means.
        let bias = bias.number(bounds::LOGIT_BIAS).map_err(|failure| Failure::field(field.path(), failure.message))?;
        biases.insert(id, bias);
    }
    Ok(biases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<(Sampling, &'static str), Failure> {
        decode(&mut Object::body(json.as_bytes()).unwrap(), &["max_completion_tokens", "max_tokens"])
    }

    fn refused(json: &str) -> String {
        decoded(json).unwrap_err().param.unwrap()
    }

    #[test]
    fn every_field_arrives() {
        let (sampling, name) = decoded(
            r#"{"temperature":0,"top_k":-1,"top_p":1,"min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-2,
                "frequency_penalty":2,"logit_bias":{"5":-100,"6":1.5},"seed":-1,"max_completion_tokens":7,"max_tokens":7,
                "min_tokens":2,"ignore_eos":true,"stop_token_ids":[1]}"#,
        )
        .unwrap();
        let expected = Sampling {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.1),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
            logit_bias: [(5, -100.0), (6, 1.5)].into(),
            seed: Some(u64::MAX),
            max_tokens: Some(7),
            default_max_tokens: None,
            min_tokens: 2,
            ignore_eos: true,
            stop_token_ids: vec![1],
            top_logprobs: None,
        };
        assert_eq!((sampling, name), (expected, "max_completion_tokens"));
        assert_eq!(decoded(r#"{"temperature":null}"#).unwrap(), (Sampling::default(), "max_tokens"));
    }

    #[test]
    fn every_range_is_kept() {
        for (name, value) in [
            ("temperature", "-0.1"),
            ("temperature", "1e999"),
            ("temperature", "\"hot\""),
            ("top_k", "-2"),
            ("top_p", "0"),
            ("top_p", "1.1"),
            ("min_p", "-0.1"),
            ("repetition_penalty", "0"),
            ("presence_penalty", "2.1"),
            ("frequency_penalty", "-2.1"),
            ("logit_bias", r#"{"5":101}"#),
            ("logit_bias", r#"{"five":1}"#),
            ("logit_bias", r#"{"05":1}"#),
            ("logit_bias", "[]"),
            ("seed", "1.5"),
            ("max_tokens", "0"),
            ("max_tokens", "-1"),
            ("min_tokens", "-1"),
            ("ignore_eos", "1"),
        ] {
            assert_eq!(refused(&format!(r#"{{"{name}":{value}}}"#)), name, "{value}");
        }
        assert_eq!(refused(r#"{"stop_token_ids":[1,-1]}"#), "stop_token_ids[1]");
        assert_eq!(refused(r#"{"max_completion_tokens":5,"max_tokens":6}"#), "max_tokens");
    }

    #[test]
    fn stop_texts_are_one_or_a_few_and_not_empty() {
        let stop = |json: &str| stop(&mut Object::body(json.as_bytes()).unwrap());
        assert_eq!(stop(r#"{"stop":"a"}"#).unwrap().texts, ["a"]);
        let both = stop(r#"{"stop":["a","b"],"include_stop_str_in_output":true}"#).unwrap();
        assert!(both.include && both.texts.len() == 2);
        for (json, param) in [
            (r#"{"stop":""}"#, "stop"),
            (r#"{"stop":["a",""]}"#, "stop[1]"),
            (r#"{"stop":["a","b","c","d","e"]}"#, "stop"),
            (r#"{"stop":[1]}"#, "stop[0]"),
            (r#"{"stop":1}"#, "stop"),
        ] {
            assert_eq!(stop(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }
}
