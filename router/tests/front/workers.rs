//! Workers that fail, lie, come and go; clients that leave; deadlines; the router's own end.

use std::time::Duration;

use http::Method;
use penstock_cluster::MemberEvent;
use penstock_cluster::membership::{Epoch, Member, MemberState};
use penstock_cluster::store::Revision;
use penstock_proto::ErrorCode;
use penstock_proto::worker::{DrainNotice, Tokens, worker_generate_event::Event};
use serde_json::{Value, json};
use tonic::Status;

use crate::support::{Answer, Call, Front, Traits, VOCABULARY, chat, completion, soon};

const CHAT: &str = "/v1/chat/completions";

async fn error(answer: Answer) -> (u16, String) {
    let (status, body) = (answer.status, answer.json().await);
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

/// The error that ends a stream after its first text, which has come.
async fn broken_off(mut answer: Answer) -> Value {
    loop {
        let event = answer.event().await.expect("a stream that breaks off says so");
        assert_ne!(event, "data: [DONE]");
        if let Some(data) = event.strip_prefix("event: error\ndata: ") {
            assert_eq!(answer.event().await, None);
            return serde_json::from_str(data).unwrap();
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_workers_stream() {
    let (front, mut worker) = Front::with_worker().await;
    for stream in [true, false] {
        let mut client = front.client().await;
        let (client, call) = tokio::join!(
            async {
                let asked = client.try_ask(Method::POST, CHAT, &[], chat(json!({"stream": stream})));
                // The folded answer never comes: leave once the worker has spoken.
                let _answer = tokio::time::timeout(Duration::from_millis(200), asked).await;
                client
            },
            async {
                let mut call = worker.call().await;
                call.say("a").await;
                call
            }
        );
        client.leave().await;
        soon(call.dropped()).await;
    }
    let line = r#"penstock_requests_total{code="caller_cancelled",route="chat_completions",target="local/parrot",tenant="default"} 2"#;
    front.metric(line).await;
    front.metric("penstock_requests_in_flight 0").await;
}

#[tokio::test]
async fn a_deadline_ends_an_answer_that_has_not_begun() {
    let (front, mut worker) = Front::with_worker().await;
    let mut client = front.client().await;
    let headers = [("x-penstock-deadline-ms", "50")];
    let (answer, call) = tokio::join!(client.ask(Method::POST, CHAT, &headers, chat(json!({}))), worker.call());
    assert_eq!(error(answer).await, (504, "capacity_deadline_exceeded".to_owned()));
    soon(call.dropped()).await;
}

#[tokio::test]
async fn a_deadline_ends_a_stream_with_an_error() {
    let (front, mut worker) = Front::with_worker().await;
    let mut client = front.client().await;
    let headers = [("x-penstock-deadline-ms", "300")];
    let (answer, call) = tokio::join!(client.ask(Method::POST, CHAT, &headers, chat(json!({"stream": true}))), async {
        let mut call = worker.call().await;
        call.say("a").await;
        call
    });
    assert_eq!(broken_off(answer).await["error"]["code"], "capacity_deadline_exceeded");
    soon(call.dropped()).await;
}

/// What a stream ends with after `a` and then what `act` does.
async fn after_first<F: Future<Output = ()>>(act: impl FnOnce(Call) -> F) -> String {
    let (front, mut worker) = Front::with_worker().await;
    let (code, ()) = tokio::join!(
        async { broken_off(front.post(CHAT, chat(json!({"stream": true, "max_tokens": 9}))).await).await },
        async {
            let mut call = worker.call().await;
            call.say("a").await;
            act(call).await;
        }
    );
    code["error"]["code"].as_str().unwrap().to_owned()
}

fn tokens(ids: Vec<u32>) -> Option<Event> {
    Some(Event::Tokens(Tokens { ids, logprobs: Vec::new() }))
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_lost() {
    let lost = "capacity_worker_lost";
    assert_eq!(after_first(|call| async move { call.send(5, tokens(vec![70])).await }).await, lost);
    assert_eq!(after_first(|call| async move { call.send(0, tokens(vec![70])).await }).await, lost);
    assert_eq!(after_first(|call| async move { call.send(1, tokens(vec![VOCABULARY])).await }).await, lost);
    assert_eq!(after_first(|call| async move { call.send(1, tokens(vec![70; 9])).await }).await, lost);
    assert_eq!(after_first(|call| async move { call.send(1, None).await }).await, lost);
    assert_eq!(after_first(|call| async move { drop(call) }).await, lost);
    let after_end = after_first(|call| async move {
        let end = call.honest_end();
        call.send(1, Some(Event::Finished(end))).await;
        call.send(1, tokens(vec![70])).await;
    });
    assert_eq!(after_end.await, lost);
    let miscounted = after_first(|call| async move {
        let mut end = call.honest_end();
        end.output_tokens += 1;
        call.send(1, Some(Event::Finished(end))).await;
    });
    assert_eq!(miscounted.await, lost);
}

#[tokio::test]
async fn a_liar_gets_no_work_until_it_joins_again() {
    let (front, mut liar) = Front::with_worker().await;
    let lie = async { liar.call().await.send(5, tokens(vec![70])).await };
    let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), lie);
    assert_eq!(error(answer).await, (503, "capacity_worker_lost".to_owned()));
    front.metric(r#"penstock_members{state="distrusted"} 1"#).await;
    // More news under the same lease changes nothing; another lease does.
    front.tell(MemberEvent::Changed(liar.member.clone())).await;
    front.tell(MemberEvent::Synced).await;
    assert_eq!(error(front.post(CHAT, chat(json!({}))).await).await, (503, "capacity_no_worker".to_owned()));
    let again = Member { epoch: Epoch::from(Revision::new(9)), ..liar.member.clone() };
    front.tell(MemberEvent::Changed(again)).await;
    front.metric(r#"penstock_members{state="ready"} 1"#).await;
    let speak = async {
        let mut call = liar.call().await;
        call.say("fine").await;
        call.finish().await;
    };
    let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), speak);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_sick_fleet_is_not_asked_again_and_again() {
    let (mut front, first) = Front::with_worker().await;
    let second = front.join("w2", Traits::default()).await;
    front.metric(r#"penstock_members{state="ready"} 2"#).await;
    for worker in [&first, &second] {
        worker.refuse(ErrorCode::Overloaded.status("the queue is full", None));
    }
    for _ in 0..20 {
        assert_eq!(front.post(CHAT, chat(json!({}))).await.status, 503);
    }
    // Ten were saved up and twenty requests earn four, of which those that came while all was full earn nothing.
    front.metric("penstock_retries_total 13").await;
    front.metric("penstock_retries_throttled_total 7").await;
    // One who is leaving has done nothing: to ask elsewhere costs nothing.
    for worker in [&first, &second] {
        worker.refuse(ErrorCode::Draining.status("the process is leaving", None));
    }
    assert_eq!(front.post(CHAT, chat(json!({}))).await.status, 503);
    front.metric("penstock_retries_total 14").await;
}

#[tokio::test]
async fn a_workers_status_passes_and_a_strangers_means_that_it_is_lost() {
    let own = after_first(|call| call.fail(ErrorCode::Overloaded.status("the queue is full", None)));
    assert_eq!(own.await, "capacity_overloaded");
    assert_eq!(after_first(|call| call.fail(Status::unavailable("broken pipe"))).await, "capacity_worker_lost");
}

#[tokio::test]
async fn what_fails_before_the_first_token_is_tried_elsewhere() {
    let (mut front, first) = Front::with_worker().await;
    first.refuse(ErrorCode::Overloaded.status("the queue is full", None));
    let answer = front.post(CHAT, chat(json!({}))).await;
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(error(answer).await, (503, "capacity_overloaded".to_owned()));

    let mut second = front.join("w2", Traits::default()).await;
    front.metric(r#"penstock_members{state="ready"} 2"#).await;
    for _ in 0..8 {
        let speak = async {
            let mut call = second.call().await;
            call.say("fine").await;
            call.finish().await;
        };
        let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), speak);
        assert_eq!(answer.status, 200);
    }
    first.refuse(ErrorCode::InvalidRequest.status("temperature is odd", Some("temperature")));
    second.refuse(ErrorCode::InvalidRequest.status("temperature is odd", Some("temperature")));
    let refused = front.post(CHAT, chat(json!({}))).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json().await["error"]["param"], "temperature");
}

#[tokio::test]
async fn nobody_to_ask_is_said_at_once() {
    let (front, worker) = Front::with_worker().await;
    front.tell(MemberEvent::Left(worker.member.name.clone())).await;
    front.metric(r#"penstock_members{state="ready"} 0"#).await;
    let answer = front.post(CHAT, chat(json!({}))).await;
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(error(answer).await, (503, "capacity_no_worker".to_owned()));
    assert_eq!(front.router.status().readiness().reasons, ["no model is served yet"]);
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_what_it_has() {
    let (front, mut worker) = Front::with_worker().await;
    let (mut answer, mut call) =
        tokio::join!(front.post("/v1/completions", completion(json!({"stream": true}))), async {
            let mut call = worker.call().await;
            call.say("a").await;
            call
        });
    assert_eq!(answer.chunk().await["choices"][0]["text"], "a");
    front.tell(MemberEvent::Left(worker.member.name.clone())).await;
    front.metric(r#"penstock_members{state="ready"} 0"#).await;
    call.say("b").await;
    call.finish().await;
    assert_eq!(answer.chunk().await["choices"][0]["text"], "b");
    assert_eq!(answer.chunks().await.len(), 1);
}

#[tokio::test]
async fn a_draining_worker_takes_nothing_new() {
    let (mut front, mut first) = Front::with_worker().await;
    let mut second = front.join("w2", Traits::default()).await;
    front.metric(r#"penstock_members{state="ready"} 2"#).await;
    let draining = Member { state: MemberState::Draining, ..first.member.clone() };
    front.tell(MemberEvent::Changed(draining)).await;
    front.metric(r#"penstock_members{state="draining"} 1"#).await;
    for _ in 0..8 {
        let speak = async {
            let mut call = second.call().await;
            call.say("a").await;
            call.finish().await;
        };
        let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), speak);
        assert_eq!(answer.status, 200);
    }
    assert!(!first.was_called());
}

#[tokio::test]
async fn a_worker_that_joins_again_is_not_missed_in_between() {
    let (front, mut worker) = Front::with_worker().await;
    // What the store tells after an outage that outlasted a lease: the same worker with another epoch.
    let again = Member { epoch: Epoch::from(Revision::new(9)), ..worker.member.clone() };
    front.tell(MemberEvent::Changed(again)).await;
    front.tell(MemberEvent::Synced).await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("a").await;
        call.finish().await;
    };
    let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), speak);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_worker_with_another_protocol_gets_no_work() {
    let (front, worker) = Front::with_worker().await;
    let newer = Member { protocol: worker.member.protocol + 1, ..worker.member.clone() };
    front.tell(MemberEvent::Changed(newer)).await;
    front.metric(r#"penstock_members{state="mismatched"} 1"#).await;
    assert_eq!(error(front.post(CHAT, chat(json!({}))).await).await, (503, "capacity_no_worker".to_owned()));
}

#[tokio::test]
async fn a_notice_on_a_stream_drains_a_worker() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.send(0, Some(Event::Drain(DrainNotice {}))).await;
        call.say("a").await;
        call.finish().await;
    };
    let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({}))), speak);
    assert_eq!(answer.status, 200);
    assert_eq!(error(front.post(CHAT, chat(json!({}))).await).await, (503, "capacity_no_worker".to_owned()));
}

