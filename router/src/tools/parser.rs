//! Reads calls out of an answer as it comes. Text goes on at once, but for what may be markup; arguments go on as they
//! are written, as long as they are JSON. What looks like a call and is none goes on as text, to the last character.
//!
//! It goes by characters, so that it does not matter in which pieces they come.

use super::scanner::Scanner;
use super::{Format, Written};
use crate::request::{Delta, Finish, FinishReason, ToolCallDelta, ToolCallStart, Tools};

/// One answer's way from text to text and calls.
#[derive(Debug)]
pub(crate) struct Parser {
    format: Format,
    names: Vec<String>,
    several: bool,
    ids: fastrand::Rng,
    place: Place,
    /// What has come and may be markup or the beginning of a call.
    held: String,
    begun: u32,
    completed: u32,
    out: Vec<Delta>,
}

/// Where in the answer the next character stands.
#[derive(Debug)]
enum Place {
    /// Where there has been nothing but white space, since the beginning or since a call.
    Edge,
    /// Within text.
    Text,
    /// Behind Mistral's marker: its list must begin.
    List,
    /// A call's object must begin.
    Before,
    /// Within a call's object, whose arguments may have begun.
    Object { scanner: Scanner, start: usize, part: Part },
    /// Behind a call's object: what closes it may follow.
    After,
    /// There is nothing to come that anyone wants.
    Done,
}

/// How far a call's object has come.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Its name is not known, or its arguments have not begun.
    Head,
    /// The arguments are passed on.
    Arguments,
    /// The arguments are complete.
    Tail,
}

/// What a call has been found to be.
enum Found {
    /// Nothing yet.
    Nothing,
    /// A call of a tool, with so much of its arguments.
    Call { name: String, arguments: String },
    /// No call of a tool that there is.
    NoCall,
}

impl Parser {
    /// A parser at the beginning of an answer to a request with these tools. Ids are drawn from `ids`.
    pub(crate) fn new(format: Format, tools: &Tools, ids: fastrand::Rng) -> Self {
        Self {
            format,
            names: tools.callable().map(|tool| tool.name.clone()).collect(),
            several: tools.allow_several(),
            ids,
            place: Place::Edge,
            held: String::new(),
            begun: 0,
            completed: 0,
            out: Vec::new(),
        }
    }

    /// Takes a piece of the answer's text, and gives what is sure by now: pieces in which the text comes before the
    /// calls. The last one has the end, where it has come.
    pub(crate) fn pass(&mut self, delta: Delta) -> Vec<Delta> {
        delta.text.chars().for_each(|character| self.step(character));
        if delta.finish.is_some() {
            self.finish();
        }
        let mut out = std::mem::take(&mut self.out);
        if out.is_empty() && (delta.finish.is_some() || !delta.logprobs.is_empty()) {
            out.push(Delta::default());
        }
        if let Some(first) = out.first_mut() {
            first.logprobs = delta.logprobs;
        }
        if let Some(last) = out.last_mut() {
            last.finish = delta.finish.map(|finish| Finish { reason: self.reason(finish.reason), ..finish });
        }
        out
    }

