//! What an operator asks of a worker: its load, and whether it takes work.

use penstock_proto::worker::{DrainRequest, GetLoadRequest, Load, WorkerClient};
use tonic::Status;
use tonic::transport::Channel;

/// One worker's controls.
pub(crate) struct Control {
    client: WorkerClient<Channel>,
}

impl Control {
    pub(crate) fn new(client: WorkerClient<Channel>) -> Self {
        Self { client }
    }

    /// Over a channel of its own.
    pub(crate) fn over(channel: Channel) -> Self {
        Self::new(WorkerClient::new(channel))
    }

    /// The load now.
    pub(crate) async fn load(mut self) -> Result<Load, Status> {
        Ok(self.client.get_load(GetLoadRequest {}).await?.into_inner())
    }

    /// No new work from now on; returns when nothing is in flight there, whoever sent it. Dropping the future leaves the
    /// worker draining.
    pub(crate) async fn drain(mut self) -> Result<(), Status> {
        self.client.drain(DrainRequest { undrain: false }).await.map(|_| ())
    }

    /// Work again.
    pub(crate) async fn undrain(mut self) -> Result<(), Status> {
        self.client.drain(DrainRequest { undrain: true }).await.map(|_| ())
    }
}
