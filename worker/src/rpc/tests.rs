//! The service over an in-process channel and the scripted runner.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_proto::worker::{
    Constraint, DrainRequest, FinishReason, Finished, GetLoadRequest, GetModelRequest, Load, WatchLoadRequest,
    WorkerGenerateEvent, WorkerGenerateRequest, constraint, get_model_response::Part, worker_generate_event::Event,
};
use penstock_proto::{ErrorCode, time};
use tonic::{Status, Streaming};

use crate::artifact::Digest;
use crate::fixture::{EOS, Fixture, card, event, request, slow};
use penstock_engine::runner::scripted::Script;

fn regex(text: &str) -> Constraint {
    Constraint { kind: Some(constraint::Kind::Regex(text.into())) }
}

/// All tokens and the finish; event numbers must have no gap.
async fn whole(mut stream: Streaming<WorkerGenerateEvent>, start: u64) -> (Vec<u32>, Finished) {
    let mut tokens = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        let (number, event) = event(message);
        assert_eq!(number, start + tokens.len() as u64);
        match event {
            Event::Tokens(more) => tokens.extend(more.ids),
            Event::Drain(_) => {}
            Event::Finished(finished) => {
                assert_eq!(stream.message().await.unwrap(), None, "nothing follows the finish");
                return (tokens, finished);
            }
        }
    }
    panic!("the stream ended without a finish after {tokens:?}");
}

/// The load once it is as wanted.
async fn load_when(fixture: &Fixture, wanted: impl Fn(&Load) -> bool) -> Load {
    let mut loads = fixture.client.clone().watch_load(WatchLoadRequest {}).await.unwrap().into_inner();
    loop {
        let load = loads.message().await.unwrap().unwrap();
        if wanted(&load) {
            return load;
        }
    }
}

fn code(status: &Status) -> (ErrorCode, Option<String>) {
    ErrorCode::from_status(status).unwrap_or_else(|| panic!("{status:?} has no code"))
}

#[tokio::test]
async fn a_model_arrives_as_card_and_files() {
    let fixture = Fixture::new(Script::default());
    for name in ["", "scripted"] {
        let request = GetModelRequest { model: name.into() };
        let mut stream = fixture.client.clone().get_model(request).await.unwrap().into_inner();
        let Some(Part::Card(told)) = stream.message().await.unwrap().unwrap().part else { panic!("the card is first") };
        assert_eq!((told.digest, told.eos_token_ids), (card().digest.to_string(), vec![EOS]));
        assert_eq!(told.kv_tokens, 256 * 32);
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut chunks = 0;
        while let Some(message) = stream.message().await.unwrap() {
            let Some(Part::File(chunk)) = message.part else { panic!("only files follow") };
            assert!(chunk.data.len() <= 256 << 10);
            files.entry(chunk.name).or_default().extend(chunk.data);
            chunks += 1;
        }
        assert_eq!((files.len(), chunks), (2, 4));
        for info in told.files {
            let bytes = &files[&info.name];
            assert_eq!((bytes.len() as u64, Digest::of_bytes(bytes).to_string()), (info.size, info.digest));
        }
    }
    let request = GetModelRequest { model: "other".into() };
    let error = fixture.client.clone().get_model(request).await.unwrap_err();
    assert_eq!(code(&error), (ErrorCode::ModelNotFound, Some("model".into())));
}

#[tokio::test]
async fn a_sequence_streams_its_tokens_and_its_account() {
    let fixture = Fixture::new(Script::default());
    let (tokens, finished) = whole(fixture.generate(request(20)).await.unwrap(), 0).await;
    assert_eq!(tokens.len(), 20);
    assert_eq!((finished.reason(), finished.stop_token_id), (FinishReason::Length, None));
    assert_eq!((finished.prompt_tokens, finished.output_tokens, finished.cached_tokens), (3, 20, 0));
    assert!(finished.compute_seconds > 0.0);
    // What the client has already is not sent again, and the rest is the same.
    let resumed = WorkerGenerateRequest { resume_tokens: tokens[..8].to_vec(), ..request(20) };
    let (rest, finished) = whole(fixture.generate(resumed).await.unwrap(), 8).await;
    assert_eq!((rest.as_slice(), finished.output_tokens), (&tokens[8..], 20));
    // A stop token ends the answer and is told, not sent.
    let mut stopping = request(20);
    stopping.sampling.as_mut().unwrap().stop_token_ids = vec![tokens[5]];
    let (short, finished) = whole(fixture.generate(stopping).await.unwrap(), 0).await;
    let first = tokens.iter().position(|token| *token == tokens[5]).unwrap();
    assert_eq!((short.as_slice(), finished.stop_token_id), (&tokens[..first], Some(tokens[5])));
    assert_eq!(finished.reason(), FinishReason::Stop);
}

