//! Who may call the admin port, and for what: whoever has the router's own key may do everything, an operator of the
//! catalogue what the operator's role says.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, header};
use penstock_cluster::catalog::OperatorRole;
use penstock_proto::ErrorCode;
use penstock_proto::time::unix_now;
use tonic::metadata::MetadataMap;

use super::AdminKey;
use crate::port::Door;
use crate::request::Failure;
use crate::ruling::Rulings;
use crate::tenant::{Holder, NotAccepted};

/// The name of whoever has the router's own key.
const OWNER: &str = "admin";
const NO_KEY: &str = "the admin port wants an operator's key, or the one in admin.key under the router's --data-dir: authorization: \
     Bearer KEY";
const WRONG_KEY: &str =
    "this is not the admin key of this router, which is in admin.key under its --data-dir, nor an operator's";

/// The keys of the port.
#[derive(Clone)]
pub(super) struct Access {
    key: AdminKey,
    rulings: Arc<Rulings>,
}

/// Who calls.
pub(super) struct Caller {
    /// The operator's name.
    pub(super) name: String,
    role: OperatorRole,
}

impl Access {
    pub(super) fn new(key: AdminKey, rulings: Arc<Rulings>) -> Self {
        Self { key, rulings }
    }

    /// Who makes a call that needs a role.
    pub(super) fn allow(&self, metadata: &MetadataMap, least: OperatorRole) -> Result<Caller, Failure> {
        let given = metadata.get(header::AUTHORIZATION.as_str()).map(|value| value.as_encoded_bytes());
        let caller = self.caller(given.and_then(|value| HeaderValue::from_bytes(value).ok()).as_ref())?;
        if caller.role < least {
            let (name, has, needs) = (&caller.name, word(caller.role), word(least));
            let message = format!("{name} has the role {has}; this needs the role {needs}");
            return Err(Failure::new(ErrorCode::Forbidden, message));
        }
        Ok(caller)
    }

    fn caller(&self, authorization: Option<&HeaderValue>) -> Result<Caller, Failure> {
        let Some(given) = authorization else {
            return Err(Failure::new(ErrorCode::Unauthenticated, NO_KEY));
        };
        if self.key.opens(given) {
            return Ok(Caller { name: OWNER.to_owned(), role: OperatorRole::Admin });
        }
        let bearer = given.to_str().ok().and_then(|value| value.split_once(' '));
        let Some((_, key)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(Failure::new(ErrorCode::Unauthenticated, NO_KEY));
        };
        match self.rulings.book()?.keys().find(key.trim(), unix_now()) {
            Ok(Holder::Operator { name, role }) => Ok(Caller { name: name.to_string(), role: *role }),
            Ok(Holder::Tenant { .. }) => {
                Err(Failure::new(ErrorCode::Forbidden, "this is a tenant's key, which opens the tenants' ports alone"))
            }
            Err(NotAccepted::Unknown) => Err(Failure::new(ErrorCode::Unauthenticated, WRONG_KEY)),
            Err(expired @ NotAccepted::Expired) => Err(Failure::new(ErrorCode::Unauthenticated, expired.to_string())),
        }
    }
}

impl Door for Access {
    fn admit(&self, head: &Parts) -> Result<(), Failure> {
        self.caller(head.headers.get(header::AUTHORIZATION)).map(drop)
    }

    fn refused(&self, failure: &Failure) {
        tracing::warn!(code = failure.code.as_str(), "admin call refused");
    }
}

fn word(role: OperatorRole) -> &'static str {
    match role {
        OperatorRole::Viewer => "viewer",
        OperatorRole::Operator => "operator",
        OperatorRole::Admin => "admin",
    }
}
