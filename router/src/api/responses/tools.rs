//! What the model may call, as Responses' clients say it.

use serde_json::{Value, json};

use crate::api::calling;
use crate::api::json::{Field, Object};
use crate::request::{Failure, Tool, ToolChoice, Tools};

/// Tools, and how the response says them again.
pub(super) struct Calling {
    pub(super) tools: Tools,
    pub(super) choice: Value,
    pub(super) echo: Vec<Value>,
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Calling, Failure> {
    let definitions = calling::definitions(object, "name", |item| tool(item, ignored))?;
    let mut tools = Tools { definitions, parallel: true, ..Tools::default() };
    if let Some(field) = object.take("tool_choice") {
        let choice = choice(&field, ignored)?;
        tools.choice = calling::choice(&field, choice, &tools.definitions)?;
    }
    tools.parallel = object.read("parallel_tool_calls", Field::bool)?.unwrap_or(true);
    let choice = match &tools.choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
    };
    let echo = |tool: &Tool| {
        json!({
            "type": "function", "name": tool.name, "description": tool.description,
            "parameters": tool.parameters, "strict": tool.strict,
        })
    };
    let echo = tools.definitions.iter().map(echo).collect();
    Ok(Calling { tools, choice, echo })
}

fn tool(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Tool, Failure> {
    let mut object = field.object()?;
    let kind = object.need("type")?;
    if kind.string()? != "function" {
        return Err(kind.refuse("must be function; tools that the server runs are not served"));
    }
    let tool = Tool {
        name: calling::name(&object.need("name")?)?,
        description: object.read("description", Field::string)?,
        parameters: object.read("parameters", calling::schema)?.unwrap_or_else(calling::no_arguments),
        strict: object.read("strict", Field::bool)?.unwrap_or(false),
    };
    ignored.extend(object.left());
    Ok(tool)
}

fn choice(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<ToolChoice, Failure> {
    if let Some(choice) = calling::word(field)? {
        return Ok(choice);
    }
    let mut object = field.object()?;
    let kind = object.need("type")?;
    if kind.string()? != "function" {
        return Err(kind.refuse("must be function"));
    }
    let name = object.need("name")?.string()?;
    ignored.extend(object.left());
    Ok(ToolChoice::Named(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: &str = r#"{"type":"function","name":"look","parameters":{"type":"object"},"strict":true}"#;

    fn decoded(json: &str) -> Result<Calling, String> {
        let mut object = Object::body(json.as_bytes()).unwrap();
        decode(&mut object, &mut Vec::new()).map_err(|failure| failure.param.unwrap_or_default())
    }

    #[test]
    fn tools_and_their_choice_arrive_and_are_said_again() {
        let named = r#"{"type":"function","name":"look"}"#;
        let calling =
            decoded(&format!(r#"{{"tools":[{LOOK}],"tool_choice":{named},"parallel_tool_calls":false}}"#)).unwrap();
        assert_eq!((calling.tools.choice, calling.tools.parallel), (ToolChoice::Named("look".into()), false));
        assert!(calling.tools.definitions[0].strict);
        assert_eq!(calling.choice, json!({"type": "function", "name": "look"}));
        assert_eq!(calling.echo[0]["parameters"], json!({"type": "object"}));
        let none = decoded("{}").unwrap();
        assert_eq!((none.tools.choice, none.choice, none.tools.parallel), (ToolChoice::Auto, json!("auto"), true));
    }

    #[test]
    fn what_is_no_tool_is_refused_where_it_stands() {
        for (json, param) in [
            (r#"{"tools":[{"type":"web_search"}]}"#.to_owned(), "tools[0].type"),
            (r#"{"tools":[{"type":"function"}]}"#.to_owned(), "tools[0].name"),
            (r#"{"tools":[{"type":"function","name":"f","parameters":[]}]}"#.to_owned(), "tools[0].parameters"),
            (format!(r#"{{"tools":[{LOOK},{LOOK}]}}"#), "tools[1].name"),
            (r#"{"tool_choice":"required"}"#.to_owned(), "tool_choice"),
            (r#"{"tool_choice":"some"}"#.to_owned(), "tool_choice"),
            (format!(r#"{{"tools":[{LOOK}],"tool_choice":{{"type":"function","name":"gone"}}}}"#), "tool_choice"),
            (format!(r#"{{"tools":[{LOOK}],"tool_choice":{{"type":"allowed_tools"}}}}"#), "tool_choice.type"),
        ] {
            assert_eq!(decoded(&json).map(|_| ()), Err(param.to_owned()), "{json}");
        }
    }
}
