//! The bodies of every call: their fields and what these may be.

use super::field::{Body, Field, Type, may, must};
use crate::api::openai::unserved::{ABOUT, CHAT, COMMON, COMPLETION};
use crate::api::{anthropic, bounds, calling, responses};

const NUMBER_OF_TOKENS: Type = Type::Whole(1, Some(u32::MAX as i64));
const ID: Type = Type::Whole(0, Some(u32::MAX as i64));
const IDS: Type = Type::List(&ID, None);
const MODEL: Field = must("model", Type::Text, "one of `GET /v1/models`");
const STREAM: Field = may("stream", Type::Flag, "server-sent events instead of one body");
const NAME: Field = must("name", Type::Text, "1 to 64 of `a-z A-Z 0-9 _ -`");

/// Of chat and text completions, OpenAI's and vLLM's.
macro_rules! sampling {
    ($($more:expr),* $(,)?) => {
        &[
            MODEL,
            $($more,)*
            may("max_tokens", NUMBER_OF_TOKENS, "at most what the context leaves"),
            may("temperature", Type::Number(bounds::TEMPERATURE), "the model's own where left out, else 1"),
            may("top_p", Type::Number(bounds::TOP_P), "the model's own where left out, else 1"),
            may("n", Type::Whole(1, Some(bounds::CHOICES as i64)), "choices of one prompt"),
            STREAM,
            may("stream_options", Type::Object(STREAM_OPTIONS), "with `stream: true` only"),
            may("stop", STOP, "not part of the answer"),
            may("presence_penalty", Type::Number(bounds::PENALTY), ""),
            may("frequency_penalty", Type::Number(bounds::PENALTY), ""),
            may("logit_bias", Type::Map(&Type::Number(bounds::LOGIT_BIAS)), "by token id"),
            may("seed", Type::Whole(i64::MIN, Some(i64::MAX)), "the same tokens again; drawn where left out"),
            may("top_k", Type::Whole(-1, Some(u32::MAX as i64)), "vLLM's; 0 and -1: off"),
            may("min_p", Type::Number(bounds::MIN_P), "vLLM's"),
            may("repetition_penalty", Type::Number(bounds::REPETITION_PENALTY), "vLLM's; 1: off"),
            may("min_tokens", Type::Whole(0, Some(u32::MAX as i64)), "vLLM's"),
            may("ignore_eos", Type::Flag, "vLLM's"),
            may("stop_token_ids", Type::List(&ID, Some(bounds::STOP_IDS)), "vLLM's"),
            may("include_stop_str_in_output", Type::Flag, "vLLM's"),
            may("guided_regex", Type::Text, "vLLM's; the whole answer"),
            may("guided_choice", Type::Several(&Type::Text, None), "vLLM's; the whole answer is one of these"),
            may("guided_grammar", Type::Text, "vLLM's; Lark"),
            may("guided_json", Type::Either(&[Type::Free, Type::Text, Type::Flag]), "vLLM's; a JSON Schema"),
            may("structured_outputs", Type::Object(STRUCTURED), "vLLM's; one of these"),
        ]
    };
}

const STRUCTURED: &[Field] = &[
    may("json", Type::Either(&[Type::Free, Type::Text, Type::Flag]), ""),
    may("json_object", Type::Flag, ""),
    may("regex", Type::Text, ""),
    may("choice", Type::Several(&Type::Text, None), ""),
    may("grammar", Type::Text, ""),
];
const STOP: Type = Type::Either(&[Type::Text, Type::List(&Type::Text, Some(bounds::STOPS))]);
const STREAM_OPTIONS: &[Field] = &[may("include_usage", Type::Flag, "a last chunk with the usage")];

