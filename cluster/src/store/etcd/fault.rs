//! What etcd's errors, and the transport's, mean: decided here, once.

use std::error::Error as _;

use tonic::{Code, ConnectError, Status};

use crate::store::{Error, LeaseId};

/// What to do about a call that failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Log in anew, and call again.
    Login,
    /// The server was not reached, or did not take the request: it is safe to call again.
    Unsent(String),
    /// It is open what became of the request.
    Open(String),
    /// Calling again does not help.
    Final(Error),
}

impl Fault {
    /// Judges a status, by etcd's `api/v3rpc/rpctypes`.
    pub(super) fn of(status: &Status) -> Self {
        let reason = describe(status);
        let message = status.message();
        match status.code() {
            Code::NotFound if message.contains("lease not found") => {
                Self::Final(Error::LeaseNotFound { lease: LeaseId::new(0) })
            }
            Code::Unauthenticated => Self::Login,
            Code::InvalidArgument if message.contains("auth store is old") => Self::Login,
            // No token, a wrong password, an unknown user.
            Code::InvalidArgument if message.contains("user") || message.contains("authentication failed") => {
                Self::Final(Error::Denied { reason })
            }
            Code::PermissionDenied => Self::Final(Error::Denied { reason }),
            Code::InvalidArgument => Self::Final(Error::Invalid { reason }),
            Code::Unavailable if message.contains("no leader") || is_connect(status) => Self::Unsent(reason),
            Code::ResourceExhausted if message.contains("too many requests") => Self::Unsent(reason),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => Self::Open(reason),
            // Made by the transport on this side, not by etcd.
            Code::Unknown | Code::Internal if status.source().is_some() => Self::Open(reason),
            Code::Ok
            | Code::Unknown
            | Code::Internal
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss => Self::Final(Error::Failed { reason }),
        }
    }
}

fn is_connect(status: &Status) -> bool {
    sources(status).any(|source| source.is::<ConnectError>())
}

/// The message with its causes: the transport's own message may be any one of them.
pub(super) fn describe(status: &Status) -> String {
    let mut reason = status.message().to_owned();
    for source in sources(status) {
        let source = source.to_string();
        if source != "transport error" && !reason.contains(&source) {
            reason = format!("{reason}: {source}");
        }
    }
    reason
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |source| (*source).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_judged_by_what_a_second_call_could_do() {
        let judged = |code, message: &str| Fault::of(&Status::new(code, message));
        assert!(matches!(judged(Code::Unauthenticated, "etcdserver: invalid auth token"), Fault::Login));
        assert!(matches!(judged(Code::InvalidArgument, "etcdserver: revision of auth store is old"), Fault::Login));
        assert!(matches!(judged(Code::Unavailable, "etcdserver: no leader"), Fault::Unsent(_)));
        assert!(matches!(judged(Code::ResourceExhausted, "etcdserver: too many requests"), Fault::Unsent(_)));
        assert!(matches!(judged(Code::Unavailable, "etcdserver: request timed out"), Fault::Open(_)));
        assert!(matches!(
            judged(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Fault::Final(Error::Failed { .. })
        ));
        assert!(matches!(
            judged(Code::NotFound, "etcdserver: requested lease not found"),
            Fault::Final(Error::LeaseNotFound { .. })
        ));
        for denied in ["authentication failed, invalid user ID or password", "user name is empty"] {
            let fault = judged(Code::InvalidArgument, &format!("etcdserver: {denied}"));
            assert!(matches!(fault, Fault::Final(Error::Denied { .. })), "{fault:?}");
        }
        assert!(matches!(
            judged(Code::InvalidArgument, "etcdserver: key is not provided"),
            Fault::Final(Error::Invalid { .. })
        ));
        assert!(matches!(judged(Code::Unknown, "a server's own"), Fault::Final(Error::Failed { .. })));
    }
}
