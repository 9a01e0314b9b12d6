//! External upstreams over real sockets: a recording stand-in says what a test tells it to, byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails where something is not as it must be")]

mod anthropic;
mod bad_answers;
mod openai;
mod support;
mod transport;
