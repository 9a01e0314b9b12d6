//! Reads a request's body within the server's limits.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use penstock_proto::ErrorCode;
use tokio::time::{Instant, timeout_at};

use crate::config::Limits;
use crate::request::Failure;

/// How much of a body over the limit is read and thrown away, in limits, so that a client that sends before it reads
/// gets to its answer.
const DISCARDED: usize = 4;

/// The whole body.
pub(crate) async fn read(head: &HeaderMap, mut body: Incoming, limits: &Limits) -> Result<Bytes, Failure> {
    let expected = body.size_hint().lower();
    // A client that asks before it sends needs no reading through.
    if head.contains_key(header::EXPECT) && expected > limits.body_bytes as u64 {
        return Err(too_large(limits));
    }
    let end = Instant::now() + limits.body_time;
    let (mut bytes, mut seen) = (BytesMut::new(), 0_usize);
    loop {
        let piece = match timeout_at(end.min(Instant::now() + limits.body_idle), body.frame()).await {
            Err(_) if seen > limits.body_bytes => return Err(too_large(limits)),
            Err(_) => return Err(too_slow(end, limits)),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(Failure::new(ErrorCode::InvalidRequest, format!("the body broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        seen = seen.saturating_add(piece.len());
        if seen <= limits.body_bytes {
            bytes.extend_from_slice(&piece);
        } else if seen > limits.body_bytes.saturating_mul(DISCARDED) {
            return Err(too_large(limits));
        } else {
            bytes = BytesMut::new();
        }
    }
    if seen > limits.body_bytes { Err(too_large(limits)) } else { Ok(bytes.freeze()) }
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
