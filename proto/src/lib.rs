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
        GetLoadRequest, GetModelRequest, GetModelResponse, Load, ModelCard, Priority, RankedToken, SamplingParams,
        TokenLogprob, Tokens, WatchLoadRequest, WorkerGenerateEvent, WorkerGenerateRequest, constraint,
        get_model_response, worker_generate_event,
    };
}

/// What clients ask of a router over gRPC (`inference.proto`).
pub mod inference {
    pub use crate::generated::inference_client::InferenceClient;
    pub use crate::generated::inference_server::{Inference, InferenceServer};
    pub use crate::generated::{
        Chat, Constraint, DataClass, FinishReason, GenerateRequest, GenerateResponse, ListModelsRequest,
        ListModelsResponse, Message, Model, Priority, RankedText, Sampling, TextLogprob, TokenIds, Tool, ToolCall,
        ToolCallDelta, ToolChoice, Usage, constraint, generate_request, tool_choice,
    };
}

/// What operators ask of a router (`admin.proto`).
pub mod admin {
    pub use crate::generated::admin_client::AdminClient;
    pub use crate::generated::admin_server::{Admin, AdminServer};
    pub use crate::generated::{
        ApplyRequest, Budget, CatalogChange, CatalogSource, CatalogVersion, CreateOperatorRequest, CreateTenantRequest,
        DiffCatalogRequest, DrainWorkerRequest, DrainWorkerResponse, ExplainDecidedRequest, ExplainRequest,
        Explanation, GetBudgetRequest, GetBudgetResponse, GetCatalogRequest, GetCatalogResponse, KeyChange,
        ListVersionsRequest, ListVersionsResponse, MemberState, RevokeOperatorRequest, RevokeTenantKeyRequest,
        RollbackRequest, RotateTenantKeyRequest, SetSessionClassRequest, SetSessionClassResponse, StatusRequest,
        StatusResponse, UndrainWorkerRequest, UndrainWorkerResponse, WorkerStatus,
    };
}
