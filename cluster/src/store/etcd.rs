//! The store of a cluster: etcd, by its v3 API.
//!
//! Nothing here waits for an outage to pass but a watch. Where it is not known whether a change was made, the caller is
//! told so and reads; everything else is tried again for a few seconds.

mod client;
mod fault;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tonic::Status;

use self::client::{Client, Repeat};
use self::pb::compare::{CompareTarget, TargetUnion};
use self::pb::kv_client::KvClient;
use self::pb::lease_client::LeaseClient;
use self::pb::{request_op, response_op};
use super::{
    Answer, Entry, Error, Expect, Grant, Key, LeaseId, Listing, Operation, Outcome, Prefix, Revision, Store, Txn, Watch,
};

#[expect(clippy::all, unreachable_pub, reason = "generated; proto/etcd.proto holds the documentation")]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

/// A listing is one message: room for some ten thousand documents.
const MESSAGE_LIMIT: usize = 64 << 20;

/// Any key will do to ask for the revision; a user whose role covers `/penstock/` may read this one.
const PROBE: &str = "/penstock/";

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// The client addresses of its members, as `http://HOST:PORT` or `https://HOST:PORT`. One is used at a time, and
    /// the next one when it fails.
    pub endpoints: Vec<String>,
    /// Who we are to it.
    pub login: Option<Login>,
    /// What `https` addresses are checked against; needed where there are any.
    pub tls: Option<EtcdTls>,
}

/// A user of etcd.
#[derive(Clone)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Certificates, in PEM.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The authorities that etcd's certificate may come from.
    pub ca: Bytes,
    /// Our own certificate, where etcd asks for one.
    pub identity: Option<Identity>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, with those between it and its authority.
    pub certificate: Bytes,
    /// The private key.
    pub key: Bytes,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// A [`Store`] in etcd 3.4 or later. Clones share their connections.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    client: Arc<Client>,
}

impl EtcdStore {
    /// A store in the etcd that `config` tells of. It connects with the first call, so etcd may come up later. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where an address or a certificate makes no sense.
    pub fn new(config: EtcdConfig) -> Result<Self, Error> {
        Ok(Self { client: Arc::new(Client::new(config)?) })
    }

