//! An answer as server-sent events with names, whatever the face makes of its pieces.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, stream};
use serde::Serialize;

use super::answers::Answers;
use crate::request::{Delta, Failure};

/// Pieces that go out together where they are there together.
const TOGETHER: usize = 32;

/// What a face makes of the pieces of an answer of one choice.
pub(super) trait Encode: Send {
    /// Before the first piece.
    fn begin(&mut self, out: &mut BytesMut);
    /// A piece, and the end with the last one.
    fn delta(&mut self, delta: Delta, out: &mut BytesMut);
    /// The end that a failure is.
    fn failed(&mut self, failure: &Failure, out: &mut BytesMut);
}

/// Writes one event.
pub(super) fn write(out: &mut BytesMut, name: &str, data: &impl Serialize) {
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\ndata: ");
    serde_json::to_writer((&mut *out).writer(), data).expect("a face's shapes serialise into memory");
    out.put_slice(b"\n\n");
}

/// The events of an answer. Dropping them aborts it.
pub(super) fn stream(answers: Answers, encode: impl Encode) -> impl Stream<Item = Bytes> + Send {
    let events = Events { answers, encode, begun: false };
    stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        let mut out = BytesMut::new();
        let goes_on = events.write(&mut out).await;
        Some((out.freeze(), goes_on.then_some(events)))
    })
}

struct Events<E> {
    answers: Answers,
    encode: E,
    begun: bool,
}

impl<E: Encode> Events<E> {
    /// Writes what comes next, and what is there with it. Returns whether more is to come.
    async fn write(&mut self, out: &mut BytesMut) -> bool {
        if !std::mem::replace(&mut self.begun, true) {
            self.encode.begin(out);
        }
        let mut next = self.answers.next().await;
        for _ in 0..TOGETHER {
            match next {
                Some(Ok((_, delta))) => self.encode.delta(delta, out),
                Some(Err(failure)) => {
                    self.encode.failed(&failure, out);
                    return false;
                }
                None => return false,
            }
            match self.answers.next().now_or_never() {
                Some(there) => next = there,
                None => break,
            }
        }
        true
    }
}