#[tokio::test]
async fn a_name_is_served_from_one_file_at_a_time() {
    let (mut front, mut first) = Front::with_worker().await;
    let mut other = front.join("w2", Traits { digest: "d2", ..Traits::default() }).await;
    front.metric(r#"penstock_members{state="mismatched"} 1"#).await;
    let speak = async |call: Call| {
        let mut call = call;
        let digest = call.request.model_digest.clone();
        call.say("a").await;
        call.finish().await;
        digest
    };
    for _ in 0..4 {
        let (answer, digest) =
            tokio::join!(front.post(CHAT, chat(json!({}))), async { speak(first.call().await).await });
        assert_eq!((answer.status, digest.as_str()), (200, "d1"));
    }
    front.tell(MemberEvent::Left(first.member.name.clone())).await;
    front.metric(r#"penstock_members{state="mismatched"} 0"#).await;
    let (answer, digest) = tokio::join!(front.post(CHAT, chat(json!({}))), async { speak(other.call().await).await });
    assert_eq!((answer.status, digest.as_str()), (200, "d2"));
}

#[tokio::test]
async fn a_drain_waits_for_what_is_in_flight() {
    let (front, mut worker) = Front::with_worker().await;
    let mut idle = front.client().await;
    assert_eq!(idle.ask(Method::GET, "/v1/models", &[], "").await.status, 200);
    let (answer, mut call) = tokio::join!(front.post(CHAT, chat(json!({"stream": true}))), async {
        let mut call = worker.call().await;
        call.say("a").await;
        call
    });
    let (status, address) = (front.router.status(), front.address());
    let drain = front.router.drain();
    let finish = async {
        // Nobody is let in any more, and the idle connection is closed.
        soon(async { while tokio::net::TcpStream::connect(address).await.is_ok() {} }).await;
        assert_eq!(status.readiness().reasons[0], "the router is draining");
        assert!(idle.try_ask(Method::GET, "/v1/models", &[], "").await.is_err());
        call.say("b").await;
        call.finish().await;
        answer.chunks().await
    };
    let (finished, chunks) = soon(async { tokio::join!(drain, finish) }).await;
    assert!(finished);
    assert_eq!(chunks.len(), 4);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let (front, mut worker) = Front::with(|config| config.grace = Duration::from_millis(50), Traits::default()).await;
    let (_answer, call) = tokio::join!(front.post(CHAT, chat(json!({"stream": true}))), async {
        let mut call = worker.call().await;
        call.say("a").await;
        call
    });
    assert!(!soon(front.router.drain()).await);
    soon(call.dropped()).await;
}
