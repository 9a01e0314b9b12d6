//! The fields of a body that say what the answer must look like: OpenAI's `response_format`, vLLM's `guided_…` and
//! `structured_outputs`.

use crate::api::bounds;
use crate::api::json::{Field, Object};
use crate::request::{Constraint, Failure};

/// Texts that an answer may be one of.
const CHOICES: usize = 1024;

/// A schema that every JSON object is valid by.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// A constraint and the field that asked for it.
pub(super) type Asked = (Constraint, &'static str);

/// The constraint of a body. Only one field may ask for one.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Option<Asked>, Failure> {
    let mut asked: Option<Asked> = None;
    for name in
        ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"]
    {
        let Some(field) = object.take(name) else { continue };
        let constraint = match name {
            "response_format" => response_format(&field, ignored)?,
            "structured_outputs" => structured_outputs(&field, ignored)?,
            "guided_json" => Some(schema(&field)?),
            "guided_regex" => Some(Constraint::Regex(text(&field)?)),
            "guided_choice" => Some(choice(&field)?),
            _ => Some(Constraint::Grammar(text(&field)?)),
        };
        match (constraint, &asked) {
            (None, _) => {}
            (Some(constraint), None) => asked = Some((constraint, name)),
            (Some(_), Some((_, other))) => return Err(field.refuse(format!("cannot be together with {other}"))),
        }
    }
    Ok(asked)
}

fn response_format(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Option<Constraint>, Failure> {
    let mut format = field.object()?;
    let kind = format.need("type")?;
    let constraint = match kind.string()?.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::JsonSchema(ANY_OBJECT.to_owned())),
        "json_schema" => Some(json_schema(&format.need("json_schema")?, ignored)?),
        _ => return Err(kind.refuse("must be text, json_object or json_schema")),
    };
    ignored.extend(format.left());
    Ok(constraint)
}

