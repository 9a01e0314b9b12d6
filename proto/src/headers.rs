//! Names of the HTTP headers and gRPC metadata keys that Penstock reads and writes.

/// The client's own id of a request; echoed.
pub const REQUEST_ID: &str = "x-request-id";
/// The router's id of a request: a ULID.
pub const PENSTOCK_REQUEST_ID: &str = "x-penstock-request-id";
/// The least data class of a request; it can only raise.
pub const CLASS: &str = "x-penstock-class";
/// How long the client waits for the whole answer, in milliseconds.
pub const DEADLINE_MS: &str = "x-penstock-deadline-ms";
/// `interactive` or `batch`.
pub const PRIORITY: &str = "x-penstock-priority";
/// The client's session: keeps its arm of a traffic split.
pub const SESSION: &str = "x-penstock-session";
/// A free word for rules: summarise, risk, support.
pub const TASK: &str = "x-penstock-task";
/// Where the request was answered: `local/MODEL@VERSION` or `UPSTREAM/MODEL`.
pub const TARGET: &str = "x-penstock-target";
/// Body fields that nobody knows, comma-separated.
pub const IGNORED: &str = "x-penstock-ignored";
