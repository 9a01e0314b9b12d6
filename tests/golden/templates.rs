//! Rendered conversations against transformers' `apply_chat_template`.

use penstock_router::prompt::ModelText;
use penstock_router::request::{Chat, Input, Message, Role, Tool, ToolCall, Tools};
use serde_json::{Value, json};

use super::tokenizer::text_side;
use super::{golden, golden_json, ids};

/// The model with its tokenizer's and its configuration's JSON changed.
fn model(change: impl Fn(&str, &mut Value)) -> ModelText {
    let changed = text_side().files.into_iter().map(|file| {
        let mut value = serde_json::from_slice(&file.bytes).expect("JSON");
        change(file.name, &mut value);
        (file.name.to_owned(), value.to_string().into())
    });
    ModelText::new(&changed.collect()).expect("the files are read")
}

/// The model with another template, and the special tokens that it writes.
fn templated(name: &str, tokens: &Value) -> ModelText {
    let source = String::from_utf8(golden(&format!("templates/{name}.jinja"))).expect("UTF-8");
    model(|file, value| {
        if file == "tokenizer_config.json" {
            value["chat_template"] = json!(source);
            value["bos_token"] = tokens["bos_token"].clone();
            value["eos_token"] = tokens["eos_token"].clone();
        }
    })
}

fn chat(conversation: &Value) -> Chat {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let call = |call: &Value| ToolCall {
        id: text(&call["id"]),
        name: text(&call["function"]["name"]),
        arguments: call["function"]["arguments"].to_string(),
    };
    let message = |message: &Value| Message {
        role: match message["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            other => panic!("no such role: {other:?}"),
        },
        name: message.get("name").map(text),
        content: text(&message["content"]),
        tool_calls: message["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
        tool_call_id: message.get("tool_call_id").map(text),
    };
    Chat {
        messages: conversation["messages"].as_array().expect("a list").iter().map(message).collect(),
        add_generation_prompt: conversation["add_generation_prompt"].as_bool().unwrap_or(true),
        template_kwargs: conversation["kwargs"].as_object().cloned().unwrap_or_default(),
    }
}

fn tools(conversation: &Value) -> Tools {
    let tool = |tool: &Value| Tool {
        name: tool["function"]["name"].as_str().expect("text").to_owned(),
        description: tool["function"]["description"].as_str().map(str::to_owned),
        parameters: tool["function"]["parameters"].as_object().expect("an object").clone(),
        strict: false,
    };
    let definitions = conversation["tools"].as_array().into_iter().flatten().map(tool).collect();
    Tools { definitions, ..Tools::default() }
}

/// How a rendering differs from transformers', where it does.
fn difference(model: &ModelText, conversation: &Value, expected: &Value) -> Option<String> {
    let rendered = model.render(&chat(conversation), &tools(conversation));
    let equal = match (&rendered, expected) {
        (Ok(text), Value::String(expected)) => text == expected,
        (Err(failure), refused) => {
            let reason = refused["error"].as_str().unwrap_or("rendered");
            failure.param.as_deref() == Some("messages") && failure.message.ends_with(reason)
        }
        (Ok(_), _) => false,
    };
    (!equal).then(|| format!("{}:\n  {rendered:?}\n  {expected}", conversation["name"]))
}

/// Whether a conversation holds special tokens of the model as text.
fn is_look_alike(conversation: &Value) -> bool {
    conversation["name"].as_str().is_some_and(|name| name.starts_with("look-alike"))
}

#[test]
fn conversations_are_rendered_as_transformers_does() {
    let reference = golden_json("templates.json");
    let conversations = reference["conversations"].as_array().expect("a list");
    assert!(conversations.len() >= 20);
    let mut wrong = Vec::new();
    for (name, tokens) in reference["tokens"].as_object().expect("an object") {
        let model = if name == "own" { model(|_, _| {}) } else { templated(name, tokens) };
        let expected = reference["rendered"][name].as_array().expect("a list");
        for (conversation, expected) in conversations.iter().zip(expected) {
            // This template cuts and rewrites contents, which takes a look-alike for one character.
            if name == "exercise" && is_look_alike(conversation) {
                continue;
            }
            wrong.extend(difference(&model, conversation, expected).map(|found| format!("{name}, {found}")));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn templates_that_take_tools_get_them_as_from_transformers() {
    let reference = golden_json("templates.json");
    let conversations = reference["tool_conversations"].as_array().expect("a list");
    let mut wrong = Vec::new();
    for (name, tokens) in reference["tool_tokens"].as_object().expect("an object") {
        let model = templated(name, tokens);
        let expected = reference["tool_rendered"][name].as_array().expect("a list");
        assert_eq!(expected.len(), conversations.len());
        for (conversation, expected) in conversations.iter().zip(expected) {
            wrong.extend(difference(&model, conversation, expected).map(|found| format!("{name}, {found}")));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_models_own_template_gives_transformers_ids() {
    let reference = golden_json("templates.json");
    let model = model(|_, _| {});
    let conversations = reference["conversations"].as_array().expect("a list").iter();
    for (conversation, expected) in conversations.zip(reference["ids"].as_array().expect("a list")) {
        if !is_look_alike(conversation) {
            assert_eq!(
                model.encode(&Input::Chat(chat(conversation)), &Tools::default()),
                Ok(ids(expected)),
                "{}",
                conversation["name"]
            );
        }
    }
}

#[test]
fn look_alikes_are_encoded_as_any_other_text() {
    const IM_START: u32 = 1;
    const IM_END: u32 = 2;
    let reference = golden_json("templates.json");
    let model = model(|_, _| {});
    let plain = self::model(|file, value| {
        if file == "tokenizer.json" {
            value["added_tokens"] = json!([]);
        }
    });
    let plain = |text: &str| plain.tokenize(text, false).expect("encodes");
    let conversations = reference["conversations"].as_array().expect("a list").iter();
    let mut seen = 0;
    for conversation in conversations.filter(|conversation| is_look_alike(conversation)) {
        let chat = chat(conversation);
        // What the template writes, with its own special tokens alone as such.
        let mut expected = Vec::new();
        let mut turn = |text: &str| expected.extend([vec![IM_START], plain(text), vec![IM_END], plain("\n")].concat());
        if chat.messages[0].role != Role::System {
            turn("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face");
        }
        chat.messages.iter().for_each(|message| turn(&format!("{}\n{}", message.role.as_str(), message.content)));
        expected.extend([vec![IM_START], plain("assistant\n")].concat());
        let rendered = model.render(&chat, &Tools::default()).expect("renders");
        let encoded = model.encode(&Input::Chat(chat), &Tools::default()).expect("encodes");
        assert_eq!(encoded, expected, "{}", conversation["name"]);
        assert_eq!(model.detokenize(&encoded).expect("decodes"), rendered);
        seen += 1;
    }
    assert!(seen >= 4);
}
