//! The table as OpenAPI 3.1.

use serde_json::{Map, Value, json};

use super::CALLS;
use super::answered::SHAPES;
use super::field::{Body, Fate, Field, Spec, Type};
use crate::api::bounds::Range;

/// The document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for call in CALLS {
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method.to_ascii_lowercase()] = operation(call);
    }
    let shapes: Map<String, Value> =
        SHAPES.iter().map(|(name, fields)| ((*name).to_owned(), object(fields, Side::Answered))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": shapes,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        // A router without tenants asks for no key.
        "security": [{}, {"bearer": []}, {"key": []}],
    })
}

/// Which way a value goes: what a client leaves out it may also say to be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Asked,
    Answered,
}

fn operation(call: &Spec) -> Value {
    let shape = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let mut content = json!({"application/json": {"schema": shape(call.answer)}});
    if call.streams {
        content["text/event-stream"] = json!({"schema": {"type": "string"}});
    }
    let error = json!({"application/json": {"schema": shape(call.error)}});
    let mut operation = json!({
        "operationId": operation_id(call),
        "summary": call.summary,
        "responses": {
            "200": {"description": "the answer", "content": content},
            "4XX": {"description": "the request, or a rule, is at fault", "content": error},
            "5XX": {"description": "a part failed, or nobody is free", "content": error},
        },
    });
    if let Some(body) = &call.body {
        let content = json!({"application/json": {"schema": asked(body)}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    if call.path.contains("{model}") {
        operation["parameters"] =
            json!([{"name": "model", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

/// `post_v1_chat_completions`.
fn operation_id(call: &Spec) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let path: String = call.path.trim_matches(['/', '}']).chars().map(plain).collect();
    format!("{}_{}", call.method.to_ascii_lowercase(), path.replace("__", "_"))
}

/// A body: what is served by its type, what is refused by the values that ask for nothing.
fn asked(body: &Body) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, field, fate) in body.fates() {
        let schema = match (fate, field) {
            (Fate::Served, Some(field)) => {
                if field.required {
                    required.push(name);
                }
                property(field, Side::Asked)
            }
            (Fate::Refused(but), _) => {
                let values = but.iter().filter_map(|json| serde_json::from_str::<Value>(json).ok());
                let values: Vec<Value> = std::iter::once(Value::Null).chain(values).collect();
                json!({"enum": values, "description": "not served"})
            }
            (Fate::Ignored, _) | (Fate::Served, None) => json!({"description": "taken; it changes nothing"}),
        };
        properties.insert(name.to_owned(), schema);
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn object(fields: &[Field], side: Side) -> Value {
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let property = |field: &Field| (field.name.to_owned(), property(field, side));
    let properties: Map<String, Value> = fields.iter().map(property).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn property(field: &Field, side: Side) -> Value {
    let mut schema = schema(&field.of, side);
    if side == Side::Asked && !field.required {
        schema = json!({"anyOf": [schema, {"type": "null"}]});
    }
    if !field.note.is_empty() {
        schema["description"] = json!(field.note);
    }
    schema
}

fn schema(of: &Type, side: Side) -> Value {
    match of {
        Type::Flag => json!({"type": "boolean"}),
        Type::Text => json!({"type": "string"}),
        Type::Null => json!({"type": "null"}),
        Type::Any => json!({}),
        Type::Number(range) => number(*range),
        Type::Whole(least, None) => json!({"type": "integer", "minimum": least}),
        Type::Whole(least, Some(most)) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Type::Word(words) => json!({"type": "string", "enum": words}),
        Type::List(of, None) => json!({"type": "array", "items": schema(of, side)}),
        Type::List(of, Some(most)) => json!({"type": "array", "items": schema(of, side), "maxItems": most}),
        Type::Several(of, None) => json!({"type": "array", "items": schema(of, side), "minItems": 1}),
        Type::Several(of, Some(most)) => {
            json!({"type": "array", "items": schema(of, side), "minItems": 1, "maxItems": most})
        }
        Type::Map(of) => json!({"type": "object", "additionalProperties": schema(of, side)}),
        Type::Free => json!({"type": "object"}),
        Type::Object(fields) => object(fields, side),
        Type::Either(types) => {
            let types: Vec<Value> = types.iter().map(|of| schema(of, side)).collect();
            json!({"anyOf": types})
        }
    }
}

fn number(range: Range) -> Value {
    match range {
        Range::Within(f64::MIN, f64::MAX) => json!({"type": "number"}),
        Range::Within(least, most) => json!({"type": "number", "minimum": least, "maximum": most}),
        Range::AtLeast(least) => json!({"type": "number", "minimum": least}),
        Range::Above(least, most) => json!({"type": "number", "exclusiveMinimum": least, "maximum": most}),
        Range::MoreThan(least) => json!({"type": "number", "exclusiveMinimum": least}),
    }
}
