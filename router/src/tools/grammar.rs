//! The grammar that an answer with tools is held to: a call where one must be made, valid arguments where a tool asks
//! for them, and the client's own constraint for text, where both are asked for.

use std::fmt::Write as _;

use penstock_proto::ErrorCode;
use serde_json::{Map, Value, json};

use super::Format;
use crate::request::{Constraint, Failure, Tool, ToolChoice, Tools};
use crate::text::Vocabulary;

/// Calls of one answer that is held to a grammar: a weak model that may go on calling does so until its tokens are spent.
const MOST: usize = 16;

/// What holds an answer, given what the client asks for beside its tools.
///
/// Where a call must be made there is no text, and the client's constraint holds nothing. Where the model is free, the
/// constraint holds an answer without calls, and calls come alone.
pub(crate) fn constraint(
    tools: &Tools,
    format: Format,
    vocabulary: &Vocabulary,
    asked: Option<Constraint>,
) -> Result<Option<Constraint>, Failure> {
    if !tools.are_callable() {
        return Ok(asked);
    }
    let strict = tools.callable().any(|tool| tool.strict);
    let writer = Writer { tools, format, vocabulary, marked: asked.is_some() };
    let start = match (&tools.choice, asked) {
        (ToolChoice::Auto | ToolChoice::None, None) if !strict => return Ok(None),
        (ToolChoice::Auto | ToolChoice::None, None) => writer.free(),
        (ToolChoice::Auto | ToolChoice::None, Some(asked)) => format!("{}start: text | calls\n", text(asked)?),
        (ToolChoice::Required | ToolChoice::Named(_), _) => "start: calls\n".to_owned(),
    };
    Ok(Some(Constraint::Grammar(start + &writer.calls())))
}

/// The client's constraint as the rule `text`.
fn text(asked: Constraint) -> Result<String, Failure> {
    match asked {
        Constraint::JsonSchema(schema) => Ok(format!("text: %json {schema}\n")),
        Constraint::Regex(regex) => Ok(format!("text: /{}/\n", between_slashes(&regex))),
        Constraint::Grammar(_) => Err(Failure {
            param: Some("tools".to_owned()),
            ..Failure::new(ErrorCode::InvalidRequest, "tools cannot be given together with a grammar of one's own")
        }),
    }
}

/// Writes llguidance's dialect of Lark.
struct Writer<'a> {
    tools: &'a Tools,
    format: Format,
    vocabulary: &'a Vocabulary,
    /// Whether a call needs a marker also where the family can do without: text that is JSON begins as one does.
    marked: bool,
}

