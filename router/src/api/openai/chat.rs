//! The body of a chat completion.

use serde_json::{Map, Value};

use super::{Ask, Choices, delivery, logprobs, model, sampling, structure, tools, unserved};
use crate::api::bounds::{self, KWARGS_BYTES, MESSAGES};
use crate::api::calling::Calls;
use crate::api::json::{Field, Object};
use crate::request::{Chat, Failure, Input, Message, Role};

/// Parts of one message.
const PARTS: usize = 1000;

/// Reads the body; what nobody knows stays in the object, or goes to `ignored` from within.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Ask, Failure> {
    let model = model(object)?;
    let chat = chat(object, ignored)?;
    let tools = tools::decode(object, ignored)?;
    let (mut sampling, max_tokens_name) = sampling::decode(object, &["max_completion_tokens", "max_tokens"])?;
    sampling.top_logprobs = logprobs::of_chat(object)?;
    let choices = Choices::of_chat(object)?;
    let constraint = structure::decode(object, ignored)?;
    let stop = sampling::stop(object)?;
    let delivery = delivery(object, ignored)?;
    unserved::check(object, unserved::COMMON)?;
    unserved::check(object, unserved::CHAT)?;
    unserved::ABOUT.iter().for_each(|name| drop(object.take(name)));
    let inputs = vec![Input::Chat(chat)];
    Ok(Ask { model, inputs, choices, tools, echo: false, sampling, stop, constraint, delivery, max_tokens_name })
}

/// The conversation of a body.
pub(super) fn chat(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Chat, Failure> {
    let field = object.need("messages")?;
    let mut calls = Calls::default();
    let message = |item| message(item, &mut calls, ignored);
    let messages = field.items(MESSAGES)?.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(field.refuse("must have at least one message"));
    }
    let prompt = object.take("add_generation_prompt").map(|field| field.bool()).transpose()?;
    let kwargs = object.take("chat_template_kwargs").map(|field| kwargs(&field)).transpose()?;
    Ok(Chat { messages, add_generation_prompt: prompt.unwrap_or(true), template_kwargs: kwargs.unwrap_or_default() })
}

fn message(field: &Field<'_>, calls: &mut Calls, ignored: &mut Vec<String>) -> Result<Message, Failure> {
    let mut object = field.object()?;
    let role = object.need("role")?;
    let role = bounds::role(role.path(), &role.string()?)?;
    unserved::check(&mut object, unserved::MESSAGE)?;
    let content = match (object.take("content"), role) {
        (Some(content), _) => text(&content)?,
        (None, Role::Assistant) => String::new(),
        (None, Role::System | Role::User | Role::Tool) => {
            let path = format!("{}.content", field.path());
            return Err(Failure::field(path.clone(), format!("{path} must be a string or an array of parts")));
        }
    };
    let name = object.take("name").map(|field| field.string()).transpose()?;
    let tool_calls = match (object.take("tool_calls"), role) {
        (Some(field), Role::Assistant) => tools::calls(&field, calls, ignored)?,
        (Some(field), Role::System | Role::User | Role::Tool) => return Err(field.refuse("is the assistant's alone")),
        (None, _) => Vec::new(),
    };
    let tool_call_id = match role {
        Role::Tool => Some(calls.answer(&object.need("tool_call_id")?)?),
        Role::System | Role::User | Role::Assistant => None,
    };
    ignored.extend(object.left());
    Ok(Message { name, tool_calls, tool_call_id, ..Message::new(role, content) })
}