pub(super) const CHAT_COMPLETION: Body = Body {
    fields: sampling![
        must("messages", Type::Several(&Type::Object(MESSAGE), Some(bounds::MESSAGES)), "at least one"),
        may("max_completion_tokens", NUMBER_OF_TOKENS, "the same as `max_tokens`"),
        may("logprobs", Type::Flag, ""),
        may("top_logprobs", Type::Whole(0, Some(bounds::TOP_LOGPROBS as i64)), "with `logprobs: true` only"),
        may("tools", Type::List(&Type::Object(CHAT_TOOL), Some(calling::TOOLS)), "functions"),
        may("tool_choice", CHAT_CHOICE, ""),
        may("parallel_tool_calls", Type::Flag, ""),
        may("response_format", Type::Object(RESPONSE_FORMAT), "held to, token by token"),
        may("add_generation_prompt", Type::Flag, "vLLM's"),
        may("chat_template_kwargs", Type::Free, "vLLM's; variables of the template"),
    ],
    unserved: &[COMMON, CHAT],
    about: ABOUT,
};

pub(super) const TEXT_COMPLETION: Body = Body {
    fields: sampling![
        must("prompt", PROMPT, "each text, or array of ids, is a choice of its own"),
        may("echo", Type::Flag, "the prompt before the answer"),
        may("best_of", Type::Whole(1, Some(bounds::CHOICES as i64)), ""),
        may("logprobs", Type::Whole(0, Some(bounds::TOP_LOGPROBS as i64)), "so many beside each token's own"),
    ],
    unserved: &[COMMON, COMPLETION],
    about: ABOUT,
};

const PROMPT: Type =
    Type::Either(&[Type::Text, Type::Several(&ID, None), Type::Several(&Type::Text, None), Type::Several(&IDS, None)]);
const CHAT_TOOL: &[Field] = &[
    must("type", Type::Word(&["function"]), ""),
    must(
        "function",
        Type::Object(&[
            NAME,
            may("description", Type::Text, ""),
            may("parameters", Type::Free, "a JSON Schema"),
            may("strict", Type::Flag, ""),
        ]),
        "",
    ),
];
const CHAT_CHOICE: Type = Type::Either(&[
    Type::Word(&["none", "auto", "required"]),
    Type::Object(&[must("type", Type::Word(&["function"]), ""), must("function", Type::Object(&[NAME]), "")]),
]);
const RESPONSE_FORMAT: &[Field] = &[
    must("type", Type::Word(&["text", "json_object", "json_schema"]), ""),
    may(
        "json_schema",
        Type::Object(&[
            NAME,
            may("description", Type::Text, ""),
            may("schema", Type::Free, "a JSON Schema"),
            may("strict", Type::Flag, ""),
        ]),
        "",
    ),
];
const MESSAGE: &[Field] = &[
    must("role", Type::Word(&["system", "developer", "user", "assistant", "tool"]), ""),
    may("content", Type::Either(&[Type::Text, Type::Several(&Type::Object(TEXT_PART), None)]), ""),
    may("name", Type::Text, ""),
    may("tool_calls", Type::List(&Type::Object(TOOL_CALL), None), "of an assistant's turn"),
    may("tool_call_id", Type::Text, "of a tool's turn"),
];
const TEXT_PART: &[Field] = &[must("type", Type::Word(&["text"]), ""), must("text", Type::Text, "")];
const TOOL_CALL: &[Field] = &[
    must("id", Type::Text, ""),
    must("type", Type::Word(&["function"]), ""),
    must("function", Type::Object(&[NAME, must("arguments", Type::Text, "JSON")]), ""),
];

pub(super) const TOKENIZE: Body = Body {
    fields: &[
        MODEL,
        may("prompt", Type::Text, "this or `messages`"),
        may("messages", Type::Several(&Type::Object(MESSAGE), Some(bounds::MESSAGES)), "this or `prompt`"),
        may("tools", Type::List(&Type::Object(CHAT_TOOL), Some(calling::TOOLS)), "of messages"),
        may("tool_choice", CHAT_CHOICE, "of messages"),
        may("parallel_tool_calls", Type::Flag, "of messages"),
        may("add_special_tokens", Type::Flag, "of a prompt; true where left out"),
        may("add_generation_prompt", Type::Flag, "of messages"),
        may("chat_template_kwargs", Type::Free, "of messages"),
    ],
    unserved: &[&[("return_token_strs", &["false"])]],
    about: &[],
};

