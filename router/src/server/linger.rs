//! The end of an HTTP/1 connection whose client is still sending a body that nobody wants. What it sends is read and
//! dropped for a while: closing at once would have the system reset the connection, and the answer that says why would
//! be lost with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::config::Limits;

/// How much of what nobody wants is read, in the bodies that are let in.
const DISCARDED: usize = 8;
/// Bytes read at once to be dropped.
const PIECE: usize = 16 << 10;

/// Whether a connection's last request was let go of before its body had ended.
#[derive(Clone, Default)]
pub(crate) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// A request's body under watch.
    pub(super) fn watch(&self, request: http::Request<Incoming>) -> http::Request<RequestBody> {
        // A next request says that the last one was read to its end; and HTTP/2 ends streams one by one.
        self.0.store(false, Ordering::Relaxed);
        let unread = (request.version() < http::Version::HTTP_2).then(|| self.clone());
        request.map(|body| RequestBody { body, ended: false, unread })
    }
}

/// A request's body; where it is dropped before its end, its connection lingers.
pub(crate) struct RequestBody {
    body: Incoming,
    ended: bool,
    unread: Option<Unread>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended |= !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(unread) = &self.unread
            && !self.ended
            && !self.body.is_end_stream()
        {
            unread.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A stream whose end lingers where a body was left unread.
pub(super) struct Lingering<S> {
    stream: S,
    unread: Unread,
    end: End,
    limits: Arc<Limits>,
}

enum End {
    NotYet,
    /// Nothing is written any more; what comes is dropped.
    Lingers {
        bytes_left: usize,
        time_over: Pin<Box<Sleep>>,
    },
    Over,
}

impl<S> Lingering<S> {
    pub(super) fn new(stream: S, unread: Unread, limits: Arc<Limits>) -> Self {
        Self { stream, unread, end: End::NotYet, limits }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unread, end, limits } = &mut *self;
        loop {
            match end {
                End::NotYet => {
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                    *end = match unread.0.load(Ordering::Relaxed) {
                        true => End::Lingers {
                            bytes_left: limits.body_bytes.saturating_mul(DISCARDED),
                            time_over: Box::pin(tokio::time::sleep(limits.body_time)),
                        },
                        false => End::Over,
                    };
                }
                End::Lingers { bytes_left, time_over } => match ready!(drop_piece(stream, cx, time_over))? {
                    0 => *end = End::Over,
                    read if read >= *bytes_left => *end = End::Over,
                    read => *bytes_left -= read,
                },
                End::Over => return Poll::Ready(Ok(())),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

/// Reads what is there and drops it; 0 bytes where nothing more comes, or the time is over.
fn drop_piece<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    time_over: &mut Pin<Box<Sleep>>,
) -> Poll<io::Result<usize>> {
    if time_over.as_mut().poll(cx).is_ready() {
        return Poll::Ready(Ok(0));
    }
    let mut piece = [0; PIECE];
    let mut piece = ReadBuf::new(&mut piece);
    ready!(Pin::new(stream).poll_read(cx, &mut piece))?;
    Poll::Ready(Ok(piece.filled().len()))
}
