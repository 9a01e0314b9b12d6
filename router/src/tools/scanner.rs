//! JSON, one character at a time: whether what has come can still become a value, and how deep within it the last
//! character stands. It keeps none of the text.

/// What has come is no beginning of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// One value under way.
#[derive(Debug)]
pub(super) struct Scanner {
    open: Vec<Container>,
    at: At,
}

#[derive(Debug, Clone, Copy)]
enum Container {
    Object,
    Array,
}

/// What may come next.
#[derive(Debug, Clone, Copy)]
enum At {
    Value,
    /// A value, or the end of an array without items.
    FirstItem,
    /// A key, or the end of an object without members.
    FirstKey,
    Key,
    Colon,
    /// A comma, or the end of what is open.
    Next,
    Text(Text),
    Escape(Text),
    /// So many hexadecimal digits.
    Code(Text, u8),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Number),
}

/// What a string is.
#[derive(Debug, Clone, Copy)]
enum Text {
    Key,
    Value,
}

/// What a number has come to.
#[derive(Debug, Clone, Copy)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    E,
    Sign,
    Power,
}

impl Scanner {
    /// At the beginning of a value.
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), at: At::Value }
    }

    /// How many objects and arrays are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, character: char) -> Result<(), Malformed> {
        self.at = match self.at {
            At::Text(text) => match character {
                '"' => text.ended(),
                '\\' => At::Escape(text),
                '\0'..' ' => return Err(Malformed),
                _ => At::Text(text),
            },
            At::Escape(text) => match character {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => At::Text(text),
                'u' => At::Code(text, 4),
                _ => return Err(Malformed),
            },
            At::Code(text, left) if character.is_ascii_hexdigit() => match left {
                1 => At::Text(text),
                _ => At::Code(text, left - 1),
            },
            At::Code(..) => return Err(Malformed),
            At::Word(rest) => match rest.strip_prefix(character) {
                Some("") => At::Next,
                Some(rest) => At::Word(rest),
                None => return Err(Malformed),
            },
            At::Number(number) => match number.then(character) {
                Some(number) => At::Number(number),
                None if number.may_end() => self.between(At::Next, character)?,
                None => return Err(Malformed),
            },
            at @ (At::Value | At::FirstItem | At::FirstKey | At::Key | At::Colon | At::Next) => {
                self.between(at, character)?
            }
        };
        Ok(())
    }

    /// A character that is in no string, word or number.
    fn between(&mut self, at: At, character: char) -> Result<At, Malformed> {
        match (at, character, self.open.last()) {
            (at, ' ' | '\t' | '\n' | '\r', _) => Ok(at),
            (At::FirstItem | At::Next, ']', Some(Container::Array))
            | (At::FirstKey | At::Next, '}', Some(Container::Object)) => {
                self.open.pop();
                Ok(At::Next)
            }
            (At::Next, ',', Some(Container::Object)) => Ok(At::Key),
            (At::Next, ',', Some(Container::Array)) => Ok(At::Value),
            (At::FirstKey | At::Key, '"', _) => Ok(At::Text(Text::Key)),
            (At::Colon, ':', _) => Ok(At::Value),
            (At::Value | At::FirstItem, character, _) => self.begin(character),
            _ => Err(Malformed),
        }
    }

    fn begin(&mut self, character: char) -> Result<At, Malformed> {
        Ok(match character {
            '{' => {
                self.open.push(Container::Object);
                At::FirstKey
            }
            '[' => {
                self.open.push(Container::Array);
                At::FirstItem
            }
            '"' => At::Text(Text::Value),
            't' => At::Word("rue"),
            'f' => At::Word("alse"),
            'n' => At::Word("ull"),
            '-' => At::Number(Number::Minus),
            '0' => At::Number(Number::Zero),
            '1'..='9' => At::Number(Number::Whole),
            _ => return Err(Malformed),
        })
    }
}

impl Text {
    fn ended(self) -> At {
        match self {
            Self::Key => At::Colon,
            Self::Value => At::Next,
        }
    }
}

impl Number {
    fn then(self, character: char) -> Option<Self> {
        match (self, character) {
            (Self::Minus, '0') => Some(Self::Zero),
            (Self::Minus, '1'..='9') | (Self::Whole, '0'..='9') => Some(Self::Whole),
            (Self::Zero | Self::Whole, '.') => Some(Self::Point),
            (Self::Point | Self::Fraction, '0'..='9') => Some(Self::Fraction),
            (Self::Zero | Self::Whole | Self::Fraction, 'e' | 'E') => Some(Self::E),
            (Self::E, '+' | '-') => Some(Self::Sign),
            (Self::E | Self::Sign | Self::Power, '0'..='9') => Some(Self::Power),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        match self {
            Self::Zero | Self::Whole | Self::Fraction | Self::Power => true,
            Self::Minus | Self::Point | Self::E | Self::Sign => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a text that begins with `{` is one whole object, as far as its characters can tell.
    fn is_object(text: &str) -> bool {
        let mut scanner = Scanner::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if scanner.push(character).is_err() {
                return false;
            }
            if scanner.depth() == 0 {
                return characters.as_str().trim_matches([' ', '\t', '\n', '\r']).is_empty();
            }
        }
        false
    }

    #[test]
    fn objects_are_told_from_what_looks_like_them() {
        for text in [
            "{}",
            r#"{ "a" : [ ] , "b":{"c":[1,-0,1.5e-7,2E+3,0.1,true,false,null,"\u00e9\"\\é"]} }"#,
            r#"{"":[[],[{}]]}"#,
        ] {
            assert!(is_object(text), "{text}");
        }
        for text in [
            "{",
            "{]",
            "{,}",
            "{'a':1}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":01}"#,
            r#"{"a":+1}"#,
            r#"{"a":1.}"#,
            r#"{"a":-}"#,
            r#"{"a":1e}"#,
            r#"{"a":tru}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":1}}"#,
            r#"{"a":1 "b":2}"#,
        ] {
            assert!(!is_object(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_judges_as_serde_does(text in r#"\{[\[\]{}",:0-1.e\-\\un a-b]{0,14}\}?"#) {
            let serde = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok();
            prop_assert_eq!(is_object(&text), serde);
        }
    }
}
