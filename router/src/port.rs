//! A gRPC port: the router's own HTTP server with its limits, and health and reflection beside one service. What the
//! service does, and who may call it, comes in.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::request::Parts;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service as _;

use crate::config::Limits;
use crate::request::Failure;
use crate::server::{self, Body, Error, Handler, Listen, RequestBody, Server};

/// The longest time without a call. Clients keep connections for later calls, and their pings are no calls.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// Why reflection cannot fail to be built.
const OURS: &str = "the descriptors were made by this build";

/// When a call's head was there; the port's word to its service.
#[derive(Clone, Copy)]
pub(crate) struct Arrived(pub(crate) Instant);

/// Who may call.
pub(crate) trait Door: Send + Sync + 'static {
    /// Lets a call in by its head, or says why not.
    fn admit(&self, head: &Parts) -> Result<(), Failure>;
    /// A call was refused before its service saw it.
    fn refused(&self, failure: &Failure);
}

/// What a port serves.
pub(crate) struct Service {
    /// Its full name, as reflection lists it and health is told of it.
    pub(crate) name: &'static str,
    pub(crate) routes: Routes,
    pub(crate) door: Arc<dyn Door>,
}

/// A serving gRPC port. Dropping it ends it at once; [`Port::drain`] lets calls finish.
pub(crate) struct Port {
    server: Server,
    health: Health,
    draining: DropGuard,
}

/// What the port's health service says, and until when. It begins with "not serving".
#[derive(Clone)]
pub(crate) struct Health {
    reporter: HealthReporter,
    service: &'static str,
    draining: CancellationToken,
}

/// A failure as the status that ends a call.
pub(crate) fn refusal(failure: &Failure) -> Status {
    failure.code.status(failure.message.clone(), failure.param.as_deref())
}

impl Port {
    /// Listens and serves. It cancels `draining` as it begins to drain, or is dropped.
    pub(crate) async fn start(listen: Listen, service: Service, draining: CancellationToken) -> Result<Self, Error> {
        let Service { name, routes, door } = service;
        let health = Health { reporter: HealthReporter::new(), service: name, draining };
        health.tell(false).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(penstock_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name(name)
                .with_service_name("grpc.health.v1.Health")
        };
        // Python's and older tools ask for the alpha version.
        let (new, old) = (reflection().build_v1().expect(OURS), reflection().build_v1alpha().expect(OURS));
        let health_server = HealthServer::new(HealthService::from_health_reporter(health.reporter.clone()));
        let routes = routes.add_service(health_server).add_service(new).add_service(old).prepare();
        let limits = Limits { idle_time: IDLE, ..listen.limits };
        let calls = Calls { door, limits: limits.clone(), routes, draining: health.draining.clone() };
        let handler: Handler = Arc::new(move |request| calls.clone().answer(request).boxed());
        let tls = listen.tls.map(|tls| tls.speaking(&["h2"]));
        let server = Server::start(Listen { limits, tls, ..listen }, handler).await?;
        let draining = health.draining.clone().drop_guard();
        Ok(Self { server, health, draining })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its health, to be told.
    pub(crate) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Accepts no more, ends the streams that have no end of their own, and lets answers finish, at most `grace`.
    /// Returns whether everything had finished.
    pub(crate) async fn drain(self, grace: Duration) -> bool {
        drop(self.draining);
        self.server.drain(grace).await
    }
}

impl Health {
    /// Says whether the service serves.
    pub(crate) async fn tell(&self, serves: bool) {
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", self.service] {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Ends as the port begins to drain.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.draining
    }
}

/// What answers the port's calls.
#[derive(Clone)]
struct Calls {
    door: Arc<dyn Door>,
    limits: Limits,
    routes: Routes,
    draining: CancellationToken,
}

impl Calls {
    async fn answer(mut self, request: http::Request<RequestBody>) -> http::Response<Body> {
        let arrived = Arrived(Instant::now());
        let (mut parts, body) = request.into_parts();
        // Each call of ours sends one message; it is read within the limits of a body before the call begins.
        let one_message = parts.uri.path().starts_with("/penstock.v1.");
        let read = async {
            self.door.admit(&parts)?;
            if !one_message {
                return Ok(tonic::body::Body::new(body));
            }
            let whole = server::body::read(body, &self.limits).await?;
            Ok(tonic::body::Body::new(Full::new(whole)))
        };
        let body = match read.await {
            Ok(body) => body,
            Err(failure) => {
                self.door.refused(&failure);
                return refusal(&failure).into_http().map(|body| Answer::whole(body).boxed_unsync());
            }
        };
        parts.extensions.insert(arrived);
        let response = self.routes.call(http::Request::from_parts(parts, body)).await;
        let response = response.unwrap_or_else(|never| match never {});
        response.map(|body| {
            let answer = if one_message { Answer::whole(body) } else { Answer::until(body, self.draining) };
            answer.boxed_unsync()
        })
    }
}

/// An answer's body, which ends early where the port drains and the stream has no end of its own.
struct Answer {
    body: tonic::body::Body,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Answer {
    fn whole(body: tonic::body::Body) -> Self {
        Self { body, cut: None }
    }

    fn until(body: tonic::body::Body, draining: CancellationToken) -> Self {
        Self { body, cut: Some(Box::pin(draining.cancelled_owned())) }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.cut.as_mut().is_some_and(|cut| cut.poll_unpin(cx).is_ready()) {
            return Poll::Ready(None);
        }
        // Failures are trailers; a body that fails itself has nothing to add.
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| frame?.ok().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
