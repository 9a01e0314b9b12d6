//! OpenAI's shapes of calls, whole and in pieces.

use serde::Serialize;

use crate::request::{ToolCall, ToolCallDelta};

/// A call, or a piece of one.
#[derive(Serialize)]
pub(super) struct Called<'a> {
    /// Of pieces alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> Called<'a> {
    /// A call that is put together.
    pub(super) fn whole(call: &'a ToolCall) -> Self {
        let function = Function { name: Some(&call.name), arguments: &call.arguments };
        Self { index: None, id: Some(&call.id), kind: Some("function"), function }
    }

    /// A piece: its first has an id, a type and a name.
    pub(super) fn piece(piece: &'a ToolCallDelta) -> Self {
        let (id, name) = piece.start.as_ref().map(|start| (start.id.as_str(), start.name.as_str())).unzip();
        let function = Function { name, arguments: &piece.arguments };
        Self { index: Some(piece.index), id, kind: id.map(|_| "function"), function }
    }
}

/// Adds pieces to the calls that they belong to.
pub(super) fn add(calls: &mut Vec<ToolCall>, pieces: Vec<ToolCallDelta>) {
    for piece in pieces {
        if let Some(start) = piece.start {
            calls.push(ToolCall { id: start.id, name: start.name, arguments: String::new() });
        }
        if let Some(call) = calls.get_mut(piece.index as usize) {
            call.arguments.push_str(&piece.arguments);
        }
    }
}
