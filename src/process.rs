//! What every serving process shares: the signals that end it, the ready file, the operators' port.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use penstock_router::{Ops, Readiness, ops};
use prometheus::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fault::Fault;

/// The signals that end a process: SIGTERM and Ctrl-C.
pub(crate) struct Ends {
    term: Signal,
    int: Signal,
}

impl Ends {
    /// From now on the signals are ours.
    pub(crate) fn listen() -> Result<Self, Fault> {
        let listen = |kind| signal(kind).map_err(|error| Fault::failed(format!("cannot listen to signals: {error}")));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// Waits for `end` to finish what is in flight; another signal cuts it short.
    pub(crate) async fn finish(mut self, end: impl Future<Output = ()>) -> Result<(), Fault> {
        tracing::info!("ending: no new work, what is in flight finishes");
        tokio::select! {
            () = end => Ok(()),
            () = self.next() => Err(Fault::failed("told to end twice: what was in flight is lost")),
        }
    }
}

/// Binds an address that the flag `flag` moves.
pub(crate) async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Fault> {
    let failed = |error| {
        Fault::failed(format!(
            "cannot listen on {address}: {error}; {flag} ADDRESS:PORT takes another, port 0 a free one"
        ))
    };
    TcpListener::bind(address).await.map_err(failed)
}

/// Writes the addresses as JSON by rename: whoever sees the file sees all of it.
pub(crate) fn write_ready_file(file: Option<&Path>, addresses: &impl Serialize) -> Result<(), Fault> {
    let Some(file) = file else { return Ok(()) };
    let failed = |error: &dyn std::fmt::Display| Fault::failed(format!("--ready-file {}: {error}", file.display()));
    let text = serde_json::to_string(addresses).map_err(|error| failed(&error))?;
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file)).map_err(|error| failed(&error))
}

/// Starts the operators' port over what the process measures and knows of itself.
pub(crate) async fn start_ops(
    address: SocketAddr,
    registries: Vec<Registry>,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
) -> Result<Ops, Fault> {
    let metrics = move || penstock_router::render(&registries);
    let sources = ops::Sources { metrics: Arc::new(metrics), readiness: Arc::new(readiness) };
    Ops::start(address, sources).await.map_err(Fault::failed)
}
