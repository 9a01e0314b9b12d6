//! `penstock.v1.Admin` as the operators' command line meets it.

use std::net::SocketAddr;

use penstock_cluster::MemberEvent;
use penstock_cluster::membership::{Member, MemberState as Joined, PROTOCOL, ServedModel};
use penstock_proto::admin::{
    AdminClient, DrainWorkerRequest, MemberState, StatusRequest, StatusResponse, UndrainWorkerRequest, WorkerStatus,
};
use penstock_proto::{ErrorCode, ModelName, WorkerName};
use serde_json::json;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::{Front, LOAD, MODEL, Traits, chat, soon};

async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn with_key<T>(front: &Front, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(front.key.header().as_bytes()).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn status(front: &Front) -> StatusResponse {
    let mut client = AdminClient::new(channel(front.router.admin_addr()).await);
    soon(client.status(with_key(front, StatusRequest {}))).await.unwrap().into_inner()
}

async fn drain(front: &Front, name: &str) -> Result<(), Status> {
    let mut client = AdminClient::new(channel(front.router.admin_addr()).await);
    let name = name.to_owned();
    client.drain_worker(with_key(front, DrainWorkerRequest { name })).await.map(|_| ())
}

#[tokio::test]
async fn nothing_on_the_port_is_said_without_the_key() {
    let front = Front::start(|_| {}).await;
    let channel = channel(front.router.admin_addr()).await;
    let refused = |status: &Status, word: &str| {
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(ErrorCode::from_status(status), Some((ErrorCode::Unauthenticated, None)));
        assert!(status.message().contains("admin.key") && status.message().contains(word), "{status}");
    };
    let mut admin = AdminClient::new(channel.clone());
    refused(&soon(admin.status(StatusRequest {})).await.unwrap_err(), "Bearer");
    let mut wrong = Request::new(StatusRequest {});
    wrong.metadata_mut().insert("authorization", format!("Bearer {}", "0".repeat(64)).parse().unwrap());
    refused(&soon(admin.status(wrong)).await.unwrap_err(), "not the admin key");

    let mut health = HealthClient::new(channel.clone());
    let asked = HealthCheckRequest { service: "penstock.v1.Admin".to_owned() };
    refused(&soon(health.check(asked.clone())).await.unwrap_err(), "Bearer");
    let told = soon(health.check(with_key(&front, asked))).await.unwrap().into_inner();
    assert_eq!(told.status(), ServingStatus::Serving);

    let list = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        tokio_stream::once(ServerReflectionRequest { host: String::new(), message_request })
    };
    let mut reflection = ServerReflectionClient::new(channel);
    refused(&soon(reflection.server_reflection_info(list())).await.unwrap_err(), "Bearer");
    let response = soon(reflection.server_reflection_info(with_key(&front, list()))).await.unwrap();
    let listed = soon(response.into_inner().message()).await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else { panic!("{listed:?}") };
    let mut names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["grpc.health.v1.Health", "penstock.v1.Admin"]);
}

