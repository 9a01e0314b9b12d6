//! Tools: in which form a model writes its calls, how calls are read out of its answer, and the grammar that makes it
//! call. It does not know how faces write calls, nor how definitions get into the prompt (`prompt/tools.rs`).

mod grammar;
mod parser;
mod scanner;

use serde::Deserialize;
use serde_json::value::RawValue;

pub(crate) use grammar::constraint;
pub(crate) use parser::Parser;

use crate::request::{Tool, ToolChoice, Tools};
use crate::text::Vocabulary;

/// In which form a model writes its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after the other: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": {…}}` and nothing else, perhaps behind `<|python_tag|>`, with `;` between calls:
    /// Llama 3.
    Llama,
    /// `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`: Mistral.
    Mistral,
    /// The form of Hermes, told to a model whose template knows no tools, or a form that is not known here.
    Generic,
}

impl Format {
    /// The form that a chat template's model is trained on.
    pub(crate) fn of_template(source: &str) -> Self {
        if !source.contains("tools") {
            Self::Generic
        } else if source.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains("ipython") || source.contains("<|python_tag|>") {
            Self::Llama
        } else {
            Self::Generic
        }
    }

    /// What stands before calls: always, but for Llama.
    fn opening(self) -> &'static str {
        match self {
            Self::Hermes | Self::Generic => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What stands behind a call.
    fn closing(self) -> Option<&'static str> {
        match self {
            Self::Hermes | Self::Generic => Some("</tool_call>"),
            Self::Llama | Self::Mistral => None,
        }
    }

    /// The ids of those markers that are special tokens of a vocabulary, and without text for it.
    pub(crate) fn special_markers(self, vocabulary: &Vocabulary) -> Vec<u32> {
        let markers = [Some(self.opening()), self.closing()].into_iter().flatten();
        markers.filter_map(|marker| vocabulary.special(marker)).collect()
    }
}

impl Tools {
    /// Whether calls are looked for in an answer.
    ///
    /// Where the choice is `none`, the model is told of the tools all the same and its answer is text, whatever it
    /// says, as vLLM has it: the prompt's beginning, and with it the prefix cache, does not depend on the choice.
    pub(crate) fn are_callable(&self) -> bool {
        !self.definitions.is_empty() && self.choice != ToolChoice::None
    }

    /// Whether one answer may have several calls. One tool asked for by its name is called once.
    pub(crate) fn allow_several(&self) -> bool {
        match self.choice {
            ToolChoice::Auto | ToolChoice::None | ToolChoice::Required => self.parallel,
            ToolChoice::Named(_) => false,
        }
    }

    /// The names that a call may have.
    fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.definitions.iter().filter(|tool| match &self.choice {
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::None => false,
            ToolChoice::Named(name) => tool.name == *name,
        })
    }
}

/// A call as models write it; further members are left alone.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    /// Llama's word is `parameters`.
    #[serde(borrow, alias = "parameters")]
    arguments: &'a RawValue,
}
