//! `penstock.v1.Inference`, health and reflection, as gRPC clients meet them.

use std::time::Duration;

use futures_util::StreamExt as _;
use penstock_cluster::MemberEvent;
use penstock_proto::inference::{
    Chat, DataClass, FinishReason, GenerateRequest, GenerateResponse, InferenceClient, ListModelsRequest, Message,
    Priority, Sampling, generate_request::Input,
};
use penstock_proto::{ErrorCode, worker};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::support::{CONTEXT, Call, FakeWorker, Front, MODEL, Traits, chat, soon};

async fn channel(front: &Front) -> Channel {
    Endpoint::from_shared(format!("http://{}", front.router.grpc_addr())).unwrap().connect().await.unwrap()
}

async fn client(front: &Front) -> InferenceClient<Channel> {
    InferenceClient::new(channel(front).await)
}

fn hello() -> GenerateRequest {
    let message = Message { role: "user".to_owned(), content: "hi".to_owned(), ..Message::default() };
    let chat = Chat { messages: vec![message], ..Chat::default() };
    GenerateRequest { model: MODEL.to_owned(), input: Some(Input::Chat(chat)), ..GenerateRequest::default() }
}

/// Starts a call whose worker has said `a`.
async fn begun(
    front: &Front,
    worker: &mut FakeWorker,
    request: Request<GenerateRequest>,
) -> (tonic::Response<Streaming<GenerateResponse>>, Call) {
    let mut client = client(front).await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("a").await;
        call
    };
    let (response, call) = soon(async { tokio::join!(client.generate(request), speak) }).await;
    (response.unwrap(), call)
}

async fn refused(front: &Front, request: impl tonic::IntoRequest<GenerateRequest>) -> Status {
    soon(client(front).await.generate(request)).await.unwrap_err()
}

#[tokio::test]
async fn a_stream_says_what_http_says_with_the_same_head() {
    let (front, mut worker) = Front::with_worker().await;
    let mut request = Request::new(hello());
    for (name, value) in
        [("x-request-id", "mine"), ("authorization", "Bearer any"), ("x-penstock-class", "confidential")]
    {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let (response, mut call) = begun(&front, &mut worker, request).await;
    let prompt = call.prompt();
    let head = |name: &str| response.metadata().get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(head("x-request-id"), "mine");
    assert_eq!(head("x-penstock-request-id"), call.request.request_id);
    assert_eq!(head("x-penstock-target"), "local/parrot");
    assert_eq!(head("x-penstock-class"), "confidential");
    call.say("bé").await;
    call.finish().await;
    let mut pieces: Vec<GenerateResponse> = response.into_inner().map(Result::unwrap).collect().await;
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let last = pieces.pop().unwrap();
    assert!(pieces.iter().all(|piece| piece.finish_reason() == FinishReason::Unspecified && piece.usage.is_none()));
    assert_eq!(last.finish_reason(), FinishReason::Stop);
    let usage = last.usage.unwrap();

    let speak = async {
        let mut call = worker.call().await;
        call.say("abé").await;
        let prompt = call.prompt();
        call.finish().await;
        prompt
    };
    let (answer, same) = tokio::join!(front.post("/v1/chat/completions", chat(json!({}))), speak);
    assert_eq!(prompt, same);
    let body = answer.json().await;
    assert_eq!(body["choices"][0]["message"]["content"], text);
    let numbers = [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens];
    let of = |path: &str| body["usage"].pointer(path).unwrap().as_u64().unwrap() as u32;
    assert_eq!(numbers, ["/prompt_tokens", "/completion_tokens", "/prompt_tokens_details/cached_tokens"].map(of));
    let line = r#"penstock_requests_total{code="ok",route="grpc_generate",target="local/parrot",tenant="default"} 1"#;
    front.metric(line).await;
}

#[tokio::test]
async fn what_is_asked_for_arrives_at_the_worker() {
    let (front, mut worker) = Front::with_worker().await;
    let sampling = Sampling { temperature: Some(0.0), seed: Some(7), max_tokens: Some(5), ..Sampling::default() };
    let request = GenerateRequest {
        input: Some(Input::Text("hi".to_owned())),
        sampling: Some(sampling),
        stop: vec!["b".to_owned()],
        priority: Priority::Batch.into(),
        class: DataClass::Restricted.into(),
        ..hello()
    };
    let (response, mut call) = begun(&front, &mut worker, Request::new(request)).await;
    let asked = call.request.sampling.clone().unwrap();
    assert_eq!((asked.temperature, asked.seed, asked.max_tokens, asked.top_k), (0.0, 7, 5, 20));
    assert_eq!(call.request.priority(), worker::Priority::Batch);
    assert_eq!(call.request.class(), worker::DataClass::Restricted);
    call.say("ab").await;
    let pieces: Vec<GenerateResponse> = response.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), "aa");
    soon(call.dropped()).await;
}