#[tokio::test]
async fn the_ports_of_clients_serve_no_admin_call() {
    let front = Front::start(|_| {}).await;
    let mut client = AdminClient::new(channel(front.router.grpc_addr()).await);
    let status = soon(client.status(with_key(&front, StatusRequest {}))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn status_tells_each_workers_state_load_and_problem() {
    let (mut front, mut worker) = Front::with_worker().await;
    let other = Traits { digest: "d2", ..Traits::default() };
    let _renamed = front.join("w2", other).await;
    front.metric(r#"penstock_members{state="mismatched"} 1"#).await;
    let member = |name: &str, endpoint: &str, protocol| Member {
        name: WorkerName::new(name).unwrap(),
        endpoint: endpoint.to_owned(),
        models: vec![ServedModel { name: ModelName::new(MODEL).unwrap(), digest: "d1".to_owned() }],
        state: Joined::Ready,
        protocol,
        epoch: Default::default(),
    };
    front.tell(MemberEvent::Joined(member("w3", "inprocess:w1", PROTOCOL + 1))).await;
    front.tell(MemberEvent::Joined(member("w4", "inprocess:nobody", PROTOCOL))).await;
    front.metric(r#"penstock_members{state="mismatched"} 2"#).await;
    front.metric(r#"penstock_members{state="loading"} 1"#).await;
    let look = async {
        let mut call = worker.call().await;
        let told = loop {
            let told = status(&front).await;
            let w4_has_failed = told.workers.last().is_some_and(|w4| w4.state() == MemberState::Unusable);
            if told.workers[0].in_flight == 1 && w4_has_failed {
                break told;
            }
        };
        call.say("hi").await;
        call.finish().await;
        told
    };
    let (_, told) = soon(async { tokio::join!(front.post("/v1/chat/completions", chat(json!({}))), look) }).await;
    assert_eq!(told.store_staleness_seconds, 0.0);
    let [w1, w2, w3, w4] = told.workers.as_slice() else { panic!("{told:?}") };
    let expected = WorkerStatus {
        name: "w1".to_owned(),
        endpoint: "inprocess:w1".to_owned(),
        state: MemberState::Ready.into(),
        models: vec![MODEL.to_owned()],
        in_flight: 1,
        running: LOAD.running,
        waiting: LOAD.waiting,
        kv_blocks_used: LOAD.kv_blocks_used,
        kv_blocks_total: 16,
        predicted_wait_seconds: LOAD.predicted_wait_seconds,
        problem: String::new(),
    };
    assert_eq!(*w1, expected);
    for (worker, words) in [(w2, "another file"), (w3, "protocol version"), (w4, "nobody is there")] {
        assert_eq!(worker.state(), MemberState::Unusable);
        assert!(worker.problem.contains(words), "{worker:?}");
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_worker_and_an_undrain_does_not() {
    let (front, mut worker) = Front::with_worker().await;
    let operator = async {
        let (asked, done) = worker.drain().await;
        assert!(!asked.undrain);
        done.send(()).unwrap();
    };
    let (drained, ()) = soon(async { tokio::join!(drain(&front, "w1"), operator) }).await;
    drained.unwrap();
    // Called off by somebody else.
    let operator = async { drop(worker.drain().await) };
    let (drained, ()) = soon(async { tokio::join!(drain(&front, "w1"), operator) }).await;
    let status = drained.unwrap_err();
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::Cancelled, None)));
    assert!(status.message().contains("w1: the drain was called off"), "{status}");

    let mut client = AdminClient::new(channel(front.router.admin_addr()).await);
    let request = with_key(&front, UndrainWorkerRequest { name: "w1".to_owned() });
    let operator = async {
        let (asked, done) = worker.drain().await;
        assert!(asked.undrain);
        done.send(()).unwrap();
    };
    soon(async { tokio::join!(client.undrain_worker(request), operator) }).await.0.unwrap();
}

#[tokio::test]
async fn an_unknown_worker_is_answered_with_those_that_are_there() {
    let (mut front, _worker) = Front::with_worker().await;
    let _other = front.join("w2", Traits::default()).await;
    front.metric(r#"penstock_members{state="ready"} 2"#).await;
    for name in ["w9", "", "W1"] {
        let status = soon(drain(&front, name)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::WorkerNotFound, Some("name".to_owned()))));
        assert!(status.message().ends_with("there are: w1, w2"), "{status}");
    }
}

#[tokio::test]
async fn a_router_that_leaves_does_not_wait_for_an_operators_drain() {
    let (front, mut worker) = Front::with_worker().await;
    let mut client = AdminClient::new(channel(front.router.admin_addr()).await);
    let request = with_key(&front, DrainWorkerRequest { name: "w1".to_owned() });
    let leave = async {
        let call = worker.drain().await;
        assert!(front.router.drain().await);
        call
    };
    let (drained, _call) = soon(async { tokio::join!(client.drain_worker(request), leave) }).await;
    let status = drained.unwrap_err();
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::Draining, None)));
}
