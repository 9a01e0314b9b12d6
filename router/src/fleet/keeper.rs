//! The task that owns the members: connects to those that join, fetches what they serve, publishes snapshots.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use penstock_cluster::MemberEvent;
use penstock_cluster::membership::{Member, MemberState as Joined, PROTOCOL};
use penstock_proto::{ModelName, WorkerName};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::TaskTracker;

use super::{Connect, ConnectError, Known, Model, Snapshot, Trouble};
use crate::metrics::{MemberState, Metrics};
use crate::prompt::{self, ModelText};
use crate::replica::{FetchError, Fetched, Lie, Replica, fetch};

/// Between two attempts to fetch from one member, doubled each time from the first to the last.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Between two questions for a worker's load.
const ASKING: Duration = Duration::from_millis(500);

/// What is known of a member.
struct Slot {
    member: Member,
    state: State,
}

enum State {
    /// It has said that it takes no work yet.
    Waiting,
    Loading {
        /// Which attempt counts: an older one's result is of another time.
        attempt: u64,
        task: AbortHandle,
        trouble: watch::Receiver<Option<String>>,
    },
    Loaded(Vec<Served>),
}

/// A model that a member serves, ready for use.
struct Served {
    name: ModelName,
    text: Arc<ModelText>,
    replica: Arc<Replica>,
}

struct Loaded {
    worker: WorkerName,
    attempt: u64,
    served: Vec<Served>,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A refusal of our certificate often ends the connection before its reason is read.
    #[error("{0}; where it refuses our own certificate (--tls-cert), its log says why")]
    Tls(FetchError),
    #[error(transparent)]
    Text(#[from] prompt::Error),
    #[error("reading the model's text files panicked")]
    Panicked,
}

pub(super) struct Keeper {
    loader: Loader,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Arc<Snapshot>>,
    slots: BTreeMap<WorkerName, Slot>,
    loads: JoinSet<Loaded>,
    attempts: u64,
}

impl Keeper {
    pub(super) fn new(connect: Connect, metrics: Arc<Metrics>, publish: watch::Sender<Arc<Snapshot>>) -> Self {
        let loader = Loader { connect, lied: Arc::default(), followers: TaskTracker::new(), texts: Arc::default() };
        Self { loader, metrics, publish, slots: BTreeMap::new(), loads: JoinSet::new(), attempts: 0 }
    }

    /// Runs until nobody holds a snapshot any more: once `members` has ended, on what was last known.
    pub(super) async fn run(mut self, members: impl Stream<Item = MemberEvent>) {
        let mut members = pin!(members);
        let mut follows = true;
        loop {
            tokio::select! {
                event = members.next(), if follows => match event {
                    Some(event) => self.take(event),
                    None => {
                        tracing::error!("nobody tells of members any more; serving on with the last known ones");
                        follows = false;
                    }
                },
                Some(loaded) = self.loads.join_next() => match loaded {
                    Ok(loaded) => self.loaded(loaded),
                    Err(error) if error.is_panic() => tracing::error!(%error, "taking a worker in panicked"),
                    // One that was aborted has nothing to add.
                    Err(_) => {}
                },
                // What is published tells who is not believed any more.
                () = self.loader.lied.notified() => {}
                () = self.publish.closed() => return,
            }
            self.publish();
        }
    }

    fn take(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Joined(member) | MemberEvent::Changed(member) => self.put(member),
            MemberEvent::Left(worker) => {
                tracing::info!(%worker, "worker left");
                self.remove(&worker);
            }
            MemberEvent::Synced => {}
        }
    }

    /// A member is new or not what it was.
    fn put(&mut self, member: Member) {
        let name = member.name.clone();
        if !self.slots.get(&name).is_some_and(|slot| slot.holds_for(&member)) {
            self.remove(&name);
        }
        let (loader, attempt) = (self.loader.clone(), self.attempts);
        let slot = self.slots.entry(name).or_insert_with(|| Slot { member: member.clone(), state: State::Waiting });
        slot.member = member.clone();
        if member.protocol != PROTOCOL {
            let (worker, theirs) = (&member.name, member.protocol);
            tracing::warn!(%worker, theirs, ours = PROTOCOL, "a worker speaks another protocol version and gets no work");
            return;
        }
        match (&slot.state, member.state) {
            (State::Waiting, Joined::Ready | Joined::Draining) => {
                let (told, trouble) = watch::channel(None);
                let task = self.loads.spawn(loader.load(member, attempt, told));
                slot.state = State::Loading { attempt, task, trouble };
                self.attempts += 1;
            }
            (State::Waiting, Joined::Loading) | (State::Loading { .. }, _) => {}
            (State::Loaded(_), _) => slot.apply_state(),
        }
    }