/// OpenAI's wrapping of a schema. It is always enforced, `strict` or not; what cannot be enforced is refused.
fn json_schema(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Constraint, Failure> {
    let mut wrapping = field.object()?;
    let name = wrapping.need("name")?;
    bounds::name(name.path(), &name.string()?)?;
    wrapping.take("description").map(|field| field.string()).transpose()?;
    wrapping.take("strict").map(|field| field.bool()).transpose()?;
    let schema = wrapping.need("schema")?;
    if schema.kind() != "an object" {
        return Err(schema.refuse(format!("must be an object, not {}", schema.kind())));
    }
    ignored.extend(wrapping.left());
    self::schema(&schema)
}

fn structured_outputs(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Option<Constraint>, Failure> {
    let mut outputs = field.object()?;
    let mut found: Vec<Constraint> = Vec::new();
    if let Some(field) = outputs.take("json") {
        found.push(schema(&field)?);
    }
    if let Some(field) = outputs.take("json_object")
        && field.bool()?
    {
        found.push(Constraint::JsonSchema(ANY_OBJECT.to_owned()));
    }
    if let Some(field) = outputs.take("regex") {
        found.push(Constraint::Regex(text(&field)?));
    }
    if let Some(field) = outputs.take("choice") {
        found.push(choice(&field)?);
    }
    if let Some(field) = outputs.take("grammar") {
        found.push(Constraint::Grammar(text(&field)?));
    }
    if let Some(field) = outputs.take("structural_tag") {
        return Err(field.refuse("is not served"));
    }
    ignored.extend(outputs.left());
    if found.len() > 1 {
        return Err(field.refuse("must have only one of json, json_object, regex, choice and grammar"));
    }
    Ok(found.pop())
}

/// A schema as JSON, or as a string of JSON.
fn schema(field: &Field<'_>) -> Result<Constraint, Failure> {
    let json = match field.kind() {
        "a string" => field.string()?,
        "an object" | "a boolean" => field.json().to_owned(),
        other => return Err(field.refuse(format!("must be a JSON Schema, an object or a string of one, not {other}"))),
    };
    Ok(Constraint::JsonSchema(bounded(field, json)?))
}

fn text(field: &Field<'_>) -> Result<String, Failure> {
    let text = field.string()?;
    if text.is_empty() {
        return Err(field.refuse("must not be empty"));
    }
    bounded(field, text)
}

/// One of some texts, letter by letter.
fn choice(field: &Field<'_>) -> Result<Constraint, Failure> {
    let items = field.items(CHOICES)?;
    if items.is_empty() {
        return Err(field.refuse("must have at least one text"));
    }
    let texts = items.iter().map(|item| text(item).map(|text| escaped(&text))).collect::<Result<Vec<_>, _>>()?;
    Ok(Constraint::Regex(bounded(field, texts.join("|"))?))
}

/// A regular expression that only the text matches.
fn escaped(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for c in text.chars() {
        // Nothing else: a backslash may give what has no meaning one.
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

fn bounded(field: &Field<'_>, text: String) -> Result<String, Failure> {
    if text.len() > bounds::CONSTRAINT_BYTES {
        return Err(field.refuse(format!("must have at most {} bytes, not {}", bounds::CONSTRAINT_BYTES, text.len())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<Option<Asked>, Failure> {
        decode(&mut Object::body(json.as_bytes()).unwrap(), &mut Vec::new())
    }

    #[test]
    fn every_field_that_constrains_arrives() {
        let schema = |json: &str| Constraint::JsonSchema(json.to_owned());
        let regex = |text: &str| Constraint::Regex(text.to_owned());
        let grammar = |text: &str| Constraint::Grammar(text.to_owned());
        for (json, expected) in [
            (r#"{"response_format":{"type":"text"}}"#, None),
            (r#"{"response_format":null,"structured_outputs":{}}"#, None),
            (r#"{"response_format":{"type":"json_object"}}"#, Some((schema(ANY_OBJECT), "response_format"))),
            (
                r#"{"response_format":{"type":"json_schema","json_schema":{"name":"a-1","strict":true,
                    "description":"d","schema":{"type":"null"}}}}"#,
                Some((schema(r#"{"type":"null"}"#), "response_format")),
            ),
            (r#"{"guided_json":{"type":"null"}}"#, Some((schema(r#"{"type":"null"}"#), "guided_json"))),
            (r#"{"guided_json":"{\"type\":\"null\"}"}"#, Some((schema(r#"{"type":"null"}"#), "guided_json"))),
            (r#"{"guided_regex":"a+"}"#, Some((regex("a+"), "guided_regex"))),
            (r#"{"guided_choice":["a.b","水","<x> y"]}"#, Some((regex(r"a\.b|水|<x> y"), "guided_choice"))),
            (r#"{"guided_grammar":"start: \"a\""}"#, Some((grammar("start: \"a\""), "guided_grammar"))),
            (r#"{"structured_outputs":{"json":true}}"#, Some((schema("true"), "structured_outputs"))),
            (r#"{"structured_outputs":{"json_object":true}}"#, Some((schema(ANY_OBJECT), "structured_outputs"))),
            (r#"{"structured_outputs":{"regex":"a"}}"#, Some((regex("a"), "structured_outputs"))),
            (r#"{"structured_outputs":{"choice":["a"]}}"#, Some((regex("a"), "structured_outputs"))),
            (r#"{"structured_outputs":{"grammar":"g"}}"#, Some((grammar("g"), "structured_outputs"))),
        ] {
            assert_eq!(decoded(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_is_malformed_too_large_or_one_too_many_is_refused_where_it_stands() {
        let long = format!(r#"{{"guided_regex":"{}"}}"#, "a".repeat(bounds::CONSTRAINT_BYTES + 1));
        for (json, param) in [
            (r#"{"response_format":{"type":"xml"}}"#, "response_format.type"),
            (r#"{"response_format":{}}"#, "response_format.type"),
            (r#"{"response_format":{"type":"json_schema"}}"#, "response_format.json_schema"),
            (
                r#"{"response_format":{"type":"json_schema","json_schema":{"name":"a"}}}"#,
                "response_format.json_schema.schema",
            ),
            (
                r#"{"response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}}"#,
                "response_format.json_schema.name",
            ),
            (r#"{"guided_json":5}"#, "guided_json"),
            (r#"{"guided_regex":""}"#, "guided_regex"),
            (r#"{"guided_choice":[]}"#, "guided_choice"),
            (r#"{"guided_choice":["a",""]}"#, "guided_choice[1]"),
            (r#"{"guided_grammar":["a"]}"#, "guided_grammar"),
            (r#"{"structured_outputs":{"regex":"a","json":{}}}"#, "structured_outputs"),
            (r#"{"structured_outputs":{"structural_tag":"{}"}}"#, "structured_outputs.structural_tag"),
            (r#"{"response_format":{"type":"json_object"},"guided_regex":"a"}"#, "guided_regex"),
            (&long, "guided_regex"),
        ] {
            assert_eq!(decoded(json).unwrap_err().param.as_deref(), Some(param), "{json:.80}");
        }
    }
}
