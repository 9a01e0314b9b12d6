//! A router with everything around it: workers that come and go, a store that can be lost, upstreams that keep what they
//! are sent, catalogues that follow each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use penstock_cluster::catalog::{self, Catalog, Source};
use penstock_cluster::{MemberEvent, Store};
use penstock_proto::worker::WorkerServer;
use penstock_router::tenant::NewKey;
use penstock_router::{AdminKey, Cluster, Config, Connect, ConnectError, Router, Secrets};
use prometheus::Registry;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Endpoint;

use crate::audit::KEY;
use crate::outside::{Outside, Sent};
use crate::store::Losable;
use crate::worker::{Parrot, member};
use crate::world::{Ground, Side, Version, catalogue};

/// Catalogues by their numbers.
pub(crate) type Versions = Arc<Mutex<Vec<Version>>>;
type Pipes = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<std::io::Result<DuplexStream>>>>>;

pub(crate) struct Rig {
    pub(crate) router: Router,
    pub(crate) registry: Registry,
    pub(crate) keys: [NewKey; 3],
    /// The words of the dictionary.
    pub(crate) vips: Vec<String>,
    pub(crate) upstreams: [Outside; 2],
    pub(crate) store: Arc<Losable>,
    members: mpsc::Sender<MemberEvent>,
    pipes: Pipes,
    workers: Mutex<BTreeMap<String, JoinSet<()>>>,
    /// Every version that was applied, by its number.
    pub(crate) versions: Versions,
    in_force: AtomicUsize,
    directory: TempDir,
}

impl Rig {
    /// Starts all of it, with two workers and a first catalogue in force. What upstreams are sent goes to `told`.
    pub(crate) async fn start(told: mpsc::UnboundedSender<Sent>, first: Version) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vips: Vec<String> = (0..500).map(vip).collect();
        std::fs::write(directory.path().join("key"), KEY).unwrap();
        std::fs::write(directory.path().join("vip.txt"), vips.join("\n")).unwrap();
        let upstreams = [Outside::start(Side::Acme, told.clone()).await, Outside::start(Side::Ocean, told).await];
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let secrets = Secrets { directory: Some(directory.path().to_owned()), ..Secrets::default() };
        let config = Config { http: free, grpc: free, admin: free, secrets, ..Config::default() };
        let (members, events) = mpsc::channel(8);
        let (pipes, registry, store) = (Pipes::default(), Registry::new(), Arc::new(Losable::new()));
        let key = AdminKey::read_or_create(&directory.path().join("admin.key")).unwrap();
        let cluster = Cluster {
            store: Arc::<Losable>::clone(&store),
            members: ReceiverStream::new(events).boxed(),
            staleness: Arc::new(|| Duration::from_secs(1)),
            connect: connect(&pipes),
        };
        let router = Router::start(config, key, cluster, &registry).await.unwrap();
        let (keys, workers, versions) =
            ([(); 3].map(|()| NewKey::generate().unwrap()), Mutex::default(), Versions::default());
        let in_force = AtomicUsize::new(0);
        let rig = Self {
            router,
            registry,
            keys,
            vips,
            upstreams,
            store,
            members,
            pipes,
            workers,
            versions,
            in_force,
            directory,
        };
        rig.join("w1").await;
        rig.join("w2").await;
        rig.router.status().ready().await;
        rig.apply(first).await.unwrap();
        rig
    }

    /// Applies a catalogue and waits until it is in force; fails while the store is lost.
    pub(crate) async fn apply(&self, version: Version) -> Result<(), catalog::Error> {
        let at = {
            let mut versions = self.versions.lock().unwrap();
            versions.push(version);
            versions.len() - 1
        };
        let addresses = [self.upstreams[0].address, self.upstreams[1].address];
        let ground = Ground { addresses, directory: self.directory.path(), keys: &self.keys };
        let text = catalogue(at, &version, &ground);
        let catalog = Catalog::read(vec![Source { file: "bank.yaml".to_owned(), text }]).unwrap();
        let store: &dyn Store = &*self.store;
        match catalog::apply(store, &catalog, "proof").await {
            Ok(number) => {
                while self.count("penstock_catalog_version ") as u64 != number.get() {
                    tokio::task::yield_now().await;
                }
                self.in_force.store(at, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => {
                self.versions.lock().unwrap().pop();
                Err(error)
            }
        }
    }

    /// The first of the catalogues that a request may be answered under that is sent from now on.
    pub(crate) fn in_force(&self) -> usize {
        self.in_force.load(Ordering::SeqCst)
    }

    /// A worker joins.
    pub(crate) async fn join(&self, name: &str) {
        let (pipe, incoming) = mpsc::unbounded_channel();
        self.pipes.lock().unwrap().insert(format!("inprocess:{name}"), pipe);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let incoming = UnboundedReceiverStream::new(incoming);
            let serving = tonic::transport::Server::builder().add_service(WorkerServer::new(Parrot));
            serving.serve_with_incoming(incoming).await.unwrap();
        });
        self.workers.lock().unwrap().insert(name.to_owned(), server);
        self.members.send(MemberEvent::Joined(member(name))).await.unwrap();
    }

    /// A worker is killed, and leaves.
    pub(crate) async fn kill(&self, name: &str) {
        let server = self.workers.lock().unwrap().remove(name);
        self.pipes.lock().unwrap().remove(&format!("inprocess:{name}"));
        if let Some(mut server) = server {
            server.shutdown().await;
        }
        self.members.send(MemberEvent::Left(member(name).name)).await.unwrap();
    }

    /// The sum of the metrics whose lines begin so.
    pub(crate) fn count(&self, beginning: &str) -> usize {
        let text = penstock_router::render(std::slice::from_ref(&self.registry));
        let lines = text.lines().filter(|line| line.starts_with(beginning));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
    }
}

fn vip(at: usize) -> String {
    const FIRST: [&str; 10] = ["Zanvor", "Melith", "Quorin", "Brasel", "Tovian", "赵", "钱", "孙", "欧阳", "司马"];
    const LAST: [&str; 10] =
        ["kemthar", "ildane", "porvex", "ashgren", "wolmar", "小明", "建国", "玉兰", "子涵", "文静"];
    let (first, last, number) = (FIRST[at % 10], LAST[at / 10 % 10], at / 100);
    let letter = char::from(b'a' + u8::try_from(number).unwrap());
    if first.is_ascii() {
        format!("{first}{letter} {last}")
    } else {
        format!("{first}{last}{}", ['甲', '乙', '丙', '丁', '戊'][number])
    }
}

fn connect(pipes: &Pipes) -> Connect {
    let pipes = Arc::clone(pipes);
    Arc::new(move |endpoint| {
        let pipe = pipes.lock().unwrap().get(endpoint).cloned();
        let gone = || ConnectError { endpoint: endpoint.to_owned(), reason: "nobody is there".to_owned() };
        let pipe = pipe.ok_or_else(gone)?;
        let connector = tower::service_fn(move |_: http::Uri| {
            let (near, far) = tokio::io::duplex(64 << 10);
            let sent = pipe.send(Ok(far)).map_err(|_| std::io::Error::other("the worker is gone"));
            std::future::ready(sent.map(|()| TokioIo::new(near)))
        });
        Ok(Endpoint::from_static("http://in.process").connect_with_connector_lazy(connector))
    })
}