#[tokio::test]
async fn refusals_carry_their_code_and_the_field() {
    let (front, worker) = Front::with_worker().await;
    let sampling = Some(Sampling { temperature: Some(-1.0), ..Sampling::default() });
    let status = refused(&front, GenerateRequest { sampling, ..hello() }).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected = (ErrorCode::InvalidRequest, Some("temperature".to_owned()));
    assert_eq!(ErrorCode::from_status(&status), Some(expected));
    assert!(status.metadata().contains_key("x-penstock-request-id"));

    let status = refused(&front, GenerateRequest { model: "nobody".to_owned(), ..hello() }).await;
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::ModelNotFound, Some("model".to_owned()))));
    assert!(status.message().contains(MODEL), "{status}");

    let mut request = Request::new(hello());
    request.metadata_mut().insert("x-penstock-class", "secret".parse().unwrap());
    let (code, param) = ErrorCode::from_status(&refused(&front, request).await).unwrap();
    assert_eq!((code, param.as_deref()), (ErrorCode::InvalidRequest, Some("x-penstock-class")));

    worker.refuse(ErrorCode::Overloaded.status("the queue is full", None));
    let status = refused(&front, hello()).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::Overloaded, None)));
}

#[tokio::test]
async fn a_failure_after_the_first_text_is_the_streams_status() {
    let (front, mut worker) = Front::with_worker().await;
    let (response, call) = begun(&front, &mut worker, Request::new(hello())).await;
    let mut stream = response.into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().text, "a");
    call.fail(Status::unavailable("broken pipe")).await;
    let status = soon(stream.next()).await.unwrap().unwrap_err();
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::WorkerLost, None)));
    assert!(soon(stream.next()).await.is_none());
}

#[tokio::test]
async fn the_calls_deadline_is_the_answers() {
    let (front, mut worker) = Front::with_worker().await;
    let mut request = Request::new(hello());
    request.metadata_mut().insert("x-penstock-deadline-ms", "100".parse().unwrap());
    let (status, call) = tokio::join!(refused(&front, request), worker.call());
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::DeadlineExceeded, None)));
    soon(call.dropped()).await;

    // tonic's client keeps a timeout itself, so what the router makes of it shows at the worker.
    let mut running = Vec::new();
    for (timeout, range) in [(Some(Duration::from_secs(30)), 1..=30), (None, 500..=600)] {
        let mut request = Request::new(hello());
        timeout.into_iter().for_each(|timeout| request.set_timeout(timeout));
        let (response, call) = begun(&front, &mut worker, request).await;
        let left = Duration::from_millis(call.request.deadline_unix_ms) - penstock_proto::time::unix_now();
        assert!(range.contains(&left.as_secs()), "{left:?}");
        // A worker that ends a stream without a word would be believed no more.
        running.push((response, call));
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_workers_stream() {
    let (front, mut worker) = Front::with_worker().await;
    let (response, call) = begun(&front, &mut worker, Request::new(hello())).await;
    drop(response);
    soon(call.dropped()).await;
    let line = r#"penstock_requests_total{code="caller_cancelled",route="grpc_generate",target="local/parrot",tenant="default"} 1"#;
    front.metric(line).await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    let (front, _worker) = Front::with(|config| config.limits.body_bytes = 1000, Traits::default()).await;
    let request = GenerateRequest { input: Some(Input::Text("x".repeat(2000))), ..hello() };
    let status = refused(&front, request).await;
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::BodyTooLarge, None)));
}