pub(super) const DETOKENIZE: Body = Body { fields: &[MODEL, must("tokens", IDS, "")], unserved: &[], about: &[] };

pub(super) const RESPONSE: Body = Body {
    fields: &[
        MODEL,
        must("input", INPUT, "items: messages, function calls and their outputs"),
        may("instructions", Type::Text, "a system message before the input"),
        may("max_output_tokens", NUMBER_OF_TOKENS, "at most what the context leaves"),
        may("temperature", Type::Number(bounds::TEMPERATURE), "the model's own where left out, else 1"),
        may("top_p", Type::Number(bounds::TOP_P), "the model's own where left out, else 1"),
        may("tools", Type::List(&Type::Object(RESPONSE_TOOL), Some(calling::TOOLS)), "functions"),
        may(
            "tool_choice",
            Type::Either(&[Type::Word(&["none", "auto", "required"]), Type::Object(RESPONSE_CHOICE)]),
            "",
        ),
        may("parallel_tool_calls", Type::Flag, ""),
        may("text", Type::Object(TEXT), "held to, token by token"),
        STREAM,
        may("include", Type::List(&Type::Word(INCLUDABLE), Some(16)), "what nothing here makes is included empty"),
        may("top_logprobs", Type::Whole(0, Some(bounds::TOP_LOGPROBS as i64)), ""),
        may("metadata", Type::Map(&Type::Text), "said again in the response; nothing is kept"),
        may("user", Type::Text, "said again in the response; nothing is kept"),
        may("safety_identifier", Type::Text, "said again in the response; nothing is kept"),
        may("prompt_cache_key", Type::Text, "said again in the response; nothing is kept"),
        may("prompt_cache_retention", Type::Text, "said again in the response; nothing is kept"),
    ],
    unserved: &[responses::decode::UNSERVED],
    about: responses::decode::ABOUT,
};

const INPUT: Type = Type::Either(&[
    Type::Text,
    Type::Several(
        &Type::Either(&[Type::Object(INPUT_MESSAGE), Type::Object(FUNCTION_CALL), Type::Object(CALL_OUTPUT)]),
        Some(bounds::MESSAGES),
    ),
]);
const INPUT_MESSAGE: &[Field] = &[
    may("type", Type::Word(&["message"]), ""),
    must("role", Type::Word(&["system", "developer", "user", "assistant"]), ""),
    must("content", Type::Either(&[Type::Text, Type::Several(&Type::Object(INPUT_PART), None)]), ""),
];
const INPUT_PART: &[Field] =
    &[must("type", Type::Word(&["input_text", "output_text"]), ""), must("text", Type::Text, "")];
const FUNCTION_CALL: &[Field] = &[
    must("type", Type::Word(&["function_call"]), ""),
    must("call_id", Type::Text, ""),
    NAME,
    must("arguments", Type::Text, "JSON"),
];
const CALL_OUTPUT: &[Field] = &[
    must("type", Type::Word(&["function_call_output"]), ""),
    must("call_id", Type::Text, ""),
    must("output", Type::Either(&[Type::Text, Type::Several(&Type::Object(OUTPUT_PART), None)]), ""),
];
const OUTPUT_PART: &[Field] = &[must("type", Type::Word(&["input_text"]), ""), must("text", Type::Text, "")];
const RESPONSE_TOOL: &[Field] = &[
    must("type", Type::Word(&["function"]), ""),
    NAME,
    may("description", Type::Text, ""),
    may("parameters", Type::Free, "a JSON Schema"),
    may("strict", Type::Flag, ""),
];
const RESPONSE_CHOICE: &[Field] = &[must("type", Type::Word(&["function"]), ""), NAME];
const TEXT: &[Field] = &[
    may(
        "format",
        Type::Object(&[
            must("type", Type::Word(&["text", "json_object", "json_schema"]), ""),
            may("name", Type::Text, "of a schema; 1 to 64 of `a-z A-Z 0-9 _ -`"),
            may("description", Type::Text, ""),
            may("schema", Type::Free, "a JSON Schema"),
            may("strict", Type::Flag, ""),
        ]),
        "",
    ),
    may("verbosity", Type::Word(&["medium"]), ""),
];
const INCLUDABLE: &[&str] = &["message.output_text.logprobs", "reasoning.encrypted_content"];

