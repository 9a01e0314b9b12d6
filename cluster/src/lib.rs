//! The state that the parts of a Penstock cluster share: a [`store`] of small documents with leases and watches,
//! who is there ([`membership`]), and what is allowed ([`catalog`]).
//!
//! Beside it stands what its processes prove themselves with ([`tls`]).
//!
//! It knows nothing of requests or engines, and it never stands in a request's path: whoever reads it keeps the last
//! known state and goes on when the store is away.

mod backoff;
pub mod catalog;
pub mod membership;
pub mod store;
pub mod tls;

pub use membership::{Member, MemberEvent, Membership};
pub use store::Store;
