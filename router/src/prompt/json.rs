//! JSON as templates read and write it.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// A JSON value for a template.
pub(super) fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value).collect(),
        serde_json::Value::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, json)| (key.as_str(), value(json))))
        }
    }
}

/// The filter `tojson` of `transformers`: Python's `json.dumps`, which escapes nothing for HTML.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(indent.as_usize().unwrap_or(0).min(64))),
        },
    };
    let [item, key] = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut writer = Writer { out: String::new(), indent, item, key, ascii, sorted };
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// JSON as `tojson` writes it.
pub(super) fn dumps(json: &serde_json::Value) -> String {
    let [item, key] = [", ", ": "].map(str::to_owned);
    let mut writer = Writer { out: String::new(), indent: None, item, key, ascii: false, sorted: false };
    writer.write(&value(json), 0).expect("what is JSON can be written as JSON");
    writer.out
}

struct Writer {
    out: String,
    /// A level's indentation, where items stand on lines of their own.
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Writer {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.open('[');
                for (index, item) in items.iter().enumerate() {
                    self.begin(index, depth);
                    self.write(item, depth + 1)?;
                }
                self.close(']', items.is_empty(), depth);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.open('{');
                for (index, key) in keys.iter().enumerate() {
                    self.begin(index, depth);
                    self.name(key)?;
                    let separator = self.key.clone();
                    self.out.push_str(&separator);
                    self.write(&value.get_item(key)?, depth + 1)?;
                }
                self.close('}', keys.is_empty(), depth);
            }
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is no JSON"))),
        }
        Ok(())
    }

    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
    }

    fn begin(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth + 1);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    /// A mapping's key: Python writes numbers, bools and None as strings.
    fn name(&mut self, key: &Value) -> Result<(), Error> {
        if key.kind() == ValueKind::String {
            self.string(key.as_str().unwrap_or_default());
            return Ok(());
        }
        self.out.push('"');
        self.write(key, 0)?;
        self.out.push('"');
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                // The private planes stay: a look-alike of a special token may be hidden there.
                _ if character < ' ' || (self.ascii && ('\u{7F}'..'\u{F0000}').contains(&character)) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a String takes everything");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back, in exponent form below 1e-4 and from
/// 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{number:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use serde_json::json;

    fn dumps(arguments: &str, value: serde_json::Value) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        let context = minijinja::Value::from_pairs([("x", super::value(&value))]);
        environment.render_str(&format!("{{{{ x | tojson{arguments} }}}}"), context).expect("renders")
    }

    #[test]
    fn text_is_what_json_dumps_writes() {
        let value = json!({"b": [1, 2.0, true, null], "a": "<é\u{7f}\u{1}\"\\\n😀>", "c": {}, "d": []});
        assert_eq!(
            dumps("", value),
            "{\"b\": [1, 2.0, true, null], \"a\": \"<é\u{7f}\\u0001\\\"\\\\\\n😀>\", \"c\": {}, \"d\": []}"
        );
        assert_eq!(dumps("(ensure_ascii=true)", json!("é😀\u{7f}")), "\"\\u00e9\\ud83d\\ude00\\u007f\"");
        assert_eq!(dumps("(indent=2)", json!([1, {"a": []}])), "[\n  1,\n  {\n    \"a\": []\n  }\n]");
        assert_eq!(dumps("(separators=(',', ':'), sort_keys=true)", json!({"b": 1, "a": 2})), "{\"a\":2,\"b\":1}");
    }

    #[test]
    fn floats_are_what_repr_writes() {
        for (number, text) in [
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(super::float(number), text);
        }
    }
}