#[tokio::test]
async fn models_are_listed_while_they_are_served() {
    let (front, worker) = Front::with_worker().await;
    let mut client = client(&front).await;
    let models = client.list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
    let models: Vec<(&str, u32)> = models.iter().map(|model| (model.name.as_str(), model.context_length)).collect();
    assert_eq!(models, [(MODEL, CONTEXT)]);
    front.tell(MemberEvent::Left(worker.member.name.clone())).await;
    front.metric(r#"penstock_members{state="ready"} 0"#).await;
    // The gauge is set just before the snapshot that it counts is out.
    soon(async { while !client.list_models(ListModelsRequest {}).await.unwrap().into_inner().models.is_empty() {} })
        .await;
}

async fn health(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    soon(watch.next()).await.unwrap().unwrap().status()
}

#[tokio::test]
async fn health_follows_what_is_served_and_a_drain_ends_the_watch() {
    let mut front = Front::start(|_| {}).await;
    let mut client = HealthClient::new(channel(&front).await);
    let service = "penstock.v1.Inference".to_owned();
    let mut watch = client.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(health(&mut watch).await, ServingStatus::NotServing);
    let worker = front.join("w1", Traits::default()).await;
    assert_eq!(health(&mut watch).await, ServingStatus::Serving);
    front.tell(MemberEvent::Left(worker.member.name.clone())).await;
    assert_eq!(health(&mut watch).await, ServingStatus::NotServing);
    let all = client.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.status(), ServingStatus::NotServing);
    assert!(soon(front.router.drain()).await);
    while soon(watch.next()).await.is_some_and(|said| said.is_ok()) {}
}

#[tokio::test]
async fn a_drain_lets_a_stream_finish_and_no_call_begin() {
    let (front, mut worker) = Front::with_worker().await;
    let (response, mut call) = begun(&front, &mut worker, Request::new(hello())).await;
    let address = front.router.grpc_addr();
    let finish = async {
        soon(async { while tokio::net::TcpStream::connect(address).await.is_ok() {} }).await;
        call.say("b").await;
        call.finish().await;
        response.into_inner().map(|piece| piece.unwrap().text).collect::<String>().await
    };
    let (finished, text) = soon(async { tokio::join!(front.router.drain(), finish) }).await;
    assert_eq!((finished, text.as_str()), (true, "ab"));
}

#[tokio::test]
async fn reflection_lists_what_clients_may_call() {
    let (front, _worker) = Front::with_worker().await;
    let mut client = ServerReflectionClient::new(channel(&front).await);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = futures_util::stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("penstock.v1.Inference".to_owned())),
    ]);
    let answers = client.server_reflection_info(asked).await.unwrap().into_inner();
    let answers: Vec<ServerReflectionResponse> = soon(answers.map(Result::unwrap).collect()).await;
    let Some(MessageResponse::ListServicesResponse(list)) = &answers[0].message_response else { panic!("{answers:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["penstock.v1.Inference", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("Worker") || name.contains("Admin")), "{names:?}");
    assert!(matches!(answers[1].message_response, Some(MessageResponse::FileDescriptorResponse(_))), "{answers:?}");
}

#[tokio::test]
async fn a_foreign_authority_is_refused() {
    let (front, _worker) = Front::with_worker().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", front.router.grpc_addr())).unwrap();
    let channel = endpoint.origin("http://evil.example".parse().unwrap()).connect().await.unwrap();
    let status = soon(InferenceClient::new(channel).generate(hello())).await.unwrap_err();
    assert_eq!(ErrorCode::from_status(&status), Some((ErrorCode::Forbidden, None)));
}
