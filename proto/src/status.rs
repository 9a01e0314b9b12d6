//! The closed list of error codes: the only table to gRPC code, HTTP status, retryable and fault domain.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Whose fault an error is: the prefix of its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The request is wrong.
    Caller,
    /// A rule of the organisation says no.
    Policy,
    /// No room, or no worker, right now.
    Capacity,
    /// An external provider failed.
    Provider,
    /// Penstock failed.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $grpc:ident, $http:literal, $retry:literal, $fault:ident;)*) => {
        /// What went wrong, from the contract's closed list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that clients see as `code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The gRPC status code.
            pub fn grpc(self) -> Code {
                match self { $(Self::$name => Code::$grpc,)* }
            }

            /// The HTTP status.
            pub fn http(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// Whether the same request may succeed elsewhere or later.
            pub fn retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }

            /// Whose fault it is.
            pub fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }
        }
    };
}

codes! {
    /// A field is malformed, out of range or not served; `param` names it.
    InvalidRequest = "caller_invalid_request", InvalidArgument, 400, false, Caller;
    /// The prompt, or prompt and answer together, exceed the model's context.
    ContextTooLong = "caller_context_too_long", InvalidArgument, 400, false, Caller;
    /// No key, or one that nobody knows.
    Unauthenticated = "caller_unauthenticated", Unauthenticated, 401, false, Caller;
    /// The key, the Host or the Origin does not allow this.
    Forbidden = "caller_forbidden", PermissionDenied, 403, false, Caller;
    /// No such path or method.
    NotFound = "caller_not_found", Unimplemented, 404, false, Caller;
    /// No model of this name that the key may use.
    ModelNotFound = "caller_model_not_found", NotFound, 404, false, Caller;
    /// No worker of this name in the cluster.
    WorkerNotFound = "caller_worker_not_found", NotFound, 404, false, Caller;
    /// The catalogue that was given is not valid; the message says what and where.
    InvalidCatalogue = "caller_invalid_catalogue", InvalidArgument, 400, false, Caller;
    /// What was to be changed has been changed by somebody else meanwhile.
    Conflict = "caller_conflict", Aborted, 422, false, Caller;
    /// The body is over the limit.
    BodyTooLarge = "caller_body_too_large", OutOfRange, 413, false, Caller;
    /// The client went away before the answer was complete.
    Cancelled = "caller_cancelled", Cancelled, 400, false, Caller;
    /// The data's class is above the ceiling of everything that could serve it.
    PolicyClass = "policy_class", PermissionDenied, 403, false, Policy;
    /// Nothing may leave the house, and nothing in it serves this.
    PolicyEgress = "policy_egress", PermissionDenied, 403, false, Policy;
    /// The tenant's budget is spent.
    PolicyBudget = "policy_budget", PermissionDenied, 403, false, Policy;
    /// The answer holds what must not be told.
    PolicyFilter = "policy_filter", PermissionDenied, 403, false, Policy;
    /// The tenant's requests, tokens or places of the minute are used up.
    RateLimited = "policy_rate", ResourceExhausted, 429, true, Policy;
    /// No member serves the model now.
    NoWorker = "capacity_no_worker", Unavailable, 503, true, Capacity;
    /// The queue is full.
    Overloaded = "capacity_overloaded", ResourceExhausted, 503, true, Capacity;
    /// The process is leaving.
    Draining = "capacity_draining", Unavailable, 503, true, Capacity;
    /// The worker died, or its stream broke.
    WorkerLost = "capacity_worker_lost", Aborted, 503, true, Capacity;
    /// The deadline passed.
    DeadlineExceeded = "capacity_deadline_exceeded", DeadlineExceeded, 504, false, Capacity;
    /// What the router knows of keys and rules is too old to go by.
    StaleState = "capacity_stale_state", Unavailable, 503, true, Capacity;
    /// The provider does not take the request as it is; the message holds what it said.
    ProviderRejected = "provider_rejected", FailedPrecondition, 502, false, Provider;
    /// The provider does not accept the organisation's key.
    ProviderUnauthenticated = "provider_unauthenticated", FailedPrecondition, 502, false, Provider;
    /// The provider has no such model, or no such path.
    ProviderModelNotFound = "provider_model_not_found", FailedPrecondition, 502, false, Provider;
    /// The provider withheld the answer, or the rest of it.
    ProviderFiltered = "provider_filtered", FailedPrecondition, 502, false, Provider;
    /// The provider takes no more requests of the organisation for now.
    ProviderRateLimited = "provider_rate_limited", ResourceExhausted, 502, true, Provider;
    /// The provider cannot be reached, or fails.
    ProviderUnavailable = "provider_unavailable", Unavailable, 502, true, Provider;
    /// The provider's answer broke off.
    ProviderLost = "provider_lost", Aborted, 502, true, Provider;
    /// What the provider sent is no answer.
    ProviderInvalidAnswer = "provider_invalid_answer", Unavailable, 502, true, Provider;
    /// The provider was silent for too long.
    ProviderTimeout = "provider_timeout", DeadlineExceeded, 504, true, Provider;
    /// What a request holds cannot be found out, so it goes nowhere.
    Detectors = "internal_detectors", Internal, 500, false, Internal;
    /// What is done cannot be recorded, so nothing is.
    Ledger = "internal_ledger", Internal, 500, true, Internal;
    /// A bug, or a broken part.
    Internal = "internal_error", Internal, 500, false, Internal;
}

/// The domain of the `ErrorInfo` that carries a code over gRPC.
const DOMAIN: &str = "penstock";

impl ErrorCode {
    /// A gRPC status with this code in its details (`google.rpc.ErrorInfo`: reason, and `param` where one is at fault).
    pub fn status(self, message: impl Into<String>, param: Option<&str>) -> Status {
        let metadata: HashMap<String, String> = param.iter().map(|p| ("param".to_owned(), (*p).to_owned())).collect();
        let details = ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata);
        Status::with_error_details(self.grpc(), message, details)
    }

    /// The code and the param that a status carries; None where no Penstock process made it.
    pub fn from_status(status: &Status) -> Option<(Self, Option<String>)> {
        let info = status.get_details_error_info()?;
        if info.domain != DOMAIN {
            return None;
        }
        let code = Self::ALL.iter().find(|code| code.as_str() == info.reason)?;
        Some((*code, info.metadata.get("param").cloned()))
    }
}

impl Fault {
    /// The prefix of its codes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Capacity => "capacity",
            Self::Provider => "provider",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_bears_its_fault_as_prefix_and_a_status_of_the_contract() {
        for code in ErrorCode::ALL {
            assert!(code.as_str().starts_with(&format!("{}_", code.fault().as_str())), "{code:?}");
            let allowed: &[u16] = match code.fault() {
                Fault::Caller => &[400, 401, 403, 404, 413, 422],
                Fault::Policy => &[403, 429],
                Fault::Capacity => &[503, 504],
                Fault::Provider => &[502, 504],
                Fault::Internal => &[500],
            };
            assert!(allowed.contains(&code.http()), "{code:?}");
        }
    }

    #[test]
    fn a_status_carries_code_and_param() {
        let status = ErrorCode::InvalidRequest.status("temperature must be at least 0", Some("temperature"));
        let back = ErrorCode::from_status(&status);
        assert_eq!(back, Some((ErrorCode::InvalidRequest, Some("temperature".to_owned()))));
        assert_eq!(ErrorCode::from_status(&Status::internal("other")), None);
    }
}
