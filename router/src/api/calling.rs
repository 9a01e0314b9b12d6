//! What tools and calls of a request may be, whatever the face.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::bounds;
use super::json::{Field, Object};
use crate::request::{Failure, Tool, ToolChoice};

/// Tools of one request.
pub(super) const TOOLS: usize = 128;
/// Calls of one message.
pub(super) const CALLS: usize = 128;
/// Bytes of all tools of a request.
pub(super) const TOOLS_BYTES: usize = 512 << 10;
/// Bytes of one schema.
pub(super) const SCHEMA_BYTES: usize = 64 << 10;

/// A tool's name.
pub(super) fn name(field: &Field<'_>) -> Result<String, Failure> {
    name_at(field.path(), field.string()?)
}

/// A tool's name that stands at `path`.
pub(super) fn name_at(path: &str, name: String) -> Result<String, Failure> {
    bounds::name(path, &name)?;
    Ok(name)
}

/// A JSON Schema of an object, of a bounded size.
pub(super) fn schema(field: &Field<'_>) -> Result<Map<String, Value>, Failure> {
    schema_at(field.path(), field.json())
}

/// A JSON Schema of an object that stands at `path`; one that says nothing takes no arguments.
pub(super) fn schema_at(path: &str, json: &str) -> Result<Map<String, Value>, Failure> {
    let refuse = |complaint: String| Failure::field(path, format!("{path} {complaint}"));
    if json.len() > SCHEMA_BYTES {
        return Err(refuse(format!("must have at most {SCHEMA_BYTES} bytes")));
    }
    let schema: Map<String, Value> = match serde_json::from_str(json) {
        Ok(Value::Object(schema)) => schema,
        Ok(_) => return Err(refuse("must be an object".to_owned())),
        Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
    };
    if schema.is_empty() {
        return Ok(no_arguments());
    }
    match schema.get("type") {
        Some(Value::String(kind)) if kind == "object" => Ok(schema),
        Some(_) | None => Err(refuse("must be a JSON Schema of type object".to_owned())),
    }
}

/// The schema of a tool that takes no arguments.
pub(super) fn no_arguments() -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), json!("object")), ("properties".to_owned(), json!({}))])
}

/// The `tools` of a body, each read by `tool`; `name` is where a tool has its name.
pub(super) fn definitions(
    object: &mut Object<'_>,
    name: &str,
    tool: impl FnMut(&Field<'_>) -> Result<Tool, Failure>,
) -> Result<Vec<Tool>, Failure> {
    let Some(field) = object.take("tools") else { return Ok(Vec::new()) };
    if field.json().len() > TOOLS_BYTES {
        return Err(field.refuse(format!("must have at most {TOOLS_BYTES} bytes")));
    }
    let tools = field.items(TOOLS)?.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    unique(&tools, |at| format!("{}[{at}].{name}", field.path()))?;
    Ok(tools)
}

/// A choice in one of OpenAI's words; None where it is no word.
pub(super) fn word(field: &Field<'_>) -> Result<Option<ToolChoice>, Failure> {
    if field.kind() != "a string" {
        return Ok(None);
    }
    match field.string()?.as_str() {
        "auto" => Ok(Some(ToolChoice::Auto)),
        "none" => Ok(Some(ToolChoice::None)),
        "required" => Ok(Some(ToolChoice::Required)),
        _ => Err(field.refuse("must be none, auto, required or a function")),
    }
}

/// Names are there once. `path` gives the place of a name.
pub(super) fn unique(tools: &[Tool], path: impl Fn(usize) -> String) -> Result<(), Failure> {
    let mut names = BTreeSet::new();
    match tools.iter().position(|tool| !names.insert(&tool.name)) {
        Some(at) => {
            let path = path(at);
            Err(Failure::field(path.clone(), format!("{path} is the name of an earlier tool too: {}", tools[at].name)))
        }
        None => Ok(()),
    }
}

/// A choice that the tools allow.
pub(super) fn choice(field: &Field<'_>, choice: ToolChoice, tools: &[Tool]) -> Result<ToolChoice, Failure> {
    choice_at(field.path(), choice, tools)
}

/// A choice that stands at `path` and that the tools allow.
pub(super) fn choice_at(path: &str, choice: ToolChoice, tools: &[Tool]) -> Result<ToolChoice, Failure> {
    let refuse = |complaint: &str| Err(Failure::field(path, format!("{path} {complaint}")));
    match &choice {
        ToolChoice::Required if tools.is_empty() => refuse("asks for a call where there are no tools"),
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            refuse("names a tool that is not in tools")
        }
        ToolChoice::Auto | ToolChoice::None | ToolChoice::Required | ToolChoice::Named(_) => Ok(choice),
    }
}

/// The calls of a conversation so far: each id is made once, and answered only after that.
#[derive(Debug, Default)]
pub(super) struct Calls {
    made: BTreeSet<String>,
}

impl Calls {
    /// A call's id where the call is made.
    pub(super) fn make(&mut self, field: &Field<'_>) -> Result<String, Failure> {
        self.make_at(field.path(), field.string()?)
    }

    /// A call's id where the call is made at `path`.
    pub(super) fn make_at(&mut self, path: &str, id: String) -> Result<String, Failure> {
        if id.is_empty() {
            return Err(Failure::field(path, format!("{path} must not be empty")));
        }
        if !self.made.insert(id.clone()) {
            return Err(Failure::field(path, format!("{path} is the id of an earlier call too")));
        }
        Ok(id)
    }

    /// A call's id where its result stands.
    pub(super) fn answer(&self, field: &Field<'_>) -> Result<String, Failure> {
        self.answer_at(field.path(), field.string()?)
    }

    /// A call's id where its result stands at `path`.
    pub(super) fn answer_at(&self, path: &str, id: String) -> Result<String, Failure> {
        if self.made.contains(&id) {
            Ok(id)
        } else {
            Err(Failure::field(path, format!("{path} is the id of no call before it")))
        }
    }
}
