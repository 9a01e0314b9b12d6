//! The types of the part of CEL that rules may use.

use cel::common::ast::operators as op;
use cel::common::ast::{CallExpr, Expr, ListExpr, LiteralValue, SelectExpr};
use penstock_proto::DataClass;

use super::InvalidRule;

/// What a rule may ask for, and its type.
const VARIABLES: [(&str, Type); 11] = [
    ("request.prompt_bytes", Type::Int),
    ("request.messages", Type::Int),
    ("request.task", Type::String),
    ("request.stream", Type::Bool),
    ("request.tools", Type::Int),
    ("tenant", Type::String),
    ("class", Type::Class),
    ("load.wait_ms", Type::Int),
    ("load.served", Type::Bool),
    ("time.hour", Type::Int),
    ("time.weekday", Type::Int),
];

/// The nesting that a rule may have.
const DEPTH_LIMIT: usize = 64;

/// The names that a rule may ask for.
pub(super) fn known() -> String {
    VARIABLES.map(|(name, _)| name).join(", ")
}

/// Checks that an expression gives a bool.
pub(super) fn rule(expression: &cel::IdedExpr) -> Result<(), InvalidRule> {
    match type_of(&expression.expr, DEPTH_LIMIT)? {
        Type::Bool => Ok(()),
        other => Err(InvalidRule::NotBool { found: other.as_str() }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Double,
    String,
    /// The word of a data class.
    Class,
    IntList,
    StringList,
}

impl Type {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Double => "double",
            Self::String => "string",
            Self::Class => "the class",
            Self::IntList => "list of int",
            Self::StringList => "list of string",
        }
    }

    fn is_text(self) -> bool {
        match self {
            Self::String | Self::Class => true,
            Self::Bool | Self::Int | Self::Double | Self::IntList | Self::StringList => false,
        }
    }
}

fn type_of(expr: &Expr, depth: usize) -> Result<Type, InvalidRule> {
    let refuse = |what: &str| Err(InvalidRule::NotAllowed { what: what.to_owned() });
    let Some(depth) = depth.checked_sub(1) else { return refuse("nesting this deep") };
    match expr {
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => Ok(Type::Bool),
            LiteralValue::Int(_) => Ok(Type::Int),
            LiteralValue::Double(_) => Ok(Type::Double),
            LiteralValue::String(_) => Ok(Type::String),
            LiteralValue::Bytes(_) => refuse("a string of bytes"),
            LiteralValue::UInt(_) => refuse("an unsigned number"),
            LiteralValue::Null => refuse("null"),
        },
        Expr::Ident(name) => variable(name),
        Expr::Select(select) => selected(select),
        Expr::List(list) => elements(list, depth),
        Expr::Call(call) => result(call, depth),
        Expr::Comprehension(_) => refuse("a macro"),
        Expr::Map(_) => refuse("a map"),
        Expr::Struct(_) => refuse("a struct"),
        Expr::Unspecified => refuse("nothing"),
    }
}

fn variable(name: &str) -> Result<Type, InvalidRule> {
    let found = VARIABLES.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| InvalidRule::Unknown { name: name.to_owned() })
}

fn selected(select: &SelectExpr) -> Result<Type, InvalidRule> {
    match &select.operand.expr {
        Expr::Ident(_) if select.test => Err(InvalidRule::NotAllowed { what: "has()".to_owned() }),
        Expr::Ident(base) => variable(&format!("{base}.{}", select.field)),
        _ => Err(InvalidRule::Unknown { name: format!("….{}", select.field) }),
    }
}

fn elements(list: &ListExpr, depth: usize) -> Result<Type, InvalidRule> {
    let types: Result<Vec<Type>, _> = list.elements.iter().map(|element| type_of(&element.expr, depth)).collect();
    let types = types?;
    if !types.is_empty() && types.iter().all(|kind| *kind == Type::Int) {
        Ok(Type::IntList)
    } else if !types.is_empty() && types.iter().all(|kind| kind.is_text()) {
        Ok(Type::StringList)
    } else {
        Err(InvalidRule::NotAllowed { what: "a list that is empty or of mixed types".to_owned() })
    }
}

