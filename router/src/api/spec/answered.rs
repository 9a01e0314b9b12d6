//! The shapes of every answer and refusal.

use super::field::{Field, Type, may, must};

const COUNT: Type = Type::Whole(0, None);
const TEXT_OR_NULL: Type = Type::Either(&[Type::Text, Type::Null]);
const NUMBER: Type = Type::Number(crate::api::bounds::Range::Within(f64::MIN, f64::MAX));
const LOGPROBS: Type = Type::Either(&[Type::Free, Type::Null]);

/// Each by the name under which calls name it.
pub(super) const SHAPES: &[(&str, &[Field])] = &[
    ("ChatCompletion", CHAT_COMPLETION),
    ("Completion", COMPLETION),
    ("Response", RESPONSE),
    ("Message", MESSAGE),
    ("Model", MODEL),
    ("Models", MODELS),
    ("Tokens", TOKENS),
    ("Text", &[must("prompt", Type::Text, "")]),
    ("TokenCount", &[must("input_tokens", COUNT, "")]),
    ("Health", &[]),
    ("OpenApi", &[must("openapi", Type::Text, ""), must("paths", Type::Free, "")]),
    ("Error", ERROR),
    ("AnthropicError", ANTHROPIC_ERROR),
];

const CHAT_COMPLETION: &[Field] = &[
    must("id", Type::Text, ""),
    must("object", Type::Word(&["chat.completion"]), ""),
    must("created", COUNT, "Unix seconds"),
    must("model", Type::Text, ""),
    must(
        "choices",
        Type::List(
            &Type::Object(&[
                must("index", COUNT, ""),
                must("message", Type::Object(CHAT_MESSAGE), ""),
                must("logprobs", LOGPROBS, ""),
                must("finish_reason", Type::Word(&["stop", "length", "tool_calls"]), ""),
            ]),
            None,
        ),
        "",
    ),
    must("usage", Type::Object(USAGE), ""),
];
const CHAT_MESSAGE: &[Field] = &[
    must("role", Type::Word(&["assistant"]), ""),
    must("content", TEXT_OR_NULL, ""),
    must("refusal", Type::Null, ""),
    may("tool_calls", Type::List(&Type::Object(TOOL_CALL), None), ""),
];
const TOOL_CALL: &[Field] = &[
    must("id", Type::Text, ""),
    must("type", Type::Word(&["function"]), ""),
    must("function", Type::Object(&[must("name", Type::Text, ""), must("arguments", Type::Text, "JSON")]), ""),
];
const USAGE: &[Field] = &[
    must("prompt_tokens", COUNT, ""),
    must("completion_tokens", COUNT, ""),
    must("total_tokens", COUNT, ""),
    must("prompt_tokens_details", Type::Object(&[must("cached_tokens", COUNT, "")]), ""),
];

const COMPLETION: &[Field] = &[
    must("id", Type::Text, ""),
    must("object", Type::Word(&["text_completion"]), ""),
    must("created", COUNT, "Unix seconds"),
    must("model", Type::Text, ""),
    must(
        "choices",
        Type::List(
            &Type::Object(&[
                must("index", COUNT, ""),
                must("text", Type::Text, ""),
                must("logprobs", LOGPROBS, ""),
                must("finish_reason", Type::Word(&["stop", "length"]), ""),
            ]),
            None,
        ),
        "",
    ),
    must("usage", Type::Object(USAGE), ""),
];

