//! Messages → [`Request`]s. Complaints name fields as the OpenAI face does, so that one client's handling fits both.

use penstock_proto::inference as wire;
use penstock_proto::{DataClass, ModelName, Priority, TenantName};

use super::tools;
use crate::api::bounds::{self, Range};
use crate::api::calling::Calls;
use crate::api::head::Head;
use crate::request::{Chat, Constraint, Failure, Input, Message, Request, Sampling, Stop};

/// The request of a message under its head; `least` is the class that it has already.
pub(super) fn request(
    message: wire::GenerateRequest,
    head: &Head,
    tenant: TenantName,
    least: DataClass,
) -> Result<Request, Failure> {
    if !message.tools.is_empty() && !matches!(message.input, Some(wire::generate_request::Input::Chat(_))) {
        return Err(Failure::field("tools", "tools are for a chat"));
    }
    let class = class(message.class)?.map_or(least, |class| class.max(least));
    Ok(Request {
        id: head.id,
        tenant,
        class,
        priority: priority(message.priority)?.unwrap_or(head.priority),
        deadline: head.deadline,
        model: ModelName::new(message.model).map_err(|error| Failure::field("model", error.to_string()))?,
        input: input(message.input)?,
        sampling: sampling(message.sampling.unwrap_or_default())?,
        stop: stop(message.stop, message.include_stop)?,
        constraint: message.constraint.map(constraint).transpose()?,
        tools: tools::decode(message.tools, message.tool_choice, message.single_tool_call)?,
    })
}

fn constraint(given: wire::Constraint) -> Result<Constraint, Failure> {
    use wire::constraint::Kind;
    let constraint = match given.kind {
        None => return Err(Failure::field("constraint", "constraint is empty: json_schema, regex or grammar")),
        Some(Kind::JsonSchema(schema)) => Constraint::JsonSchema(schema),
        Some(Kind::Regex(regex)) => Constraint::Regex(regex),
        Some(Kind::Grammar(grammar)) => Constraint::Grammar(grammar),
    };
    let (Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Grammar(text)) = &constraint;
    if text.len() > bounds::CONSTRAINT_BYTES {
        let message = format!("constraint must have at most {} bytes, not {}", bounds::CONSTRAINT_BYTES, text.len());
        return Err(Failure::field("constraint", message));
    }
    Ok(constraint)
}

fn input(input: Option<wire::generate_request::Input>) -> Result<Input, Failure> {
    use wire::generate_request::Input as Given;
    match input {
        None => Err(Failure::field("input", "input is missing: chat, text or tokens")),
        Some(Given::Chat(chat)) => Ok(Input::Chat(conversation(chat)?)),
        Some(Given::Text(text)) => Ok(Input::Text(text)),
        Some(Given::Tokens(tokens)) => Ok(Input::Tokens(tokens.ids)),
    }
}

fn conversation(chat: wire::Chat) -> Result<Chat, Failure> {
    at_most("messages", chat.messages.len(), bounds::MESSAGES)?;
    if chat.messages.is_empty() {
        return Err(Failure::field("messages", "messages must have at least one message"));
    }
    let mut calls = Calls::default();
    let messages = chat.messages.into_iter().enumerate().map(|(at, message)| {
        let path = format!("messages[{at}]");
        let role = bounds::role(&format!("{path}.role"), &message.role)?;
        let name = (!message.name.is_empty()).then_some(message.name);
        let tool_calls = tools::calls(&path, role, message.tool_calls, &mut calls)?;
        let tool_call_id = tools::answered(&path, role, message.tool_call_id, &calls)?;
        Ok(Message { name, tool_calls, tool_call_id, ..Message::new(role, message.content) })
    });
    Ok(Chat {
        messages: messages.collect::<Result<_, Failure>>()?,
        add_generation_prompt: !chat.omit_generation_prompt,
        template_kwargs: kwargs(&chat.template_kwargs_json)?,
    })
}

fn kwargs(json: &str) -> Result<serde_json::Map<String, serde_json::Value>, Failure> {
    const NAME: &str = "template_kwargs_json";
    if json.is_empty() {
        return Ok(serde_json::Map::new());
    }
    if json.len() > bounds::KWARGS_BYTES {
        return Err(Failure::field(NAME, format!("{NAME} must have at most {} bytes", bounds::KWARGS_BYTES)));
    }
    serde_json::from_str(json).map_err(|error| Failure::field(NAME, format!("{NAME} must be a JSON object: {error}")))
}

