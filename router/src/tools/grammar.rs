//! The grammar that an answer with tools is held to: a call where one must be made, valid arguments where a tool asks
//! for them, and the client's own constraint for text, where both are asked for.

use std::fmt::Write as _;

use penstock_proto::ErrorCode;
use serde_json::{Map, Value, json};

use super::Format;
use crate::request::{Constraint, Failure, Tool, ToolChoice, Tools};
use crate::text::Vocabulary;

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
    let writer = Writer { tools, format, vocabulary };
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
        let more = |separator: &str, call: &str| if several { format!(" ({separator} {call})*") } else { String::new() };
        let open = self.marker(self.format.opening());
        let mut out = match self.format {
            Format::Hermes | Format::Generic => {
                let close = self.marker("</tool_call>");
                let call = format!("{open} body");
                format!("calls: {call} rest\nrest: \"\\n\" {close}{}\n", more(r#""\n""#, &format!("{call} \"\\n\" {close}")))
            }
            Format::Mistral => format!("calls: {open} body rest\nrest: {}\"]\"\n", more(r#"", ""#, "object").trim_start()),
            Format::Llama => format!("calls: body{}\n", more(r#""; ""#, "body")),
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
