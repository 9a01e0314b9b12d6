//! The model's card and files as messages.

use std::sync::Arc;

use penstock_proto::worker::{FileChunk, FileInfo, GetModelResponse, ModelCard, get_model_response::Part};

use crate::model::Served;

/// Bytes of a file in one message.
const CHUNK: usize = 256 << 10;

/// The card, then every file in chunks, each made when it is asked for.
pub(super) fn parts(served: Arc<Served>, kv_tokens: u64) -> impl Iterator<Item = GetModelResponse> + Send {
    let card = Part::Card(card(&served, kv_tokens));
    let chunks = (0..served.files.len()).flat_map(move |file| {
        let served = served.clone();
        (0..served.files[file].bytes.len()).step_by(CHUNK).map(move |start| {
            let file = &served.files[file];
            let data = file.bytes[start..file.bytes.len().min(start + CHUNK)].to_vec();
            Part::File(FileChunk { name: file.name.to_owned(), data })
        })
    });
    std::iter::once(card).chain(chunks).map(|part| GetModelResponse { part: Some(part) })
}

fn card(served: &Served, kv_tokens: u64) -> ModelCard {
    let card = &served.card;
    let info = |file: &crate::tokenizer::TextFile| FileInfo {
        name: file.name.to_owned(),
        size: file.bytes.len() as u64,
        digest: file.digest.to_string(),
    };
    ModelCard {
        name: card.name.clone(),
        digest: card.digest.to_string(),
        architecture: card.architecture.clone(),
        quantization: card.quantisation.clone(),
        parameters: card.parameters,
        context_length: card.context_length,
        vocab_size: card.vocab_size,
        eos_token_ids: card.eos_token_ids.clone(),
        numerics: card.numerics.clone(),
        files: served.files.iter().map(info).collect(),
        kv_tokens,
    }
}
