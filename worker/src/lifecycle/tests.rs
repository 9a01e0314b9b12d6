//! A worker from its first batch to its last stream.

use futures_util::StreamExt;
use penstock_cluster::membership::{Member, MemberEvent, MemberState, Members};
use penstock_cluster::store::MemoryStore;
use penstock_engine::runner::scripted::Script;
use penstock_proto::ErrorCode;
use penstock_proto::worker::{
    GetLoadRequest, WatchLoadRequest, WorkerClient, WorkerGenerateRequest, worker_generate_event::Event,
};
use prometheus::TextEncoder;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::*;
use crate::fixture::{Fixture, event, request, slow};

/// The next news of a member: its state, or None where it left.
async fn news(members: &mut Members) -> Option<MemberState> {
    loop {
        match members.next().await.unwrap() {
            MemberEvent::Joined(member) | MemberEvent::Changed(member) => return Some(member.state),
            MemberEvent::Left(_) => return None,
            MemberEvent::Synced => {}
        }
    }
}

fn cluster() -> Arc<Membership> {
    Arc::new(Membership::new(Arc::new(MemoryStore::new())))
}

/// Waits until the health service answers `wanted`.
async fn health_is(fixture: &Fixture, wanted: ServingStatus) {
    let mut client = HealthClient::new(fixture.worker.in_process());
    let request = HealthCheckRequest { service: "penstock.v1.Worker".into() };
    let mut answers = client.watch(request).await.unwrap().into_inner();
    while answers.message().await.unwrap().unwrap().status() != wanted {}
}

#[tokio::test]
async fn a_worker_joins_drains_and_leaves() {
    let (fixture, membership) = (Fixture::new(Script::default()), cluster());
    let worker = &fixture.worker;
    assert_eq!((worker.stage(), worker.ready()), (Stage::Joining, false));
    health_is(&fixture, ServingStatus::NotServing).await;
    let mut members = membership.watch();
    worker.join(membership.clone(), "inprocess:w1").await.unwrap();
    assert_eq!((worker.stage(), worker.ready()), (Stage::Serving, true));
    assert_eq!(news(&mut members).await, Some(MemberState::Ready));
    health_is(&fixture, ServingStatus::Serving).await;

    worker.drain().await;
    assert!(!worker.ready());
    while news(&mut members).await != Some(MemberState::Draining) {}
    health_is(&fixture, ServingStatus::NotServing).await;
    worker.undrain();
    while news(&mut members).await != Some(MemberState::Ready) {}
    assert!(worker.ready());

    worker.shutdown().await;
    while news(&mut members).await.is_some() {}
    assert_eq!((*fixture.stage.borrow(), worker.ready()), (Stage::Exited, false));
    assert!(fixture.client.clone().get_load(GetLoadRequest {}).await.is_err());
}

#[tokio::test]
async fn a_member_announces_what_it_serves() {
    let (fixture, membership) = (Fixture::new(Script::default()), cluster());
    let mut members = membership.watch();
    fixture.worker.join(membership.clone(), "inprocess:w1").await.unwrap();
    let member: Member = loop {
        if let MemberEvent::Joined(member) = members.next().await.unwrap() {
            break member;
        }
    };
    assert_eq!((member.name.as_str(), member.endpoint.as_str()), ("w1", "inprocess:w1"));
    let served = &member.models[0];
    assert_eq!((served.name.as_str(), served.digest.clone()), ("scripted", fixture.worker.card().digest.to_string()));
}

#[tokio::test]
async fn what_is_in_flight_is_finished_before_the_exit() {
    let (fixture, membership) = (Fixture::new(slow()), cluster());
    fixture.worker.join(membership, "inprocess:w1").await.unwrap();
    let mut stream = fixture.generate(request(100)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    // A watch of the load has no end of its own and must not hold up the exit.
    let mut loads = fixture.client.clone().watch_load(WatchLoadRequest {}).await.unwrap().into_inner();
    let reading = async {
        let mut last = None;
        while let Some(message) = stream.message().await.unwrap() {
            last = Some(event(message).1);
        }
        assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");
        while let Ok(Some(_)) = loads.message().await {}
    };
    tokio::join!(fixture.worker.shutdown(), reading);
    assert_eq!(fixture.worker.stage(), Stage::Exited);
}

#[tokio::test]
async fn the_drain_timeout_ends_what_does_not_end() {
    let fixture = Fixture::with_drain_timeout(slow(), Duration::from_millis(20));
    let mut stream = fixture.generate(request(2000)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let reading = async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the stream just ended"),
                Err(status) => return status,
            }
        }
    };
    let ((), status) = tokio::join!(fixture.worker.shutdown(), reading);
    assert_eq!(ErrorCode::from_status(&status).unwrap().0, ErrorCode::WorkerLost);
}

#[tokio::test]
async fn sockets_and_pipes_serve_the_same() {
    let fixture = Fixture::new(Script::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let work = async {
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        let mut stream = WorkerClient::new(channel.clone()).generate(request(5)).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let asked = futures_util::stream::iter([ask]);
        let mut answers =
            ServerReflectionClient::new(channel).server_reflection_info(asked).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
        assert!(names.contains(&"penstock.v1.Worker") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
        fixture.worker.shutdown().await;
    };
    let (served, ()) = tokio::join!(fixture.worker.serve(listener, None), work);
    served.unwrap();
}

#[tokio::test]
async fn metrics_tell_what_the_engine_did() {
    let fixture = Fixture::new(Script::default());
    for prompt in [vec![1, 2, 3], vec![5; 65], vec![5; 65]] {
        let request = WorkerGenerateRequest { prompt_ids: prompt, ..request(10) };
        let mut stream = fixture.generate(request).await.unwrap();
        while stream.message().await.unwrap().is_some() {}
    }
    // With its thread, the engine has written down everything.
    fixture.worker.shutdown().await;
    let text = TextEncoder::new().encode_to_string(&fixture.registry.gather()).unwrap();
    for line in [
        "penstock_sequences{state=\"running\"} 0",
        "penstock_kv_blocks{state=\"used\"} 0",
        "penstock_kv_blocks{state=\"cached\"} 2",
        "penstock_kv_blocks{state=\"free\"} 254",
        "penstock_prefix_cache_tokens_total{result=\"hit\"} 64",
        "penstock_prefix_cache_tokens_total{result=\"miss\"} 69",
        "penstock_step_duration_seconds_count{phase=\"execute\"} 30",
        "penstock_batch_tokens_sum 96",
        "penstock_preemptions_total 0",
        "penstock_output_tokens_total 30",
        "vllm:num_requests_running{model_name=\"scripted\"} 0",
        "vllm:num_requests_waiting{model_name=\"scripted\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"scripted\"} 0",
    ] {
        assert!(text.lines().any(|have| have == line), "no {line:?} in\n{text}");
    }
    assert!(text.contains("penstock_gpu_seconds_total{model=\"scripted\",tenant=\"default\"} "), "{text}");
    assert!(text.contains("vllm:lora_requests_info{"), "{text}");
}
