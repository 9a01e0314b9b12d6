//! Fetches a model's card and text files from a worker, and checks them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use penstock_proto::ModelName;
use penstock_proto::worker::{FileChunk, FileInfo, GetModelRequest, ModelCard, WorkerClient, get_model_response};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use super::{Card, Causes};

/// How long a worker may take to send everything.
const TIME: Duration = Duration::from_secs(60);
/// Bytes of all of a model's text files; the largest tokenizers in use have some 35 MB.
const BYTES: u64 = 256 << 20;

/// A model's card and its text files by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) card: Card,
    pub(crate) files: BTreeMap<String, Bytes>,
}

/// Why a model could not be taken from a worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the worker answers {:?}: {}", .0.code(), Causes(.0.as_ref()))]
    Status(#[from] Box<Status>),
    #[error("the worker did not send the model within {} s", TIME.as_secs())]
    Slow,
    #[error("the worker sent no card before its files")]
    NoCard,
    #[error("the worker serves {found:?} where {expected:?} was asked for")]
    Other { found: String, expected: String },
    #[error("the card says {field} = 0")]
    Zero { field: &'static str },
    #[error("the text files take {bytes} bytes, more than {BYTES}")]
    TooLarge { bytes: u64 },
    #[error("the file {name:?} is not on the card, or longer than it says")]
    Unannounced { name: String },
    #[error("the file {name:?} does not have the size and digest of the card")]
    Corrupt { name: String },
}

/// Asks the worker behind `channel` for a model.
pub(crate) async fn fetch(channel: Channel, model: &ModelName, digest: &str) -> Result<Fetched, FetchError> {
    timeout(TIME, receive(channel, model, digest)).await.map_err(|_| FetchError::Slow)?
}

async fn receive(channel: Channel, model: &ModelName, digest: &str) -> Result<Fetched, FetchError> {
    let request = GetModelRequest { model: model.to_string() };
    let answer = WorkerClient::new(channel).get_model(request).await.map_err(Box::new)?;
    let mut parts = answer.into_inner();
    let mut download: Option<Download> = None;
    while let Some(message) = parts.message().await.map_err(Box::new)? {
        match (message.part, &mut download) {
            (Some(get_model_response::Part::Card(card)), None) => download = Some(Download::new(card, model, digest)?),
            (Some(get_model_response::Part::File(chunk)), Some(download)) => download.take(chunk)?,
            (Some(get_model_response::Part::Card(_) | get_model_response::Part::File(_)) | None, _) => {
                return Err(FetchError::NoCard);
            }
        }
    }
    download.ok_or(FetchError::NoCard)?.finish()
}

struct Download {
    card: Card,
    announced: Vec<FileInfo>,
    files: BTreeMap<String, BytesMut>,
}

impl Download {
    fn new(card: ModelCard, model: &ModelName, digest: &str) -> Result<Self, FetchError> {
        let other = |found: &str, expected: &str| FetchError::Other { found: found.into(), expected: expected.into() };
        if card.name != model.as_str() {
            return Err(other(&card.name, model.as_str()));
        }
        if card.digest != digest {
            return Err(other(&card.digest, digest));
        }
        for (field, value) in [("context_length", card.context_length), ("vocab_size", card.vocab_size)] {
            if value == 0 {
                return Err(FetchError::Zero { field });
            }
        }
        let bytes = card.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size));
        if bytes > BYTES {
            return Err(FetchError::TooLarge { bytes });
        }
        let files = card.files.iter().map(|file| (file.name.clone(), BytesMut::new())).collect();
        let (context_length, vocab_size, kv_tokens) = (card.context_length, card.vocab_size, card.kv_tokens);
        let told = Card { digest: card.digest, context_length, vocab_size, kv_tokens };
        Ok(Self { card: told, announced: card.files, files })
    }

    fn take(&mut self, chunk: FileChunk) -> Result<(), FetchError> {
        let info = self.announced.iter().find(|file| file.name == chunk.name);
        let (Some(info), Some(file)) = (info, self.files.get_mut(&chunk.name)) else {
            return Err(FetchError::Unannounced { name: chunk.name });
        };
        if (file.len() + chunk.data.len()) as u64 > info.size {
            return Err(FetchError::Unannounced { name: chunk.name });
        }
        file.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn finish(self) -> Result<Fetched, FetchError> {
        for info in &self.announced {
            let file = &self.files[&info.name];
            if file.len() as u64 != info.size || hex(&Sha256::digest(file)) != info.digest {
                return Err(FetchError::Corrupt { name: info.name.clone() });
            }
        }
        let files = self.files.into_iter().map(|(name, bytes)| (name, bytes.freeze())).collect();
        Ok(Fetched { card: self.card, files })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download(files: &[(&str, &[u8])]) -> Download {
        let info = |(name, bytes): &(&str, &[u8])| FileInfo {
            name: (*name).to_owned(),
            size: bytes.len() as u64,
            digest: hex(&Sha256::digest(bytes)),
        };
        let card = ModelCard {
            name: "m".to_owned(),
            digest: "d".to_owned(),
            context_length: 8,
            vocab_size: 4,
            files: files.iter().map(info).collect(),
            ..ModelCard::default()
        };
        Download::new(card, &ModelName::new("m").unwrap(), "d").unwrap()
    }

    fn chunk(name: &str, data: &[u8]) -> FileChunk {
        FileChunk { name: name.to_owned(), data: data.to_vec() }
    }

    #[test]
    fn files_come_in_chunks_and_must_be_what_the_card_says() {
        let files: &[(&str, &[u8])] = &[("a.json", b"hello"), ("b.json", b"")];
        let mut whole = download(files);
        whole.take(chunk("a.json", b"hel")).unwrap();
        whole.take(chunk("a.json", b"lo")).unwrap();
        assert_eq!(whole.finish().unwrap().files["a.json"], "hello");

        let mut other = download(files);
        other.take(chunk("a.json", b"hullo")).unwrap();
        assert!(matches!(other.finish(), Err(FetchError::Corrupt { .. })));
        assert!(matches!(download(files).take(chunk("a.json", b"hello!")), Err(FetchError::Unannounced { .. })));
        assert!(matches!(download(files).take(chunk("c.json", b"")), Err(FetchError::Unannounced { .. })));
        assert!(matches!(download(files).finish(), Err(FetchError::Corrupt { .. })));
    }

    #[test]
    fn a_card_of_something_else_or_of_nothing_is_refused() {
        let model = ModelName::new("m").unwrap();
        let card = |change: fn(&mut ModelCard)| {
            let (name, digest) = ("m".to_owned(), "d".to_owned());
            let mut card = ModelCard { name, digest, context_length: 8, vocab_size: 4, ..ModelCard::default() };
            change(&mut card);
            Download::new(card, &model, "d").map(|_| ())
        };
        assert!(card(|_| {}).is_ok());
        assert!(matches!(card(|c| c.digest = "e".to_owned()), Err(FetchError::Other { .. })));
        assert!(matches!(card(|c| c.name = "n".to_owned()), Err(FetchError::Other { .. })));
        assert!(matches!(card(|c| c.vocab_size = 0), Err(FetchError::Zero { field: "vocab_size" })));
        let huge = |c: &mut ModelCard| {
            c.files = vec![FileInfo { name: "a".to_owned(), size: u64::MAX, digest: String::new() }; 2];
        };
        assert!(matches!(card(huge), Err(FetchError::TooLarge { .. })));
    }
}