fn sampling(given: wire::Sampling) -> Result<Sampling, Failure> {
    if given.max_tokens == Some(0) {
        return Err(Failure::field("max_tokens", "max_tokens must be at least 1"));
    }
    if let Some(count) = given.top_logprobs.filter(|count| *count > bounds::TOP_LOGPROBS) {
        let message = format!("top_logprobs must be at most {}, not {count}", bounds::TOP_LOGPROBS);
        return Err(Failure::field("top_logprobs", message));
    }
    at_most("stop_token_ids", given.stop_token_ids.len(), bounds::STOP_IDS)?;
    for bias in given.logit_bias.values() {
        number("logit_bias", Some(*bias), bounds::LOGIT_BIAS)?;
    }
    Ok(Sampling {
        temperature: number("temperature", given.temperature, bounds::TEMPERATURE)?,
        top_k: given.top_k,
        top_p: number("top_p", given.top_p, bounds::TOP_P)?,
        min_p: number("min_p", given.min_p, bounds::MIN_P)?,
        repetition_penalty: number("repetition_penalty", given.repetition_penalty, bounds::REPETITION_PENALTY)?,
        presence_penalty: number("presence_penalty", given.presence_penalty, bounds::PENALTY)?,
        frequency_penalty: number("frequency_penalty", given.frequency_penalty, bounds::PENALTY)?,
        logit_bias: given.logit_bias.into_iter().collect(),
        seed: given.seed,
        max_tokens: given.max_tokens,
        default_max_tokens: None,
        min_tokens: given.min_tokens,
        ignore_eos: given.ignore_eos,
        stop_token_ids: given.stop_token_ids,
        top_logprobs: given.top_logprobs,
    })
}

fn number(name: &str, given: Option<f32>, range: Range) -> Result<Option<f32>, Failure> {
    match given {
        Some(number) if !range.contains(f64::from(number)) => {
            Err(Failure::field(name, format!("{name} must be {range}, not {number}")))
        }
        Some(_) | None => Ok(given),
    }
}

fn stop(texts: Vec<String>, include: bool) -> Result<Stop, Failure> {
    at_most("stop", texts.len(), bounds::STOPS)?;
    let texts = texts.into_iter().enumerate().map(|(at, text)| bounds::stop_text(&format!("stop[{at}]"), text));
    Ok(Stop { texts: texts.collect::<Result<_, _>>()?, include })
}

pub(super) fn at_most(name: &str, count: usize, most: usize) -> Result<(), Failure> {
    if count > most {
        return Err(Failure::field(name, format!("{name} must have at most {most} items, not {count}")));
    }
    Ok(())
}

/// The priority that a message asks for; unspecified: none.
fn priority(word: i32) -> Result<Option<Priority>, Failure> {
    match wire::Priority::try_from(word) {
        Ok(wire::Priority::Unspecified) => Ok(None),
        Ok(wire::Priority::Interactive) => Ok(Some(Priority::Interactive)),
        Ok(wire::Priority::Batch) => Ok(Some(Priority::Batch)),
        Err(_) => Err(Failure::field("priority", format!("priority {word} is none that is known"))),
    }
}

