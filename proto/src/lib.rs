//! What two Penstock processes must agree on: messages, ids, error codes, headers.
//!
//! Generated code stands behind named modules ([`worker`]); everything else is written by hand. This crate holds no
//! behaviour beyond conversions.

pub mod class;
pub mod headers;
pub mod id;
pub mod status;
pub mod time;

pub use class::{DataClass, Priority};
pub use id::{ModelName, RequestId, TenantName, WorkerName};
pub use status::{ErrorCode, Fault};

#[expect(missing_docs, clippy::all, unreachable_pub, reason = "generated; the .proto files hold the documentation")]
mod generated {
    tonic::include_proto!("penstock.v1");
}

/// Every proto of this crate as an encoded `FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The protocol between router and worker (`worker.proto`).
pub mod worker {
    pub use crate::generated::worker_client::WorkerClient;
    pub use crate::generated::worker_server::{Worker, WorkerServer};
    pub use crate::generated::{
        Constraint, DataClass, DrainNotice, DrainRequest, DrainResponse, FileChunk, FileInfo, FinishReason, Finished,
        GetLoadRequest, GetModelRequest, GetModelResponse, Load, ModelCard, Priority, SamplingParams, Tokens,
        WatchLoadRequest, WorkerGenerateEvent, WorkerGenerateRequest, get_model_response, worker_generate_event,
    };
}
