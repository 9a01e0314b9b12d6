//! Anthropic's conversation → turns as templates know them.

use crate::api::bounds::MESSAGES;
use crate::api::calling::{self, Calls};
use crate::api::json::{Field, Object};
use crate::api::openai::unserved;
use crate::request::{Failure, Message, Role, ToolCall};

/// Blocks of one message.
const BLOCKS: usize = 1000;

/// `system` and `messages`.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Vec<Message>, Failure> {
    let mut reader = Reader { turns: Vec::new(), calls: Calls::default(), ignored };
    if let Some(system) = object.take("system") {
        let text = reader.text(&system)?;
        reader.turns.push(Message::new(Role::System, text));
    }
    let field = object.need("messages")?;
    let items = field.items(MESSAGES)?;
    let Some(last) = items.last() else { return Err(field.refuse("must have at least one message")) };
    for item in &items {
        reader.message(item)?;
    }
    if reader.turns.last().is_some_and(|turn| turn.role == Role::Assistant) {
        let path = format!("{}.role", last.path());
        return Err(Failure::field(
            path.clone(),
            format!("{path} must be user: going on from an answer is not served"),
        ));
    }
    Ok(reader.turns)
}

struct Reader<'a> {
    turns: Vec<Message>,
    calls: Calls,
    ignored: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn message(&mut self, field: &Field<'_>) -> Result<(), Failure> {
        let mut object = field.object()?;
        let role = object.need("role")?;
        let content = object.need("content")?;
        match (role.string()?.as_str(), content.kind()) {
            ("user", "a string") => self.turns.push(Message::new(Role::User, content.string()?)),
            ("user", _) => self.user(&content)?,
            ("assistant", "a string") => self.turns.push(Message::new(Role::Assistant, content.string()?)),
            ("assistant", _) => self.assistant(&content)?,
            _ => return Err(role.refuse("must be user or assistant; instructions go into system")),
        }
        self.ignored.extend(object.left());
        Ok(())
    }

    /// Results of calls are turns of their own, where they stand among what is said.
    fn user(&mut self, content: &Field<'_>) -> Result<(), Failure> {
        let mut said = Vec::new();
        for field in blocks(content)? {
            let mut block = field.object()?;
            match kind(&mut block, &["text", "tool_result"])? {
                "text" => said.push(self.said(block)?),
                _ => {
                    self.flush(&mut said);
                    self.result(block)?;
                }
            }
        }
        self.flush(&mut said);
        Ok(())
    }

    fn flush(&mut self, said: &mut Vec<String>) {
        if !said.is_empty() {
            self.turns.push(Message::new(Role::User, std::mem::take(said).join("\n")));
        }
    }

    fn result(&mut self, mut block: Object<'_>) -> Result<(), Failure> {
        let id = self.calls.answer(&block.need("tool_use_id")?)?;
        let text = block.take("content").map(|content| self.text(&content)).transpose()?.unwrap_or_default();
        // Templates know no other place for it.
        let failed = block.read("is_error", Field::bool)?.unwrap_or(false);
        let text = if failed { format!("Error: {text}") } else { text };
        self.turns.push(Message { tool_call_id: Some(id), ..Message::new(Role::Tool, text) });
        self.leave(block);
        Ok(())
    }

    fn assistant(&mut self, content: &Field<'_>) -> Result<(), Failure> {
        let (mut said, mut tool_calls) = (Vec::new(), Vec::new());
        for field in blocks(content)? {
            let mut block = field.object()?;
            match kind(&mut block, &["text", "tool_use"])? {
                "text" => said.push(self.said(block)?),
                _ => tool_calls.push(self.call(block)?),
            }
        }
        if tool_calls.len() > calling::CALLS {
            return Err(content.refuse(format!("must have at most {} calls", calling::CALLS)));
        }
        self.turns.push(Message { tool_calls, ..Message::new(Role::Assistant, said.join("\n")) });
        Ok(())
    }

    fn call(&mut self, mut block: Object<'_>) -> Result<ToolCall, Failure> {
        let id = self.calls.make(&block.need("id")?)?;
        let name = calling::name(&block.need("name")?)?;
        let input = block.need("input")?;
        input.object()?;
        let call = ToolCall { id, name, arguments: input.json().to_owned() };
        unserved::check(&mut block, &[("caller", &[r#"{"type":"direct"}"#])])?;
        self.leave(block);
        Ok(call)
    }

    /// A string, or blocks of text with line ends between them.
    fn text(&mut self, field: &Field<'_>) -> Result<String, Failure> {
        if field.kind() == "a string" {
            return field.string();
        }
        let mut said = Vec::new();
        for field in blocks(field)? {
            let mut block = field.object()?;
            kind(&mut block, &["text"])?;
            said.push(self.said(block)?);
        }
        Ok(said.join("\n"))
    }

    fn said(&mut self, mut block: Object<'_>) -> Result<String, Failure> {
        let text = block.need("text")?.string()?;
        unserved::check(&mut block, &[("citations", &["[]"])])?;
        self.leave(block);
        Ok(text)
    }

    fn leave(&mut self, mut block: Object<'_>) {
        block.take("cache_control");
        self.ignored.extend(block.left());
    }
}

fn blocks<'a>(field: &Field<'a>) -> Result<Vec<Field<'a>>, Failure> {
    match field.kind() {
        "an array" => {}
        other => return Err(field.refuse(format!("must be a string or an array of blocks, not {other}"))),
    }
    let blocks = field.items(BLOCKS)?;
    if blocks.is_empty() { Err(field.refuse("must have at least one block")) } else { Ok(blocks) }
}

/// Which of the kinds a block is.
fn kind(block: &mut Object<'_>, kinds: &[&'static str]) -> Result<&'static str, Failure> {
    let field = block.need("type")?;
    let word = field.string()?;
    kinds.iter().copied().find(|kind| *kind == word).ok_or_else(|| {
        let shown: String = word.chars().take(32).collect();
        field.refuse(format!("must be {} here; {shown:?} is not served", kinds.join(" or ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<(Vec<Message>, Vec<String>), String> {
        let mut ignored = Vec::new();
        let turns = decode(&mut Object::body(json.as_bytes()).unwrap(), &mut ignored);
        turns.map(|turns| (turns, ignored)).map_err(|failure| failure.param.unwrap_or_default())
    }

    #[test]
    fn blocks_become_turns_in_their_order() {
        let (turns, ignored) = decoded(
            r#"{"system":[{"type":"text","text":"be"},{"type":"text","text":"kind","cache_control":{"type":"ephemeral"}}],
                "messages":[
                  {"role":"user","content":"hi"},
                  {"role":"assistant","content":[{"type":"text","text":"wait"},
                     {"type":"tool_use","id":"t1","name":"look","input":{"at": 1}},
                     {"type":"tool_use","id":"t2","name":"look","input":{}}]},
                  {"role":"user","content":[
                     {"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"a"}]},
                     {"type":"tool_result","tool_use_id":"t2","is_error":true,"content":"b","mood":1},
                     {"type":"text","text":"so?"},{"type":"text","text":"well?"}]}]}"#,
        )
        .unwrap();
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.to_owned(),
            name: "look".to_owned(),
            arguments: arguments.to_owned(),
        };
        let result =
            |id: &str, text: &str| Message { tool_call_id: Some(id.to_owned()), ..Message::new(Role::Tool, text) };
        let expected = [
            Message::new(Role::System, "be\nkind"),
            Message::new(Role::User, "hi"),
            Message {
                tool_calls: vec![call("t1", r#"{"at": 1}"#), call("t2", "{}")],
                ..Message::new(Role::Assistant, "wait")
            },
            result("t1", "a"),
            result("t2", "Error: b"),
            Message::new(Role::User, "so?\nwell?"),
        ];
        assert_eq!(turns, expected);
        assert_eq!(ignored, ["messages[2].content[1].mood"]);
    }

    #[test]
    fn what_is_no_turn_is_refused_where_it_stands() {
        let call = r#"{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{}}]}"#;
        for (messages, param) in [
            ("[]".to_owned(), "messages"),
            (r#"[{"role":"system","content":"x"}]"#.to_owned(), "messages[0].role"),
            (r#"[{"role":"user"}]"#.to_owned(), "messages[0].content"),
            (r#"[{"role":"user","content":[]}]"#.to_owned(), "messages[0].content"),
            (r#"[{"role":"user","content":5}]"#.to_owned(), "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image","source":{}}]}]"#.to_owned(), "messages[0].content[0].type"),
            (r#"[{"role":"user","content":[{"type":"document"}]}]"#.to_owned(), "messages[0].content[0].type"),
            (
                r#"[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t"}]}]"#.to_owned(),
                "messages[0].content[0].tool_use_id",
            ),
            (format!("[{call},{call}]"), "messages[1].content[0].id"),
            (
                r#"[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":"x"}]}]"#.to_owned(),
                "messages[0].content[0].input",
            ),
            (r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#.to_owned(), "messages[1].role"),
        ] {
            let refused = decoded(&format!(r#"{{"messages":{messages}}}"#)).map(|_| ());
            assert_eq!(refused, Err(param.to_owned()), "{messages}");
        }
    }
}
