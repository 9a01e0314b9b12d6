//! Reads a request's body within the server's limits.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use penstock_proto::ErrorCode;
use tokio::time::{Instant, timeout_at};

use super::RequestBody;
use crate::config::Limits;
use crate::request::Failure;

/// The whole body. One that is too large is refused as soon as that shows: what its client still sends is its
/// connection's matter.
pub(crate) async fn read(mut body: RequestBody, limits: &Limits) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large(limits));
    }
    let end = Instant::now() + limits.body_time;
    let mut bytes = BytesMut::new();
    loop {
        let piece = match timeout_at(end.min(Instant::now() + limits.body_idle), body.frame()).await {
            Err(_) => return Err(too_slow(end, limits)),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(error))) => {
                return Err(Failure::new(ErrorCode::InvalidRequest, format!("the body broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        if piece.len() > limits.body_bytes - bytes.len() {
            return Err(too_large(limits));
        }
        bytes.extend_from_slice(&piece);
    }
}

fn too_large(limits: &Limits) -> Failure {
    Failure::new(ErrorCode::BodyTooLarge, format!("the body is larger than {} bytes", limits.body_bytes))
}

fn too_slow(end: Instant, limits: &Limits) -> Failure {
    let seconds = |time: Duration| time.as_secs_f64();
    let message = if Instant::now() >= end {
        format!("the body did not arrive within {} s", seconds(limits.body_time))
    } else {
        format!("nothing more of the body arrived for {} s", seconds(limits.body_idle))
    };
    Failure::new(ErrorCode::InvalidRequest, message)
}