const RESPONSE: &[Field] = &[
    must("id", Type::Text, ""),
    must("object", Type::Word(&["response"]), ""),
    must("created_at", COUNT, "Unix seconds"),
    must("completed_at", Type::Either(&[COUNT, Type::Null]), "Unix seconds"),
    must("status", Type::Word(&["completed", "incomplete"]), ""),
    must("error", Type::Null, ""),
    must(
        "incomplete_details",
        Type::Either(&[Type::Object(&[must("reason", Type::Word(&["max_output_tokens"]), "")]), Type::Null]),
        "",
    ),
    must("model", Type::Text, ""),
    must("output", Type::List(&Type::Either(&[Type::Object(ITEM_MESSAGE), Type::Object(ITEM_CALL)]), None), ""),
    must("usage", Type::Object(RESPONSE_USAGE), ""),
    must("background", Type::Flag, ""),
    must("store", Type::Flag, ""),
    must("previous_response_id", Type::Null, ""),
    must("max_tool_calls", Type::Null, ""),
    must("reasoning", Type::Free, ""),
    must("service_tier", Type::Word(&["default"]), ""),
    must("truncation", Type::Word(&["disabled"]), ""),
    must("instructions", TEXT_OR_NULL, ""),
    must("max_output_tokens", Type::Either(&[COUNT, Type::Null]), ""),
    must("metadata", Type::Map(&Type::Text), ""),
    must("parallel_tool_calls", Type::Flag, ""),
    must("temperature", NUMBER, ""),
    must("text", Type::Free, ""),
    must("tool_choice", Type::Either(&[Type::Text, Type::Free]), ""),
    must("tools", Type::List(&Type::Free, None), ""),
    must("top_logprobs", COUNT, ""),
    must("top_p", NUMBER, ""),
    must("user", TEXT_OR_NULL, ""),
    must("safety_identifier", TEXT_OR_NULL, ""),
    must("prompt_cache_key", TEXT_OR_NULL, ""),
    must("prompt_cache_retention", TEXT_OR_NULL, ""),
];
const STATUS: Field = must("status", Type::Word(&["completed", "incomplete"]), "");
const ITEM_MESSAGE: &[Field] = &[
    must("id", Type::Text, ""),
    must("type", Type::Word(&["message"]), ""),
    STATUS,
    must("role", Type::Word(&["assistant"]), ""),
    must(
        "content",
        Type::List(
            &Type::Object(&[
                must("type", Type::Word(&["output_text"]), ""),
                must("text", Type::Text, ""),
                must("annotations", Type::List(&Type::Any, Some(0)), ""),
                must("logprobs", Type::List(&Type::Free, None), ""),
            ]),
            None,
        ),
        "",
    ),
];
const ITEM_CALL: &[Field] = &[
    must("id", Type::Text, ""),
    must("type", Type::Word(&["function_call"]), ""),
    STATUS,
    must("arguments", Type::Text, "JSON"),
    must("call_id", Type::Text, ""),
    must("name", Type::Text, ""),
];
const RESPONSE_USAGE: &[Field] = &[
    must("input_tokens", COUNT, ""),
    must("input_tokens_details", Type::Object(&[must("cached_tokens", COUNT, "")]), ""),
    must("output_tokens", COUNT, ""),
    must("output_tokens_details", Type::Object(&[must("reasoning_tokens", COUNT, "")]), ""),
    must("total_tokens", COUNT, ""),
];

const MESSAGE: &[Field] = &[
    must("id", Type::Text, ""),
    must("type", Type::Word(&["message"]), ""),
    must("role", Type::Word(&["assistant"]), ""),
    must("model", Type::Text, ""),
    must("content", Type::List(&Type::Either(&[Type::Object(TEXT_BLOCK), Type::Object(TOOL_USE)]), None), ""),
    must("stop_reason", Type::Word(&["end_turn", "max_tokens", "stop_sequence", "tool_use"]), ""),
    must("stop_sequence", TEXT_OR_NULL, ""),
    must(
        "usage",
        Type::Object(&[
            must("input_tokens", COUNT, "of the prompt's, those that no cache held"),
            must("cache_creation_input_tokens", COUNT, ""),
            must("cache_read_input_tokens", COUNT, "of the prompt's, those that a cache held"),
            must("output_tokens", COUNT, ""),
        ]),
        "",
    ),
];
const TEXT_BLOCK: &[Field] = &[must("type", Type::Word(&["text"]), ""), must("text", Type::Text, "")];
const TOOL_USE: &[Field] = &[
    must("type", Type::Word(&["tool_use"]), ""),
    must("id", Type::Text, ""),
    must("name", Type::Text, ""),
    must("input", Type::Free, ""),
];

const MODEL: &[Field] = &[
    must("id", Type::Text, ""),
    must("object", Type::Word(&["model"]), ""),
    must("created", COUNT, "Unix seconds"),
    must("owned_by", Type::Text, ""),
    must("max_model_len", COUNT, "vLLM's: tokens of prompt and answer together"),
];
const MODELS: &[Field] =
    &[must("object", Type::Word(&["list"]), ""), must("data", Type::List(&Type::Object(MODEL), None), "")];
const TOKENS: &[Field] =
    &[must("count", COUNT, ""), must("max_model_len", COUNT, ""), must("tokens", Type::List(&COUNT, None), "")];

const ERROR: &[Field] = &[must(
    "error",
    Type::Object(&[
        must("message", Type::Text, ""),
        must("type", Type::Text, ""),
        must("param", TEXT_OR_NULL, "the field at fault"),
        must("code", Type::Text, "of Penstock's closed list"),
    ]),
    "",
)];
const ANTHROPIC_ERROR: &[Field] = &[
    must("type", Type::Word(&["error"]), ""),
    must(
        "error",
        Type::Object(&[
            must("type", Type::Text, ""),
            must("message", Type::Text, ""),
            must("code", Type::Text, "of Penstock's closed list"),
            must("param", TEXT_OR_NULL, "the field at fault"),
        ]),
        "",
    ),
    must("request_id", Type::Text, ""),
];
