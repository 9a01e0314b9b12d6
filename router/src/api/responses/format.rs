//! `text`: what the answer must look like.

use serde_json::{Value, json};

use crate::api::calling;
use crate::api::json::{Field, Object};
use crate::api::openai::unserved;
use crate::request::{Constraint, Failure};

/// A format, and how the response says it again.
pub(super) struct Format {
    pub(super) constraint: Option<Constraint>,
    pub(super) echo: Value,
}

/// Any JSON object.
const OBJECT: &str = r#"{"type":"object"}"#;

/// `text` of a body.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Format, Failure> {
    let (mut constraint, mut format) = (None, json!({"type": "text"}));
    if let Some(field) = object.take("text") {
        let mut text = field.object()?;
        if let Some(field) = text.take("format") {
            (constraint, format) = read(&field, ignored)?;
        }
        unserved::check(&mut text, &[("verbosity", &[r#""medium""#])])?;
        ignored.extend(text.left());
    }
    Ok(Format { constraint, echo: json!({"format": format, "verbosity": "medium"}) })
}

fn read(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<(Option<Constraint>, Value), Failure> {
    let mut object = field.object()?;
    let kind = object.need("type")?;
    let format = match kind.string()?.as_str() {
        "text" => (None, json!({"type": "text"})),
        "json_object" => (Some(Constraint::JsonSchema(OBJECT.to_owned())), json!({"type": "json_object"})),
        "json_schema" => {
            let name = calling::name(&object.need("name")?)?;
            let schema = object.need("schema")?;
            let (text, value) = (schema.json().to_owned(), bounded(&schema)?);
            let description = object.read("description", Field::string)?;
            // Answers are held to their schema whether that is asked for or not.
            let strict = object.read("strict", Field::bool)?.unwrap_or(false);
            let echo = json!({
                "type": "json_schema", "name": name, "description": description, "schema": value, "strict": strict,
            });
            (Some(Constraint::JsonSchema(text)), echo)
        }
        _ => return Err(kind.refuse("must be text, json_object or json_schema")),
    };
    ignored.extend(object.left());
    Ok(format)
}

/// A schema for the response to say again; what is wrong within it the worker tells.
fn bounded(field: &Field<'_>) -> Result<Value, Failure> {
    if field.json().len() > calling::SCHEMA_BYTES {
        return Err(field.refuse(format!("must have at most {} bytes", calling::SCHEMA_BYTES)));
    }
    field.object()?;
    serde_json::from_str(field.json()).map_err(|error| field.refuse(format!("cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<Format, String> {
        let mut object = Object::body(json.as_bytes()).unwrap();
        decode(&mut object, &mut Vec::new()).map_err(|failure| failure.param.unwrap_or_default())
    }

    #[test]
    fn formats_are_constraints() {
        assert_eq!(decoded("{}").unwrap().constraint, None);
        assert_eq!(decoded(r#"{"text":{"format":{"type":"text"},"verbosity":"medium"}}"#).unwrap().constraint, None);
        let object = decoded(r#"{"text":{"format":{"type":"json_object"}}}"#).unwrap();
        assert_eq!(object.constraint, Some(Constraint::JsonSchema(OBJECT.into())));
        let schema =
            r#"{"text":{"format":{"type":"json_schema","name":"n","schema":{"type":"number"},"strict":true}}}"#;
        let schema = decoded(schema).unwrap();
        assert_eq!(schema.constraint, Some(Constraint::JsonSchema(r#"{"type":"number"}"#.into())));
        assert_eq!(schema.echo["format"]["schema"], json!({"type": "number"}));
    }

    #[test]
    fn what_is_no_format_is_refused_where_it_stands() {
        let long = format!(
            r#"{{"text":{{"format":{{"type":"json_schema","name":"n","schema":{{"x":"{}"}}}}}}}}"#,
            "x".repeat(65536)
        );
        for (json, param) in [
            (r#"{"text":{"format":{"type":"xml"}}}"#, "text.format.type"),
            (r#"{"text":{"format":{"type":"json_schema","schema":{}}}}"#, "text.format.name"),
            (r#"{"text":{"format":{"type":"json_schema","name":"n"}}}"#, "text.format.schema"),
            (r#"{"text":{"format":{"type":"json_schema","name":"n","schema":1}}}"#, "text.format.schema"),
            (r#"{"text":{"verbosity":"high"}}"#, "text.verbosity"),
            (long.as_str(), "text.format.schema"),
        ] {
            assert_eq!(decoded(json).map(|_| ()), Err(param.to_owned()), "{json:.99}");
        }
    }
}
