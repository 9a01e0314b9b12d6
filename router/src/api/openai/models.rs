//! The small calls: which models there are, text → token ids and back.

use bytes::Bytes;
use http::StatusCode;
use penstock_proto::ErrorCode;
use serde::Serialize;

use super::chat::chat;
use super::{model, tools, unserved};
use crate::api::caller::target;
use crate::api::face::Call;
use crate::api::json::{Field, Object};
use crate::api::{Api, Notes, Reply};
use crate::dispatch::Dispatch;
use crate::fleet::Model;
use crate::request::{Failure, Input};

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Card>,
}

#[derive(Serialize)]
struct Card {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// vLLM's; null where an upstream does not say.
    max_model_len: Option<u32>,
}

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// vLLM's: whether an answer could be had now. Gateways and balancers ask for it before they send anything.
pub(super) fn health(dispatch: &Dispatch) -> Result<Reply, Failure> {
    if dispatch.models().is_empty() {
        return Err(Failure::new(ErrorCode::NoWorker, "no worker serves any model now"));
    }
    Ok(Reply::Json(StatusCode::OK, Bytes::from_static(b"{}")))
}

impl Api {
    /// `GET /v1/models` and `/v1/models/NAME`: what the caller may ask for and somebody can answer.
    pub(super) fn list_models(&self, call: &Call<'_>) -> Result<Reply, Failure> {
        let Some(name) = call.path.strip_prefix("/v1/models/") else {
            let served = |name: &String| {
                let (own, created) = self.known(call.caller, name)?;
                let answers = own.as_ref().is_none_or(|own| own.is_served());
                answers.then(|| card(name, own.as_deref(), created))
            };
            let data = self.names(call.caller).iter().filter_map(served).collect();
            return json(&List { object: "list", data });
        };
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        match self.known(call.caller, &name) {
            Some((own, created)) => json(&card(&name, own.as_deref(), created)),
            None => Err(self.unknown(call.caller, &name)),
        }
    }

    /// `POST /v1/tokenize`: a prompt, or messages with their tools.
    pub(super) async fn tokenize(&self, call: &Call<'_>, notes: &mut Notes) -> Result<Reply, Failure> {
        let mut object = Object::body(&call.body)?;
        let model = self.local(call.caller, &model(&mut object)?)?;
        notes.target = Some(target(&model));
        unserved::check(&mut object, &[("return_token_strs", &["false"])])?;
        let special = object.take("add_special_tokens");
        let wants_special = special.as_ref().map(Field::bool).transpose()?;
        let tokens = match object.take("prompt") {
            Some(prompt) => {
                let (text, prompt) = (model.text.clone(), prompt.string()?);
                self.dispatch.beside(move || text.tokenize(&prompt, wants_special.unwrap_or(true))).await?
            }
            None => {
                if let (Some(field), Some(true)) = (special, wants_special) {
                    return Err(field.refuse("is for a prompt: a chat template writes its special tokens itself"));
                }
                let chat = chat(&mut object, &mut notes.ignored)?;
                let tools = tools::decode(&mut object, &mut notes.ignored)?;
                self.dispatch.encode(&model.text, Input::Chat(chat), tools).await?
            }
        };
        notes.ignored.extend(object.left());
        json(&Tokenized { count: tokens.len(), max_model_len: model.card.context_length, tokens })
    }

    /// `POST /v1/detokenize`.
    pub(super) async fn detokenize(&self, call: &Call<'_>, notes: &mut Notes) -> Result<Reply, Failure> {
        let mut object = Object::body(&call.body)?;
        let model = self.local(call.caller, &model(&mut object)?)?;
        notes.target = Some(target(&model));
        let ids = object.need("tokens")?.token_ids(usize::MAX)?;
        notes.ignored.extend(object.left());
        let text = model.text.clone();
        let prompt = self.dispatch.beside(move || text.detokenize(&ids)).await?;
        json(&Detokenized { prompt })
    }
}

fn card(name: &str, own: Option<&Model>, created: u64) -> Card {
    let max_model_len = own.map(|own| own.card.context_length);
    Card { id: name.to_owned(), object: "model", created, owned_by: "penstock", max_model_len }
}

fn json(body: &impl Serialize) -> Result<Reply, Failure> {
    Ok(Reply::Json(StatusCode::OK, Bytes::from(serde_json::to_vec(body).expect("the face's shapes serialise"))))
}
