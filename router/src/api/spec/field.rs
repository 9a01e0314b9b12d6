//! The words in which the table is written: fields, types, calls; and what becomes of a field.

use std::fmt;

use crate::api::bounds::Range;
use crate::api::openai::unserved::Unserved;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    Flag,
    Text,
    Null,
    /// Any value.
    Any,
    Number(Range),
    /// A whole number from the one to the other, where there is another.
    Whole(i64, Option<i64>),
    /// One of these strings.
    Word(&'static [&'static str]),
    /// At most so many, where there is a limit.
    List(&'static Type, Option<usize>),
    /// At least one, at most so many.
    Several(&'static Type, Option<usize>),
    /// Any names, values of one type.
    Map(&'static Type),
    /// A JSON object whose fields are its own matter: a schema, arguments.
    Free,
    Object(&'static [Field]),
    Either(&'static [Type]),
}

/// A field of a body or of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) of: Type,
    /// Whether it is always there.
    pub(super) required: bool,
    /// What a reader of its name and type does not know yet.
    pub(super) note: &'static str,
}

/// A field that may be left out.
pub(super) const fn may(name: &'static str, of: Type, note: &'static str) -> Field {
    Field { name, of, required: false, note }
}

/// A field that must be there.
pub(super) const fn must(name: &'static str, of: Type, note: &'static str) -> Field {
    Field { name, of, required: true, note }
}

/// The fields of a body that anybody knows. Those of the lists of the face's decoder are refused or ignored; the rest
/// are served.
pub(super) struct Body {
    pub(super) fields: &'static [Field],
    pub(super) unserved: &'static [&'static [Unserved]],
    pub(super) about: &'static [&'static str],
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Served,
    /// Taken; it changes nothing.
    Ignored,
    /// Refused by name, but for these values, as JSON, and null.
    Refused(&'static [&'static str]),
}

/// A call of a face.
pub(super) struct Spec {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) body: Option<Body>,
    /// The name of its answer's shape.
    pub(super) answer: &'static str,
    /// Whether it can stream.
    pub(super) streams: bool,
    /// The name of its refusals' shape.
    pub(super) error: &'static str,
}

impl Body {
    /// Every field that is known: what it may be, where that is more than nothing, and what becomes of it.
    pub(super) fn fates(&self) -> Vec<(&'static str, Option<&'static Field>, Fate)> {
        let field = |name: &str| self.fields.iter().find(|field| field.name == name);
        let refused = |name: &str| self.unserved.iter().copied().flatten().find(|(field, _)| *field == name);
        let mut fates = Vec::new();
        for field in self.fields {
            let fate = match refused(field.name) {
                Some((_, but)) => Fate::Refused(but),
                None if self.about.contains(&field.name) => Fate::Ignored,
                None => Fate::Served,
            };
            fates.push((field.name, Some(field), fate));
        }
        let others = self.unserved.iter().copied().flatten();
        fates.extend(
            others.filter(|(name, _)| field(name).is_none()).map(|(name, but)| (*name, None, Fate::Refused(but))),
        );
        let others = self.about.iter().filter(|name| field(name).is_none() && refused(name).is_none());
        fates.extend(others.map(|name| (*name, None, Fate::Ignored)));
        fates
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("boolean"),
            Self::Text => f.write_str("string"),
            Self::Null => f.write_str("null"),
            Self::Any => f.write_str("anything"),
            Self::Number(Range::AtLeast(least)) => write!(f, "number, at least {least}"),
            Self::Number(Range::MoreThan(least)) => write!(f, "number, above {least}"),
            Self::Number(range @ (Range::Within(..) | Range::Above(..))) => write!(f, "number, {range}"),
            Self::Whole(least, None) => write!(f, "whole number, at least {least}"),
            Self::Whole(least, Some(most)) => write!(f, "whole number, {least} to {most}"),
            Self::Word(words) => write!(f, "`{}`", words.join("`, `")),
            Self::List(of, None) => write!(f, "array of ({of})"),
            Self::List(of, Some(most)) => write!(f, "array of at most {most} of ({of})"),
            Self::Several(of, None) => write!(f, "array of at least one ({of})"),
            Self::Several(of, Some(most)) => write!(f, "array of 1 to {most} of ({of})"),
            Self::Map(of) => write!(f, "object of ({of})"),
            Self::Free => f.write_str("object"),
            Self::Object(fields) => {
                let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
                write!(f, "object: `{}`", names.join("`, `"))
            }
            Self::Either(types) => {
                let types: Vec<String> = types.iter().map(Self::to_string).collect();
                f.write_str(&types.join("; or "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decoders_lists_say_what_becomes_of_a_field() {
        const FIELDS: &[Field] = &[may("a", Type::Flag, ""), may("b", Type::Flag, ""), may("c", Type::Flag, "")];
        let body = Body {
            fields: FIELDS,
            unserved: &[&[("b", &["false"])], &[("d", &[]), ("e", &["0"])]],
            about: &["c", "e", "f"],
        };
        let fates: Vec<(&str, bool, Fate)> =
            body.fates().into_iter().map(|(name, field, fate)| (name, field.is_some(), fate)).collect();
        let expected = [
            ("a", true, Fate::Served),
            ("b", true, Fate::Refused(&["false"])),
            ("c", true, Fate::Ignored),
            ("d", false, Fate::Refused(&[])),
            ("e", false, Fate::Refused(&["0"])),
            ("f", false, Fate::Ignored),
        ];
        assert_eq!(fates, expected);
    }
}
