//! Answers through a filter, in every chopping.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use penstock_cluster::catalog::{Catalog, Source};
use penstock_proto::{DataClass, ErrorCode, ModelName, Priority, RequestId, TenantName};
use prometheus::Registry;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::*;
use crate::request::{
    Chat, Finish, FinishReason, Message, Role, Sampling, Stop, ToolCall, ToolCallStart, Tools, Usage,
};

const CARD: &str = "4111 1111 1111 1111";

fn rules(filter: &str) -> Arc<Rules> {
    let text = format!(
        "detectors:\n- {{name: vip, dictionary: /vip, class: confidential}}\nmodels:\n- {{name: m}}\nroutes:\n- {{name: r, targets: [{{model: m}}], filter: {filter}}}\n"
    );
    let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }]).unwrap();
    let filter = catalog.routes["r"].filter.as_ref().unwrap();
    let read = |_: &Path| Ok("Ada Lovelace\n".to_owned());
    Arc::new(Rules::compile(&catalog, filter, read).unwrap())
}

fn request(content: &str) -> Request {
    let messages = vec![Message::new(Role::User, content)];
    Request {
        id: RequestId::generate(),
        tenant: TenantName::new("t").unwrap(),
        class: DataClass::Public,
        priority: Priority::Interactive,
        deadline: Instant::now() + Duration::from_secs(1),
        model: ModelName::new("r").unwrap(),
        input: Input::Chat(Chat { messages, add_generation_prompt: true, template_kwargs: Map::new() }),
        sampling: Sampling::default(),
        stop: Stop::default(),
        constraint: None,
        tools: Tools::default(),
        unknown: Map::new(),
    }
}

fn guard(filter: &str, requests: &mut [Request]) -> Guard {
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    rules(filter).begin(requests, &metrics).unwrap()
}

fn said(text: &str) -> Delta {
    Delta { text: text.to_owned(), ..Delta::default() }
}

fn called(index: u32, start: bool, arguments: &str) -> Delta {
    let start = start.then(|| ToolCallStart { id: format!("c{index}"), name: "look".to_owned() });
    let call = ToolCallDelta { index, start, arguments: arguments.to_owned() };
    Delta { tool_calls: vec![call], ..Delta::default() }
}

fn ended() -> Delta {
    let finish = Finish { reason: FinishReason::Stop, stop: None, usage: Usage::default() };
    Delta { finish: Some(finish), ..Delta::default() }
}

/// What an answer has come to: text and the arguments of calls, in the order that they begin in, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Told {
    parts: Vec<String>,
    end: Option<ErrorCode>,
    message: String,
}

fn pass(guard: &Guard, deltas: Vec<Delta>) -> Told {
    let mut filter = Filter::new(guard.clone());
    let (mut told, mut open) = (Told::default(), None);
    for delta in deltas {
        let deltas = match filter.pass(delta) {
            Ok(deltas) => deltas,
            Err(failure) => {
                (told.end, told.message) = (Some(failure.code), failure.message);
                return told;
            }
        };
        for delta in deltas {
            assert_ne!(delta, Delta::default());
            if !delta.text.is_empty() {
                if open != Some(None) {
                    told.parts.push(String::new());
                }
                open = Some(None);
                told.parts.last_mut().unwrap().push_str(&delta.text);
            }
            for call in delta.tool_calls {
                if call.start.is_some() {
                    told.parts.push(String::new());
                    open = Some(Some(call.index));
                }
                assert_eq!(open, Some(Some(call.index)), "a call's pieces come together");
                told.parts.last_mut().unwrap().push_str(&call.arguments);
            }
        }
    }
    told
}