impl Writer<'_> {
    /// Rules for text that may have calls in it.
    fn free(&self) -> String {
        let opening = self.format.opening();
        let any = "TEXT: /(?s:.*)/\n";
        match (self.format, self.vocabulary.special(opening)) {
            // A call begins with the answer or not at all.
            (Format::Llama, _) => "start: calls | other | \"\"\nother: /[^{](?s:.*)/\n".to_owned(),
            // Text has no special tokens in it.
            (Format::Hermes | Format::Mistral | Format::Generic, Some(_)) => {
                format!("start: TEXT calls?\n{any}")
            }
            // The first marker ends the text, and its calls end the answer.
            (Format::Hermes | Format::Mistral | Format::Generic, None) => {
                format!("start: TEXT | lead body rest\nlead[lazy]: TEXT {}\n{any}", literal(opening))
            }
        }
    }

    /// The rule `calls`, one call or several, and what it needs.
    fn calls(&self) -> String {
        let several = self.tools.allow_several();
        let more = |separator: &str, call: &str| {
            if several { format!(" ({separator} {call}){{0,{}}}", MOST - 1) } else { String::new() }
        };
        let open = self.marker(self.format.opening());
        let mut out = match self.format {
            Format::Hermes | Format::Generic => {
                let close = self.marker("</tool_call>");
                let call = format!("{open} body");
                format!(
                    "calls: {call} rest\nrest: \"\\n\" {close}{}\n",
                    more(r#""\n""#, &format!("{call} \"\\n\" {close}"))
                )
            }
            Format::Mistral => {
                format!("calls: {open} body rest\nrest: {}\"]\"\n", more(r#"", ""#, "object").trim_start())
            }
            Format::Llama => {
                let open = if self.marked { open + " " } else { String::new() };
                format!("calls: {open}body{}\n", more(r#""; ""#, "body"))
            }
        };
        let before = match self.format {
            Format::Hermes | Format::Generic => "\"\\n\" ",
            Format::Mistral => "\" [\" ",
            Format::Llama => "",
        };
        let objects: Vec<String> = (0..self.tools.callable().count()).map(|at| format!("tool_{at}")).collect();
        writeln!(out, "body: {before}object\nobject: {}", objects.join(" | ")).expect("a String takes everything");
        for (at, tool) in self.tools.callable().enumerate() {
            out.push_str(&self.tool(at, tool));
        }
        out
    }

    fn tool(&self, at: usize, tool: &Tool) -> String {
        let word = match self.format {
            Format::Hermes | Format::Mistral | Format::Generic => "arguments",
            Format::Llama => "parameters",
        };
        let head = literal(&format!("{{\"name\": \"{}\", \"{word}\": ", tool.name));
        format!("tool_{at}: {head} args_{at} \"}}\"\nargs_{at}: %json {}\n", self.schema(tool))
    }

    /// The schema of a tool's arguments. Where the model was free to call, only a strict tool's counts.
    fn schema(&self, tool: &Tool) -> Value {
        let free = matches!(self.tools.choice, ToolChoice::Auto | ToolChoice::None) && !tool.strict;
        let mut schema = if free { Map::new() } else { tool.parameters.clone() };
        schema.insert("type".to_owned(), "object".into());
        // A weak model may never leave white space that it is free to write.
        let layout = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        schema.insert("x-guidance".to_owned(), layout);
        Value::Object(schema)
    }

    /// A marker, as the token that it is or as text.
    fn marker(&self, text: &str) -> String {
        self.vocabulary.special(text).map_or_else(|| literal(text), |id| format!("<[{id}]>"))
    }
}

/// A text as Lark writes it, which is as JSON does.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression as Lark writes it between slashes.
fn between_slashes(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut characters = regex.chars();
    while let Some(character) = characters.next() {
        match character {
            '/' => out.push_str("\\/"),
            '\n' => out.push_str("\\n"),
            '\\' => {
                out.push(character);
                out.extend(characters.next());
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};
    use tokenizers::AddedToken;

    use super::super::Parser;
    use super::*;
    use crate::prompt::fixture;
    use crate::request::{Delta, Finish, FinishReason, Usage};

    const LOOK: &str = r#"{"at": "sky", "far": true}"#;

    /// The byte-level vocabulary with the markers of all families as special tokens.
    fn marked() -> Vocabulary {
        let mut tokenizer = fixture::byte_level().tokenizer().clone();
        let markers = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"];
        tokenizer.add_special_tokens(markers.map(|marker| AddedToken::from(marker, true))).unwrap();
        Vocabulary::new(tokenizer)
    }

    fn tools(choice: ToolChoice, strict: bool, parallel: bool) -> Tools {
        let look = json!({
            "type": "object",
            "properties": { "at": { "$ref": "#/$defs/place" }, "far": { "type": "boolean" } },
            "required": ["at", "far"],
            "additionalProperties": false,
            "$defs": { "place": { "enum": ["sky", "sea"] } },
        });
        let count = json!({ "type": "object", "properties": { "to": { "type": "integer", "minimum": 0, "maximum": 9 } }, "required": ["to"], "additionalProperties": false });
        let tool = |name: &str, parameters: Value| Tool {
            name: name.to_owned(),
            description: None,
            parameters: parameters.as_object().cloned().unwrap(),
            strict,
        };
        Tools { definitions: vec![tool("look", look), tool("count", count)], choice, parallel }
    }

    fn grammar(tools: &Tools, format: Format, vocabulary: &Vocabulary, asked: Option<Constraint>) -> String {
        match constraint(tools, format, vocabulary, asked) {
            Ok(Some(Constraint::Grammar(grammar))) => grammar,
            other => panic!("{other:?}"),
        }
    }

    fn matcher(vocabulary: &Vocabulary, grammar: &str) -> Matcher {
        let word = |id: u32| match (vocabulary.is_special(id), vocabulary.bytes(id)) {
            (false, Some(bytes)) => bytes.to_vec(),
            (true, _) | (_, None) => [vec![0xFF], vocabulary.decode_with_special(&[id]).into_bytes()].concat(),
        };
        let words: Vec<Vec<u8>> = (0..vocabulary.size()).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary.size(), 2), &words);
        let factory = ParserFactory::new_simple(&(Arc::new(ApproximateTokEnv::new(trie)) as _)).unwrap();
        let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned())));
        assert!(!matcher.is_error(), "{grammar}\n{:?}", matcher.get_error());
        matcher
    }

    /// Whether a grammar holds for a text, markers that are tokens taken as such.
    fn holds(vocabulary: &Vocabulary, grammar: &str, text: &str) -> bool {
        let mut matcher = matcher(vocabulary, grammar);
        let ids = fixture::spell(vocabulary, text);
        matcher.try_consume_tokens(&ids).unwrap() == ids.len() && matcher.is_accepting().unwrap()
    }

    fn call(format: Format, name: &str, arguments: &str) -> String {
        match format {
            Format::Hermes | Format::Generic => {
                format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
            }
            Format::Llama => format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}"),
            Format::Mistral => format!("[TOOL_CALLS] [{{\"name\": \"{name}\", \"arguments\": {arguments}}}]"),
        }
    }

    /// Every form, over vocabularies that have its markers as tokens and as text.
    fn each(test: impl Fn(Format, &Vocabulary)) {
        for vocabulary in [fixture::byte_level(), marked()] {
            for format in [Format::Hermes, Format::Generic, Format::Llama, Format::Mistral] {
                test(format, &vocabulary);
            }
        }
    }

    #[test]
    fn a_call_that_must_be_made_is_made_with_valid_arguments() {
        each(|format, vocabulary| {
            let grammar = grammar(&tools(ToolChoice::Required, false, false), format, vocabulary, None);
            let holds = |name: &str, arguments: &str| holds(vocabulary, &grammar, &call(format, name, arguments));
            assert!(holds("look", LOOK) && holds("count", r#"{"to": 7}"#), "{grammar}");
            assert!(!holds("look", r#"{"at": "tree", "far": true}"#) && !holds("look", r#"{"to": 7}"#));
            assert!(!holds("count", r#"{"to": "7"}"#) && !holds("jump", "{}"));
            assert!(!self::holds(vocabulary, &grammar, "Hello") && !self::holds(vocabulary, &grammar, ""));
        });
    }

    #[test]
    fn a_tool_asked_for_by_name_is_the_one_that_is_called() {
        each(|format, vocabulary| {
            let named = tools(ToolChoice::Named("count".to_owned()), false, true);
            let grammar = grammar(&named, format, vocabulary, None);
            assert!(holds(vocabulary, &grammar, &call(format, "count", r#"{"to": 7}"#)));
            assert!(!holds(vocabulary, &grammar, &call(format, "look", LOOK)));
        });
    }

    #[test]
    fn several_calls_are_made_where_they_may_be() {
        let one = |format| call(format, "look", LOOK);
        let crowd = |count| {
            holds(
                &marked(),
                &grammar(&tools(ToolChoice::Required, false, true), Format::Hermes, &marked(), None),
                &vec![one(Format::Hermes); count].join("\n"),
            )
        };
        assert!(crowd(MOST) && !crowd(MOST + 1));
        for (format, two) in [
            (Format::Hermes, [one(Format::Hermes), one(Format::Hermes)].join("\n")),
            (Format::Llama, [one(Format::Llama), one(Format::Llama)].join("; ")),
            (
                Format::Mistral,
                one(Format::Mistral)
                    .replace("}]", &format!("}}, {}]", one(Format::Llama).replace("parameters", "arguments"))),
            ),
        ] {
            for parallel in [false, true] {
                let grammar = grammar(&tools(ToolChoice::Required, false, parallel), format, &marked(), None);
                assert_eq!(holds(&marked(), &grammar, &two), parallel, "{two}\n{grammar}");
            }
        }
    }

    #[test]
    fn a_strict_tool_is_called_well_or_not_at_all() {
        each(|format, vocabulary| {
            let grammar = grammar(&tools(ToolChoice::Auto, true, true), format, vocabulary, None);
            let holds = |text: &str| holds(vocabulary, &grammar, text);
            assert!(holds("") && holds("Hello, 你!\n") && holds(&call(format, "look", LOOK)), "{grammar}");
            assert!(!holds(&call(format, "look", "{}")));
            let behind_text = format!("Well.\n{}", call(format, "look", LOOK));
            assert!(holds(&behind_text), "{format:?}\n{grammar}");
        });
        let free = tools(ToolChoice::Auto, false, true);
        assert_eq!(constraint(&free, Format::Hermes, &marked(), None), Ok(None));
    }

    #[test]
    fn what_text_is_held_to_leaves_calls_free() {
        each(|format, vocabulary| {
            let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
            let asked = Constraint::JsonSchema(schema.to_string());
            let grammar = grammar(&tools(ToolChoice::Auto, false, true), format, vocabulary, Some(asked));
            let holds = |text: &str| holds(vocabulary, &grammar, text);
            assert!(holds(r#"{"a": 5}"#) && !holds("Hello") && !holds(r#"{"a": "b"}"#), "{grammar}");
            let marker = if format == Format::Llama { "<|python_tag|>" } else { "" };
            let call = |arguments: &str| marker.to_owned() + &call(format, "look", arguments);
            assert!(holds(&call(r#"{"any": [1]}"#)) && !holds(&call("5")), "{grammar}");
        });
        let asked = Some(Constraint::Regex(r"a/b\/[\d]+".to_owned()));
        let grammar = grammar(&tools(ToolChoice::Auto, false, true), Format::Hermes, &marked(), asked);
        assert!(holds(&marked(), &grammar, "a/b/12") && !holds(&marked(), &grammar, "ab"));
        let own = Some(Constraint::Grammar("start: \"a\"".to_owned()));
        let refused = constraint(&tools(ToolChoice::Auto, false, true), Format::Hermes, &marked(), own.clone());
        assert_eq!(refused.unwrap_err().param.as_deref(), Some("tools"));
        assert_eq!(constraint(&Tools::default(), Format::Hermes, &marked(), own.clone()), Ok(own));
    }

    /// Draws tokens that a grammar allows until it allows no more, or the end is drawn.
    fn draw(vocabulary: &Vocabulary, grammar: &str, random: &mut fastrand::Rng) -> String {
        let mut matcher = matcher(vocabulary, grammar);
        let mut ids = Vec::new();
        while !matcher.is_stopped() && ids.len() < 600 {
            let mask = matcher.compute_mask().unwrap();
            let allowed: Vec<u32> = (0..vocabulary.size()).filter(|id| mask.is_allowed(*id)).collect();
            let id = allowed[random.usize(..allowed.len())];
            matcher.consume_token(id).unwrap();
            if id != 2 {
                ids.push(id);
            }
        }
        vocabulary.decode_with_special(&ids)
    }

    #[test]
    fn whatever_the_grammar_lets_through_is_read_as_calls() {
        each(|format, vocabulary| {
            let mut random = fastrand::Rng::with_seed(3);
            let required = tools(ToolChoice::Required, false, true);
            let grammar = grammar(&required, format, vocabulary, None);
            for _ in 0..5 {
                let text = draw(vocabulary, &grammar, &mut random);
                let finish = Some(Finish { reason: FinishReason::Stop, stop: None, usage: Usage::default() });
                let mut parser = Parser::new(format, &required, fastrand::Rng::with_seed(1));
                let out = parser.pass(Delta { text: text.clone(), finish, ..Delta::default() });
                let [only] = &out[..] else { panic!("{text}") };
                assert!(only.text.is_empty() && !only.tool_calls.is_empty(), "{text}");
                assert_eq!(only.finish.as_ref().map(|finish| finish.reason), Some(FinishReason::ToolCalls), "{text}");
            }
        });
    }
}
