//! A conversation in Anthropic's manner: instructions apart, then the user and the assistant in turns of blocks.

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::express::refusal;
use super::PROTOCOL;
use crate::request::{Failure, Message, Role, ToolCall};

/// A turn.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Turn<'a> {
    role: Speaker,
    content: Vec<Block<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    User,
    Assistant,
}

/// A part of a turn.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text {
        text: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Map<String, Value>,
    },
    ToolResult {
        tool_use_id: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        content: &'a str,
    },
}

/// The instructions at the conversation's head, and its turns. Messages of one speaker after the other become one turn,
/// as the results of calls and what the user says to them do.
pub(super) fn turns(messages: &[Message]) -> Result<(Vec<Block<'_>>, Vec<Turn<'_>>), Failure> {
    let (mut system, mut turns): (Vec<Block<'_>>, Vec<Turn<'_>>) = (Vec::new(), Vec::new());
    for (at, message) in messages.iter().enumerate() {
        if message.name.is_some() {
            return Err(refusal(PROTOCOL, format!("messages[{at}].name")));
        }
        let speaker = match message.role {
            Role::System if !turns.is_empty() => {
                let message =
                    format!("messages[{at}].role: instructions must come first for an upstream that speaks {PROTOCOL}");
                return Err(Failure::field(format!("messages[{at}].role"), message));
            }
            Role::System => {
                system.extend(text(message));
                continue;
            }
            Role::User | Role::Tool => Speaker::User,
            Role::Assistant => Speaker::Assistant,
        };
        let blocks = blocks(at, message)?;
        match turns.last_mut() {
            Some(last) if last.role == speaker => last.content.extend(blocks),
            Some(_) | None => turns.push(Turn { role: speaker, content: blocks }),
        }
    }
    if turns.is_empty() {
        let message = format!("messages must have one that is no instruction for an upstream that speaks {PROTOCOL}");
        return Err(Failure::field("messages", message));
    }
    Ok((system, turns))
}

fn blocks(at: usize, message: &Message) -> Result<Vec<Block<'_>>, Failure> {
    if let Some(id) = &message.tool_call_id {
        return Ok(vec![Block::ToolResult { tool_use_id: id, content: &message.content }]);
    }
    let mut blocks: Vec<Block<'_>> = text(message).into_iter().collect();
    for (nth, call) in message.tool_calls.iter().enumerate() {
        blocks.push(tool_use(call).ok_or_else(|| {
            let param = format!("messages[{at}].tool_calls[{nth}].function.arguments");
            let message = format!("{param} must be a JSON object for an upstream that speaks {PROTOCOL}");
            Failure::field(param, message)
        })?);
    }
    if blocks.is_empty() {
        let message = format!("messages[{at}].content must not be empty for an upstream that speaks {PROTOCOL}");
        return Err(Failure::field(format!("messages[{at}].content"), message));
    }
    Ok(blocks)
}

fn text(message: &Message) -> Option<Block<'_>> {
    (!message.content.is_empty()).then_some(Block::Text { text: &message.content })
}

/// A call; None where its arguments are no object. A call without arguments has an empty one.
fn tool_use(call: &ToolCall) -> Option<Block<'_>> {
    let input = match call.arguments.trim() {
        "" => Map::new(),
        arguments => serde_json::from_str(arguments).ok()?,
    };
    Some(Block::ToolUse { id: &call.id, name: &call.name, input })
}
