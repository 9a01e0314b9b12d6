//! The router over real sockets, in front of workers that say what a test tells them to.

mod bad_input;
mod limits;
mod openai;
mod support;
mod workers;
