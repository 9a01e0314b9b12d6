//! A worker that breaks the protocol, beside honest ones: its streams end, it is named, and it gets no more work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use penstock_cluster::membership::{Lease, Member, MemberState, Membership, PROTOCOL, ServedModel};
use penstock_cluster::store::{EtcdConfig, EtcdStore};
use penstock_proto::worker::{
    DrainRequest, DrainResponse, GetLoadRequest, GetModelRequest, GetModelResponse, Load, Tokens, WatchLoadRequest,
    Worker, WorkerClient, WorkerGenerateEvent, WorkerGenerateRequest, WorkerServer, get_model_response,
    worker_generate_event::Event,
};
use penstock_proto::{ModelName, WorkerName};
use penstock_router::Tcp;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{Cluster, MODEL, Process};

/// What it makes of an honest worker's answer once the answer has begun.
#[derive(Debug, Clone, Copy)]
enum Lie {
    Vocabulary,
    Jump,
    AfterEnd,
}

impl Lie {
    /// What the router says of it.
    fn words(self) -> &'static str {
        match self {
            Self::Vocabulary => "id 1000000 of a vocabulary of",
            Self::Jump => "where 2 was due",
            Self::AfterEnd => "an event after the end",
        }
    }

    fn tell(self, mut event: WorkerGenerateEvent) -> Vec<WorkerGenerateEvent> {
        match (self, &mut event.event) {
            (Self::Vocabulary, Some(Event::Tokens(tokens))) if event.sequence_number >= 2 => {
                tokens.ids = vec![1_000_000];
            }
            (Self::Jump, _) if event.sequence_number >= 2 => event.sequence_number += 1,
            (Self::AfterEnd, Some(Event::Finished(_))) => {
                let more = Some(Event::Tokens(Tokens { logprobs: Vec::new(), ids: vec![0] }));
                let sequence_number = event.sequence_number;
                return vec![event, WorkerGenerateEvent { sequence_number, event: more }];
            }
            (Self::Vocabulary | Self::Jump | Self::AfterEnd, _) => {}
        }
        vec![event]
    }
}

/// Passes an honest worker's card on, and its answers with a lie in them.
struct Liar {
    honest: WorkerClient<Channel>,
    lie: Lie,
    calls: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Worker for Liar {
    type GetModelStream = Streaming<GetModelResponse>;
    type GenerateStream = BoxStream<'static, Result<WorkerGenerateEvent, Status>>;
    type WatchLoadStream = Streaming<Load>;

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<Self::GetModelStream>, Status> {
        self.honest.clone().get_model(request).await
    }

    async fn generate(
        &self,
        request: Request<WorkerGenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (lie, events) = (self.lie, self.honest.clone().generate(request).await?.into_inner());
        let told = events.flat_map(move |event| {
            let events = match event {
                Ok(event) => lie.tell(event).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            };
            stream::iter(events)
        });
        Ok(Response::new(told.boxed()))
    }

    async fn get_load(&self, request: Request<GetLoadRequest>) -> Result<Response<Load>, Status> {
        self.honest.clone().get_load(request).await
    }

    async fn watch_load(&self, request: Request<WatchLoadRequest>) -> Result<Response<Self::WatchLoadStream>, Status> {
        self.honest.clone().watch_load(request).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.honest.clone().drain(request).await
    }
}

/// A liar that serves and is a member.
struct Impostor {
    lease: Lease,
    membership: Membership,
    calls: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Impostor {
    async fn join(cluster: &Cluster, behind: &Process, lie: Lie) -> Self {
        let mut honest = WorkerClient::new(Tcp::default().open(&format!("http://{}", behind.address("grpc"))).unwrap());
        let mut parts = honest.get_model(GetModelRequest { model: MODEL.to_owned() }).await.unwrap().into_inner();
        let Some(get_model_response::Part::Card(card)) = parts.message().await.unwrap().unwrap().part else {
            panic!("the card comes first");
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member {
            name: WorkerName::new("impostor").unwrap(),
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            models: vec![ServedModel { name: ModelName::new(MODEL).unwrap(), digest: card.digest }],
            state: MemberState::Ready,
            protocol: PROTOCOL,
            epoch: Default::default(),
        };
        let calls = Arc::<AtomicUsize>::default();
        let liar = WorkerServer::new(Liar { honest, lie, calls: Arc::clone(&calls) });
        let serving = Server::builder().add_service(liar).serve_with_incoming(TcpIncoming::from(listener));
        let mut server = JoinSet::new();
        server.spawn(async move { serving.await.unwrap() });
        let etcd = EtcdConfig { endpoints: vec![cluster.etcd()], login: None, tls: None };
        let membership = Membership::new(Arc::new(EtcdStore::new(etcd).unwrap()));
        let lease = membership.join(member).await.unwrap();
        Self { lease, membership, calls, _server: server }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn leave(self) {
        self.lease.leave().await;
        self.membership.close().await;
    }
}

#[tokio::test]
async fn a_liar_is_named_and_contained_and_no_other_stream_is_hurt() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &["--balance", "round-robin"]);
    let honest = [cluster.worker("w1", &[]), cluster.worker("w2", &[])];
    cluster.members(&router, "ready", 2).await;
    for lie in [Lie::Vocabulary, Lie::Jump, Lie::AfterEnd] {
        let impostor = Impostor::join(&cluster, &honest[0], lie).await;
        cluster.members(&router, "ready", 3).await;
        // One a worker, by turns.
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(cluster.stream(&router, 100).await);
        }
        let mut texts = Vec::new();
        for stream in streams {
            texts.push(stream.finish().await);
        }
        let lost = texts.iter().filter(|text| text.contains("\"code\":\"capacity_worker_lost\""));
        assert!(lost.clone().all(|text| !text.contains("[DONE]")), "{lie:?}: {texts:?}");
        let whole = texts.iter().filter(|text| text.ends_with("data: [DONE]\n\n"));
        assert_eq!((lost.count(), whole.count()), (1, 2), "{lie:?}: {texts:?}");
        router.logs(&["worker broke the protocol", "impostor", lie.words()]).await;

        cluster.members(&router, "distrusted", 1).await;
        let calls = impostor.calls();
        cluster.under_load(&[&router], async {}).await;
        assert_eq!(impostor.calls(), calls, "{lie:?}: it was given more work");
        impostor.leave().await;
        cluster.members(&router, "distrusted", 0).await;
    }
    let accused = |line: &str| line.contains("broke the protocol") && !line.contains("impostor");
    assert!(!router.log().lines().any(accused), "{}", router.log());
}
