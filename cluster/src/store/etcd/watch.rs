//! A watch that outlives its connections: it goes on after the last revision that it handed out.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use tonic::Streaming;

use super::client::{BACKOFF, Client, Link, Repeat};
use super::fault::Fault;
use super::pb::event::EventType;
use super::pb::watch_client::WatchClient;
use super::pb::{self, WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use super::{MESSAGE_LIMIT, bounds, entry, key};
use crate::backoff::Backoff;
use crate::store::{Error, Event, Prefix, Revision, Update, Watch};

pub(super) fn watch(client: Arc<Client>, prefix: &Prefix, after: Revision) -> Watch {
    let (key, range_end) = bounds(prefix);
    let cursor = Cursor {
        client,
        key: key.into(),
        range_end: range_end.into(),
        after,
        ready: VecDeque::new(),
        open: None,
        backoff: BACKOFF,
    };
    Box::pin(stream::unfold(Some(cursor), |cursor| async {
        let mut cursor = cursor?;
        match cursor.next().await {
            Ok(update) => Some((Ok(update), Some(cursor))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Where a watch stands.
struct Cursor {
    client: Arc<Client>,
    key: Bytes,
    range_end: Bytes,
    /// The last revision that is in `ready`, or was.
    after: Revision,
    ready: VecDeque<Update>,
    open: Option<Open>,
    backoff: Backoff,
}

/// A watch on one connection.
struct Open {
    responses: Streaming<WatchResponse>,
    member: usize,
}

impl Cursor {
    async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(update);
            }
            let broken = match &mut self.open {
                Some(open) => match open.responses.message().await {
                    Ok(Some(response)) => self.take(response).await?,
                    Ok(None) => Some("the stream ended".to_owned()),
                    Err(status) => self.broken(Fault::of(&status)).await?,
                },
                None => match self.open().await {
                    Ok(open) => {
                        self.open = Some(open);
                        None
                    }
                    Err(error) if error.retryable() => Some(error.to_string()),
                    Err(error) => return Err(error),
                },
            };
            if let Some(reason) = broken {
                tracing::debug!(reason, after = self.after.get(), "a watch is broken; it goes on when etcd is back");
                self.open = None;
                sleep(self.backoff.next()).await;
            }
        }
    }

    async fn open(&self) -> Result<Open, Error> {
        // A watch from the revision at which history was compacted misses deletes of that very revision, so we ask for
        // the one before what we want, which we drop. etcd takes zero for "from now on".
        let create = WatchCreateRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            start_revision: self.after.get().max(1),
        };
        let request = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
        let call = |link: Link| {
            // The watch ends with its requests, so these never do.
            let request = link.request(stream::iter([request.clone()]).chain(stream::pending()));
            let mut watch = WatchClient::new(link.channel).max_decoding_message_size(MESSAGE_LIMIT);
            async move { watch.watch(request).await }
        };
        let member = self.client.current();
        Ok(Open { responses: self.client.call(Repeat::Freely, call).await?, member })
    }

    /// Takes in a response; says why, where it is the watch's last one on this connection.
    async fn take(&mut self, response: WatchResponse) -> Result<Option<String>, Error> {
        if response.compact_revision > 0 {
            return Err(Error::Compacted { at: Revision::new(response.compact_revision) });
        }
        if response.canceled {
            if response.cancel_reason.contains("permission denied") {
                return Err(Error::Denied { reason: response.cancel_reason });
            }
            // Among other reasons: the token is no longer good.
            self.client.forget_token().await;
            return Ok(Some(response.cancel_reason));
        }
        self.backoff.reset();
        for event in response.events {
            self.sort_in(event)?;
        }
        for update in &mut self.ready {
            update.events.sort_by(|a, b| a.key().cmp(b.key()));
        }
        Ok(None)
    }

    /// Adds an event to the update of its revision; etcd never cuts a revision in two unless it is asked to.
    fn sort_in(&mut self, event: pb::Event) -> Result<(), Error> {
        let kind = event.r#type();
        let kv = event.kv.ok_or_else(|| Error::Failed { reason: "an event without a key".to_owned() })?;
        let revision = Revision::new(kv.mod_revision);
        let event = match kind {
            EventType::Put => Event::Put(entry(kv)?),
            EventType::Delete => Event::Delete(key(&kv.key)?),
        };
        match self.ready.back_mut() {
            Some(update) if update.revision == revision => update.events.push(event),
            _ if revision <= self.after => {}
            _ => {
                self.ready.push_back(Update { revision, events: vec![event] });
                self.after = revision;
            }
        }
        Ok(())
    }

    async fn broken(&self, fault: Fault) -> Result<Option<String>, Error> {
        match fault {
            Fault::Final(error) => Err(error),
            Fault::Login => {
                self.client.forget_token().await;
                Ok(Some("the token is no longer good".to_owned()))
            }
            Fault::Unsent(reason) | Fault::Open(reason) => {
                if let Some(open) = &self.open {
                    self.client.move_on(open.member);
                }
                Ok(Some(reason))
            }
        }
    }
}
