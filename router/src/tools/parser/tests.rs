//! Answers of every family, whole and in pieces.

use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::request::{Tool, ToolChoice, Usage};

const FORMATS: [Format; 4] = [Format::Hermes, Format::Llama, Format::Mistral, Format::Generic];

fn parser(format: Format, parallel: bool) -> Parser {
    let tool = |name: &str| Tool { name: name.to_owned(), description: None, parameters: Map::new(), strict: false };
    let tools = Tools { definitions: vec![tool("f"), tool("g")], choice: ToolChoice::Auto, parallel };
    Parser::new(format, &tools, fastrand::Rng::with_seed(7))
}

fn piece(text: &str) -> Delta {
    Delta { text: text.to_owned(), ..Delta::default() }
}

/// All that came of an answer, in order: text as it is, a call as `f{arguments}`.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    calls: Vec<(String, String)>,
    order: Vec<&'static str>,
    reason: Option<FinishReason>,
    ids: Vec<String>,
}

impl Said {
    fn take(&mut self, delta: Delta) {
        assert!(self.reason.is_none(), "nothing follows the end");
        if !delta.text.is_empty() && self.order.last() != Some(&"text") {
            self.order.push("text");
        }
        self.text += &delta.text;
        for call in delta.tool_calls {
            if let Some(start) = call.start {
                assert_eq!(call.index as usize, self.calls.len());
                self.order.push("call");
                self.ids.push(start.id);
                self.calls.push((start.name, String::new()));
            }
            assert_eq!(call.index as usize + 1, self.calls.len());
            self.calls.last_mut().unwrap().1 += &call.arguments;
        }
        self.reason = delta.finish.map(|finish| finish.reason);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.iter().map(|(name, arguments)| format!("{name}{arguments}")).collect()
    }
}

fn say<'a>(mut parser: Parser, pieces: impl IntoIterator<Item = &'a str>, reason: FinishReason) -> Said {
    let mut said = Said::default();
    pieces.into_iter().flat_map(|text| parser.pass(piece(text))).for_each(|delta| said.take(delta));
    let finish = Some(Finish { reason, stop: None, usage: Usage::default() });
    parser.pass(Delta { finish, ..Delta::default() }).into_iter().for_each(|delta| said.take(delta));
    said
}

fn said(format: Format, text: &str) -> Said {
    say(parser(format, true), [text], FinishReason::Stop)
}

