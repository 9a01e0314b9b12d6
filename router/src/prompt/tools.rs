//! Tools on their way into a prompt: as `transformers` hands them to a template that takes them, else told in words,
//! within messages that every template takes.

use serde_json::{Value, json};

use super::json::dumps;
use crate::request::{Chat, Message, Role, Tool, ToolCall, Tools};
use crate::tools::Format;

/// Characters of an id of Mistral's.
const MISTRAL_ID: usize = 9;

/// How a model is told of tools.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) format: Format,
    /// Whether the template takes a system's turn.
    pub(super) takes_system: bool,
}

/// What a template is given of a conversation.
pub(super) struct Given {
    pub(super) messages: Value,
    pub(super) tools: Value,
}

impl Manner {
    /// The conversation for the template.
    pub(super) fn give(self, chat: &Chat, tools: &Tools) -> Given {
        match self.format {
            Format::Generic => {
                let messages = self.told(&chat.messages, tools);
                Given { messages: messages.iter().map(plain).collect(), tools: Value::Null }
            }
            Format::Hermes | Format::Llama | Format::Mistral => {
                let definitions: Vec<Value> = tools.definitions.iter().map(definition).collect();
                let tools = if definitions.is_empty() { Value::Null } else { definitions.into() };
                Given { messages: chat.messages.iter().map(|message| self.full(message)).collect(), tools }
            }
        }
    }

    /// A message with all that it has, as templates that know tools take it.
    fn full(self, message: &Message) -> Value {
        let mut value = plain(message);
        if !message.tool_calls.is_empty() {
            value["tool_calls"] = message.tool_calls.iter().map(|call| self.call(call)).collect();
        }
        if let Some(id) = &message.tool_call_id {
            value["tool_call_id"] = self.id(id).into();
        }
        value
    }

    fn call(self, call: &ToolCall) -> Value {
        let arguments = match call.arguments.trim() {
            "" => json!({}),
            // What is no JSON was written by a model, and it may see so.
            text => serde_json::from_str(text).unwrap_or_else(|_| call.arguments.clone().into()),
        };
        let function = json!({ "name": call.name, "arguments": arguments });
        json!({ "type": "function", "id": self.id(&call.id), "function": function })
    }

    /// An id that the template takes: Mistral's refuse others than their own, which a conversation that began with
    /// another model has.
    fn id(self, id: &str) -> String {
        match self.format {
            Format::Hermes | Format::Llama | Format::Generic => id.to_owned(),
            Format::Mistral => {
                let known: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
                let end = &known[known.len().saturating_sub(MISTRAL_ID)..];
                std::iter::repeat_n('0', MISTRAL_ID - end.len()).chain(end.iter().copied()).collect()
            }
        }
    }

    /// The messages of a conversation for a template that knows no tools: definitions stand in the system's turn,
    /// calls in the assistant's and results in the user's.
    fn told(self, messages: &[Message], tools: &Tools) -> Vec<Message> {
        let mut told: Vec<Message> = Vec::with_capacity(messages.len() + 1);
        let mut messages = messages.iter().peekable();
        while let Some(message) = messages.next() {
            if message.role != Role::Tool {
                told.push(Message {
                    content: with_calls(message),
                    name: message.name.clone(),
                    ..Message::new(message.role, "")
                });
                continue;
            }
            let mut results = result(message);
            // Results that stand together are one turn: templates want turns to alternate.
            while let Some(next) = messages.next_if(|next| next.role == Role::Tool) {
                results = results + "\n" + &result(next);
            }
            told.push(Message::new(Role::User, results));
        }
        if !tools.definitions.is_empty() {
            self.tell(&mut told, &manual(tools));
        }
        told
    }

    fn tell(self, messages: &mut Vec<Message>, manual: &str) {
        let role = if self.takes_system { Role::System } else { Role::User };
        match messages.first_mut() {
            Some(first) if first.role == role && first.content.is_empty() => first.content = manual.to_owned(),
            Some(first) if first.role == Role::System && role == Role::System => {
                first.content = format!("{}\n\n{manual}", first.content);
            }
            Some(first) if first.role == role => first.content = format!("{manual}\n\n{}", first.content),
            Some(_) | None => messages.insert(0, Message::new(role, manual)),
        }
    }
}

/// A message's role, name and text.
fn plain(message: &Message) -> Value {
    let mut value = json!({ "role": message.role.as_str(), "content": message.content });
    if let Some(name) = &message.name {
        value["name"] = Value::String(name.clone());
    }
    value
}

/// A definition, its keys in the order in which OpenAI's clients and `transformers` write them.
fn definition(tool: &Tool) -> Value {
    let mut function = json!({ "name": tool.name });
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    function["parameters"] = tool.parameters.clone().into();
    json!({ "type": "function", "function": function })
}

