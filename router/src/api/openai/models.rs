//! The small calls: which models there are, text → token ids and back.

use bytes::Bytes;
use http::StatusCode;
use penstock_proto::{ErrorCode, ModelName};
use serde::Serialize;

use super::chat::chat;
use super::{model, tools, unserved};
use crate::api::json::{Field, Object};
use crate::api::{Notes, Reply};
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
    /// vLLM's.
    max_model_len: u32,
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

/// `GET /v1/models` and `/v1/models/NAME`.
pub(super) fn list(dispatch: &Dispatch, path: &str) -> Result<Reply, Failure> {
    let Some(name) = path.strip_prefix("/v1/models/") else {
        let data = dispatch.models().iter().map(|model| card(model)).collect();
        return json(&List { object: "list", data });
    };
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    let name = ModelName::new(name).map_err(|error| Failure {
        param: Some("model".to_owned()),
        ..Failure::new(ErrorCode::ModelNotFound, error.to_string())
    })?;
    json(&card(&*dispatch.model(&name)?))
}

fn card(model: &Model) -> Card {
    Card {
        id: model.name.to_string(),
        object: "model",
        created: model.created,
        owned_by: "penstock",
        max_model_len: model.card.context_length,
    }
}

/// `POST /v1/tokenize`: a prompt, or messages with their tools.
pub(super) async fn tokenize(dispatch: &Dispatch, body: &[u8], notes: &mut Notes) -> Result<Reply, Failure> {
    let mut object = Object::body(body)?;
    let model = dispatch.model(&model(&mut object)?)?;
    notes.target = Some(model.name.clone());
    unserved::check(&mut object, &[("return_token_strs", &["false"])])?;
    let special = object.take("add_special_tokens");
    let wants_special = special.as_ref().map(Field::bool).transpose()?;
    let tokens = match object.take("prompt") {
        Some(prompt) => {
            let (text, prompt) = (model.text.clone(), prompt.string()?);
            dispatch.beside(move || text.tokenize(&prompt, wants_special.unwrap_or(true))).await?
        }
        None => {
            if let (Some(field), Some(true)) = (special, wants_special) {
                return Err(field.refuse("is for a prompt: a chat template writes its special tokens itself"));
            }
            let chat = chat(&mut object, &mut notes.ignored)?;
            let tools = tools::decode(&mut object, &mut notes.ignored)?;
            dispatch.encode(&model.text, Input::Chat(chat), tools).await?
        }
    };
    notes.ignored.extend(object.left());
    json(&Tokenized { count: tokens.len(), max_model_len: model.card.context_length, tokens })
}

/// `POST /v1/detokenize`.
pub(super) async fn detokenize(dispatch: &Dispatch, body: &[u8], notes: &mut Notes) -> Result<Reply, Failure> {
    let mut object = Object::body(body)?;
    let model = dispatch.model(&model(&mut object)?)?;
    notes.target = Some(model.name.clone());
    let ids = object.need("tokens")?.token_ids(usize::MAX)?;
    notes.ignored.extend(object.left());
    let text = model.text.clone();
    let prompt = dispatch.beside(move || text.detokenize(&ids)).await?;
    json(&Detokenized { prompt })
}

fn json(body: &impl Serialize) -> Result<Reply, Failure> {
    Ok(Reply::Json(StatusCode::OK, Bytes::from(serde_json::to_vec(body).expect("the face's shapes serialise"))))
}
