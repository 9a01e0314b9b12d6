//! The HTTP server: accepts connections, bounds what each may take, drains. It knows no paths and no faces.

pub(crate) mod activity;
pub(crate) mod body;
mod linger;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use penstock_cluster::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use activity::{Activity, Verdict};
use linger::{Lingering, Unread};

pub(crate) use linger::RequestBody;

/// An answer's body: whole, or a stream that cannot fail (a failure is an event of the stream).
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// What answers requests.
pub(crate) type Handler =
    Arc<dyn Fn(http::Request<RequestBody>) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; {flag} ADDRESS:PORT takes another, port 0 a free one")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The flag that moves it.
        flag: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The admin key would be readable on its way.
    #[error(
        "--admin {address} can be reached from other machines, and the admin key would travel there in plaintext: \
         listen on 127.0.0.1, give --tls-cert and --tls-key, or pass --insecure"
    )]
    Plaintext {
        /// The address asked for.
        address: SocketAddr,
    },
}

/// Where a server listens, and on what terms.
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    /// The command line's name for the address.
    pub(crate) flag: &'static str,
    /// None for plaintext.
    pub(crate) tls: Option<ServerTls>,
    pub(crate) limits: Limits,
}

/// hyper takes no smaller buffer.
const LEAST_BUFFER: usize = 8 << 10;

/// A body that is there at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A listening server. Dropping it ends it at once, its connections with it; [`Server::drain`] lets them finish.
pub(crate) struct Server {
    address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Server {
    /// Listens and serves until dropped or drained.
    pub(crate) async fn start(listen: Listen, handler: Handler) -> Result<Self, Error> {
        let Listen { address, flag, tls, limits } = listen;
        let failed = |source| Error::Listen { address, flag, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let server = Self {
            address,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let acceptor = Acceptor {
            room: Arc::new(Semaphore::new(limits.connections)),
            limits: Arc::new(limits),
            tls,
            handler,
            tasks: server.tasks.clone(),
            stop: server.stop.clone(),
            abort: server.abort.clone(),
        };
        server.tasks.spawn(acceptor.run(listener));
        Ok(server)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, waits for the answers in flight, at most `grace`, then ends what is left. Returns whether
    /// everything had finished.
    pub(crate) async fn drain(self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        self.abort.cancel();
        self.tasks.wait().await;
        finished
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

struct Acceptor {
    room: Arc<Semaphore>,
    limits: Arc<Limits>,
    tls: Option<ServerTls>,
    handler: Handler,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
                () = self.abort.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.welcome(stream, peer),
                Err(error) => {
                    // Out of file descriptors, most likely: asking again at once would spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn welcome(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::debug!(%peer, limit = self.limits.connections, "connection closed: too many are open");
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection lost before it was served");
            return;
        }
        let connection = Connection {
            limits: Arc::clone(&self.limits),
            tls: self.tls.clone(),
            handler: Arc::clone(&self.handler),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
            abort: self.abort.child_token(),
        };
        self.tasks.spawn(async move {
            // Whatever the connection's streams still run ends with it.
            let abort = connection.abort.clone();
            let _streams_end = connection.abort.clone().drop_guard();
            abort.run_until_cancelled(connection.open(stream, peer)).await;
            drop(permit);
        });
    }
}

struct Connection {
    limits: Arc<Limits>,
    tls: Option<ServerTls>,
    handler: Handler,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Connection {
    async fn open(self, stream: TcpStream, peer: SocketAddr) {
        let Some(tls) = &self.tls else {
            return self.serve(stream, peer).await;
        };
        // A handshake is no answer in flight: the server's end does not wait for it.
        let shaken = self.stop.run_until_cancelled(tls.accept(stream)).await;
        if let Some(stream) = shaken.flatten() {
            self.serve(stream, peer).await;
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: SocketAddr) {
        let activity = Activity::new(&self.limits, Instant::now());
        let unread = Unread::default();
        let service = service_fn(|request| {
            let (request_guard, answer) = (activity.begin(), (self.handler)(unread.watch(request)));
            answer.map(move |response| Ok::<_, Infallible>(response.map(|body| request_guard.watch(body))))
        });
        let builder = self.builder();
        let stream = Lingering::new(stream, unread.clone(), Arc::clone(&self.limits));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut tick = tokio::time::interval(activity.period());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "connection ended early");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                now = tick.tick() => match activity.verdict(now) {
                    Verdict::Fine => {}
                    Verdict::Silent | Verdict::Stalled if stopping => return,
                    Verdict::Silent => {
                        tracing::debug!(%peer, "connection closed: no request in time");
                        return;
                    }
                    Verdict::Stalled => {
                        tracing::info!(%peer, "connection dropped: the client does not read its answer");
                        return;
                    }
                },
            }
        }
    }

    fn builder(&self) -> auto::Builder<Tracked> {
        let mut builder = auto::Builder::new(Tracked { tasks: self.tasks.clone(), abort: self.abort.clone() });
        // The connection's watchdog bounds the time of heads, on both protocols alike.
        builder
            .http1()
            .header_read_timeout(None)
            .max_buf_size(self.limits.head_bytes.max(LEAST_BUFFER))
            .half_close(false);
        builder
            .http2()
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(32)
            .max_local_error_reset_streams(32)
            .max_send_buf_size(64 << 10);
        builder
    }
}

/// Runs the tasks of HTTP/2 streams under the server's tracker, until their connection ends.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.abort.clone().run_until_cancelled_owned(future));
    }
}
