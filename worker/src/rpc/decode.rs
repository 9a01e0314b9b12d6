//! A request as a submission. What is missing, malformed or not served yet is refused by its name, never ignored.

use std::time::Duration;

use penstock_engine::{Priority, SamplingParams, Submission, SubmitError, Tenant, clock};
use penstock_proto::worker::{self as wire, WorkerGenerateRequest};
use penstock_proto::{ErrorCode, RequestId, TenantName, time};
use tonic::Status;

use crate::constraint::{Constraint, Refusal};
use crate::model::Card;

/// The submission, and what its outputs are to be held to.
pub(super) fn submission(
    request: WorkerGenerateRequest,
    card: &Card,
) -> Result<(Submission, Option<Constraint>), Status> {
    // Listed whole, so that a new field of the message cannot be forgotten here.
    let WorkerGenerateRequest {
        request_id,
        tenant,
        priority,
        deadline_unix_ms,
        class,
        // Keeps prefixes of one salt apart from those of another; without a prefix cache they all are.
        cache_salt: _,
        model_digest,
        adapter_digest,
        prompt_ids,
        resume_tokens,
        sampling,
        constraint,
    } = request;
    if request_id.parse::<RequestId>().is_err() {
        return Err(field("request_id", format!("{request_id:?} is no ULID")));
    }
    let tenant = TenantName::new(tenant).map_err(|error| field("tenant", error.to_string()))?;
    let priority = priority_of(priority)?;
    let remaining = remaining(deadline_unix_ms)?;
    match wire::DataClass::try_from(class) {
        Ok(wire::DataClass::Unspecified) | Err(_) => return Err(field("class", format!("{class} is no data class"))),
        Ok(
            wire::DataClass::Public
            | wire::DataClass::Internal
            | wire::DataClass::Confidential
            | wire::DataClass::Restricted,
        ) => {}
    }
    if model_digest != card.digest.to_string() {
        let message = format!("this worker serves {}, not the model {model_digest:?}", card.digest);
        return Err(field("model_digest", message));
    }
    if !adapter_digest.is_empty() {
        return Err(not_served("adapter_digest"));
    }
    let constraint = constraint.map(constraint_of).transpose()?;
    let sampling = sampling_of(sampling.ok_or_else(|| field("sampling", "it is missing".to_owned()))?)?;
    let deadline = clock::now().checked_add(remaining);
    let deadline = deadline.ok_or_else(|| field("deadline_unix_ms", "it is too far away".to_owned()))?;
    let tenant = Tenant(tenant.as_str().into());
    Ok((Submission { tenant, priority, deadline, prompt: prompt_ids, resume: resume_tokens, sampling }, constraint))
}

fn constraint_of(constraint: wire::Constraint) -> Result<Constraint, Status> {
    use wire::constraint::Kind;
    match constraint.kind {
        Some(Kind::JsonSchema(schema)) => Ok(Constraint::JsonSchema(schema)),
        Some(Kind::Regex(regex)) => Ok(Constraint::Regex(regex)),
        Some(Kind::Grammar(grammar)) => Ok(Constraint::Grammar(grammar)),
        None => Err(field("constraint", "it has no kind".to_owned())),
    }
}

fn priority_of(priority: i32) -> Result<Priority, Status> {
    match wire::Priority::try_from(priority) {
        Ok(wire::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(wire::Priority::Batch) => Ok(Priority::Batch),
        Ok(wire::Priority::Unspecified) | Err(_) => Err(field("priority", format!("{priority} is no priority"))),
    }
}

/// What is left until the deadline.
fn remaining(deadline_unix_ms: u64) -> Result<Duration, Status> {
    if deadline_unix_ms == 0 {
        return Err(field("deadline_unix_ms", "every request has a deadline".to_owned()));
    }
    match Duration::from_millis(deadline_unix_ms).checked_sub(time::unix_now()) {
        Some(remaining) => Ok(remaining),
        None => Err(ErrorCode::DeadlineExceeded.status("the deadline has passed", None)),
    }
}

fn sampling_of(sampling: wire::SamplingParams) -> Result<SamplingParams, Status> {
    let wire::SamplingParams {
        seed,
        choice_index,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        max_tokens,
        min_tokens,
        ignore_eos,
        stop_token_ids,
        top_logprobs,
    } = sampling;
    // A map has no order of its own; what is computed must not depend on one.
    let mut logit_bias: Vec<(u32, f32)> = logit_bias.into_iter().collect();
    logit_bias.sort_by_key(|(id, _)| *id);
    Ok(SamplingParams {
        seed,
        choice_index,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        max_tokens,
        min_tokens,
        ignore_eos,
        stop_token_ids,
        top_logprobs,
    })
}

/// Why the engine did not take a submission.
pub(super) fn refusal(error: SubmitError) -> Status {
    let message = error.to_string();
    let (code, param) = match error {
        SubmitError::EmptyPrompt => (ErrorCode::InvalidRequest, Some("prompt_ids")),
        SubmitError::UnknownToken { field, .. } => {
            let param = match field {
                "prompt" => "prompt_ids",
                "resume" => "resume_tokens",
                other => other,
            };
            (ErrorCode::InvalidRequest, Some(param))
        }
        SubmitError::PromptTooLong { .. } => (ErrorCode::ContextTooLong, Some("prompt_ids")),
        SubmitError::NoTokens => (ErrorCode::InvalidRequest, Some("max_tokens")),
        // A sequence that exceeds the pool exceeds what this worker can hold of any context.
        SubmitError::MaxTokensTooMany { .. } | SubmitError::PoolTooSmall { .. } => {
            (ErrorCode::ContextTooLong, Some("max_tokens"))
        }
        SubmitError::ResumeTooLong { .. } => (ErrorCode::InvalidRequest, Some("resume_tokens")),
        SubmitError::Parameter(error) => (ErrorCode::InvalidRequest, Some(error.field)),
        SubmitError::QueueFull { .. } => (ErrorCode::Overloaded, None),
        SubmitError::Draining | SubmitError::Stopped => (ErrorCode::Draining, None),
        SubmitError::Failed(_) => (ErrorCode::WorkerLost, None),
    };
    code.status(message, param)
}

/// Why a constraint was not compiled.
pub(super) fn constraint_refusal(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Busy => ErrorCode::Overloaded.status(refusal.to_string(), None),
        Refusal::Resume { .. } => ErrorCode::InvalidRequest.status(refusal.to_string(), Some("resume_tokens")),
        Refusal::TooLarge(_)
        | Refusal::NotJson(_)
        | Refusal::NotASchema
        | Refusal::Endless(_)
        | Refusal::Nothing(_)
        | Refusal::Invalid { .. }
        | Refusal::TooSlow => ErrorCode::InvalidRequest.status(refusal.to_string(), Some("constraint")),
    }
}

fn field(param: &'static str, problem: String) -> Status {
    ErrorCode::InvalidRequest.status(format!("{param}: {problem}"), Some(param))
}

fn not_served(param: &'static str) -> Status {
    field(param, "not served yet".to_owned())
}
