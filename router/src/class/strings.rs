//! Every string of a request: of the typed request, which is all that can leave, and of the body that it came in, with
//! what the faces leave aside (metadata, users, fields that nobody knows). JSON within strings is looked at as written
//! and as meant, and the parts of one text are looked at together: neither an escape nor a seam hides anything.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Scan, escapes};
use crate::request::{Constraint, Input, Message, Request, Tool, ToolChoice};

/// Layers of escapes that are undone in a text that is no JSON.
const ESCAPES_LIMIT: usize = 4;
/// Bytes at either end of a part's text that are looked at together with its neighbours'.
const END: usize = 64;

/// A body that cannot be looked through.
#[derive(Debug, thiserror::Error)]
#[error("the body cannot be looked through: {0}")]
pub(crate) struct Unreadable(serde_json::Error);

/// Looks at all strings of a request but a prompt of token ids.
pub(crate) fn request(request: &Request, scan: &mut Scan<'_>) {
    match &request.input {
        Input::Chat(chat) => {
            chat.messages.iter().enumerate().for_each(|(at, turn)| message(at, turn, scan));
            object("chat_template_kwargs", &chat.template_kwargs, scan);
        }
        Input::Text(prompt) => text("prompt", prompt, scan),
        Input::Tokens(_) => {}
    }
    request.stop.texts.iter().enumerate().for_each(|(at, stop)| text(format_args!("stop[{at}]"), stop, scan));
    match &request.constraint {
        Some(Constraint::JsonSchema(schema)) => text("response_format", schema, scan),
        Some(Constraint::Regex(pattern)) => text("regex", pattern, scan),
        Some(Constraint::Grammar(grammar)) => text("grammar", grammar, scan),
        None => {}
    }
    request.tools.definitions.iter().enumerate().for_each(|(at, definition)| tool(at, definition, scan));
    if let ToolChoice::Named(name) = &request.tools.choice {
        scan.look("tool_choice", name);
    }
    scan.look("model", request.model.as_str());
    members(&request.unknown, &mut String::new(), scan);
}

fn message(at: usize, message: &Message, scan: &mut Scan<'_>) {
    let Message { role: _, name, content, tool_calls, tool_call_id } = message;
    text(format_args!("messages[{at}].content"), content, scan);
    name.iter().for_each(|name| text(format_args!("messages[{at}].name"), name, scan));
    tool_call_id.iter().for_each(|id| text(format_args!("messages[{at}].tool_call_id"), id, scan));
    for (nth, call) in tool_calls.iter().enumerate() {
        text(format_args!("messages[{at}].tool_calls[{nth}].id"), &call.id, scan);
        scan.look(format_args!("messages[{at}].tool_calls[{nth}].name"), &call.name);
        text(format_args!("messages[{at}].tool_calls[{nth}].arguments"), &call.arguments, scan);
    }
}

fn tool(at: usize, tool: &Tool, scan: &mut Scan<'_>) {
    let Tool { name, description, parameters, strict: _ } = tool;
    scan.look(format_args!("tools[{at}].name"), name);
    description.iter().for_each(|told| text(format_args!("tools[{at}].description"), told, scan));
    object(&format!("tools[{at}].parameters"), parameters, scan);
}

/// A text, and what it says where it is JSON whose strings are written with escapes.
pub(crate) fn text(place: impl fmt::Display, text: &str, scan: &mut Scan<'_>) {
    scan.look(&place, text);
    if !text.contains('\\') {
        return;
    }
    if text.trim_start().starts_with(['{', '[', '"']) {
        let mut path = place.to_string();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Walk { path: &mut path, scan, part: Part::None }.deserialize(&mut json);
        if read.and_then(|()| json.end()).is_ok() {
            return;
        }
    }
    // It may be prose with JSON in it, or JSON that is cut off.
    let mut undone = escapes::undo(text);
    for _ in 0..ESCAPES_LIMIT {
        let Some(text) = undone else { break };
        scan.look(&place, &text);
        undone = escapes::undo(&text);
    }
}

fn object(place: &str, object: &Map<String, Value>, scan: &mut Scan<'_>) {
    if !object.is_empty() {
        let mut path = place.to_owned();
        members(object, &mut path, scan);
    }
}

fn members(object: &Map<String, Value>, path: &mut String, scan: &mut Scan<'_>) {
    for (key, value) in object {
        let dot = if path.is_empty() { "" } else { "." };
        within(path, format_args!("{dot}{key}"), |path| {
            text(&*path, key, scan);
            look_at(value, path, scan);
        });
    }
}

fn look_at(value: &Value, path: &mut String, scan: &mut Scan<'_>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => scan.look(&*path, &number.to_string()),
        Value::String(found) => text(&*path, found, scan),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                within(path, format_args!("[{at}]"), |path| look_at(item, path, scan));
            }
        }
        Value::Object(object) => members(object, path, scan),
    }
}