fn result(call: &CallExpr, depth: usize) -> Result<Type, InvalidRule> {
    let operands: Vec<&Expr> =
        call.target.iter().map(|target| &target.expr).chain(call.args.iter().map(|arg| &arg.expr)).collect();
    let types: Result<Vec<Type>, _> = operands.iter().map(|operand| type_of(operand, depth)).collect();
    let types = types?;
    let name = call.func_name.as_str();
    class_words(name, &operands, &types)?;
    let found = match (name, types.as_slice()) {
        (op::LOGICAL_AND | op::LOGICAL_OR, [Type::Bool, Type::Bool]) | (op::LOGICAL_NOT, [Type::Bool]) => Type::Bool,
        (op::EQUALS | op::NOT_EQUALS, [a, b]) if a == b || (a.is_text() && b.is_text()) => Type::Bool,
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => match (a, b) {
            (Type::Int, Type::Int) | (Type::Double, Type::Double) | (Type::String, Type::String) => Type::Bool,
            (Type::Class, _) | (_, Type::Class) => return Err(InvalidRule::ClassOrder),
            _ => return Err(types_differ(name, &types)),
        },
        (op::IN, [Type::Int, Type::IntList]) => Type::Bool,
        (op::IN, [text, Type::StringList]) if text.is_text() => Type::Bool,
        (op::CONDITIONAL, [Type::Bool, a, b]) if a == b => *a,
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE, [a @ (Type::Int | Type::Double), b]) if a == b => *a,
        (op::MODULO, [Type::Int, Type::Int]) => Type::Int,
        (op::NEGATE, [a @ (Type::Int | Type::Double)]) => *a,
        ("size", [Type::String | Type::IntList | Type::StringList]) => Type::Int,
        ("contains" | "startsWith" | "endsWith", [Type::String, Type::String]) => Type::Bool,
        _ if is_known(name) => return Err(types_differ(name, &types)),
        _ => return Err(InvalidRule::NotAllowed { what: format!("the function {name}") }),
    };
    Ok(found)
}

fn is_known(name: &str) -> bool {
    let operator = [
        op::LOGICAL_AND,
        op::LOGICAL_OR,
        op::LOGICAL_NOT,
        op::EQUALS,
        op::NOT_EQUALS,
        op::IN,
        op::CONDITIONAL,
        op::ADD,
        op::SUBSTRACT,
        op::MULTIPLY,
        op::DIVIDE,
        op::MODULO,
        op::NEGATE,
    ];
    operator.contains(&name) || ["size", "contains", "startsWith", "endsWith"].contains(&name)
}

/// A class that is compared with a word that is none would never be equal, and nobody would notice.
fn class_words(name: &str, operands: &[&Expr], types: &[Type]) -> Result<(), InvalidRule> {
    if ![op::EQUALS, op::NOT_EQUALS, op::IN].contains(&name) || !types.contains(&Type::Class) {
        return Ok(());
    }
    let mut words = Vec::new();
    for operand in operands {
        match operand {
            Expr::Literal(LiteralValue::String(word)) => words.push(word.inner()),
            Expr::List(list) => words.extend(list.elements.iter().filter_map(|element| match &element.expr {
                Expr::Literal(LiteralValue::String(word)) => Some(word.inner()),
                _ => None,
            })),
            _ => {}
        }
    }
    match words.into_iter().find(|word| word.parse::<DataClass>().is_err()) {
        Some(word) => Err(InvalidRule::ClassWord(word.to_owned())),
        None => Ok(()),
    }
}

fn types_differ(name: &str, types: &[Type]) -> InvalidRule {
    let operator = match name {
        op::CONDITIONAL => "?:",
        op::IN => "in",
        other => other.trim_matches('_'),
    };
    InvalidRule::Types { operator: operator.to_owned(), found: types.iter().map(|kind| kind.as_str()).collect() }
}
