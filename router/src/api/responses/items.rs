//! `input` → turns as templates know them.

use crate::api::bounds::{self, MESSAGES};
use crate::api::calling::{self, Calls};
use crate::api::json::{Field, Object};
use crate::request::{Failure, Message, Role, ToolCall};

/// Parts of one message.
const PARTS: usize = 1000;

/// A text or items, after the instructions.
pub(super) fn decode(
    field: &Field<'_>,
    instructions: Option<&str>,
    ignored: &mut Vec<String>,
) -> Result<Vec<Message>, Failure> {
    let turns = instructions.map(|text| Message::new(Role::System, text)).into_iter().collect();
    let mut reader = Reader { turns, calls: Calls::default(), ignored };
    match field.kind() {
        "a string" => reader.turns.push(Message::new(Role::User, field.string()?)),
        "an array" => {
            let items = field.items(MESSAGES)?;
            if items.is_empty() {
                return Err(field.refuse("must have at least one item"));
            }
            items.iter().try_for_each(|item| reader.item(item))?;
        }
        other => return Err(field.refuse(format!("must be a string or an array of items, not {other}"))),
    }
    Ok(reader.turns)
}

struct Reader<'a> {
    turns: Vec<Message>,
    calls: Calls,
    ignored: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn item(&mut self, field: &Field<'_>) -> Result<(), Failure> {
        let mut object = field.object()?;
        let kind = object.take("type");
        match kind.as_ref().map(Field::string).transpose()?.as_deref() {
            None | Some("message") => self.message(&mut object)?,
            Some("function_call") => self.call(&mut object)?,
            Some("function_call_output") => self.output(&mut object)?,
            Some(other) => {
                let shown: String = other.chars().take(32).collect();
                let path = object.path("type");
                let message =
                    format!("{path} must be message, function_call or function_call_output; {shown:?} is not served");
                return Err(Failure::field(path, message));
            }
        }
        // Of items that came from a response.
        ["id", "status", "phase"].iter().for_each(|name| drop(object.take(name)));
        self.ignored.extend(object.left());
        Ok(())
    }

    fn message(&mut self, object: &mut Object<'_>) -> Result<(), Failure> {
        let role = object.need("role")?;
        let role = match bounds::role(role.path(), &role.string()?)? {
            Role::Tool => return Err(role.refuse("must not be tool: results are function_call_output items")),
            role @ (Role::System | Role::User | Role::Assistant) => role,
        };
        let content = self.text(&object.need("content")?, &["input_text", "output_text", "refusal"])?;
        self.turns.push(Message::new(role, content));
        Ok(())
    }

    /// Calls join the model's turn that they belong to.
    fn call(&mut self, object: &mut Object<'_>) -> Result<(), Failure> {
        let id = self.calls.make(&object.need("call_id")?)?;
        let name = calling::name(&object.need("name")?)?;
        let call = ToolCall { id, name, arguments: object.need("arguments")?.string()? };
        match self.turns.last_mut() {
            Some(turn) if turn.role == Role::Assistant => {
                if turn.tool_calls.len() == calling::CALLS {
                    let path = object.path("call_id");
                    let message = format!("{path} is one of more than {} calls in one turn", calling::CALLS);
                    return Err(Failure::field(path, message));
                }
                turn.tool_calls.push(call);
            }
            Some(_) | None => {
                self.turns.push(Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") });
            }
        }
        Ok(())
    }

    fn output(&mut self, object: &mut Object<'_>) -> Result<(), Failure> {
        let id = self.calls.answer(&object.need("call_id")?)?;
        let output = self.text(&object.need("output")?, &["input_text"])?;
        self.turns.push(Message { tool_call_id: Some(id), ..Message::new(Role::Tool, output) });
        Ok(())
    }

    /// A string, or parts of text with line ends between them.
    fn text(&mut self, field: &Field<'_>, kinds: &[&str]) -> Result<String, Failure> {
        match field.kind() {
            "a string" => return field.string(),
            "an array" => {}
            other => return Err(field.refuse(format!("must be a string or an array of parts, not {other}"))),
        }
        let parts = field.items(PARTS)?;
        if parts.is_empty() {
            return Err(field.refuse("must have at least one part"));
        }
        Ok(parts.iter().map(|part| self.part(part, kinds)).collect::<Result<Vec<_>, _>>()?.join("\n"))
    }

    fn part(&mut self, field: &Field<'_>, kinds: &[&str]) -> Result<String, Failure> {
        let mut object = field.object()?;
        let kind = object.need("type")?;
        let word = kind.string()?;
        if !kinds.contains(&word.as_str()) {
            let shown: String = word.chars().take(32).collect();
            return Err(kind.refuse(format!("must be {} here; {shown:?} is not served", kinds.join(" or "))));
        }
        let text = object.need(if word == "refusal" { "refusal" } else { "text" })?.string()?;
        // Of parts that came from a response, and a mark for a cache that needs none.
        ["annotations", "logprobs", "prompt_cache_breakpoint"].iter().for_each(|name| drop(object.take(name)));
        self.ignored.extend(object.left());
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &str, instructions: Option<&str>) -> Result<(Vec<Message>, Vec<String>), String> {
        let json = format!(r#"{{"input":{input}}}"#);
        let field = Object::body(json.as_bytes()).unwrap().need("input").unwrap();
        let mut ignored = Vec::new();
        let turns = decode(&field, instructions, &mut ignored);
        turns.map(|turns| (turns, ignored)).map_err(|failure| failure.param.unwrap_or_default())
    }

    #[test]
    fn items_become_turns_and_calls_join_theirs() {
        let (turns, ignored) = decoded(
            r#"[{"role":"developer","content":"be kind"},
                {"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
                {"type":"message","id":"msg_1","status":"completed","role":"assistant",
                 "content":[{"type":"output_text","text":"wait","annotations":[],"logprobs":[]}]},
                {"type":"function_call","id":"fc_1","call_id":"c1","name":"look","arguments":"{}","status":"completed"},
                {"type":"function_call","call_id":"c2","name":"look","arguments":"{}","mood":1},
                {"type":"function_call_output","call_id":"c1","output":"one"},
                {"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"two"}]}]"#,
            Some("first"),
        )
        .unwrap();
        let call = |id: &str| ToolCall { id: id.into(), name: "look".into(), arguments: "{}".into() };
        let result = |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..Message::new(Role::Tool, text) };
        let expected = [
            Message::new(Role::System, "first"),
            Message::new(Role::System, "be kind"),
            Message::new(Role::User, "a\nb"),
            Message { tool_calls: vec![call("c1"), call("c2")], ..Message::new(Role::Assistant, "wait") },
            result("c1", "one"),
            result("c2", "two"),
        ];
        assert_eq!(turns, expected);
        assert_eq!(ignored, ["input[4].mood"]);
        assert_eq!(decoded(r#""hi""#, None).unwrap().0, [Message::new(Role::User, "hi")]);
    }

    #[test]
    fn what_is_no_item_is_refused_where_it_stands() {
        for (input, param) in [
            ("[]", "input"),
            ("5", "input"),
            ("[5]", "input[0]"),
            (r#"[{"role":"user"}]"#, "input[0].content"),
            (r#"[{"role":"wizard","content":"x"}]"#, "input[0].role"),
            (r#"[{"role":"tool","content":"x"}]"#, "input[0].role"),
            (r#"[{"role":"user","content":[{"type":"input_image"}]}]"#, "input[0].content[0].type"),
            (r#"[{"type":"reasoning","summary":[]}]"#, "input[0].type"),
            (r#"[{"type":"item_reference","id":"x"}]"#, "input[0].type"),
            (r#"[{"type":"function_call_output","call_id":"c","output":"x"}]"#, "input[0].call_id"),
            (r#"[{"type":"function_call","call_id":"c","name":"f"}]"#, "input[0].arguments"),
        ] {
            assert_eq!(decoded(input, None).map(|_| ()), Err(param.to_owned()), "{input}");
        }
    }
}
