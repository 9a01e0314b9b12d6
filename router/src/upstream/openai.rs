//! OpenAI's words: chat completions, and completions for plain text.

mod body;
mod read;

pub(in crate::upstream) use body::prepare;
pub(in crate::upstream) use read::Reader;

/// How refusals name the protocol.
const PROTOCOL: &str = "openai";

/// Which of the two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Chat,
    Text,
}

impl Call {
    /// Where it is made, below the upstream's base.
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Text => "/completions",
        }
    }
}
