//! The admin port: `penstock.v1.Admin` for whoever has the key. It knows the fleet, and nothing of tenants' traffic.

mod key;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header;
use http::request::Parts;
use penstock_cluster::Store;
use penstock_cluster::membership::LEASE_TTL;
use penstock_proto::admin as wire;
use penstock_proto::{ErrorCode, ModelName, WorkerName};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::config::Secrets;
use crate::fleet::{Connect, Fleet, Known};
use crate::metrics::MemberState;
use crate::port::{Door, Port, Service, refusal};
use crate::replica::{Causes, Control};
use crate::request::Failure;
use crate::ruling::Rulings;
use crate::server::{Error, Listen};

pub use key::{AdminKey, KeyError};

/// How long a worker may take to tell its load.
const LOAD_TIME: Duration = Duration::from_secs(2);

/// How long ago the router heard from the store.
pub type Staleness = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the service works on.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) fleet: Fleet,
    /// Reaches workers that the fleet has no channel to yet.
    pub(crate) connect: Connect,
    pub(crate) staleness: Staleness,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) rulings: Arc<Rulings>,
    /// What a catalogue that is applied here may name.
    pub(crate) secrets: Secrets,
}

/// Serves the admin port.
pub(crate) async fn start(listen: Listen, admin: Admin, key: AdminKey) -> Result<Port, Error> {
    let leaving = CancellationToken::new();
    let face = wire::AdminServer::new(Face { admin, leaving: leaving.clone() });
    let service = Service { name: "penstock.v1.Admin", routes: Routes::new(face), door: Arc::new(Locked(key)) };
    let port = Port::start(listen, service, leaving).await?;
    port.health().tell(true).await;
    Ok(port)
}

struct Locked(AdminKey);

impl Door for Locked {
    fn admit(&self, head: &Parts) -> Result<(), Failure> {
        let message = match head.headers.get(header::AUTHORIZATION) {
            Some(given) if self.0.opens(given) => return Ok(()),
            Some(_) => "this is not the admin key of this router; it is in admin.key under the router's --data-dir",
            None => {
                "the admin port wants the key in admin.key under the router's --data-dir: authorization: Bearer KEY"
            }
        };
        Err(Failure::new(ErrorCode::Unauthenticated, message))
    }

    fn refused(&self, failure: &Failure) {
        tracing::warn!(code = failure.code.as_str(), "admin call refused");
    }
}

struct Face {
    admin: Admin,
    /// Cancelled as the port drains: what waits for a worker then waits no longer.
    leaving: CancellationToken,
}

#[tonic::async_trait]
impl wire::Admin for Face {
    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        let snapshot = self.admin.fleet.snapshot();
        let workers = snapshot.workers.iter().map(|(name, known)| self.admin.worker(name, known));
        let workers = join_all(workers).await;
        let silent = (self.admin.staleness)();
        // While all is well the store is heard from twice in this time.
        let store_staleness_seconds = if silent <= LEASE_TTL / 4 { 0.0 } else { silent.as_secs_f64() };
        Ok(Response::new(wire::StatusResponse { workers, store_staleness_seconds }))
    }

    async fn drain_worker(
        &self,
        request: Request<wire::DrainWorkerRequest>,
    ) -> Result<Response<wire::DrainWorkerResponse>, Status> {
        let (worker, control) = self.admin.find(&request.into_inner().name).map_err(|failure| refusal(&failure))?;
        tracing::info!(%worker, "draining a worker, as an operator asked");
        tokio::select! {
            drained = control.drain() => drained.map_err(|status| refusal(&failed(&worker, &status)))?,
            () = self.leaving.cancelled() => {
                let message = format!("the router is leaving; {worker} goes on draining: ask another router");
                return Err(ErrorCode::Draining.status(message, None));
            }
        }
        tracing::info!(%worker, "a worker is drained");
        Ok(Response::new(wire::DrainWorkerResponse {}))
    }

    async fn undrain_worker(
        &self,
        request: Request<wire::UndrainWorkerRequest>,
    ) -> Result<Response<wire::UndrainWorkerResponse>, Status> {
        let (worker, control) = self.admin.find(&request.into_inner().name).map_err(|failure| refusal(&failure))?;
        tracing::info!(%worker, "giving a worker work again, as an operator asked");
        control.undrain().await.map_err(|status| refusal(&failed(&worker, &status)))?;
        Ok(Response::new(wire::UndrainWorkerResponse {}))
    }
}

impl Admin {
    /// A worker's line: what the router knows, and the load that the worker tells now.
    async fn worker(&self, name: &WorkerName, known: &Known) -> wire::WorkerStatus {
        let mut problem = known.problem();
        let state = match (known.state, &problem) {
            (MemberState::Ready, _) => wire::MemberState::Ready,
            (MemberState::Draining, _) => wire::MemberState::Draining,
            (MemberState::Loading, None) => wire::MemberState::Loading,
            (MemberState::Loading, Some(_)) | (MemberState::Mismatched | MemberState::Distrusted, _) => {
                wire::MemberState::Unusable
            }
        };
        let asked = async { timeout(LOAD_TIME, self.control(known)?.load()).await.map_err(|_| silent(name))? };
        let load = match asked.await {
            Ok(load) => load,
            Err(status) => {
                problem = problem.or_else(|| Some(format!("its load is not known: {}", reason(&status))));
                Default::default()
            }
        };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        wire::WorkerStatus {
            name: name.to_string(),
            endpoint: known.endpoint.clone(),
            state: state.into(),
            models: known.models.iter().map(ModelName::to_string).collect(),
            in_flight: count(known.replicas.iter().map(|replica| replica.in_flight()).sum()),
            running: load.running,
            waiting: load.waiting,
            kv_blocks_used: load.kv_blocks_used,
            kv_blocks_total: load.kv_blocks_used + load.kv_blocks_cached + load.kv_blocks_free,
            predicted_wait_seconds: load.predicted_wait_seconds,
            problem: problem.unwrap_or_default(),
        }
    }

    fn find(&self, name: &str) -> Result<(WorkerName, Control), Failure> {
        let snapshot = self.fleet.snapshot();
        let Some((worker, known)) = snapshot.workers.iter().find(|(worker, _)| worker.as_str() == name) else {
            let names: Vec<&str> = snapshot.workers.keys().map(WorkerName::as_str).collect();
            let there = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
            let message = format!("there is no worker {name:?} in this cluster; there are: {there}");
            return Err(Failure { param: Some("name".to_owned()), ..Failure::new(ErrorCode::WorkerNotFound, message) });
        };
        Ok((worker.clone(), self.control(known).map_err(|status| failed(worker, &status))?))
    }

    fn control(&self, known: &Known) -> Result<Control, Status> {
        if let Some(replica) = known.replicas.first() {
            return Ok(replica.control());
        }
        let channel = (self.connect)(&known.endpoint).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Control::over(channel))
    }
}

fn silent(worker: &WorkerName) -> Status {
    Status::deadline_exceeded(format!("{worker} did not answer in {} s", LOAD_TIME.as_secs()))
}

/// What an operator is told where a worker does not do as asked.
fn failed(worker: &WorkerName, status: &Status) -> Failure {
    match ErrorCode::from_status(status) {
        Some((code, _)) => Failure::new(code, format!("{worker}: {}", status.message())),
        None => Failure::new(ErrorCode::WorkerLost, format!("{worker} cannot be reached: {}", reason(status))),
    }
}

/// What stands behind a status: where a connection failed, the cause says more than the message.
fn reason(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), |cause| Causes(cause).to_string())
}
