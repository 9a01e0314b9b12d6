//! The gRPC face's port: the router's own HTTP server with its limits, and health and reflection beside the face.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use penstock_proto::RequestId;
use penstock_proto::inference::InferenceServer;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service as _;

use super::{Arrived, Face, refusal};
use crate::api::{Api, guard, log};
use crate::config::Limits;
use crate::fleet::Fleet;
use crate::metrics::Route;
use crate::server::{self, Body, Error, Handler, RequestBody, Server};

/// The services whose health is told: all, and the face's own.
const SERVICES: [&str; 2] = ["", "penstock.v1.Inference"];
/// The longest time without a call. Clients keep connections for later calls, and their pings are no calls.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// A serving gRPC port. Dropping it ends it at once; [`Grpc::drain`] lets calls finish.
pub(crate) struct Grpc {
    server: Server,
    draining: DropGuard,
}

/// What answers the port's calls.
#[derive(Clone)]
struct Port {
    api: Arc<Api>,
    routes: Routes,
    draining: CancellationToken,
}

impl Grpc {
    /// Listens on `address` and tells of `fleet`'s health.
    pub(crate) async fn start(address: SocketAddr, api: Arc<Api>, fleet: Fleet) -> Result<Self, Error> {
        let (health, draining) = (HealthReporter::new(), CancellationToken::new());
        tell(&health, false).await;
        let limits = Limits { idle_time: IDLE, ..api.config.limits.clone() };
        let face = InferenceServer::new(Face(Arc::clone(&api))).max_decoding_message_size(limits.body_bytes);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(penstock_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("penstock.v1.Inference")
            .with_service_name("grpc.health.v1.Health")
            .build_v1()
            .expect("the descriptors were made by this build");
        let health_server = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        let routes = Routes::new(face).add_service(health_server).add_service(reflection).prepare();
        let port = Port { api, routes, draining: draining.clone() };
        let handler: Handler = Arc::new(move |request| port.clone().answer(request).boxed());
        let server = Server::start(address, "--grpc", limits, handler).await?;
        TaskTracker::new().spawn(tell_health(health, fleet, draining.clone()));
        Ok(Self { server, draining: draining.drop_guard() })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Accepts no more, ends the streams that have no end of their own, and lets answers finish, at most `grace`.
    /// Returns whether everything had finished.
    pub(crate) async fn drain(self, grace: Duration) -> bool {
        drop(self.draining);
        self.server.drain(grace).await
    }
}

/// Keeps the health service's answer true until the port drains. It has been told that nothing is served.
async fn tell_health(health: HealthReporter, mut fleet: Fleet, draining: CancellationToken) {
    let mut told = false;
    while !draining.is_cancelled() {
        let serves = fleet.serves();
        if serves != told {
            tell(&health, serves).await;
            told = serves;
        }
        draining.run_until_cancelled(fleet.changed()).await;
    }
    tell(&health, false).await;
}

async fn tell(health: &HealthReporter, serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

impl Port {
    async fn answer(mut self, request: http::Request<RequestBody>) -> http::Response<Body> {
        let arrived = Arrived(Instant::now());
        let (mut parts, body) = request.into_parts();
        // Each call of ours sends one message; it is read within the limits of a body before the call begins.
        let one_message = parts.uri.path().starts_with("/penstock.v1.");
        let read = async {
            if self.api.guarded {
                guard::check(&parts)?;
            }
            if !one_message {
                return Ok(tonic::body::Body::new(body));
            }
            let whole = server::body::read(body, &self.api.config.limits).await?;
            Ok(tonic::body::Body::new(Full::new(whole)))
        };
        let body = match read.await {
            Ok(body) => body,
            Err(failure) => {
                self.api.metrics.observe(Route::Unknown, self.api.tenant.clone()).failed(&failure);
                log(RequestId::generate(), &failure);
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
