//! Anthropic's words: messages.

mod body;
mod read;
mod turns;

pub(in crate::upstream) use body::prepare;
pub(in crate::upstream) use read::Reader;

/// How refusals name the protocol.
const PROTOCOL: &str = "anthropic";
/// The tool by whose arguments a structured answer comes.
const ANSWER_TOOL: &str = "answer";

/// How the answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As text and calls.
    Plain,
    /// As the arguments of the one tool that the model must call, which become the text.
    Structured,
}