    async fn range(&self, key: Vec<u8>, range_end: Vec<u8>) -> Result<Listing, Error> {
        let request = pb::RangeRequest { key: key.into(), range_end: range_end.into() };
        let call = |link: client::Link| {
            let request = link.request(request.clone());
            let mut kv = KvClient::new(link.channel).max_decoding_message_size(MESSAGE_LIMIT);
            async move { kv.range(request).await }
        };
        let response = self.client.call(Repeat::Freely, call).await?;
        let entries = response.kvs.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Listing { revision: revision(response.header)?, entries })
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.range(key.as_str().into(), Vec::new()).await?.entries.pop()) })
    }

    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing> {
        Box::pin(async move {
            let (key, end) = bounds(prefix);
            self.range(key, end).await
        })
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Outcome> {
        Box::pin(async move {
            txn.check()?;
            let request = transaction(&txn);
            let call = |link: client::Link| {
                let request = link.request(request.clone());
                let mut kv = KvClient::new(link.channel);
                async move { kv.txn(request).await }
            };
            let response = match self.client.call(Repeat::Unsent, call).await {
                Err(Error::LeaseNotFound { .. }) => return Err(Error::LeaseNotFound { lease: lease_of(&txn) }),
                response => response?,
            };
            let revision = revision(response.header)?;
            if !response.succeeded {
                return Ok(Outcome::Conflict { revision });
            }
            let deleted = response.responses.into_iter().map(|op| match op.response {
                Some(response_op::Response::ResponseDeleteRange(range)) => range.deleted as usize,
                Some(response_op::Response::ResponsePut(_)) | None => 0,
            });
            Ok(Outcome::Committed { revision, deleted: deleted.sum() })
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Grant> {
        Box::pin(async move {
            let ttl = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
            let call = |link: client::Link| {
                // A lease whose grant got lost ends by itself.
                let request = link.request(pb::LeaseGrantRequest { ttl, id: 0 });
                let mut leases = LeaseClient::new(link.channel);
                async move { leases.lease_grant(request).await }
            };
            let response = self.client.call(Repeat::Freely, call).await?;
            Ok(Grant { lease: LeaseId::new(response.id), ttl: seconds(response.ttl) })
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        Box::pin(async move {
            let call = |link: client::Link| {
                let beat = pb::LeaseKeepAliveRequest { id: lease.get() };
                let request = link.request(stream::iter([beat]));
                let mut leases = LeaseClient::new(link.channel);
                async move {
                    let beat = leases.lease_keep_alive(request).await?.into_inner().message().await?;
                    beat.map(tonic::Response::new).ok_or_else(|| Status::unavailable("no answer to the keep-alive"))
                }
            };
            match self.client.call(Repeat::Freely, call).await?.ttl {
                ttl if ttl > 0 => Ok(seconds(ttl)),
                _ => Err(Error::LeaseNotFound { lease }),
            }
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            let call = |link: client::Link| {
                let request = link.request(pb::LeaseRevokeRequest { id: lease.get() });
                let mut leases = LeaseClient::new(link.channel);
                async move { leases.lease_revoke(request).await }
            };
            match self.client.call(Repeat::Unsent, call).await {
                Ok(_) => Ok(()),
                Err(Error::LeaseNotFound { .. }) => Err(Error::LeaseNotFound { lease }),
                Err(error) => Err(error),
            }
        })
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch> {
        Box::pin(async move { Ok(watch::watch(self.client.clone(), prefix, after)) })
    }

    fn revision(&self) -> Answer<'_, Revision> {
        Box::pin(async move { Ok(self.range(PROBE.into(), Vec::new()).await?.revision) })
    }
}

/// The first key under a prefix, and the first one beyond it.
fn bounds(prefix: &Prefix) -> (Vec<u8>, Vec<u8>) {
    let start = prefix.as_str().as_bytes().to_vec();
    if start.is_empty() {
        // etcd's words for every key.
        return (vec![0], vec![0]);
    }
    let mut end = start.clone();
    // UTF-8 has no byte 0xff, so the last one can always be raised.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (start, end)
}

fn transaction(txn: &Txn) -> pb::TxnRequest {
    let bytes = |key: &Key| Bytes::copy_from_slice(key.as_str().as_bytes());
    let compare = txn.expects.iter().map(|expect| {
        let (key, target, union) = match expect {
            Expect::Absent(key) => (key, CompareTarget::Mod, TargetUnion::ModRevision(0)),
            Expect::Modified(key, at) => (key, CompareTarget::Mod, TargetUnion::ModRevision(at.get())),
            Expect::Created(key, at) => (key, CompareTarget::Create, TargetUnion::CreateRevision(at.get())),
        };
        let result = pb::compare::CompareResult::Equal.into();
        pb::Compare { result, target: target.into(), key: bytes(key), target_union: Some(union) }
    });
    let success = txn.operations.iter().map(|operation| {
        let request = match operation {
            Operation::Put { key, value, lease } => request_op::Request::RequestPut(pb::PutRequest {
                key: bytes(key),
                value: value.clone(),
                lease: lease.map_or(0, LeaseId::get),
            }),
            Operation::Delete { key } => {
                request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest { key: bytes(key) })
            }
        };
        pb::RequestOp { request: Some(request) }
    });
    pb::TxnRequest { compare: compare.collect(), success: success.collect() }
}

/// The lease that a transaction failed for: etcd does not say which, and they are hardly ever two.
fn lease_of(txn: &Txn) -> LeaseId {
    let lease = txn.operations.iter().find_map(|operation| match operation {
        Operation::Put { lease, .. } => *lease,
        Operation::Delete { .. } => None,
    });
    lease.unwrap_or(LeaseId::new(0))
}

fn entry(kv: pb::KeyValue) -> Result<Entry, Error> {
    Ok(Entry {
        key: key(&kv.key)?,
        value: kv.value,
        created: Revision::new(kv.create_revision),
        modified: Revision::new(kv.mod_revision),
        lease: Some(kv.lease).filter(|lease| *lease != 0).map(LeaseId::new),
    })
}

fn key(bytes: &[u8]) -> Result<Key, Error> {
    match std::str::from_utf8(bytes) {
        Ok(key) => Ok(Key::new(key)),
        Err(_) => Err(Error::Failed { reason: format!("the key {} is not UTF-8", bytes.escape_ascii()) }),
    }
}

fn revision(header: Option<pb::ResponseHeader>) -> Result<Revision, Error> {
    let header = header.ok_or_else(|| Error::Failed { reason: "an answer without a header".to_owned() })?;
    Ok(Revision::new(header.revision))
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