#[tokio::test]
async fn a_constraint_holds_over_every_resume_and_ends_with_a_stop() {
    let fixture = Fixture::new(Script::default());
    let constrained = || {
        let mut constrained = request(40);
        constrained.constraint = Some(regex("[a-d]{10,20}!"));
        constrained.sampling.as_mut().unwrap().ignore_eos = false;
        constrained
    };
    let (tokens, finished) = whole(fixture.generate(constrained()).await.unwrap(), 0).await;
    let text = String::from_utf8(tokens.iter().map(|id| u8::try_from(*id).unwrap()).collect()).unwrap();
    let (body, end) = text.split_at(text.len() - 1);
    assert!(end == "!" && (10..=20).contains(&body.len()) && body.chars().all(|c| "abcd".contains(c)), "{text}");
    assert_eq!((finished.reason(), finished.stop_token_id), (FinishReason::Stop, Some(EOS)));
    for cut in 0..=tokens.len() {
        let resumed = WorkerGenerateRequest { resume_tokens: tokens[..cut].to_vec(), ..constrained() };
        let (rest, finished) = whole(fixture.generate(resumed).await.unwrap(), cut as u64).await;
        assert_eq!((rest.as_slice(), finished.reason()), (&tokens[cut..], FinishReason::Stop));
    }
    let foreign = WorkerGenerateRequest { resume_tokens: vec![u32::from(b'z')], ..constrained() };
    let refused = fixture.generate(foreign).await.unwrap_err();
    assert_eq!(code(&refused), (ErrorCode::InvalidRequest, Some("resume_tokens".into())));
}