fn chopped(text: &str, sizes: &[usize]) -> Vec<String> {
    let (mut pieces, mut rest, mut sizes) = (Vec::new(), text, sizes.iter().cycle());
    while !rest.is_empty() {
        let end = rest.char_indices().nth(*sizes.next().unwrap()).map_or(rest.len(), |(at, _)| at);
        pieces.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    pieces
}

const OUTPUT: &str = "{output: [card, email, secret, us_ssn, vip], action: redact}";

#[test]
fn text_is_redacted_and_the_end_comes_after_what_was_held() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    for at in 0..CARD.len() {
        let told = pass(&guard, vec![said("it is "), said(&CARD[..at]), said(&CARD[at..]), ended()]);
        assert_eq!(told.parts, ["it is [card]"], "{at}");
    }
    let mut filter = Filter::new(guard);
    let out = filter.pass(said("mail a@b.exampl")).unwrap();
    assert_eq!(out, [said("mail ")]);
    let out = filter.pass(Delta { text: "e".to_owned(), ..ended() }).unwrap();
    assert_eq!(out, [Delta { text: "[email]".to_owned(), ..ended() }]);
}

#[test]
fn arguments_are_searched_as_they_are_meant_and_stay_json() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    let arguments = r#"{"to": "ada lovelace \u003ca\u0040b.example\u003e", "n": [1, -2.5e3, true], "😀": "\ud83d\ude00\/",
        "password": "Tr0ub4dor&3x", "ssn": "078051120", "pay": "4111\u00201111 11111111\n"}"#;
    let redacted = r#"{"to": "[vip] \u003c[email]\u003e", "n": [1, -2.5e3, true], "😀": "\ud83d\ude00\/",
        "password": "[secret]", "ssn": "[us_ssn]", "pay": "[card]\n"}"#;
    for (at, _) in arguments.char_indices() {
        let pieces = vec![called(0, true, &arguments[..at]), called(0, false, &arguments[at..]), ended()];
        assert_eq!(pass(&guard, pieces).parts, [redacted], "{at}");
    }
    assert!(serde_json::from_str::<Value>(redacted).is_ok());
    for broken in [r#"{"a": "\"#, r#"{"a": "\u12"#, r#"{"a": "\ud83d"#, r#"{"a": "\ud83d\u0041 \uzz"}"#, r#"]]{"a"#] {
        assert_eq!(pass(&guard, vec![called(0, true, broken), ended()]).parts, [broken], "what is no JSON passes too");
    }
}

#[test]
fn a_match_in_a_key_a_number_or_a_name_blocks() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    for arguments in
        [r#"{"4111 1111 1111 1111": 1}"#, r#"{"n": 4111111111111111}"#, r#"{"a": {"b": {"a@b.example": ""}}}"#]
    {
        for sizes in [&[1][..], &[3, 5], &[100]] {
            let mut pieces = vec![called(0, true, "")];
            pieces.extend(chopped(arguments, sizes).iter().map(|piece| called(0, false, piece)));
            pieces.push(ended());
            let told = pass(&guard, pieces);
            assert_eq!(told.end, Some(ErrorCode::PolicyFilter), "{arguments}");
            assert!(!told.parts.concat().contains("4111") && !told.message.contains("4111"), "{told:?}");
        }
    }
    let mut named = called(0, true, "");
    named.tool_calls[0].start.as_mut().unwrap().name = "4111111111111111".to_owned();
    assert_eq!(pass(&guard, vec![named]).end, Some(ErrorCode::PolicyFilter));
}

#[test]
fn where_it_blocks_the_detector_is_told_and_never_the_text() {
    let guard = guard("{output: [card], action: block}", &mut [request("hi")]);
    for at in 0..CARD.len() {
        let told = pass(&guard, vec![said("so "), said(&CARD[..at]), said(&CARD[at..]), ended()]);
        assert_eq!((told.end, told.parts.concat().as_str()), (Some(ErrorCode::PolicyFilter), "so "), "{at}");
        assert!(told.message.contains("detector card") && !told.message.contains("4111"));
    }
    let told =
        pass(&guard, vec![called(0, true, "{\"a\": \""), called(0, false, CARD), called(0, false, "\"}"), ended()]);
    assert_eq!((told.end, told.parts.concat().as_str()), (Some(ErrorCode::PolicyFilter), "{\"a\": \""));
}