    fn remove(&mut self, worker: &WorkerName) {
        if let Some(Slot { state: State::Loading { task, .. }, .. }) = self.slots.remove(worker) {
            task.abort();
        }
    }

    fn loaded(&mut self, loaded: Loaded) {
        let Some(slot) = self.slots.get_mut(&loaded.worker) else { return };
        if matches!(slot.state, State::Loading { attempt, .. } if attempt == loaded.attempt) {
            tracing::info!(worker = %loaded.worker, endpoint = slot.member.endpoint, "worker joined");
            slot.state = State::Loaded(loaded.served);
            slot.apply_state();
        }
    }

    fn publish(&self) {
        let before = Arc::clone(&self.publish.borrow());
        let models = self.models(&before);
        let workers = self.slots.iter().map(|(name, slot)| (name.clone(), slot.known(&models)));
        let workers: BTreeMap<WorkerName, Known> = workers.collect();
        for state in MemberState::ALL {
            self.metrics.members(state, workers.values().filter(|known| known.state == state).count());
        }
        self.publish.send_replace(Arc::new(Snapshot { models, workers }));
    }

    /// What is served now. Of a name only one digest is served at a time, since a prompt is encoded for one: that of
    /// `before` as long as somebody has it.
    fn models(&self, before: &Snapshot) -> BTreeMap<ModelName, Arc<Model>> {
        let mut by_name: BTreeMap<&ModelName, Vec<&Served>> = BTreeMap::new();
        for served in self.slots.values().flat_map(Slot::served) {
            by_name.entry(&served.name).or_default().push(served);
        }
        let mut models = BTreeMap::new();
        for (name, model) in &before.models {
            if !by_name.contains_key(name) {
                models.insert(name.clone(), Arc::new(model.with_replicas(Vec::new())));
            }
        }
        for (name, served) in by_name {
            let known = before.models.get(name);
            let leader = known
                .and_then(|model| served.iter().find(|served| served.replica.card().digest == model.card.digest))
                .unwrap_or(&served[0]);
            let digest = &leader.replica.card().digest;
            let same = served.iter().filter(|served| served.replica.card().digest == *digest);
            let replicas = same.map(|served| Arc::clone(&served.replica)).collect();
            let model = match known.filter(|model| model.card.digest == *digest) {
                Some(model) => model.with_replicas(replicas),
                None => leader.first_seen(replicas),
            };
            models.insert(name.clone(), Arc::new(model));
        }
        models
    }
}

impl Slot {
    /// Whether what was loaded holds for a member as it is told now. A new epoch alone changes nothing: a worker that lost
    /// its lease in an outage of the store takes a new one and serves on, and every call names the digest that it is
    /// meant for. Only who broke the protocol begins anew with it.
    fn holds_for(&self, told: &Member) -> bool {
        let known = &self.member;
        let same = known.endpoint == told.endpoint && known.models == told.models && known.protocol == told.protocol;
        same && (known.epoch == told.epoch || !self.is_distrusted())
    }

    /// How it broke the protocol, where it has.
    fn lie(&self) -> Option<&Lie> {
        self.served().iter().find_map(|served| served.replica.problem())
    }

    fn is_distrusted(&self) -> bool {
        self.lie().is_some()
    }

    fn served(&self) -> &[Served] {
        match &self.state {
            State::Waiting | State::Loading { .. } => &[],
            State::Loaded(served) => served,
        }
    }

    fn apply_state(&self) {
        let draining = self.member.state != Joined::Ready;
        self.served().iter().for_each(|served| served.replica.set_draining(draining));
    }

    fn known(&self, models: &BTreeMap<ModelName, Arc<Model>>) -> Known {
        let state = self.state_in(models);
        let trouble = match (&self.state, state) {
            (State::Loading { trouble, .. }, _) => Trouble::Loading(trouble.clone()),
            (State::Waiting, MemberState::Mismatched) => Trouble::Protocol(self.member.protocol),
            (State::Loaded(_), MemberState::Mismatched) => Trouble::Digest,
            (State::Waiting | State::Loaded(_), _) => {
                self.lie().map_or(Trouble::None, |lie| Trouble::Lie(lie.to_string()))
            }
        };
        Known {
            endpoint: self.member.endpoint.clone(),
            state,
            models: self.member.models.iter().map(|model| model.name.clone()).collect(),
            replicas: self.served().iter().map(|served| Arc::clone(&served.replica)).collect(),
            trouble,
        }
    }