pub(super) const ANTHROPIC_MESSAGE: Body = Body {
    fields: &[
        MODEL,
        must("max_tokens", NUMBER_OF_TOKENS, "at most what the context leaves"),
        MESSAGES,
        SYSTEM,
        may("temperature", Type::Number(anthropic::decode::TEMPERATURE), "the model's own where left out, else 1"),
        may("top_p", Type::Number(bounds::TOP_P), "the model's own where left out, else 1"),
        may("top_k", Type::Whole(0, Some(u32::MAX as i64)), "the model's own where left out; 0: off"),
        may("stop_sequences", Type::List(&Type::Text, Some(bounds::STOPS)), "not part of the answer"),
        STREAM,
        TOOLS,
        TOOL_CHOICE,
    ],
    unserved: &[anthropic::decode::UNSERVED],
    about: anthropic::decode::ABOUT,
};

pub(super) const COUNT: Body = Body {
    fields: &[MODEL, MESSAGES, SYSTEM, TOOLS, TOOL_CHOICE],
    unserved: &[anthropic::decode::UNSERVED],
    about: anthropic::decode::ABOUT,
};

const MESSAGES: Field = must(
    "messages",
    Type::Several(&Type::Object(TURN), Some(bounds::MESSAGES)),
    "at least one; the last one is the user's; no images, no documents",
);
const SYSTEM: Field =
    may("system", Type::Either(&[Type::Text, Type::Several(&Type::Object(TEXT_PART), None)]), "instructions");
const TOOLS: Field =
    may("tools", Type::List(&Type::Object(ANTHROPIC_TOOL), Some(calling::TOOLS)), "the client's own (`custom`)");
const TOOL_CHOICE: Field = may("tool_choice", Type::Object(ANTHROPIC_CHOICE), "");
const TURN: &[Field] = &[
    must("role", Type::Word(&["user", "assistant"]), ""),
    must("content", Type::Either(&[Type::Text, Type::Several(&BLOCK, None)]), ""),
];
const BLOCK: Type = Type::Either(&[Type::Object(TEXT_PART), Type::Object(TOOL_USE), Type::Object(TOOL_RESULT)]);
const TOOL_USE: &[Field] =
    &[must("type", Type::Word(&["tool_use"]), ""), must("id", Type::Text, ""), NAME, must("input", Type::Free, "")];
const TOOL_RESULT: &[Field] = &[
    must("type", Type::Word(&["tool_result"]), ""),
    must("tool_use_id", Type::Text, ""),
    may("content", Type::Either(&[Type::Text, Type::Several(&Type::Object(TEXT_PART), None)]), ""),
    may("is_error", Type::Flag, "told to the model by `Error: ` before the content"),
];
const ANTHROPIC_TOOL: &[Field] = &[
    NAME,
    must("input_schema", Type::Free, "a JSON Schema"),
    may("type", Type::Word(&["custom"]), ""),
    may("description", Type::Text, ""),
    may("strict", Type::Flag, ""),
];
const ANTHROPIC_CHOICE: &[Field] = &[
    must("type", Type::Word(&["auto", "any", "tool", "none"]), ""),
    may("name", Type::Text, "of `tool`"),
    may("disable_parallel_tool_use", Type::Flag, ""),
];