#[tokio::test]
async fn log_probabilities_come_with_the_tokens_they_are_of() {
    let fixture = Fixture::new(Script::default());
    let mut asking = request(12);
    asking.sampling.as_mut().unwrap().top_logprobs = Some(3);
    let mut stream = fixture.generate(asking).await.unwrap();
    let mut count = 0;
    while let Some(message) = stream.message().await.unwrap() {
        let Event::Tokens(tokens) = event(message).1 else { continue };
        assert_eq!(tokens.ids.len(), tokens.logprobs.len());
        for (id, told) in tokens.ids.iter().zip(&tokens.logprobs) {
            count += 1;
            assert!(told.logprob < 0.0 && told.top.len() == 3);
            assert!(told.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            assert!(told.top.iter().all(|ranked| ranked.id != *id || ranked.logprob == told.logprob));
        }
    }
    assert_eq!(count, 12);
}

#[tokio::test]
async fn what_is_wrong_or_not_served_is_refused_by_name() {
    type Spoil = fn(&mut WorkerGenerateRequest);
    use ErrorCode::{ContextTooLong, DeadlineExceeded, InvalidRequest};
    let cases: &[(Spoil, ErrorCode, &str)] = &[
        (|r| r.request_id = "x".into(), InvalidRequest, "request_id"),
        (|r| r.tenant.clear(), InvalidRequest, "tenant"),
        (|r| r.priority = 0, InvalidRequest, "priority"),
        (|r| r.priority = 9, InvalidRequest, "priority"),
        (|r| r.deadline_unix_ms = 0, InvalidRequest, "deadline_unix_ms"),
        (|r| r.deadline_unix_ms = 1, DeadlineExceeded, ""),
        (|r| r.class = 0, InvalidRequest, "class"),
        (|r| r.class = 9, InvalidRequest, "class"),
        (|r| r.model_digest = "other".into(), InvalidRequest, "model_digest"),
        (|r| r.adapter_digest = "a".into(), InvalidRequest, "adapter_digest"),
        (|r| r.constraint = Some(Constraint { kind: None }), InvalidRequest, "constraint"),
        (|r| r.sampling = None, InvalidRequest, "sampling"),
        (|r| r.sampling.as_mut().unwrap().top_logprobs = Some(21), InvalidRequest, "top_logprobs"),
        (|r| r.constraint = Some(regex("(?=a)")), InvalidRequest, "constraint"),
        (|r| r.constraint = Some(regex(&"a".repeat(65537))), InvalidRequest, "constraint"),
        (|r| r.sampling.as_mut().unwrap().temperature = f32::NAN, InvalidRequest, "temperature"),
        (|r| r.sampling.as_mut().unwrap().top_p = 0.0, InvalidRequest, "top_p"),
        (|r| r.sampling.as_mut().unwrap().max_tokens = 0, InvalidRequest, "max_tokens"),
        (|r| r.sampling.as_mut().unwrap().max_tokens = 4000, ContextTooLong, "max_tokens"),
        (|r| r.sampling.as_mut().unwrap().logit_bias = [(512, 1.0)].into(), InvalidRequest, "logit_bias"),
        (|r| r.sampling.as_mut().unwrap().stop_token_ids = vec![512], InvalidRequest, "stop_token_ids"),
        (|r| r.prompt_ids.clear(), InvalidRequest, "prompt_ids"),
        (|r| r.prompt_ids = vec![512], InvalidRequest, "prompt_ids"),
        (|r| r.prompt_ids = vec![1; 2048], ContextTooLong, "prompt_ids"),
        (|r| r.resume_tokens = vec![512], InvalidRequest, "resume_tokens"),
        (|r| r.resume_tokens = vec![1; 21], InvalidRequest, "resume_tokens"),
    ];
    let fixture = Fixture::new(Script::default());
    for (at, (spoil, expected, param)) in cases.iter().enumerate() {
        let mut request = request(20);
        spoil(&mut request);
        let status = fixture.generate(request).await.err().unwrap_or_else(|| panic!("case {at} was taken"));
        let param = (!param.is_empty()).then(|| (*param).to_owned());
        assert_eq!(code(&status), (*expected, param), "case {at}: {}", status.message());
    }
    // Nothing of all that is left behind.
    let load = fixture.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
}

#[tokio::test]
async fn a_pool_that_could_never_hold_a_sequence_refuses_it() {
    let fixture = Fixture::new(Script { kv_blocks: 2, ..Script::default() });
    let status = fixture.generate(request(100)).await.unwrap_err();
    assert_eq!(code(&status), (ErrorCode::ContextTooLong, Some("max_tokens".into())));
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks() {
    let fixture = Fixture::new(slow());
    let mut stream = fixture.generate(request(1000)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let busy = load_when(&fixture, |load| load.kv_blocks_used > 0).await;
    assert_eq!((busy.running, busy.draining, busy.numerics.as_str()), (1, false, "scripted"));
    drop(stream);
    let idle = load_when(&fixture, |load| load.kv_blocks_used == 0).await;
    assert_eq!((idle.running, idle.waiting, idle.kv_blocks_free), (0, 0, 256));
}

#[tokio::test]
async fn a_deadline_ends_a_stream_with_its_code() {
    let fixture = Fixture::new(slow());
    let deadline_unix_ms = (time::unix_now() + Duration::from_millis(200)).as_millis() as u64;
    let mut stream = fixture.generate(WorkerGenerateRequest { deadline_unix_ms, ..request(2000) }).await.unwrap();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(matches!(event(message.unwrap()).1, Event::Tokens(_))),
            Err(status) => break status,
        }
    };
    assert_eq!(code(&status).0, ErrorCode::DeadlineExceeded);
    load_when(&fixture, |load| load.kv_blocks_used == 0).await;
}

#[tokio::test]
async fn a_drain_tells_open_streams_refuses_new_ones_and_answers_when_all_are_done() {
    let fixture = Fixture::new(slow());
    let mut stream = fixture.generate(request(100)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let mut client = fixture.client.clone();
    let draining = client.drain(DrainRequest { undrain: false });
    let reading = async {
        let (mut noticed, mut last) = (false, None);
        while let Some(message) = stream.message().await.unwrap() {
            let (_, event) = event(message);
            if matches!(event, Event::Drain(_)) {
                noticed = true;
                let refused = fixture.generate(request(1)).await.unwrap_err();
                assert_eq!(code(&refused).0, ErrorCode::Draining);
            }
            last = Some(event);
        }
        assert!(noticed && matches!(last, Some(Event::Finished(_))), "{last:?}");
    };
    let (answer, ()) = tokio::join!(draining, reading);
    answer.unwrap();
    assert!(load_when(&fixture, |load| load.draining).await.running == 0);
    fixture.client.clone().drain(DrainRequest { undrain: true }).await.unwrap();
    whole(fixture.generate(request(5)).await.unwrap(), 0).await;
}

#[tokio::test]
async fn a_drain_that_is_called_off_says_so() {
    let fixture = Fixture::new(slow());
    let mut stream = fixture.generate(request(2000)).await.unwrap();
    let mut client = fixture.client.clone();
    let draining = client.drain(DrainRequest { undrain: false });
    let calling_off = async {
        while !matches!(event(stream.message().await.unwrap().unwrap()).1, Event::Drain(_)) {}
        fixture.client.clone().drain(DrainRequest { undrain: true }).await.unwrap();
    };
    let (answer, ()) = tokio::join!(draining, calling_off);
    assert_eq!(code(&answer.unwrap_err()).0, ErrorCode::Cancelled);
    let load = fixture.worker.engine().load();
    assert_eq!(load.running + load.waiting, 1, "the sequence goes on");
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_up_nobody() {
    let fixture = Fixture::new(Script::default());
    let mut unread = Vec::new();
    for _ in 0..250 {
        unread.push(fixture.generate(request(500)).await.unwrap());
    }
    let reading = async { whole(fixture.generate(request(50)).await.unwrap(), 0).await };
    let (tokens, _) = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it is held up");
    assert_eq!(tokens.len(), 50);
    drop(unread);
    load_when(&fixture, |load| load.running == 0 && load.kv_blocks_used == 0).await;
}
