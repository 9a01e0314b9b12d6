//! Where an issuer's keys come from, and which are known. They are fetched when a token needs them, by one task at a
//! time; a flood of tokens with made-up key names causes no more of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};
use penstock_cluster::catalog::KeySet as Place;
use reqwest::Client;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::jwk::KeySet;
use crate::replica::Causes;
use crate::upstream::{Trust, tls};

/// Bytes of the largest set.
const SET_LIMIT: usize = 256 << 10;
/// How long a fetch takes at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// From when on a set is fetched anew, though it has what is asked for.
const STALE: Duration = Duration::from_secs(10 * 60);
/// After so long without a fetch, as happens where nobody asks, a set is waited for before it is used again: a key may
/// have been withdrawn.
const SILENCE: Duration = Duration::from_secs(20 * 60);
/// How long a set is good that cannot be fetched anew.
const GOOD: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two fetches, while a set is known.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two fetches, while none is.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The keys at one place.
pub(super) struct Source {
    place: Place,
    /// Why it cannot be asked, where it cannot.
    client: Result<Option<Client>, String>,
    known: watch::Sender<Known>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Known {
    /// And when they were fetched.
    keys: Option<(Arc<KeySet>, Duration)>,
    /// When the last fetch began.
    tried: Option<Duration>,
    under_way: bool,
}

impl Source {
    pub(super) fn new(place: Place, tasks: TaskTracker) -> Self {
        let client = match &place {
            Place::Url(url) => client(url).map(Some),
            Place::File(_) => Ok(None),
        };
        Self { place, client, known: watch::Sender::default(), tasks }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The keys, fetched anew where what is wanted is not among those that are known; None where none can be had. Time is
    /// since 1970.
    pub(super) async fn keys(self: &Arc<Self>, now: Duration, wanted: impl Fn(&KeySet) -> bool) -> Option<Arc<KeySet>> {
        let (good, silent) = {
            let known = self.known.borrow();
            (known.good(now), known.tried.is_none_or(|tried| now.abs_diff(tried) >= SILENCE))
        };
        let fresh = good.as_ref().is_some_and(|(_, age)| *age < STALE);
        if !fresh {
            self.fetch(now);
        }
        if let Some((keys, _)) = good
            && !silent
            && wanted(&keys)
        {
            return Some(keys);
        }
        self.fetch(now);
        let mut known = self.known.subscribe();
        let known = known.wait_for(|known| !known.under_way).await.ok()?;
        known.good(now).map(|(keys, _)| keys)
    }

    /// Starts a fetch, unless one is under way or was a moment ago.
    fn fetch(self: &Arc<Self>, now: Duration) {
        let mut starts = false;
        self.known.send_if_modified(|known| {
            let pause = if known.keys.is_some() { PAUSE } else { FIRST_PAUSE };
            starts = !known.under_way && known.tried.is_none_or(|tried| now.abs_diff(tried) >= pause);
            if starts {
                (known.under_way, known.tried) = (true, Some(now));
            }
            false
        });
        if starts {
            let source = Arc::clone(self);
            self.tasks.spawn(async move {
                let read = timeout(PATIENCE, source.read()).await;
                let read = read.unwrap_or_else(|_| Err(format!("it took more than {PATIENCE:?}")));
                let keys = read.and_then(|text| KeySet::parse(&text).map_err(str::to_owned));
                if let Err(reason) = &keys {
                    tracing::warn!(place = ?source.place, reason, "the keys of an issuer cannot be fetched");
                }
                source.known.send_modify(|known| {
                    known.under_way = false;
                    if let Ok(keys) = keys {
                        known.keys = Some((Arc::new(keys), now));
                    }
                });
            });
        }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        match (&self.place, &self.client) {
            (Place::File(path), _) => file(path).await.map_err(|error| error.to_string()),
            (Place::Url(url), Ok(Some(client))) => get(client, url).await,
            (Place::Url(_), Ok(None)) => Err("there is nothing to ask with".to_owned()),
            (Place::Url(_), Err(reason)) => Err(reason.clone()),
        }
    }
}

impl Known {
    /// The keys that are good at a time, and how old they are.
    fn good(&self, now: Duration) -> Option<(Arc<KeySet>, Duration)> {
        let (keys, fetched) = self.keys.as_ref()?;
        let age = now.abs_diff(*fetched);
        (age < GOOD).then(|| (Arc::clone(keys), age))
    }
}

fn client(url: &str) -> Result<Client, String> {
    let tls = tls(&Trust::System, url.starts_with("https:")).map_err(|error| error.to_string())?;
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("penstock/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .no_proxy();
    client.build().map_err(|error| Causes(&error).to_string())
}

async fn get(client: &Client, url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| Causes(&error).to_string();
    let mut response = client.get(url).header(header::ACCEPT, "application/json").send().await.map_err(failed)?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => {
            return Err(format!("it sends elsewhere ({status}), which is not followed"));
        }
        status => return Err(format!("it answers {status}")),
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&piece);
        if body.len() > SET_LIMIT {
            return Err(format!("it is longer than {SET_LIMIT} bytes"));
        }
    }
    Ok(body)
}

async fn file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let limit = u64::try_from(SET_LIMIT).expect("a few hundred thousand") + 1;
    tokio::fs::File::open(path).await?.take(limit).read_to_end(&mut text).await?;
    if text.len() > SET_LIMIT {
        return Err(std::io::Error::other(format!("it is longer than {SET_LIMIT} bytes")));
    }
    Ok(text)
}
