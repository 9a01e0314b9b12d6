//! Penstock's front door: faces, policy, dispatch, text.

pub mod prompt;
pub mod request;
pub mod text;
