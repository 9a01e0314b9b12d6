//! Workers, as operators see and move them: what the router knows of each, and the load that it tells now.

use std::error::Error as _;
use std::time::Duration;

use penstock_proto::admin as wire;
use penstock_proto::{ErrorCode, ModelName, WorkerName};
use tokio::time::timeout;
use tonic::Status;

use super::Admin;
use crate::fleet::Known;
use crate::metrics::MemberState;
use crate::replica::{Causes, Control};
use crate::request::Failure;

/// How long a worker may take to tell its load.
const LOAD_TIME: Duration = Duration::from_secs(2);

impl Admin {
    /// A worker's line: what the router knows, and the load that the worker tells now.
    pub(super) async fn worker(&self, name: &WorkerName, known: &Known) -> wire::WorkerStatus {
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

    pub(super) fn find(&self, name: &str) -> Result<(WorkerName, Control), Failure> {
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
pub(super) fn failed(worker: &WorkerName, status: &Status) -> Failure {
    match ErrorCode::from_status(status) {
        Some((code, _)) => Failure::new(code, format!("{worker}: {}", status.message())),
        None => Failure::new(ErrorCode::WorkerLost, format!("{worker} cannot be reached: {}", reason(status))),
    }
}

/// What stands behind a status: where a connection failed, the cause says more than the message.
fn reason(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), |cause| Causes(cause).to_string())
}
