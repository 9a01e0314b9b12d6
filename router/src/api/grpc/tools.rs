//! What the model may call and has called, as messages.

use penstock_proto::inference as wire;

use super::decode::at_most;
use crate::api::calling::{self, Calls};
use crate::request::{Failure, Role, Tool, ToolCall, ToolChoice, Tools};

/// The tools of a request.
pub(super) fn decode(tools: Vec<wire::Tool>, choice: Option<wire::ToolChoice>, single: bool) -> Result<Tools, Failure> {
    at_most("tools", tools.len(), calling::TOOLS)?;
    let bytes: usize = tools.iter().map(|tool| tool.description.len() + tool.parameters_json.len()).sum();
    if bytes > calling::TOOLS_BYTES {
        return Err(Failure::field("tools", format!("tools must have at most {} bytes", calling::TOOLS_BYTES)));
    }
    let tools = tools.into_iter().enumerate().map(|(at, tool)| self::tool(&format!("tools[{at}]"), tool));
    let definitions: Vec<Tool> = tools.collect::<Result<_, _>>()?;
    calling::unique(&definitions, |at| format!("tools[{at}].name"))?;
    let choice = calling::choice_at("tool_choice", self::choice(choice)?, &definitions)?;
    Ok(Tools { definitions, choice, parallel: !single })
}

fn tool(path: &str, tool: wire::Tool) -> Result<Tool, Failure> {
    Ok(Tool {
        name: calling::name_at(&format!("{path}.name"), tool.name)?,
        description: (!tool.description.is_empty()).then_some(tool.description),
        parameters: match tool.parameters_json.as_str() {
            "" => calling::no_arguments(),
            json => calling::schema_at(&format!("{path}.parameters_json"), json)?,
        },
        strict: tool.strict,
    })
}

fn choice(choice: Option<wire::ToolChoice>) -> Result<ToolChoice, Failure> {
    use wire::tool_choice::{Kind, Mode};
    match choice.and_then(|choice| choice.kind) {
        None => Ok(ToolChoice::Auto),
        Some(Kind::Tool(name)) => Ok(ToolChoice::Named(name)),
        Some(Kind::Mode(mode)) => match Mode::try_from(mode) {
            Ok(Mode::Unspecified) => Ok(ToolChoice::Auto),
            Ok(Mode::None) => Ok(ToolChoice::None),
            Ok(Mode::Required) => Ok(ToolChoice::Required),
            Err(_) => Err(Failure::field("tool_choice", format!("tool_choice {mode} is none that is known"))),
        },
    }
}

/// The calls of a turn.
pub(super) fn calls(
    path: &str,
    role: Role,
    given: Vec<wire::ToolCall>,
    calls: &mut Calls,
) -> Result<Vec<ToolCall>, Failure> {
    let path = format!("{path}.tool_calls");
    match role {
        Role::Assistant => at_most(&path, given.len(), calling::CALLS)?,
        Role::System | Role::User | Role::Tool if given.is_empty() => return Ok(Vec::new()),
        Role::System | Role::User | Role::Tool => {
            return Err(Failure::field(path.clone(), format!("{path} is the assistant's alone")));
        }
    }
    let call = |(at, call): (usize, wire::ToolCall)| {
        let id = calls.make_at(&format!("{path}[{at}].id"), call.id)?;
        let name = calling::name_at(&format!("{path}[{at}].name"), call.name)?;
        Ok(ToolCall { id, name, arguments: call.arguments_json })
    };
    given.into_iter().enumerate().map(call).collect()
}

/// The call that a turn answers.
pub(super) fn answered(path: &str, role: Role, id: String, calls: &Calls) -> Result<Option<String>, Failure> {
    let path = format!("{path}.tool_call_id");
    match role {
        Role::Tool => calls.answer_at(&path, id).map(Some),
        Role::System | Role::User | Role::Assistant if id.is_empty() => Ok(None),
        Role::System | Role::User | Role::Assistant => {
            Err(Failure::field(path.clone(), format!("{path} is for the role tool")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: &str) -> wire::Tool {
        wire::Tool { name: name.to_owned(), parameters_json: parameters.to_owned(), ..Default::default() }
    }

    fn choice(kind: wire::tool_choice::Kind) -> Option<wire::ToolChoice> {
        Some(wire::ToolChoice { kind: Some(kind) })
    }

    #[test]
    fn tools_and_their_choice_arrive() {
        use wire::tool_choice::{Kind, Mode};
        let tools = || vec![tool("f", ""), tool("g", r#"{"type":"object","additionalProperties":false}"#)];
        let decoded = decode(tools(), choice(Kind::Tool("g".to_owned())), true).unwrap();
        assert_eq!((decoded.choice, decoded.parallel), (ToolChoice::Named("g".to_owned()), false));
        assert_eq!(decoded.definitions[0].parameters, calling::no_arguments());
        assert_eq!(decoded.definitions[1].parameters["additionalProperties"], false);
        let required = decode(tools(), choice(Kind::Mode(Mode::Required.into())), false).unwrap();
        assert_eq!((required.choice, required.parallel), (ToolChoice::Required, true));
        assert_eq!(decode(tools(), None, false).unwrap().choice, ToolChoice::Auto);
    }

    #[test]
    fn what_is_no_tool_is_refused_where_it_stands() {
        use wire::tool_choice::{Kind, Mode};
        let param = |tools, choice| decode(tools, choice, false).unwrap_err().param.unwrap();
        assert_eq!(param(vec![tool("f", ""); 129], None), "tools");
        assert_eq!(param(vec![tool("f", ""), tool("f", "")], None), "tools[1].name");
        assert_eq!(param(vec![tool("", "")], None), "tools[0].name");
        for parameters in ["[]", "{", r#"{"type":"string"}"#] {
            assert_eq!(param(vec![tool("f", parameters)], None), "tools[0].parameters_json");
        }
        assert_eq!(param(vec![tool("f", "")], choice(Kind::Tool("g".to_owned()))), "tool_choice");
        assert_eq!(param(Vec::new(), choice(Kind::Mode(Mode::Required.into()))), "tool_choice");
        assert_eq!(param(vec![tool("f", "")], choice(Kind::Mode(9))), "tool_choice");
    }

    #[test]
    fn results_follow_calls() {
        let mut made = Calls::default();
        let call = wire::ToolCall { id: "a".to_owned(), name: "f".to_owned(), arguments_json: "{}".to_owned() };
        let param = |result: Result<Vec<ToolCall>, Failure>| result.unwrap_err().param.unwrap();
        assert_eq!(param(calls("m", Role::User, vec![call.clone()], &mut made)), "m.tool_calls");
        assert_eq!(calls("m", Role::Assistant, vec![call.clone()], &mut made).unwrap()[0].arguments, "{}");
        assert_eq!(param(calls("m", Role::Assistant, vec![call], &mut made)), "m.tool_calls[0].id");
        assert_eq!(answered("m", Role::Tool, "a".to_owned(), &made), Ok(Some("a".to_owned())));
        for (role, id) in [(Role::Tool, "b"), (Role::Tool, ""), (Role::User, "a")] {
            assert_eq!(answered("m", role, id.to_owned(), &made).unwrap_err().param.unwrap(), "m.tool_call_id");
        }
    }
}