#[test]
fn under_a_constraint_any_match_blocks() {
    for (constraint, text) in [
        (Constraint::JsonSchema("{}".to_owned()), r#"{"pay": "4111\u00201111 11111111"}"#),
        (Constraint::Regex(".*".to_owned()), CARD),
    ] {
        let asked = Request { constraint: Some(constraint), ..request("hi") };
        let guard = guard(OUTPUT, &mut [asked]);
        let told = pass(&guard, vec![said(text), ended()]);
        assert_eq!(told.end, Some(ErrorCode::PolicyFilter), "{text}");
        let told = pass(&guard, vec![said(r#"{"pay": "\u0041 no"}"#), ended()]);
        assert_eq!(told.parts, [r#"{"pay": "\u0041 no"}"#]);
    }
}

#[test]
fn text_and_calls_keep_their_order() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    let told = pass(
        &guard,
        vec![
            said("let me loo"),
            called(0, true, "{\"at\": \"a@b.exam"),
            called(0, false, "ple\"}"),
            called(1, true, "{}"),
            said("and 4111 11"),
            called(2, true, "{\"a\": 1}"),
            said("11 1111 1111 so"),
            ended(),
        ],
    );
    // What was out when the call began is not followed by its rest.
    let expected = ["let me loo", "{\"at\": \"[email]\"}", "{}", "and 4111 11", "{\"a\": 1}", " so"];
    assert_eq!(told.parts, expected);
}

#[test]
fn a_detector_that_fails_ends_the_answer_and_nothing_that_was_held_leaks() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    let mut filter = Filter::new(guard);
    assert_eq!(filter.pass(said("so 4111 1111 ")).unwrap(), [said("so ")]);
    let failed = guarded::<()>(|| panic!("as a detector may"));
    assert!(matches!(failed, Err(Stopped::Broken)));
    filter.text.kill();
    let failure = filter.pass(said("1111")).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Detectors);
    assert!(!failure.message.contains("4111"));
}

#[tokio::test]
async fn after_a_failure_nothing_comes_and_an_upstreams_words_are_searched_too() {
    let guard = guard(OUTPUT, &mut [request("hi")]);
    let lost = Failure::new(ErrorCode::ProviderRejected, format!("upstream acme: {CARD} is no card"));
    let answer = futures_util::stream::iter([Ok(said("so 4111 ")), Err(lost), Ok(said("more"))]);
    let told: Vec<_> = guard.watch(answer).collect().await;
    let [Ok(first), Err(failure)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(first, &said("so "));
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (ErrorCode::ProviderRejected, "upstream acme: [card] is no card")
    );
}

#[test]
fn logprobs_and_token_ids_are_refused_where_they_would_show_what_is_hidden() {
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let asked = Request { sampling: Sampling { top_logprobs: Some(0), ..Sampling::default() }, ..request("hi") };
    let failure = rules(OUTPUT).begin(&mut [asked], &metrics).unwrap_err();
    assert_eq!((failure.code, failure.param.as_deref()), (ErrorCode::InvalidRequest, Some("logprobs")));
    let asked = Request { input: Input::Tokens(vec![1]), ..request("hi") };
    let failure = rules("{input: [card]}").begin(&mut [asked], &metrics).unwrap_err();
    assert_eq!((failure.code, failure.param.as_deref()), (ErrorCode::InvalidRequest, Some("prompt")));
}

#[test]
fn what_is_replaced_in_a_request_is_put_back_in_the_answer() {
    let mut asked = request(&format!("mine is {CARD}, hers 5555555555554444, [card-2] is free; mine: {CARD}"));
    if let Input::Chat(chat) = &mut asked.input {
        let call =
            ToolCall { id: "c".into(), name: "f".into(), arguments: json!({"n": CARD, "q": "\"x\""}).to_string() };
        chat.messages.push(Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") });
    }
    asked.unknown.insert("user".to_owned(), json!({"mail": ["Ada Lovelace"]}));
    let mut requests = [asked];
    let guard = guard("{input: [card, vip], output: [card, email]}", &mut requests);
    let Input::Chat(chat) = &requests[0].input else { panic!("it is a chat") };
    assert_eq!(chat.messages[0].content, "mine is [card-1], hers [card-3], [card-2] is free; mine: [card-1]");
    assert_eq!(chat.messages[1].tool_calls[0].arguments, json!({"n": "[card-1]", "q": "\"x\""}).to_string());
    assert_eq!(requests[0].unknown["user"], json!({"mail": ["[vip-1]"]}));
    let answer = "[card-1] and [card-3], not [card-2] nor [card-12] nor 378282246310005 [[card-1] [card-";
    let expected =
        "4111 1111 1111 1111 and 5555555555554444, not [card-2] nor [card-12] nor [card] [4111 1111 1111 1111 [card-";
    for sizes in [&[1][..], &[2, 7], &[1000]] {
        let mut pieces: Vec<Delta> = chopped(answer, sizes).iter().map(|piece| said(piece)).collect();
        pieces.push(ended());
        assert_eq!(pass(&guard, pieces).parts, [expected]);
        let arguments = chopped(r#"{"a": "[vip-1]", "b": "[card-3]"}"#, sizes);
        let mut pieces = vec![called(0, true, "")];
        pieces.extend(arguments.iter().map(|piece| called(0, false, piece)));
        pieces.push(ended());
        assert_eq!(pass(&guard, pieces).parts, [r#"{"a": "Ada Lovelace", "b": "5555555555554444"}"#]);
    }
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~é\n😀]{0,12}",
        Just(CARD.to_owned()),
        Just("write to a@b.example".to_owned()),
        Just("password: Tr0ub4dor&3x".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-1000..1000_i32).prop_map(|n| json!(n)),
        text.prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-z\"é]{0,6}", inner, 0..4)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// A string written with escapes wherever one may be.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\0'..='\x7f' if character.is_ascii_alphanumeric() || character == ' ' => {
                let code = u32::from(character);
                if code % 3 == 0 { format!("\\u{code:04x}") } else { character.to_string() }
            }
            other => other.to_string(),
        })
        .collect()
}

fn redacted(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(
            text.replace(CARD, "[card]").replace("a@b.example", "[email]").replace("Tr0ub4dor&3x", "[secret]"),
        ),
        Value::Array(items) => items.iter().map(redacted).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), redacted(value))).collect(),
        other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn json_stays_json_however_it_is_chopped(value in value(), sizes in prop::collection::vec(1..20_usize, 1..5)) {
        let guard = guard("{output: [card, email, secret]}", &mut [request("hi")]);
        let written = value.to_string();
        let mut pieces = vec![called(0, true, "")];
        pieces.extend(chopped(&written, &sizes).iter().map(|piece| called(0, false, piece)));
        pieces.push(ended());
        let told = pass(&guard, pieces);
        prop_assert_eq!(told.end, None);
        let parts = told.parts.concat();
        prop_assert_eq!(serde_json::from_str::<Value>(&parts).unwrap(), redacted(&value));
        if redacted(&value) == value {
            prop_assert_eq!(parts, written);
        }
    }

    #[test]
    fn an_escape_hides_nothing_and_stays_as_it_is(text in "[a-zA-Z é]{0,20}", sizes in prop::collection::vec(1..9_usize, 1..4)) {
        let guard = guard("{output: [card, email, secret]}", &mut [request("hi")]);
        let plain = format!("{{\"k\": \"{}\"}}", escaped(&text));
        let hidden = format!("{{\"k\": \"{} {}!\"}}", escaped(&text), escaped(CARD));
        for (written, expected) in [(&plain, plain.clone()), (&hidden, hidden.replace(&escaped(CARD), "[card]"))] {
            let mut pieces = vec![called(0, true, "")];
            pieces.extend(chopped(written, &sizes).iter().map(|piece| called(0, false, piece)));
            pieces.push(ended());
            prop_assert_eq!(pass(&guard, pieces).parts.concat(), expected);
        }
    }
}
