//! What the model may call, as Anthropic's clients say it.

use crate::api::calling;
use crate::api::json::{Field, Object};
use crate::api::openai::unserved;
use crate::request::{Failure, Tool, ToolChoice, Tools};

/// The tools of a body and the choice among them.
pub(super) fn decode(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Tools, Failure> {
    let definitions = calling::definitions(object, "name", |item| tool(item, ignored))?;
    let mut tools = Tools { definitions, parallel: true, ..Tools::default() };
    if let Some(field) = object.take("tool_choice") {
        choice(&field, &mut tools, ignored)?;
    }
    Ok(tools)
}

fn tool(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Tool, Failure> {
    let mut object = field.object()?;
    if let Some(kind) = object.take("type")
        && kind.string()? != "custom"
    {
        return Err(kind.refuse("must be custom; tools that the server runs are not served"));
    }
    let tool = Tool {
        name: calling::name(&object.need("name")?)?,
        description: object.read("description", Field::string)?,
        parameters: calling::schema(&object.need("input_schema")?)?,
        strict: object.read("strict", Field::bool)?.unwrap_or(false),
    };
    unserved::check(&mut object, &[("defer_loading", &["false"])])?;
    // Prefixes are cached whether they are marked or not; the rest is for those who run tools elsewhere.
    ["cache_control", "allowed_callers", "eager_input_streaming", "input_examples"]
        .iter()
        .for_each(|name| drop(object.take(name)));
    ignored.extend(object.left());
    Ok(tool)
}

fn choice(field: &Field<'_>, tools: &mut Tools, ignored: &mut Vec<String>) -> Result<(), Failure> {
    let mut object = field.object()?;
    let kind = object.need("type")?;
    let choice = match kind.string()?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(object.need("name")?.string()?),
        _ => return Err(kind.refuse("must be auto, any, tool or none")),
    };
    tools.choice = calling::choice(field, choice, &tools.definitions)?;
    tools.parallel = !object.read("disable_parallel_tool_use", Field::bool)?.unwrap_or(false);
    ignored.extend(object.left());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<Tools, String> {
        let mut object = Object::body(json.as_bytes()).unwrap();
        decode(&mut object, &mut Vec::new()).map_err(|failure| failure.param.unwrap_or_default())
    }

    const LOOK: &str = r#"{"name":"look","description":"looks","input_schema":{"type":"object"}}"#;

    #[test]
    fn tools_and_their_choice_arrive() {
        let json = format!(
            r#"{{"tools":[{LOOK},{{"type":"custom","name":"f","input_schema":{{}},"cache_control":{{}}}}],
                "tool_choice":{{"type":"tool","name":"look","disable_parallel_tool_use":true}}}}"#
        );
        let tools = decoded(&json).unwrap();
        assert_eq!((tools.choice, tools.parallel), (ToolChoice::Named("look".into()), false));
        let names: Vec<&str> = tools.definitions.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["look", "f"]);
        assert_eq!(tools.definitions[0].description.as_deref(), Some("looks"));
        let any = decoded(&format!(r#"{{"tools":[{LOOK}],"tool_choice":{{"type":"any"}}}}"#)).unwrap();
        assert_eq!((any.choice, any.parallel), (ToolChoice::Required, true));
    }

    #[test]
    fn what_is_no_tool_is_refused_where_it_stands() {
        for (json, param) in [
            (r#"{"tools":[{"name":"a b","input_schema":{}}]}"#.to_owned(), "tools[0].name"),
            (r#"{"tools":[{"name":"a"}]}"#.to_owned(), "tools[0].input_schema"),
            (r#"{"tools":[{"name":"a","input_schema":[]}]}"#.to_owned(), "tools[0].input_schema"),
            (r#"{"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#.to_owned(), "tools[0].type"),
            (format!(r#"{{"tools":[{LOOK},{LOOK}]}}"#), "tools[1].name"),
            (r#"{"tool_choice":{"type":"any"}}"#.to_owned(), "tool_choice"),
            (r#"{"tool_choice":{"type":"tool","name":"gone"}}"#.to_owned(), "tool_choice"),
            (r#"{"tool_choice":{"type":"maybe"}}"#.to_owned(), "tool_choice.type"),
            (
                format!(r#"{{"tools":[{{"name":"a","input_schema":{{"x":"{}"}}}}]}}"#, "x".repeat(65536)),
                "tools[0].input_schema",
            ),
        ] {
            assert_eq!(decoded(&json), Err(param.to_owned()), "{json:.99}");
        }
    }
}