/// The class that a message asks for; unspecified: none.
fn class(word: i32) -> Result<Option<DataClass>, Failure> {
    match wire::DataClass::try_from(word) {
        Ok(wire::DataClass::Unspecified) => Ok(None),
        Ok(wire::DataClass::Public) => Ok(Some(DataClass::Public)),
        Ok(wire::DataClass::Internal) => Ok(Some(DataClass::Internal)),
        Ok(wire::DataClass::Confidential) => Ok(Some(DataClass::Confidential)),
        Ok(wire::DataClass::Restricted) => Ok(Some(DataClass::Restricted)),
        Err(_) => Err(Failure::field("class", format!("class {word} is none that is known"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use penstock_proto::RequestId;
    use tokio::time::Instant;

    use super::*;
    use crate::api::head;

    fn text(change: impl FnOnce(&mut wire::GenerateRequest)) -> Result<Request, Failure> {
        let input = Some(wire::generate_request::Input::Text("hi".to_owned()));
        let mut message = wire::GenerateRequest { model: "m".to_owned(), input, ..Default::default() };
        change(&mut message);
        let defaults = head::Defaults { deadline: Duration::from_secs(1), priority: Priority::Interactive };
        let head = head::read(&HeaderMap::new(), RequestId::generate(), Instant::now(), defaults);
        request(message, &head.unwrap(), TenantName::new("default").unwrap(), DataClass::Internal)
    }

    fn sampled(change: impl FnOnce(&mut wire::Sampling)) -> Result<Request, Failure> {
        let mut sampling = wire::Sampling::default();
        change(&mut sampling);
        text(|message| message.sampling = Some(sampling))
    }

    fn param(result: Result<Request, Failure>) -> String {
        result.unwrap_err().param.unwrap()
    }

    #[tokio::test]
    async fn what_is_left_out_is_left_to_the_model_and_the_tenant() {
        let request = text(|_| {}).unwrap();
        assert_eq!(request.sampling, Sampling::default());
        assert_eq!((request.class, request.priority), (DataClass::Internal, Priority::Interactive));
        let lowered = text(|message| message.class = wire::DataClass::Public.into()).unwrap();
        assert_eq!(lowered.class, DataClass::Internal);
        let raised = text(|message| {
            message.class = wire::DataClass::Restricted.into();
            message.priority = wire::Priority::Batch.into();
        });
        let raised = raised.unwrap();
        assert_eq!((raised.class, raised.priority), (DataClass::Restricted, Priority::Batch));
    }

    #[tokio::test]
    async fn every_range_is_kept() {
        assert_eq!(param(sampled(|it| it.temperature = Some(-0.1))), "temperature");
        assert_eq!(param(sampled(|it| it.temperature = Some(f32::NAN))), "temperature");
        assert_eq!(param(sampled(|it| it.top_p = Some(0.0))), "top_p");
        assert_eq!(param(sampled(|it| it.min_p = Some(1.5))), "min_p");
        assert_eq!(param(sampled(|it| it.repetition_penalty = Some(0.0))), "repetition_penalty");
        assert_eq!(param(sampled(|it| it.presence_penalty = Some(2.1))), "presence_penalty");
        assert_eq!(param(sampled(|it| it.frequency_penalty = Some(f32::INFINITY))), "frequency_penalty");
        assert_eq!(param(sampled(|it| it.logit_bias = [(5, -101.0)].into())), "logit_bias");
        assert_eq!(param(sampled(|it| it.max_tokens = Some(0))), "max_tokens");
        assert_eq!(param(sampled(|it| it.top_logprobs = Some(21))), "top_logprobs");
        assert_eq!(param(text(|it| it.constraint = Some(wire::Constraint { kind: None }))), "constraint");
        let kind = Some(wire::constraint::Kind::Regex("a".repeat(bounds::CONSTRAINT_BYTES + 1)));
        assert_eq!(param(text(|it| it.constraint = Some(wire::Constraint { kind }))), "constraint");
        assert_eq!(param(sampled(|it| it.stop_token_ids = vec![1; 129])), "stop_token_ids");
        assert_eq!(param(text(|it| it.stop = vec!["a".to_owned(); 5])), "stop");
        assert_eq!(param(text(|it| it.stop = vec!["a".to_owned(), String::new()])), "stop[1]");
        assert_eq!(param(text(|it| it.class = 9)), "class");
        assert_eq!(param(text(|it| it.priority = 9)), "priority");
        assert_eq!(param(text(|it| it.model = String::new())), "model");
        assert_eq!(param(text(|it| it.input = None)), "input");
        assert_eq!(param(text(|it| it.tools = vec![wire::Tool::default()])), "tools");
    }

    #[tokio::test]
    async fn a_conversation_is_whole_or_refused_where_it_breaks() {
        let chat = |chat: wire::Chat| text(|it| it.input = Some(wire::generate_request::Input::Chat(chat)));
        let message =
            |role: &str| wire::Message { role: role.to_owned(), content: "hi".to_owned(), ..Default::default() };
        assert_eq!(param(chat(wire::Chat::default())), "messages");
        let messages = vec![message("user"), message("wizard")];
        assert_eq!(param(chat(wire::Chat { messages, ..Default::default() })), "messages[1].role");
        for json in ["[]", "{", "5"] {
            let template_kwargs_json = json.to_owned();
            let refused =
                chat(wire::Chat { messages: vec![message("user")], template_kwargs_json, ..Default::default() });
            assert_eq!(param(refused), "template_kwargs_json");
        }
        let template_kwargs_json = r#"{"think":true}"#.to_owned();
        let whole = wire::Chat { messages: vec![message("user")], omit_generation_prompt: true, template_kwargs_json };
        match chat(whole).unwrap().input {
            Input::Chat(chat) => {
                assert!(!chat.add_generation_prompt && chat.template_kwargs["think"] == true);
                assert_eq!(chat.messages[0].name, None);
            }
            other => panic!("{other:?}"),
        }
    }
}
