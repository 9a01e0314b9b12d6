//! What tools and calls of a request may be, whatever the face.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::json::Field;
use crate::request::{Failure, Tool, ToolChoice};

/// Tools of one request.
pub(super) const TOOLS: usize = 128;
/// Bytes of one schema.
pub(super) const SCHEMA_BYTES: usize = 64 << 10;
/// Characters of a tool's name, or of a schema's.
const NAME: usize = 64;

/// A tool's name.
pub(super) fn name(field: &Field<'_>) -> Result<String, Failure> {
    let name = field.string()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME || !name.chars().all(plain) {
        return Err(field.refuse(format!("must be 1 to {NAME} of a-z, A-Z, 0-9, _ and -")));
    }
    Ok(name)
}

/// A JSON Schema that is an object, of a bounded size.
pub(super) fn schema(field: &Field<'_>) -> Result<Map<String, Value>, Failure> {
    if field.json().len() > SCHEMA_BYTES {
        return Err(field.refuse(format!("must have at most {SCHEMA_BYTES} bytes")));
    }
    if field.kind() != "an object" {
        return Err(field.refuse(format!("must be an object, not {}", field.kind())));
    }
    serde_json::from_str(field.json()).map_err(|error| field.refuse(format!("cannot be read: {error}")))
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
    match &choice {
        ToolChoice::Required if tools.is_empty() => Err(field.refuse("asks for a call where there are no tools")),
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(field.refuse("names a tool that is not in tools"))
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
        let id = field.string()?;
        if id.is_empty() {
            return Err(field.refuse("must not be empty"));
        }
        if !self.made.insert(id.clone()) {
            return Err(field.refuse("is the id of an earlier call too"));
        }
        Ok(id)
    }

    /// A call's id where its result stands.
    pub(super) fn answer(&self, field: &Field<'_>) -> Result<String, Failure> {
        let id = field.string()?;
        if self.made.contains(&id) { Ok(id) } else { Err(field.refuse("is the id of no call before it")) }
    }
}
