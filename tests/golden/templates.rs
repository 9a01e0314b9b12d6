//! Rendered conversations against transformers' `apply_chat_template`.

use penstock_router::prompt::ModelText;
use penstock_router::request::{Chat, Input, Message, Role};
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

fn chat(conversation: &Value) -> Chat {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let message = |message: &Value| Message {
        role: match message["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            other => panic!("no such role: {other:?}"),
        },
        name: message.get("name").map(text),
        ..Message::new(Role::User, text(&message["content"]))
    };
    Chat {
        messages: conversation["messages"].as_array().expect("a list").iter().map(message).collect(),
        add_generation_prompt: conversation["add_generation_prompt"].as_bool().unwrap_or(true),
        template_kwargs: conversation["kwargs"].as_object().cloned().unwrap_or_default(),
    }
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
        let source = (name != "own").then(|| golden(&format!("templates/{name}.jinja")));
        let source = source.map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
        let model = model(|file, value| {
            if let ("tokenizer_config.json", Some(source)) = (file, &source) {
                value["chat_template"] = json!(source);
                value["bos_token"] = tokens["bos_token"].clone();
                value["eos_token"] = tokens["eos_token"].clone();
            }
        });
        for (conversation, expected) in
            conversations.iter().zip(reference["rendered"][name].as_array().expect("a list"))
        {
            // This template cuts and rewrites contents, which takes a look-alike for one character.
            if name == "exercise" && is_look_alike(conversation) {
                continue;
            }
            let rendered = model.render(&chat(conversation));
            let equal = match (&rendered, expected) {
                (Ok(text), Value::String(expected)) => text == expected,
                (Err(failure), refused) => {
                    let reason = refused["error"].as_str().unwrap_or("rendered");
                    failure.param.as_deref() == Some("messages") && failure.message.ends_with(reason)
                }
                (Ok(_), _) => false,
            };
            if !equal {
                wrong.push(format!("{name}, {}:\n  {rendered:?}\n  {expected}", conversation["name"]));
            }
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
            assert_eq!(model.encode(&Input::Chat(chat(conversation))), Ok(ids(expected)), "{}", conversation["name"]);
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
        let rendered = model.render(&chat).expect("renders");
        let encoded = model.encode(&Input::Chat(chat)).expect("encodes");
        assert_eq!(encoded, expected, "{}", conversation["name"]);
        assert_eq!(model.detokenize(&encoded).expect("decodes"), rendered);
        seen += 1;
    }
    assert!(seen >= 4);
}