#[test]
fn every_family_is_read() {
    let both = [r#"f{"a": {"b": "}"}}"#, "g{}"];
    for (format, text) in [
        (
            Format::Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": \"}\"}}}\n</tool_call>\n\
             <tool_call>{\"arguments\":{},\"name\":\"g\"}</tool_call>\n",
        ),
        (Format::Llama, r#"{"name": "f", "parameters": {"a": {"b": "}"}}}; {"name": "g", "parameters": {}}"#),
        (
            Format::Llama,
            r#"<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": {"b": "}"}}}{"name":"g","parameters":{}}"#,
        ),
        (
            Format::Mistral,
            r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a": {"b": "}"}}, "id": "x"}, {"name": "g", "arguments": {}}]"#,
        ),
    ] {
        let said = said(format, text);
        assert_eq!(said.calls(), both, "{format:?}");
        assert_eq!((said.text.as_str(), said.reason), ("", Some(FinishReason::ToolCalls)), "{format:?}");
        let (prefix, length) = if format == Format::Mistral { ("", 9) } else { ("call_", 29) };
        assert!(said.ids.iter().all(|id| id.starts_with(prefix) && id.len() == length), "{:?}", said.ids);
        assert_ne!(said.ids[0], said.ids[1]);
    }
}

#[test]
fn text_passes_at_once_and_arguments_as_they_come() {
    let mut parser = parser(Format::Hermes, true);
    assert_eq!(parser.pass(piece("Let me <to")), [piece("Let me ")]);
    assert_eq!(parser.pass(piece("o. <tool_call")), [piece("<too. ")]);
    assert_eq!(parser.pass(piece(">\n{\"name\": \"f\", \"argu")), []);
    let [begun] = &parser.pass(piece("ments\": {\"a\": 1"))[..] else { panic!("one piece") };
    let start = begun.tool_calls[0].start.clone();
    assert_eq!(start.map(|start| start.name), Some("f".to_owned()));
    assert_eq!(begun.tool_calls[0].arguments, "{\"a\": 1");
    let more = ToolCallDelta { index: 0, start: None, arguments: "2}".to_owned() };
    assert_eq!(parser.pass(piece("2}")), [Delta { tool_calls: vec![more], ..Delta::default() }]);
    assert_eq!(parser.pass(piece("}\n</tool_call>\n")), []);
}

#[test]
fn text_stands_before_between_and_behind_calls() {
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    let said = said(Format::Hermes, &format!("one {call}\ntwo{call}"));
    assert_eq!((said.text.as_str(), said.order), ("one \ntwo", vec!["text", "call", "text", "call"]));
    assert_eq!(self::said(Format::Hermes, " \n").text, " \n");
}

#[test]
fn what_is_no_call_is_text_to_the_last_character() {
    for (format, text) in [
        (Format::Hermes, r#"<tool_call>{"name": "nobody", "arguments": {"a": 1}}</tool_call>"#),
        (Format::Hermes, r#"<tool_call>{"name": "f", "arguments": "{}"}</tool_call>"#),
        (Format::Hermes, r#"<tool_call>{"name": "f"}</tool_call>"#),
        (Format::Hermes, r#"<tool_call>{"name": f, "arguments": {}}</tool_call>"#),
        (Format::Hermes, "<tool_call> nothing </tool_call>"),
        (Format::Hermes, r#"<tool_call>{"name": "f", "argu"#),
        (Format::Hermes, "a < b <tool_cal"),
        (Format::Llama, r#"{"answer": 42} "#),
        (Format::Llama, r#"Use {"name": "f", "parameters": {}}"#),
        (Format::Mistral, r#"[TOOL_CALLS] {"name": "f", "arguments": {}}"#),
        (Format::Mistral, "[TOOL_CALLS] [ 5 ]"),
    ] {
        let said = said(format, text);
        assert_eq!((said.text.as_str(), said.calls.len()), (text, 0), "{text}");
        assert_eq!(said.reason, Some(FinishReason::Stop));
    }
    let twice = r#"<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    let said = said(Format::Hermes, twice);
    assert_eq!((said.text.as_str(), said.calls()), ("<tool_call>", vec!["f{}".to_owned()]));
}

#[test]
fn a_call_that_breaks_within_its_arguments_is_not_complete() {
    let broken = said(Format::Hermes, r#"<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call>"#);
    assert_eq!(broken.calls(), [r#"f{"a": "#]);
    assert_eq!((broken.text.as_str(), broken.reason), ("oops}}</tool_call>", Some(FinishReason::Stop)));
    let cut = [r#"<tool_call>{"name": "f", "arguments": {"a": 1"#];
    let cut = say(parser(Format::Hermes, true), cut, FinishReason::Length);
    assert_eq!((cut.text.as_str(), cut.reason), ("", Some(FinishReason::Length)));
    let loose = said(Format::Hermes, r#"<tool_call>{"name": "f", "arguments": {}} then"#);
    assert_eq!((loose.text.as_str(), loose.reason), (" then", Some(FinishReason::ToolCalls)));
}

#[test]
fn one_call_is_the_answers_end_where_there_may_be_no_more() {
    let mut parser = parser(Format::Hermes, false);
    let out = parser.pass(piece(r#"<tool_call>{"name": "f", "arguments": {"a": {}}} and more"#));
    assert!(parser.is_done());
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].text.as_str(), out[0].tool_calls[0].arguments.as_str()), ("", r#"{"a": {}}"#));
}

#[test]
fn what_comes_with_a_piece_stays_with_its_answer() {
    let token = crate::request::RankedToken { bytes: b"<".to_vec(), logprob: -1.0 };
    let logprobs = vec![crate::request::TokenLogprob { token, top: Vec::new() }];
    let mut parser = parser(Format::Hermes, true);
    let held = parser.pass(Delta { logprobs: logprobs.clone(), ..piece("<") });
    assert_eq!(held, [Delta { logprobs, ..Delta::default() }]);
}

/// Texts full of what calls are made of.
fn soup() -> impl Strategy<Value = String> {
    let scrap = prop_oneof![
        Just("<tool_call>"),
        Just("</tool_call>"),
        Just("<|python_tag|>"),
        Just("[TOOL_CALLS]"),
        Just("[TOOL_CALLS] ["),
        Just(r#"{"name": "f", "arguments": {"#),
        Just(r#"{"name": "g", "parameters": {"a": [1, "x}"]}}"#),
        Just(r#"{"arguments": {"é": null}, "name": "f"}"#),
        Just(r#"{"name": "no", "arguments": {}}"#),
        Just("}"),
        Just("}}"),
        Just("]"),
        Just(", "),
        Just("; "),
        Just("\n"),
        Just("text"),
        Just("<"),
        Just("日本"),
    ];
    prop::collection::vec(scrap, 0..12).prop_map(|scraps| scraps.concat())
}

proptest! {
    #[test]
    fn pieces_change_nothing(text in soup(), cuts in prop::collection::vec(1usize..9, 1..20), parallel: bool) {
        for format in FORMATS {
            let whole = say(parser(format, parallel), [text.as_str()], FinishReason::Stop);
            let mut pieces = Vec::new();
            let mut characters = text.chars();
            for cut in cuts.iter().cycle() {
                let piece: String = characters.by_ref().take(*cut).collect();
                if piece.is_empty() { break; }
                pieces.push(piece);
            }
            let cut = say(parser(format, parallel), pieces.iter().map(String::as_str), FinishReason::Stop);
            prop_assert_eq!(whole, cut);
        }
    }

    #[test]
    fn an_answer_without_calls_is_its_text(text in soup()) {
        for format in FORMATS {
            let said = said(format, &text);
            if said.calls.is_empty() {
                prop_assert_eq!(&said.text, &text);
                prop_assert_eq!(said.reason, Some(FinishReason::Stop));
            }
        }
    }

    #[test]
    fn a_complete_call_has_arguments_that_are_an_object(text in soup()) {
        for format in FORMATS {
            let said = said(format, &text);
            let valid = |text: &String| serde_json::from_str::<Map<String, serde_json::Value>>(text).is_ok();
            let complete = said.calls.iter().filter(|(_, arguments)| valid(arguments)).count();
            prop_assert_eq!(complete > 0, said.reason == Some(FinishReason::ToolCalls));
        }
    }
}