/// What a model is told that was not trained on tools.
fn manual(tools: &Tools) -> String {
    let definitions: Vec<String> = tools.definitions.iter().map(|tool| dumps(&definition(tool))).collect();
    let several = if tools.allow_several() {
        "Several calls are written one below the other."
    } else {
        "Call one function at most."
    };
    format!(
        "You can call functions. These are all of them, each with a JSON Schema of its arguments:\n\
         <tools>\n{}\n</tools>\n\
         To call a function, answer with its name and its arguments as JSON, in this form:\n\
         <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{ARGUMENTS}}}}\n</tool_call>\n\
         {several} What functions return is given to you within <tool_response></tool_response>.",
        definitions.join("\n")
    )
}

/// A turn's text and below it its calls, as the manual has them. Arguments stay as the model wrote them, so that the
/// turn is encoded as it was made.
fn with_calls(message: &Message) -> String {
    let call = |call: &ToolCall| {
        let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
        format!(
            "<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>",
            Value::from(call.name.as_str())
        )
    };
    let text = (!message.content.is_empty()).then(|| message.content.clone());
    text.into_iter().chain(message.tool_calls.iter().map(call)).collect::<Vec<_>>().join("\n")
}

fn result(message: &Message) -> String {
    format!("<tool_response>\n{}\n</tool_response>", message.content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ToolChoice;

    fn tools() -> Tools {
        let parameters =
            json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
        let tool = Tool {
            name: "weather".to_owned(),
            description: Some("Tells the weather.".to_owned()),
            parameters: parameters.as_object().cloned().unwrap(),
            strict: false,
        };
        Tools { definitions: vec![tool], choice: ToolChoice::Auto, parallel: true }
    }

    fn conversation() -> Chat {
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.to_owned(),
            name: "weather".to_owned(),
            arguments: arguments.to_owned(),
        };
        let calls = vec![call("call_0123456789ab", r#"{"city":  "Oslo"}"#), call("c", "")];
        let result =
            |id: &str, text: &str| Message { tool_call_id: Some(id.to_owned()), ..Message::new(Role::Tool, text) };
        let messages = vec![
            Message::new(Role::User, "Weather?"),
            Message { tool_calls: calls, ..Message::new(Role::Assistant, "Let me see.") },
            result("call_0123456789ab", "sunny"),
            result("c", "rain"),
        ];
        Chat { messages, add_generation_prompt: true, template_kwargs: serde_json::Map::new() }
    }

    fn told(takes_system: bool, chat: &Chat) -> Vec<(String, String)> {
        let given = Manner { format: Format::Generic, takes_system }.give(chat, &tools());
        assert_eq!(given.tools, Value::Null);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        given.messages.as_array().unwrap().iter().map(|it| (text(&it["role"]), text(&it["content"]))).collect()
    }

    #[test]
    fn a_template_without_tools_gets_them_in_words() {
        let messages = told(true, &conversation());
        let [(system, manual), (user, _), (assistant, calls), (results, given)] = &messages[..] else {
            panic!("{messages:?}")
        };
        assert_eq!([system, user, assistant, results], ["system", "user", "assistant", "user"]);
        let definition = r#"{"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}"#;
        assert!(manual.contains(&format!("<tools>\n{definition}\n</tools>")), "{manual}");
        assert_eq!(
            calls,
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":  \"Oslo\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>"
        );
        assert_eq!(given, "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>");
    }

    #[test]
    fn the_manual_joins_the_turn_that_is_there() {
        let mut chat = conversation();
        let (_, first) = told(false, &chat).swap_remove(0);
        assert!(first.starts_with("You can call") && first.ends_with("\n\nWeather?"), "{first}");
        chat.messages.insert(0, Message::new(Role::System, "Be brief."));
        let messages = told(true, &chat);
        assert!(messages[0].1.starts_with("Be brief.\n\nYou can call"), "{messages:?}");
        assert_eq!(messages.len(), 4);
    }

    #[test]
    fn a_template_with_tools_gets_what_transformers_gives() {
        let given = Manner { format: Format::Hermes, takes_system: true }.give(&conversation(), &tools());
        assert_eq!(given.tools, Value::from(vec![definition(&tools().definitions[0])]));
        let calls = json!([
            { "type": "function", "id": "call_0123456789ab",
              "function": { "name": "weather", "arguments": { "city": "Oslo" } } },
            { "type": "function", "id": "c", "function": { "name": "weather", "arguments": {} } },
        ]);
        assert_eq!(given.messages[1]["tool_calls"], calls);
        assert_eq!(
            given.messages[2],
            json!({ "role": "tool", "content": "sunny", "tool_call_id": "call_0123456789ab" })
        );
        assert!(given.messages[0].get("tool_calls").is_none());
        let none = Manner { format: Format::Hermes, takes_system: true }.give(&conversation(), &Tools::default());
        assert_eq!(none.tools, Value::Null);
    }

    #[test]
    fn ids_of_others_are_made_mistrals() {
        let given = Manner { format: Format::Mistral, takes_system: true }.give(&conversation(), &tools());
        assert_eq!(given.messages[1]["tool_calls"][0]["id"], "3456789ab");
        assert_eq!(given.messages[2]["tool_call_id"], "3456789ab");
        assert_eq!(given.messages[3]["tool_call_id"], "00000000c");
    }
}
