//! A model's text side: the chat template and the tokenizer that turn an [`Input`] into token ids, and the defaults
//! that come with the model. Text ends here on its way in. Built from the files that a worker delivers, in Hugging
//! Face's formats; what sends them is not known here.

mod calendar;
mod encode;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod json;
mod lookalike;
mod template;
mod tools;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use penstock_proto::ErrorCode;
use serde_json::{Map, Value, json};

use crate::request::{Chat, Failure, Input, Tools};
use crate::text::Vocabulary;
use crate::tools::Format;
use encode::Encoder;
pub use files::Defaults;
use files::{GenerationConfig, TokenizerConfig};
use lookalike::{Finder, Marks};
use template::Template;
use tools::{Given, Manner};

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no text side without it.
    #[error("the model comes without {file}")]
    Missing {
        /// Its name.
        file: &'static str,
    },
    /// Not what its format asks for.
    #[error("{file} cannot be read: {reason}")]
    Malformed {
        /// Its name.
        file: &'static str,
        /// The parser's words.
        reason: String,
    },
}

/// Variables of a template that a request may not set through `chat_template_kwargs`: they have fields of their own.
const RESERVED: &[&str] = &["messages", "add_generation_prompt", "tools"];

/// A model's tokenizer, chat template and defaults.
#[derive(Debug)]
pub struct ModelText {
    vocabulary: Arc<Vocabulary>,
    encoder: Encoder,
    finder: Finder,
    template: Result<Template, String>,
    /// The template for conversations with tools, where the model has one of its own for them.
    tool_template: Option<Result<Template, String>>,
    manner: Manner,
    special_tokens: Map<String, Value>,
    eos_ids: Vec<u32>,
    defaults: Defaults,
}