/// Does something one step further down.
fn within<T>(path: &mut String, step: impl fmt::Display, work: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    write!(path, "{step}").expect("a string takes what is written to it");
    let done = work(path);
    path.truncate(length);
    done
}

/// Looks at all strings, keys and numbers of a JSON body.
pub(crate) fn body(body: &[u8], scan: &mut Scan<'_>) -> Result<(), Unreadable> {
    let mut path = String::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    Walk { path: &mut path, scan, part: Part::None }.deserialize(&mut json).map_err(Unreadable)
}

/// A JSON value that is looked at as it is read, without a tree.
struct Walk<'a, 's, 'd> {
    path: &'a mut String,
    scan: &'s mut Scan<'d>,
    part: Part<'a>,
}

/// What a value is among the parts of one text, `[{"type": "text", "text": …}, …]`: models read them as one.
enum Part<'a> {
    None,
    /// An item of an array, which may be a part.
    Item(&'a mut Vec<String>),
    /// The text of a part.
    Text(&'a mut Vec<String>),
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.scan.look(&*self.path, &number.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.scan.look(&*self.path, &number.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.scan.look(&*self.path, &number.to_string());
        Ok(())
    }

    fn visit_str<E>(self, found: &str) -> Result<(), E> {
        text(&*self.path, found, self.scan);
        if let Part::Text(parts) = self.part {
            parts.push(ends(found));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (path, scan) = (self.path, self.scan);
        let (mut at, mut parts) = (0_usize, Vec::new());
        loop {
            let item = |path: &mut String| {
                items.next_element_seed(Walk { path, scan: &mut *scan, part: Part::Item(&mut parts) })
            };
            if within(path, format_args!("[{at}]"), item)?.is_none() {
                break;
            }
            at += 1;
        }
        if parts.len() > 1 {
            scan.look(&*path, &parts.join(" "));
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let (path, scan, mut part) = (self.path, self.scan, self.part);
        while let Some(key) = members.next_key::<String>()? {
            let dot = if path.is_empty() { "" } else { "." };
            within(path, format_args!("{dot}{key}"), |path| {
                text(&*path, &key, scan);
                let part = match &mut part {
                    Part::Item(parts) if key == "text" => Part::Text(parts),
                    Part::Item(_) | Part::Text(_) | Part::None => Part::None,
                };
                members.next_value_seed(Walk { path, scan: &mut *scan, part })
            })?;
        }
        Ok(())
    }
}

/// The beginning and the end of a text: what may go on in the text before or after it.
fn ends(text: &str) -> String {
    let (head, tail) = (text.floor_char_boundary(END), text.ceil_char_boundary(text.len().saturating_sub(END)));
    if head >= tail { text.to_owned() } else { format!("{}\n{}", &text[..head], &text[tail..]) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use penstock_cluster::catalog::Catalog;
    use penstock_proto::{DataClass, ModelName, Priority, RequestId, TenantName};
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::class::Detectors;
    use crate::request::{Chat, Role, Sampling, Stop, ToolCall, Tools};

    const CARD: &str = "4111 1111 1111 1111";

    fn detectors() -> Detectors {
        Detectors::compile(&Catalog::default(), |_| unreachable!("no dictionary is named")).unwrap()
    }

    fn places(look: impl FnOnce(&mut Scan<'_>)) -> Vec<String> {
        let detectors = detectors();
        let mut scan = detectors.begin();
        look(&mut scan);
        scan.findings().found().iter().map(|finding| finding.place.clone()).collect()
    }

    fn plain() -> Request {
        Request {
            id: RequestId::generate(),
            tenant: TenantName::new("t").unwrap(),
            class: DataClass::Public,
            priority: Priority::Interactive,
            deadline: Instant::now() + Duration::from_secs(1),
            model: ModelName::new("m").unwrap(),
            input: Input::Text("hello".to_owned()),
            sampling: Sampling::default(),
            stop: Stop::default(),
            constraint: None,
            tools: Tools::default(),
            unknown: Map::new(),
        }
    }

    fn in_request(change: impl FnOnce(&mut Request)) -> Vec<String> {
        let mut asked = plain();
        change(&mut asked);
        places(|scan| request(&asked, scan))
    }

    fn chat(message: Message) -> Input {
        Input::Chat(Chat { messages: vec![message], add_generation_prompt: true, template_kwargs: Map::new() })
    }

    #[tokio::test]
    async fn every_string_of_a_request_is_looked_at() {
        assert_eq!(in_request(|_| {}), Vec::<String>::new());
        assert_eq!(in_request(|it| it.input = Input::Text(CARD.to_owned())), ["prompt"]);
        assert_eq!(in_request(|it| it.stop.texts = vec!["a".to_owned(), CARD.to_owned()]), ["stop[1]"]);
        assert_eq!(in_request(|it| it.input = chat(Message::new(Role::System, CARD))), ["messages[0].content"]);
        let turn = Message::new(Role::User, "hi");
        let named = Message { name: Some(CARD.to_owned()), ..turn.clone() };
        assert_eq!(in_request(|it| it.input = chat(named)), ["messages[0].name"]);
        let answering = Message { tool_call_id: Some(CARD.to_owned()), ..turn.clone() };
        assert_eq!(in_request(|it| it.input = chat(answering)), ["messages[0].tool_call_id"]);
        let called = |id: &str, name: &str, arguments: &str| {
            let call = ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() };
            chat(Message { tool_calls: vec![call], ..turn.clone() })
        };
        assert_eq!(in_request(|it| it.input = called(CARD, "f", "{}")), ["messages[0].tool_calls[0].id"]);
        assert_eq!(in_request(|it| it.input = called("c", CARD, "{}")), ["messages[0].tool_calls[0].name"]);
        let escaped = r#"{"card":"4111\u0020111111111111"}"#;
        assert_eq!(in_request(|it| it.input = called("c", "f", escaped)), ["messages[0].tool_calls[0].arguments.card"]);
        for (constraint, place) in [
            (Constraint::JsonSchema(json!({"const": CARD}).to_string()), "response_format"),
            (Constraint::Regex(CARD.to_owned()), "regex"),
            (Constraint::Grammar(CARD.to_owned()), "grammar"),
        ] {
            assert_eq!(in_request(|it| it.constraint = Some(constraint)), [place]);
        }
        let tool = |name: &str, description: &str, parameters: Value| Tool {
            name: name.to_owned(),
            description: Some(description.to_owned()),
            parameters: parameters.as_object().unwrap().clone(),
            strict: false,
        };
        let defined = |tool: Tool| in_request(|it| it.tools.definitions = vec![tool]);
        assert_eq!(defined(tool(CARD, "", json!({}))), ["tools[0].name"]);
        assert_eq!(defined(tool("f", CARD, json!({}))), ["tools[0].description"]);
        assert_eq!(defined(tool("f", "", json!({"enum": ["a", CARD]}))), ["tools[0].parameters.enum[1]"]);
        assert_eq!(defined(tool("f", "", json!({CARD: {}}))), [format!("tools[0].parameters.{CARD}")]);
        assert_eq!(defined(tool("f", "", json!({"const": 4_111_111_111_111_111_u64}))), ["tools[0].parameters.const"]);
        let unknown = json!({"unheard": {"of": CARD}}).as_object().unwrap().clone();
        assert_eq!(in_request(|it| it.unknown = unknown), ["unheard.of"]);
        assert_eq!(in_request(|it| it.tools.choice = ToolChoice::Named(CARD.to_owned())), ["tool_choice"]);
    }

    #[test]
    fn every_string_key_and_number_of_a_body_is_looked_at_as_it_is_meant() {
        let found = |text: &str| places(|scan| body(text.as_bytes(), scan).unwrap());
        assert_eq!(found(r#"{"metadata":{"note":"4111\u00201111 1111 1111"}}"#), ["metadata.note"]);
        assert_eq!(found(r#"{"unheard":[1,{"of":4111111111111111}]}"#), ["unheard[1].of"]);
        assert_eq!(found(r#"{"a":{"4111111111111111":1}}"#), ["a.4111111111111111"]);
        assert_eq!(found(r#"{"a":"x","b":[null,true,1.5]}"#), Vec::<String>::new());
        assert_eq!(found(r#"{"a":"look: {\"b\":\"4111\\u00201111\\u002011111111\"}"}"#), ["a"]);
        assert_eq!(found(r#"{"a":"{} {\"b\":\"\\u0034111111111111111\"}"}"#), ["a"]);
        assert_eq!(found(r#"{"{\"b\":\"\\u0034111111111111111\"}":1}"#).len(), 1);
        assert_eq!(found(r#"{"user":"4111111111111111","again":"4111111111111111"}"#), ["user"]);
        assert!(body(b"{\"a\":", &mut detectors().begin()).is_err());
    }

    #[test]
    fn the_parts_of_a_text_are_looked_at_together() {
        let found = |parts: Value| {
            let json = json!({"messages": [{"content": parts}]}).to_string();
            places(|scan| body(json.as_bytes(), scan).unwrap())
        };
        let part = |text: &str| json!({"type": "text", "text": text});
        assert_eq!(found(json!([part("4111 1111"), part("1111 1111")])), ["messages[0].content"]);
        let long = format!("{}411111", "x ".repeat(1000));
        assert_eq!(found(json!([part(&long), part("11"), part("11111111 is it")])), ["messages[0].content"]);
        assert_eq!(found(json!([part("4111 1111"), {"type": "text", "note": "1111 1111"}])), Vec::<String>::new());
    }
}
