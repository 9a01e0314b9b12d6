//! What the model may call and has called, as OpenAI's clients say it.

use crate::api::calling::{self, Calls};
use crate::api::json::{Field, Object};
use crate::request::{Failure, Tool, ToolCall, ToolChoice, Tools};

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Tools, Failure> {
    let definitions = calling::definitions(object, "function.name", |item| tool(item, ignored))?;
    let mut tools = Tools { definitions, parallel: true, ..Tools::default() };
    if let Some(field) = object.take("tool_choice") {
        let choice = choice(&field, ignored)?;
        tools.choice = calling::choice(&field, choice, &tools.definitions)?;
    }
    if let Some(field) = object.take("parallel_tool_calls") {
        tools.parallel = field.bool()?;
    }
    Ok(tools)
}

fn tool(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Tool, Failure> {
    let mut object = field.object()?;
    let mut function = function(&mut object)?;
    let tool = Tool {
        name: calling::name(&function.need("name")?)?,
        description: function.take("description").map(|field| field.string()).transpose()?,
        parameters: match function.take("parameters") {
            Some(field) => calling::schema(&field)?,
            None => calling::no_arguments(),
        },
        strict: function.take("strict").map(|field| field.bool()).transpose()?.unwrap_or(false),
    };
    ignored.extend(function.left());
    ignored.extend(object.left());
    Ok(tool)
}

/// The function of a tool, a choice or a call.
fn function<'a>(object: &mut Object<'a>) -> Result<Object<'a>, Failure> {
    let kind = object.need("type")?;
    if kind.string()? != "function" {
        return Err(kind.refuse("must be function; other tools are not served"));
    }
    object.need("function")?.object()
}

fn choice(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<ToolChoice, Failure> {
    if let Some(choice) = calling::word(field)? {
        return Ok(choice);
    }
    let mut object = field.object()?;
    let mut function = function(&mut object)?;
    let name = function.need("name")?.string()?;
    ignored.extend(function.left());
    ignored.extend(object.left());
    Ok(ToolChoice::Named(name))
}

/// The `tool_calls` of an assistant's message.
pub(super) fn calls(field: &Field<'_>, calls: &mut Calls, ignored: &mut Vec<String>) -> Result<Vec<ToolCall>, Failure> {
    let call = |field: &Field<'_>| {
        let mut object = field.object()?;
        let id = calls.make(&object.need("id")?)?;
        let mut function = function(&mut object)?;
        let name = calling::name(&function.need("name")?)?;
        let arguments = function.need("arguments")?.string()?;
        // Streamed calls have it, and clients send them back.
        drop(object.take("index"));
        ignored.extend(function.left());
        ignored.extend(object.left());
        Ok(ToolCall { id, name, arguments })
    };
    field.items(calling::CALLS)?.iter().map(call).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn look() -> Value {
        let parameters = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "number"}}});
        json!({"type": "function", "function": {"name": "look", "description": "d", "parameters": parameters}})
    }

    fn decoded(json: &Value) -> Result<(Tools, Vec<String>), String> {
        let (text, mut ignored) = (json.to_string(), Vec::new());
        let mut object = Object::body(text.as_bytes()).unwrap();
        match decode(&mut object, &mut ignored) {
            Ok(tools) => Ok((tools, ignored)),
            Err(failure) => Err(failure.param.unwrap_or_default()),
        }
    }

    #[test]
    fn tools_and_their_choice_arrive() {
        let bare = json!({"type": "function", "function": {"name": "bare", "strict": true, "colour": "red"}});
        let choice = json!({"type": "function", "function": {"name": "bare"}});
        let json = json!({"tools": [look(), bare], "tool_choice": choice, "parallel_tool_calls": false});
        let (tools, ignored) = decoded(&json).unwrap();
        assert_eq!(ignored, ["tools[1].function.colour"]);
        assert_eq!((tools.choice, tools.parallel), (ToolChoice::Named("bare".to_owned()), false));
        let [look, bare] = &tools.definitions[..] else { panic!("two tools") };
        assert_eq!((look.name.as_str(), look.description.as_deref(), look.strict), ("look", Some("d"), false));
        let properties: Vec<&String> = look.parameters["properties"].as_object().unwrap().keys().collect();
        assert_eq!(properties, ["z", "a"]);
        assert_eq!((&bare.parameters, bare.strict), (&calling::no_arguments(), true));
        let (none, _) = decoded(&json!({"tools": [], "tool_choice": "auto"})).unwrap();
        assert_eq!(none, Tools { parallel: true, ..Tools::default() });
    }

    #[test]
    fn what_is_no_tool_is_refused_where_it_stands() {
        let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let many: Vec<Value> =
            (0..129).map(|at| json!({"type": "function", "function": {"name": format!("f{at}")}})).collect();
        let long = json!({"name": "f", "parameters": {"type": "object", "x": "x".repeat(70_000)}});
        for (json, param) in [
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": many}), "tools"),
            (function(json!({})), "tools[0].function.name"),
            (function(json!({"name": "a b"})), "tools[0].function.name"),
            (function(json!({"name": ""})), "tools[0].function.name"),
            (function(json!({"name": "x".repeat(65)})), "tools[0].function.name"),
            (function(json!({"name": "f", "description": 5})), "tools[0].function.description"),
            (function(json!({"name": "f", "parameters": []})), "tools[0].function.parameters"),
            (function(json!({"name": "f", "parameters": {"type": "array"}})), "tools[0].function.parameters"),
            (function(json!({"name": "f", "parameters": {"properties": {}}})), "tools[0].function.parameters"),
            (function(long), "tools[0].function.parameters"),
            (json!({"tools": [look(), look()]}), "tools[1].function.name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": "some"}), "tool_choice"),
            (json!({"tools": [look()], "tool_choice": {"type": "allowed_tools"}}), "tool_choice.type"),
            (
                json!({"tools": [look()], "tool_choice": {"type": "function", "function": {"name": "gone"}}}),
                "tool_choice",
            ),
            (json!({"tools": [look()], "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            assert_eq!(decoded(&json).map(|_| ()), Err(param.to_owned()), "{json}");
        }
    }
}