    fn state_in(&self, models: &BTreeMap<ModelName, Arc<Model>>) -> MemberState {
        let takes_part = |served: &Served| {
            let model = models.get(&served.name);
            model.is_some_and(|model| model.replicas.iter().any(|replica| Arc::ptr_eq(replica, &served.replica)))
        };
        match (&self.state, self.member.state) {
            (State::Waiting, _) if self.member.protocol != PROTOCOL => MemberState::Mismatched,
            (State::Waiting | State::Loading { .. }, _) => MemberState::Loading,
            (State::Loaded(_), _) if self.is_distrusted() => MemberState::Distrusted,
            (State::Loaded(served), _) if !served.iter().any(takes_part) => MemberState::Mismatched,
            (State::Loaded(_), Joined::Loading | Joined::Draining) => MemberState::Draining,
            (State::Loaded(_), Joined::Ready) => MemberState::Ready,
        }
    }
}

impl Served {
    fn first_seen(&self, replicas: Vec<Arc<Replica>>) -> Model {
        let (name, card, text) = (self.name.clone(), self.replica.card().clone(), Arc::clone(&self.text));
        Model { name, card, text, created: penstock_proto::time::unix_now().as_secs(), replicas }
    }
}

impl Model {
    fn with_replicas(&self, replicas: Vec<Arc<Replica>>) -> Self {
        let (name, card, text) = (self.name.clone(), self.card.clone(), Arc::clone(&self.text));
        Self { name, card, text, created: self.created, replicas }
    }
}

/// Keeps what is known of a replica's wait fresh, for as long as anybody has the replica.
async fn follow_wait(replica: Weak<Replica>) {
    loop {
        let Some(known) = replica.upgrade() else { return };
        known.ask_wait().await;
        drop(known);
        tokio::time::sleep(ASKING).await;
    }
}

/// Connects and fetches, again and again until it has succeeded.
#[derive(Clone)]
struct Loader {
    connect: Connect,
    /// Told by every replica that breaks the protocol.
    lied: Arc<Notify>,
    /// What asks the replicas for their load; each ends with its replica.
    followers: TaskTracker,
    /// What was built, by digest, as long as somebody uses it.
    texts: Arc<Mutex<HashMap<String, Weak<ModelText>>>>,
}

impl Loader {
    /// `told` hears why an attempt has failed.
    async fn load(self, member: Member, attempt: u64, told: watch::Sender<Option<String>>) -> Loaded {
        let [mut pause, longest] = RETRY;
        loop {
            match self.fetch_all(&member).await {
                Ok(served) => return Loaded { worker: member.name, attempt, served },
                Err(error) => {
                    let (worker, endpoint) = (&member.name, &member.endpoint);
                    tracing::warn!(%worker, endpoint, %error, "cannot take a worker in yet");
                    told.send_replace(Some(error.to_string()));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn fetch_all(&self, member: &Member) -> Result<Vec<Served>, LoadError> {
        let channel = (self.connect)(&member.endpoint)?;
        let mut served = Vec::new();
        for model in &member.models {
            let fetched = fetch(channel.clone(), &model.name, &model.digest).await;
            let fetched = fetched.map_err(|error| match error {
                FetchError::Status(_) if member.endpoint.starts_with("https:") => LoadError::Tls(error),
                error => LoadError::Fetch(error),
            })?;
            let text = self.text(&fetched).await?;
            let (worker, lied) = (member.name.clone(), Arc::clone(&self.lied));
            let replica = Arc::new(Replica::new(worker, channel.clone(), fetched.card, lied));
            self.followers.spawn(follow_wait(Arc::downgrade(&replica)));
            served.push(Served { name: model.name.clone(), text, replica });
        }
        Ok(served)
    }

    async fn text(&self, fetched: &Fetched) -> Result<Arc<ModelText>, LoadError> {
        let digest = &fetched.card.digest;
        if let Some(text) =
            self.texts.lock().unwrap_or_else(PoisonError::into_inner).get(digest).and_then(Weak::upgrade)
        {
            return Ok(text);
        }
        let files = fetched.files.clone();
        // Large vocabularies take a second.
        let built = tokio::task::spawn_blocking(move || ModelText::new(&files)).await;
        let text = Arc::new(built.map_err(|_| LoadError::Panicked)??);
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.retain(|_, text| text.strong_count() > 0);
        texts.insert(digest.clone(), Arc::downgrade(&text));
        Ok(text)
    }
}