    /// Whether the answer has its one call, and what is still to come of it does not matter.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.place, Place::Done)
    }

    fn reason(&self, reason: FinishReason) -> FinishReason {
        match reason {
            FinishReason::Stop if self.completed > 0 => FinishReason::ToolCalls,
            FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls => reason,
        }
    }

    fn step(&mut self, character: char) {
        match &mut self.place {
            Place::Done => {}
            Place::Edge => {
                self.held.push(character);
                self.edge();
            }
            Place::Text => {
                self.held.push(character);
                self.text();
            }
            Place::List => match character {
                '[' => self.hold(character, Place::Before),
                character if is_space(character) => self.held.push(character),
                _ => self.no_call(character),
            },
            Place::Before => match character {
                '{' => self.object(),
                character if is_space(character) => self.held.push(character),
                _ => self.no_call(character),
            },
            Place::Object { scanner, .. } => match scanner.push(character) {
                Ok(()) => self.within(character),
                Err(_) => self.no_call(character),
            },
            Place::After => {
                self.held.push(character);
                self.after();
            }
        }
    }

    /// Whether what is held, white space aside, begins a call.
    fn edge(&mut self) {
        let separator = |c| self.format == Format::Llama && self.completed > 0 && c == ';';
        let rest = self.held.trim_start_matches(|c| is_space(c) || separator(c));
        let opening = self.format.opening();
        if rest == opening {
            self.place = self.opened();
        } else if rest == "{" && self.format == Format::Llama {
            self.held.pop();
            self.object();
        } else if !opening.starts_with(rest) {
            self.text();
        }
    }

    /// Gives out what is held, but for the beginning of a marker at its end.
    fn text(&mut self) {
        let opening = self.format.opening();
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.into_iter().find(|at| opening.starts_with(&self.held[*at..])).unwrap_or(self.held.len());
        let marker = self.held.split_off(keep);
        let text = std::mem::replace(&mut self.held, marker);
        self.say(&text);
        self.place = if self.held == opening { self.opened() } else { Place::Text };
    }

    fn opened(&self) -> Place {
        match self.format {
            Format::Mistral => Place::List,
            Format::Hermes | Format::Llama | Format::Generic => Place::Before,
        }
    }

    fn hold(&mut self, character: char, place: Place) {
        self.held.push(character);
        self.place = place;
    }

    fn object(&mut self) {
        let mut scanner = Scanner::new();
        scanner.push('{').expect("a value may begin so");
        let start = self.held.len();
        self.hold('{', Place::Object { scanner, start, part: Part::Head });
    }

    /// A character that goes on with a call's object.
    fn within(&mut self, character: char) {
        let Place::Object { scanner, start, part } = &self.place else { return };
        let (depth, start) = (scanner.depth(), *start);
        match *part {
            Part::Head => {
                self.held.push(character);
                self.head(character, depth, start);
            }
            Part::Arguments => {
                self.argue(character);
                if depth == 1 {
                    self.enter(Part::Tail);
                    self.complete();
                }
            }
            Part::Tail => {
                self.held.push(character);
                self.closed(depth);
            }
        }
    }

    fn head(&mut self, character: char, depth: usize, start: usize) {
        let found = match (character, depth) {
            ('{', 2) => self.early(start),
            ('}', 0) => self.whole(start),
            _ => Found::Nothing,
        };
        let (name, arguments) = match found {
            Found::Nothing => return,
            Found::NoCall => return self.give_up(),
            Found::Call { name, arguments } => (name, arguments),
        };
        self.held.clear();
        self.begin(name, &arguments);
        if depth == 0 {
            self.complete();
            self.closed(depth);
        } else {
            self.enter(Part::Arguments);
        }
    }

    /// The name, where the object that has just been opened is its arguments.
    fn early(&self, start: usize) -> Found {
        let head = &self.held[start..self.held.len() - 1];
        match serde_json::from_str::<Written<'_>>(&format!("{head}null}}")) {
            Ok(written) if written.arguments.get() == "null" => self.known(written.name, "{"),
            Ok(_) | Err(_) => Found::Nothing,
        }
    }

    /// The call that the whole object is, in whatever order.
    fn whole(&self, start: usize) -> Found {
        match serde_json::from_str::<Written<'_>>(&self.held[start..]) {
            Ok(written) if written.arguments.get().starts_with('{') => {
                self.known(written.name, written.arguments.get())
            }
            Ok(_) | Err(_) => Found::NoCall,
        }
    }

    fn known(&self, name: String, arguments: &str) -> Found {
        if self.names.contains(&name) { Found::Call { name, arguments: arguments.to_owned() } } else { Found::NoCall }
    }

    fn enter(&mut self, next: Part) {
        if let Place::Object { part, .. } = &mut self.place {
            *part = next;
        }
    }

    fn complete(&mut self) {
        self.completed += 1;
        if !self.several {
            self.held.clear();
            self.place = Place::Done;
        }
    }

    /// Leaves a call's object where its last brace has come.
    fn closed(&mut self, depth: usize) {
        if depth == 0 && !self.is_done() {
            self.held.clear();
            self.place = match self.format {
                Format::Hermes | Format::Generic | Format::Mistral => Place::After,
                Format::Llama => Place::Edge,
            };
        }
    }

    /// Behind a call's object, what is held either closes it or belongs to what comes next.
    fn after(&mut self) {
        let rest = self.held.trim_start_matches(is_space);
        let (goes_on, next) = match self.format {
            Format::Mistral => match rest {
                "" => (true, None),
                "," => (true, Some(Place::Before)),
                "]" => (true, Some(Place::Edge)),
                _ => (false, None),
            },
            Format::Hermes | Format::Generic | Format::Llama => {
                let closing = self.format.closing().unwrap_or_default();
                (closing.starts_with(rest), (rest == closing).then_some(Place::Edge))
            }
        };
        if !goes_on {
            self.place = Place::Edge;
            std::mem::take(&mut self.held).chars().for_each(|character| self.step(character));
        } else if let Some(place) = next {
            if matches!(place, Place::Edge) {
                self.held.clear();
            }
            self.place = place;
        }
    }

    /// What is held is no call, and the character is what comes next.
    fn no_call(&mut self, character: char) {
        self.give_up();
        self.step(character);
    }

    fn give_up(&mut self) {
        let text = std::mem::take(&mut self.held);
        self.say(&text);
        self.place = Place::Text;
    }

    fn finish(&mut self) {
        let blank = self.held.chars().all(is_space);
        let markup = match &self.place {
            Place::Edge => blank && self.completed > 0,
            Place::After | Place::Object { part: Part::Arguments | Part::Tail, .. } | Place::Done => true,
            Place::Text | Place::List | Place::Before | Place::Object { part: Part::Head, .. } => false,
        };
        let text = std::mem::take(&mut self.held);
        if !markup {
            self.say(&text);
        }
    }

    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(last) if last.tool_calls.is_empty() => last.text.push_str(text),
            Some(_) | None => self.out.push(Delta { text: text.to_owned(), ..Delta::default() }),
        }
    }

    fn begin(&mut self, name: String, arguments: &str) {
        let start = Some(ToolCallStart { id: self.id(), name });
        let call = ToolCallDelta { index: self.begun, start, arguments: arguments.to_owned() };
        self.begun += 1;
        match self.out.last_mut() {
            Some(last) => last.tool_calls.push(call),
            None => self.out.push(Delta { tool_calls: vec![call], ..Delta::default() }),
        }
    }

    /// One more character of the last call's arguments.
    fn argue(&mut self, character: char) {
        let index = self.begun - 1;
        let more = || ToolCallDelta { index, start: None, arguments: character.to_string() };
        match self.out.last_mut() {
            Some(last) => match last.tool_calls.last_mut() {
                Some(call) => call.arguments.push(character),
                None => last.tool_calls.push(more()),
            },
            None => self.out.push(Delta { tool_calls: vec![more()], ..Delta::default() }),
        }
    }

    /// A fresh id, as the family knows them.
    fn id(&mut self) -> String {
        let (prefix, length) = match self.format {
            Format::Mistral => ("", 9),
            Format::Hermes | Format::Llama | Format::Generic => ("call_", 24),
        };
        prefix.chars().chain(std::iter::repeat_with(|| self.ids.alphanumeric()).take(length)).collect()
    }
}

/// JSON's white space.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Map;

    use super::*;
    use crate::request::{Tool, ToolChoice, Usage};

    const FORMATS: [Format; 4] = [Format::Hermes, Format::Llama, Format::Mistral, Format::Generic];

    fn parser(format: Format, parallel: bool) -> Parser {
        let tool =
            |name: &str| Tool { name: name.to_owned(), description: None, parameters: Map::new(), strict: false };
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
}
