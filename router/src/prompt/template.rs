//! Chat templates, rendered as `transformers` renders them: the same Jinja environment, without files, and with
//! limits on what a template may take.

use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::{globals, pycompat};
use penstock_proto::time::unix_now;
use serde_json::Map;

use super::{calendar, json};

/// Instructions that one rendering may take (and one more for every 64 bytes that it makes): seconds at most.
const FUEL: u64 = 4_000_000;

/// Calls within calls.
const RECURSION: usize = 128;

const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
}

impl Template {
    /// Compiles a template, or says what is wrong with it.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(method);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("trim", trim);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("cycler", globals::cycler);
        environment.add_function("joiner", globals::joiner);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| format!("the model's chat template cannot be used: {error}"))?;
        Ok(Self { environment })
    }

    /// The rendered text, or a reason that a client can be shown.
    pub(super) fn render(&self, variables: &Map<String, serde_json::Value>) -> Result<String, String> {
        let context = Value::from_pairs(variables.iter().map(|(name, value)| (name.as_str(), json::value(value))));
        let template = self.environment.get_template(NAME).expect("compiled under this name");
        template.render(context).map_err(|error| reason(&error))
    }
}

/// What a template said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}

fn reason(error: &Error) -> String {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return format!("the chat template refuses: {message}");
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return "the chat template takes too long".to_owned();
    }
    format!("the chat template failed: {error}")
}

/// The date and time now, UTC.
fn strftime_now(format: &str) -> String {
    calendar::strftime(unix_now().as_secs(), format)
}

/// `{% generation %}` marks what the model said, for training; it renders as what is in it.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let body = tag.split("%}").next().unwrap_or(tag);
        match body.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => result.push_str(&body.replacen("generation", "if true", 1)),
            "endgeneration" => result.push_str(&body.replacen("endgeneration", "endif", 1)),
            _ => result.push_str(body),
        }
        rest = &tag[body.len()..];
    }
    result + rest
}

/// Python's methods on strings, lists and mappings.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, args) {
        (Some(text), "strip", []) => Ok(text.trim_matches(is_space).into()),
        (Some(text), "lstrip", []) => Ok(text.trim_start_matches(is_space).into()),
        (Some(text), "rstrip", []) => Ok(text.trim_end_matches(is_space).into()),
        (Some(text), "split", []) => Ok(text.split(is_space).filter(|word| !word.is_empty()).collect()),
        (Some(text), "removeprefix", [prefix]) => Ok(cut(text, prefix, |text, prefix| text.strip_prefix(prefix))),
        (Some(text), "removesuffix", [suffix]) => Ok(cut(text, suffix, |text, suffix| text.strip_suffix(suffix))),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn cut(text: &str, part: &Value, without: impl for<'a> Fn(&'a str, &str) -> Option<&'a str>) -> Value {
    part.as_str().and_then(|part| without(text, part)).unwrap_or(text).into()
}

fn trim(value: &Value, characters: Option<String>) -> String {
    let text = if value.kind() == ValueKind::Undefined { String::new() } else { value.to_string() };
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// What Python's `str.strip` strips: Unicode's white space and the four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, variables: serde_json::Value) -> String {
        let variables = variables.as_object().cloned().expect("an object");
        Template::compile(source).and_then(|template| template.render(&variables)).expect("renders")
    }

    #[test]
    fn values_print_as_in_python() {
        let values = json!({ "t": true, "n": null, "f": 1.0, "l": ["a", 1] });
        assert_eq!(render("{{ t }} {{ n }} {{ f }} {{ l }} {{ nothing }}", values), "True None 1.0 ['a', 1] ");
    }

    #[test]
    fn blocks_take_their_line_with_them() {
        assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\n c\n", json!({})), "a\nb\n c");
    }

    #[test]
    fn python_methods_work() {
        let text = "{{ s.strip() }}|{{ s.split('b')[-1] }}|{{ s.split() | length }}|{{ s | trim }}|{{ s.removeprefix('x') }}|{{ m.get('k', 1) }}";
        assert_eq!(render(text, json!({ "s": "x abc\u{1f} ", "m": {} })), "x abc|c\u{1f} |2|x abc| abc\u{1f} |1");
        assert_eq!(
            render("{% for k, v in m.items() %}{{ k }}{{ v }}{% endfor %}", json!({ "m": {"b": 1, "a": 2} })),
            "b1a2"
        );
    }

    #[test]
    fn loops_break_and_go_backwards() {
        let text = "{% for x in l[::-1] %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}";
        assert_eq!(render(text, json!({ "l": [0, 1, 2, 3] })), "32");
    }

    #[test]
    fn namespaces_hold_state_and_generation_blocks_vanish() {
        let text = "{% set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + x %}{% endfor %}\
                    {%- generation -%} {{ ns.n }} {%- endgeneration %}{{ 'generation' }}";
        assert_eq!(render(text, json!({ "l": [1, 2] })), "3generation");
    }

    #[test]
    fn the_clock_is_readable() {
        assert_eq!(render("{{ strftime_now('%Y') | int > 2024 }}", json!({})), "True");
    }
}