impl ModelText {
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json`, `generation_config.json` and
    /// `chat_template.jinja`.
    ///
    /// # Errors
    /// A file that is missing or malformed. A template that is missing or broken is no error here: the model still
    /// serves text and token ids, and refuses conversations with the reason.
    pub fn new(files: &BTreeMap<String, Bytes>) -> Result<Self, Error> {
        let tokenizer = files::tokenizer(files)?;
        let config: TokenizerConfig = files::json(files, files::TOKENIZER_CONFIG)?;
        let generation: GenerationConfig = files::json(files, files::GENERATION_CONFIG)?;
        let source = match files.get(files::CHAT_TEMPLATE) {
            Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            None => config.chat_template.as_ref().and_then(|template| template.source().map(str::to_owned)),
        };
        let for_tools = config.chat_template.as_ref().and_then(|template| template.for_tools());
        let format = Format::of_template(for_tools.or(source.as_deref()).unwrap_or_default());
        let tool_template = for_tools.map(Template::compile);
        let template = match source {
            Some(source) => Template::compile(&source),
            None => Err("the model has no chat template: send text to /v1/completions".to_owned()),
        };
        let finder = Finder::new(&tokenizer);
        let vocabulary = Arc::new(Vocabulary::new(tokenizer));
        let eos_ids = generation.eos_ids(config.eos_id(vocabulary.tokenizer()));
        let encoder = Encoder::new(vocabulary.clone(), &config);
        let special_tokens = config.special_tokens();
        let takes_system = template.as_ref().is_ok_and(|template| takes_system(template, &special_tokens));
        Ok(Self {
            vocabulary,
            encoder,
            finder,
            template,
            tool_template,
            manner: Manner { format, takes_system },
            special_tokens,
            eos_ids,
            defaults: generation.defaults,
        })
    }

    /// The token ids of a prompt, at least one.
    ///
    /// Strings in a conversation that look like special tokens are encoded as plain text; all else is what
    /// `transformers` renders and encodes. A conversation's model is told of `tools`, by its template where that takes
    /// them, else in words.
    pub fn encode(&self, input: &Input, tools: &Tools) -> Result<Vec<u32>, Failure> {
        let (ids, param) = match input {
            Input::Chat(chat) => (self.encode_chat(chat, tools)?, "messages"),
            Input::Text(text) => (self.encoder.encode_text(text, true)?, "prompt"),
            Input::Tokens(ids) => (self.check(ids, "prompt")?.to_vec(), "prompt"),
        };
        if ids.is_empty() {
            return Err(Failure::field(param, format!("{param} must come to at least one token")));
        }
        Ok(ids)
    }

    /// The text that a conversation becomes, look-alikes of special tokens as they were written.
    pub fn render(&self, chat: &Chat, tools: &Tools) -> Result<String, Failure> {
        let (text, marks) = self.render_marked(chat, tools)?;
        Ok(marks.reveal(&text))
    }

    /// The ids of a text, special tokens recognised; with those that the model wants around a text if asked for.
    pub fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Failure> {
        self.encoder.encode_text(text, add_special_tokens)
    }

    /// The text of ids, special tokens spelled out.
    pub fn detokenize(&self, ids: &[u32]) -> Result<String, Failure> {
        Ok(self.vocabulary.decode_with_special(self.check(ids, "tokens")?))
    }

    /// What a [`TextStream`](crate::text::TextStream) of this model needs.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Ids that end an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// How tokens are chosen where a request does not say.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// In which form the model writes calls.
    pub(crate) fn format(&self) -> Format {
        self.manner.format
    }

    fn encode_chat(&self, chat: &Chat, tools: &Tools) -> Result<Vec<u32>, Failure> {
        let (text, marks) = self.render_marked(chat, tools)?;
        self.encoder.encode_marked(&text, &marks)
    }

    /// The rendered conversation with a private character in the place of each look-alike.
    fn render_marked(&self, chat: &Chat, tools: &Tools) -> Result<(String, Marks), Failure> {
        let for_tools = self.tool_template.as_ref().filter(|_| !tools.definitions.is_empty());
        let template = for_tools
            .unwrap_or(&self.template)
            .as_ref()
            .map_err(|reason| Failure::field("messages", reason.clone()))?;
        if let Some(name) = RESERVED.iter().find(|name| chat.template_kwargs.contains_key(**name)) {
            return Err(Failure::field(
                "chat_template_kwargs",
                format!("{name} cannot be set by chat_template_kwargs"),
            ));
        }
        let Given { messages, tools } = self.manner.give(chat, tools);
        let mut given = Value::from(vec![messages, tools, Value::Object(chat.template_kwargs.clone())]);
        let marks = self.finder.hide(&mut given)?;
        let [messages, tools, kwargs] = given
            .as_array_mut()
            .and_then(|given| given.get_disjoint_mut([0, 1, 2]).ok())
            .expect("three values were put in");
        let mut variables = self.special_tokens.clone();
        variables.extend([("tools".to_owned(), tools.take()), ("documents".to_owned(), Value::Null)]);
        variables.extend(std::mem::take(kwargs.as_object_mut().expect("an object was put in")));
        variables.insert("messages".to_owned(), messages.take());
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(chat.add_generation_prompt));
        let text = template.render(&variables).map_err(|reason| Failure::field("messages", marks.reveal(&reason)))?;
        Ok((text, marks))
    }

    fn check<'a>(&self, ids: &'a [u32], param: &str) -> Result<&'a [u32], Failure> {
        let size = self.vocabulary.size();
        match ids.iter().find(|id| **id >= size) {
            Some(id) => {
                Err(Failure::field(param, format!("token id {id} is not in the model's vocabulary of {size} tokens")))
            }
            None => Ok(ids),
        }
    }
}

/// Whether a template takes a system's turn and says what it says.
fn takes_system(template: &Template, special_tokens: &Map<String, Value>) -> bool {
    const PROBE: &str = "penstock-probe";
    let messages = json!([{ "role": "system", "content": PROBE }, { "role": "user", "content": "a" }]);
    let mut variables = special_tokens.clone();
    variables.extend([("messages".to_owned(), messages), ("add_generation_prompt".to_owned(), Value::Bool(true))]);
    template.render(&variables).is_ok_and(|text| text.contains(PROBE))
}

/// A tokenizer that fails is broken: nothing that a client sends makes it fail.
fn broken(error: tokenizers::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("the model's tokenizer failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Message, Role};

    fn chat(messages: &[(Role, &str)]) -> Chat {
        let messages = messages.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        Chat { messages, add_generation_prompt: true, template_kwargs: Map::new() }
    }

    fn encode(model: &ModelText, input: &Input) -> Result<Vec<u32>, Failure> {
        model.encode(input, &Tools::default())
    }

    fn failure(result: Result<Vec<u32>, Failure>) -> (String, String) {
        let failure = result.expect_err("must be refused");
        (failure.param.unwrap_or_default(), failure.message)
    }

    #[test]
    fn a_conversation_is_rendered_and_special_tokens_recognised() {
        let model = fixture::model(fixture::CHATML);
        let chat = chat(&[(Role::User, " hi ")]);
        let rendered = "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(model.render(&chat, &Tools::default()).expect("renders"), rendered);
        let ids = encode(&model, &Input::Chat(chat)).expect("encodes");
        assert_eq!(ids, model.tokenize(rendered, false).expect("encodes"));
        assert_eq!(ids.iter().filter(|id| **id == 1).count(), 2);
    }

    #[test]
    fn a_look_alike_stays_text_wherever_it_stands() {
        let model = fixture::model("{{ '<|im_start|>' + messages[0].content | trim }}{{ user }}{{ list | tojson }}");
        let mut chat = chat(&[(Role::User, "  a<|im_end|>b <|im_start|>  ")]);
        let kwargs = json!({ "user": "<|im_end|>", "list": [{ "<|im_end|>": "<|im_start|>" }] });
        chat.template_kwargs = kwargs.as_object().cloned().expect("an object");
        let rendered = "<|im_start|>a<|im_end|>b <|im_start|><|im_end|>[{\"<|im_end|>\": \"<|im_start|>\"}]";
        assert_eq!(model.render(&chat, &Tools::default()).expect("renders"), rendered);
        let ids = encode(&model, &Input::Chat(chat)).expect("encodes");
        assert_eq!((ids[0], ids[1..].iter().filter(|id| model.vocabulary().is_special(**id)).count()), (1, 0));
        assert_eq!(model.detokenize(&ids).expect("decodes"), rendered);
        // The same as the text is encoded by a tokenizer that knows no special tokens.
        let plain = fixture::without_special().encode(&rendered[12..], false).expect("encodes");
        assert_eq!(ids[1..], *plain.get_ids());
    }

    #[test]
    fn private_characters_of_a_conversation_are_left_alone() {
        let model = fixture::model("{{ messages[0].content }}");
        let text = "\u{F0000}<|im_end|>\u{F0001}\u{10FFFD}";
        let chat = chat(&[(Role::User, text)]);
        assert_eq!(model.render(&chat, &Tools::default()).expect("renders"), text);
        let ids = encode(&model, &Input::Chat(chat)).expect("encodes");
        assert_eq!(model.detokenize(&ids).expect("decodes"), text);
        assert!(!ids.contains(&2));
    }

    #[test]
    fn what_a_template_refuses_is_the_clients_fault() {
        let model = fixture::model("{{ raise_exception('roles must alternate') }}");
        let refused = failure(encode(&model, &Input::Chat(chat(&[(Role::User, "a")]))));
        assert_eq!(refused, ("messages".into(), "the chat template refuses: roles must alternate".into()));
    }

    #[test]
    fn templates_end_and_reach_no_files() {
        let user = Input::Chat(chat(&[(Role::User, "a")]));
        let endless = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
        assert!(failure(encode(&fixture::model(endless), &user)).1.contains("too long"));
        let deep = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        assert!(failure(encode(&fixture::model(deep), &user)).1.contains("recursion"));
        let (_, message) = failure(encode(&fixture::model("{% include '/etc/passwd' %}"), &user));
        assert!(message.contains("template not found"), "{message}");
    }

    #[test]
    fn a_missing_or_broken_template_refuses_conversations_alone() {
        let user = Input::Chat(chat(&[(Role::User, "a")]));
        for (model, reason) in [(fixture::model("{% if %}"), "syntax error"), (fixture::bare(), "no chat template")] {
            let (param, message) = failure(encode(&model, &user));
            assert!(param == "messages" && message.contains(reason), "{message}");
            assert!(!encode(&model, &Input::Text("a".into())).expect("encodes").is_empty());
        }
    }

    #[test]
    fn ids_outside_the_vocabulary_and_empty_prompts_are_refused() {
        let model = fixture::model(fixture::CHATML);
        let size = model.vocabulary().size();
        let (param, message) = failure(encode(&model, &Input::Tokens(vec![1, size])));
        assert!(param == "prompt" && message.contains(&size.to_string()), "{message}");
        assert_eq!(failure(encode(&model, &Input::Tokens(Vec::new()))).0, "prompt");
        assert_eq!(failure(encode(&model, &Input::Text(String::new()))).0, "prompt");
        assert_eq!(failure(encode(&fixture::model(""), &Input::Chat(chat(&[(Role::User, "a")])))).0, "messages");
        assert_eq!(encode(&model, &Input::Tokens(vec![size - 1])), Ok(vec![size - 1]));
    }

    #[test]
    fn reserved_variables_are_refused() {
        let model = fixture::model(fixture::CHATML);
        let mut chat = chat(&[(Role::User, "a")]);
        chat.template_kwargs.insert("messages".into(), Value::Null);
        assert_eq!(failure(encode(&model, &Input::Chat(chat))).0, "chat_template_kwargs");
    }

    #[test]
    fn files_say_bos_eos_and_defaults() {
        let mut files = fixture::files("{{ bos_token }}");
        let config =
            json!({ "bos_token": { "content": "<|im_start|>" }, "eos_token": "<|im_end|>", "add_bos_token": true });
        files.insert("tokenizer_config.json".into(), config.to_string().into());
        let model = ModelText::new(&files).expect("loads");
        assert_eq!(encode(&model, &Input::Text("a".into())).expect("encodes")[0], 1);
        assert_eq!(model.tokenize("a", false).expect("encodes").len(), 1);
        assert_eq!(model.eos_ids(), [2]);
        let generation = json!({ "eos_token_id": [2, 0], "temperature": 0.6, "top_k": 20, "do_sample": true });
        files.insert("generation_config.json".into(), generation.to_string().into());
        let model = ModelText::new(&files).expect("loads");
        assert_eq!(model.eos_ids(), [2, 0]);
        assert_eq!(
            (model.defaults().temperature, model.defaults().top_k, model.defaults().top_p),
            (Some(0.6), Some(20), None)
        );
    }

    #[test]
    fn malformed_files_are_named() {
        let mut files = fixture::files("");
        files.insert("tokenizer_config.json".into(), "{".into());
        assert!(ModelText::new(&files).expect_err("malformed").to_string().starts_with("tokenizer_config.json"));
        files.remove("tokenizer.json");
        assert!(ModelText::new(&files).expect_err("missing").to_string().contains("tokenizer.json"));
    }
}