/// A string, or parts of text with line ends between them, as vLLM joins them.
fn text(field: &Field<'_>) -> Result<String, Failure> {
    match field.kind() {
        "a string" => field.string(),
        "an array" => {
            let parts = field.items(PARTS)?;
            if parts.is_empty() {
                return Err(field.refuse("must have at least one part"));
            }
            Ok(parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        other => Err(field.refuse(format!("must be a string or an array of parts, not {other}"))),
    }
}

fn part(field: &Field<'_>) -> Result<String, Failure> {
    let mut object = field.object()?;
    let kind = object.need("type")?;
    match kind.string()?.as_str() {
        "text" => object.need("text")?.string(),
        other => {
            let shown: String = other.chars().take(32).collect();
            Err(kind.refuse(format!("must be text; {shown:?} is not served")))
        }
    }
}

fn kwargs(field: &Field<'_>) -> Result<Map<String, Value>, Failure> {
    if field.json().len() > KWARGS_BYTES {
        return Err(field.refuse(format!("must have at most {KWARGS_BYTES} bytes")));
    }
    if field.kind() != "an object" {
        return Err(field.refuse(format!("must be an object, not {}", field.kind())));
    }
    serde_json::from_str(field.json()).map_err(|error| field.refuse(format!("cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openai::Delivery;
    use crate::request::ToolCall;

    fn decoded(json: &str) -> Result<(Ask, Vec<String>), Failure> {
        let mut ignored = Vec::new();
        let mut object = Object::body(json.as_bytes()).unwrap();
        let ask = decode(&mut object, &mut ignored)?;
        ignored.extend(object.left());
        Ok((ask, ignored))
    }

    fn with(messages: &str) -> Result<Vec<Message>, Failure> {
        let (ask, _) = decoded(&format!(r#"{{"model":"m","messages":{messages}}}"#))?;
        match &ask.inputs[..] {
            [Input::Chat(chat)] => Ok(chat.messages.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_are_text_whole_or_in_parts() {
        let messages = with(
            r#"[{"role":"developer","content":"be kind"},
                {"role":"user","name":"ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null,"refusal":null,"tool_calls":[],"annotations":[]}]"#,
        );
        let message = |role, name: Option<&str>, content: &str| Message {
            name: name.map(str::to_owned),
            ..Message::new(role, content)
        };
        let expected = vec![
            message(Role::System, None, "be kind"),
            message(Role::User, Some("ann"), "a\nb"),
            message(Role::Assistant, None, ""),
        ];
        assert_eq!(messages, Ok(expected));
    }

    #[test]
    fn a_message_that_is_none_is_refused_where_it_stands() {
        for (messages, param) in [
            ("[]", "messages"),
            ("{}", "messages"),
            (r#"["hi"]"#, "messages[0]"),
            (r#"[{"content":"hi"}]"#, "messages[0].role"),
            (r#"[{"role":"wizard","content":"hi"}]"#, "messages[0].role"),
            (r#"[{"role":"function","name":"f","content":"hi"}]"#, "messages[0].role"),
            (r#"[{"role":"tool","content":"hi"}]"#, "messages[0].tool_call_id"),
            (r#"[{"role":"tool","tool_call_id":"a","content":"hi"}]"#, "messages[0].tool_call_id"),
            (r#"[{"role":"user","tool_calls":[],"content":"hi"}]"#, "messages[0].tool_calls"),
            (r#"[{"role":"assistant","function_call":{}}]"#, "messages[0].function_call"),
            (r#"[{"role":"user","content":"hi"},{"role":"user","content":5}]"#, "messages[1].content"),
            (r#"[{"role":"user","content":null}]"#, "messages[0].content"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[]}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#, "messages[0].content[0].type"),
            (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "messages[0].content[0].text"),
            (r#"[{"role":"assistant","content":"","tool_calls":[{}]}]"#, "messages[0].tool_calls[0].id"),
        ] {
            assert_eq!(with(messages).unwrap_err().param.as_deref(), Some(param), "{messages}");
        }
    }

    #[test]
    fn calls_come_before_their_results() {
        let call = |id: &str, more: &str| {
            format!(r#"{{"id":"{id}","type":"function","function":{{"name":"f","arguments":"{{}}"}}{more}}}"#)
        };
        let turns = |calls: &str, id: &str| {
            with(&format!(
                r#"[{{"role":"assistant","content":null,"tool_calls":[{calls}]}},
                    {{"role":"tool","tool_call_id":"{id}","content":"sunny"}}]"#
            ))
        };
        let messages = turns(&[call("a", r#","index":0"#), call("b", "")].join(","), "b").unwrap();
        let made = |id: &str| ToolCall { id: id.to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() };
        assert_eq!(messages[0].tool_calls, [made("a"), made("b")]);
        let answer = Message { tool_call_id: Some("b".to_owned()), ..Message::new(Role::Tool, "sunny") };
        assert_eq!(messages[1], answer);
        let param = |result: Result<Vec<Message>, Failure>| result.unwrap_err().param.unwrap();
        assert_eq!(param(turns(&call("a", ""), "c")), "messages[1].tool_call_id");
        assert_eq!(param(turns(&[call("a", ""), call("a", "")].join(","), "a")), "messages[0].tool_calls[1].id");
        let custom = r#"{"id":"a","type":"custom","custom":{"name":"f","input":""}}"#;
        assert_eq!(param(turns(custom, "a")), "messages[0].tool_calls[0].type");
    }

    #[test]
    fn what_nobody_knows_is_named_and_what_tells_about_the_caller_is_not() {
        let json = r#"{"model":"m","messages":[{"role":"user","content":"hi","mood":1}],"user":"u","metadata":{"a":"b"},
                       "store":false,"temprature":1,"stream":true,"stream_options":{"include_usage":true,"pace":1}}"#;
        let (ask, mut ignored) = decoded(json).unwrap();
        ignored.sort();
        assert_eq!(ignored, ["messages[0].mood", "stream_options.pace", "temprature"]);
        assert_eq!(ask.delivery, Delivery::Streamed { usage: true });
        let early = decoded(r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream_options":{}}"#);
        assert_eq!(early.map(|_| ()).unwrap_err().param.as_deref(), Some("stream_options"));
    }

    #[test]
    fn the_model_must_be_named() {
        for json in [r#"{"messages":[]}"#, r#"{"model":5,"messages":[]}"#, r#"{"model":"a b","messages":[]}"#] {
            assert_eq!(decoded(json).map(|_| ()).unwrap_err().param.as_deref(), Some("model"));
        }
    }
}
