//! The worker's gRPC server: on sockets and on pipes inside the process, with health and reflection beside it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use penstock_cluster::tls::ServerTls;
use penstock_proto::worker::WorkerServer;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

use super::tls::handshakes;
use super::{Inner, Stage};

/// How long streams that never end by themselves, such as health watches, may hold up the end of a server.
const GRACE: Duration = Duration::from_secs(2);

/// Streams of one router. The engine's queue is what bounds them; HTTP/2 must not hold calls back before that.
const STREAMS: u32 = 4096;

/// What a pipe's reader may leave unread, all its streams together: so much that streams whose clients have stopped
/// reading, of 64 KiB each, do not hold up the others.
const WINDOW: u32 = 64 << 20;

/// Bytes on their way in a pipe.
const PIPE: usize = 256 << 10;

pub(super) async fn serve(
    inner: Arc<Inner>,
    listener: TcpListener,
    tls: Option<ServerTls>,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(Duration::from_secs(60)));
    match tls {
        Some(tls) => run(&inner, handshakes(incoming, &tls)).await,
        None => run(&inner, incoming).await,
    }
}

pub(super) fn in_process(inner: &Arc<Inner>) -> Channel {
    let (pipes, accepted) = mpsc::channel::<DuplexStream>(8);
    let server = inner.clone();
    inner.tasks.spawn(async move {
        let incoming = ReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
        if let Err(error) = run(&server, incoming).await {
            tracing::error!(%error, "the in-process server failed");
        }
    });
    let connect = tower::service_fn(move |_| {
        let pipes = pipes.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(PIPE);
            // The server takes no more pipes once the worker has stopped.
            let stopped = |_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            pipes.send(theirs).await.map_err(stopped)?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    });
    // The address is never resolved: every connection is a new pipe.
    let endpoint = Endpoint::from_static("http://in-process").initial_connection_window_size(WINDOW);
    endpoint.connect_with_connector_lazy(connect)
}

async fn run<I, S>(inner: &Arc<Inner>, incoming: I) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = Result<S, std::io::Error>> + Send,
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(penstock_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by this build");
    let serving = Server::builder()
        .max_concurrent_streams(Some(STREAMS))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(WorkerServer::new(inner.service()))
        .add_service(HealthServer::new(HealthService::from_health_reporter(inner.health.clone())))
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, inner.stop.cancelled());
    let overdue = async {
        inner.stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = serving => ended,
        () = overdue => Ok(()),
    }
}

/// Keeps the health service's answer true until the worker stops.
pub(super) async fn tell_health(inner: Arc<Inner>) {
    let (mut stage, mut draining) = (inner.stage.subscribe(), inner.drain.watch());
    loop {
        let serving = *stage.borrow_and_update() == Stage::Serving && !*draining.borrow_and_update();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "penstock.v1.Worker"] {
            inner.health.set_service_status(service, status).await;
        }
        tokio::select! {
            _ = stage.changed() => {}
            _ = draining.changed() => {}
            () = inner.stop.cancelled() => return,
        }
    }
}
