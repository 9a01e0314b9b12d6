//! TLS on the worker's server: handshakes beside one another.

use std::io;

use futures_util::{Stream, StreamExt as _};
use penstock_cluster::tls::{ServerTls, TlsStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

/// Handshakes at once; the next connection waits in the listener's queue.
const HANDSHAKES: usize = 256;

/// The connections whose handshakes have succeeded. One that is slow or fails holds up nobody.
pub(super) fn handshakes(
    incoming: TcpIncoming,
    tls: &ServerTls,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send + use<> {
    let state = (incoming, tls.speaking(&["h2"]), JoinSet::new());
    let shaken = futures_util::stream::unfold(state, |(mut incoming, tls, mut under_way)| async move {
        loop {
            let next = tokio::select! {
                accepted = incoming.next(), if under_way.len() < HANDSHAKES => match accepted? {
                    Ok(stream) => {
                        let tls = tls.clone();
                        under_way.spawn(async move { tls.accept(stream).await });
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(done) = under_way.join_next() => match done {
                    Ok(Some(stream)) => Ok(stream),
                    Ok(None) => continue,
                    Err(error) => Err(io::Error::from(error)),
                },
            };
            return Some((next, (incoming, tls, under_way)));
        }
    });
    Box::pin(shaken)
}
