//! The worker's place in the cluster: its lease, its state, and both again where the lease was lost.

use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::membership::{Error, Lease, Member, MemberState, Membership, PROTOCOL, ServedModel};
use penstock_proto::ModelName;

use super::Inner;

/// Between two attempts to become a member again.
const REJOIN: Duration = Duration::from_secs(1);

/// Joins; the future that comes back holds the lease until the worker leaves.
pub(super) async fn join(
    inner: Arc<Inner>,
    membership: Arc<Membership>,
    endpoint: String,
) -> Result<impl Future<Output = ()> + Send, Error> {
    let card = &inner.served.card;
    // Names of artefacts are stricter than names of models.
    let models = ModelName::new(&card.name).map(|name| ServedModel { name, digest: card.digest.to_string() });
    let member = Member {
        name: inner.name.clone(),
        endpoint,
        models: models.into_iter().collect(),
        state: MemberState::Ready,
        protocol: PROTOCOL,
        epoch: Default::default(),
    };
    let lease = membership.join(member.clone()).await?;
    Ok(hold(inner, membership, member, lease))
}

async fn hold(inner: Arc<Inner>, membership: Arc<Membership>, member: Member, mut lease: Lease) {
    let mut draining = inner.drain.watch();
    // What was switched before the lease was there is announced too.
    draining.mark_changed();
    loop {
        tokio::select! {
            () = inner.leave.cancelled() => return lease.leave().await,
            () = lease.lost() => {
                tracing::warn!(name = %member.name, "the lease was lost; joining again");
                let Some(again) = rejoin(&inner, &membership, &member).await else { return };
                lease = again;
                draining.mark_changed();
            }
            // The switch is `inner`'s, so this cannot fail.
            _ = draining.changed() => {
                let state = match *draining.borrow_and_update() {
                    true => MemberState::Draining,
                    false => MemberState::Ready,
                };
                tokio::select! {
                    announced = lease.update(state) => if let Err(error) = announced {
                        tracing::warn!(name = %member.name, %error, "the state was not announced");
                    },
                    () = inner.leave.cancelled() => {}
                }
            }
        }
    }
}

/// A new lease, or None where the worker leaves before there is one.
async fn rejoin(inner: &Inner, membership: &Membership, member: &Member) -> Option<Lease> {
    let attempts = async {
        loop {
            match membership.join(member.clone()).await {
                Ok(lease) => return lease,
                Err(error) => tracing::warn!(name = %member.name, %error, "cannot join again yet"),
            }
            tokio::time::sleep(REJOIN).await;
        }
    };
    tokio::select! {
        lease = attempts => Some(lease),
        () = inner.leave.cancelled() => None,
    }
}
