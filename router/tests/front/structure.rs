//! Constraints, log-probabilities and several choices, as workers are asked for them and clients get them.

use penstock_proto::ErrorCode;
use penstock_proto::worker::constraint::Kind;
use serde_json::{Value, json};

use crate::support::{Call, Front, chat, completion};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn kind(call: &Call) -> Kind {
    call.request.constraint.clone().unwrap().kind.unwrap()
}

fn seed(call: &Call) -> u64 {
    call.request.sampling.as_ref().unwrap().seed
}

#[tokio::test]
async fn a_constraint_reaches_the_worker_and_its_refusal_names_the_clients_field() {
    let (front, mut worker) = Front::with_worker().await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}});
    for (body, field, expected) in [
        (json!({"response_format": format}), "response_format", Kind::JsonSchema(r#"{"type":"null"}"#.into())),
        (json!({"guided_regex": "a+"}), "guided_regex", Kind::Regex("a+".into())),
        (
            json!({"structured_outputs": {"grammar": "start: X"}}),
            "structured_outputs",
            Kind::Grammar("start: X".into()),
        ),
    ] {
        let refuse = async {
            let call = worker.call().await;
            assert_eq!(kind(&call), expected);
            call.fail(ErrorCode::InvalidRequest.status("it is circular", Some("constraint"))).await;
        };
        let (answer, ()) = tokio::join!(front.post(CHAT, chat(body)), refuse);
        let (status, body) = (answer.status, answer.json().await);
        assert_eq!((status, &body["error"]["param"]), (400, &json!(field)));
        assert_eq!(body["error"]["message"], format!("{field}: it is circular"));
    }
}

#[tokio::test]
async fn choices_are_calls_whose_seeds_follow_one_another() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut calls = [worker.call().await, worker.call().await, worker.call().await];
        calls.sort_by_key(|call| seed(call).wrapping_add(1));
        assert_eq!([0, 1, 2].map(|at| seed(&calls[at])), [u64::MAX, 0, 1]);
        for (call, word) in calls.iter_mut().zip(["a", "bb", "ccc"]) {
            assert_eq!(call.prompt(), "user:hi;>");
            assert_eq!(call.request.sampling.as_ref().unwrap().choice_index, 0);
            call.say(word).await;
        }
        for call in calls {
            call.finish().await;
        }
    };
    let (answer, ()) = tokio::join!(front.post(CHAT, chat(json!({"n": 3, "seed": -1}))), speak);
    let answer = answer.json().await;
    let texts: Vec<&Value> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["message"]["content"]).collect();
    assert_eq!(texts, ["a", "bb", "ccc"]);
    // The prompt counts once.
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(9), &json!(6)));
}

#[tokio::test]
async fn the_best_of_several_is_the_one_whose_tokens_are_likeliest() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut calls = [worker.call().await, worker.call().await, worker.call().await];
        calls.sort_by_key(seed);
        // In sum the short one is the likeliest, by token the middle one is.
        for (call, (text, logprob)) in calls.iter_mut().zip([("short", -0.4), ("middle one", -0.3), ("worst", -2.0)]) {
            assert_eq!(call.top_logprobs(), 0);
            call.say_surely(text, logprob).await;
        }
        for call in calls {
            call.finish().await;
        }
    };
    let body = completion(json!({"n": 2, "best_of": 3, "seed": 5, "echo": true, "prompt": "I say: "}));
    let (answer, ()) = tokio::join!(front.post(COMPLETIONS, body), speak);
    let answer = answer.json().await;
    let choice =
        |index: u32, text: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice(0, "I say: middle one"), choice(1, "I say: short")]));
    assert_eq!(answer["usage"]["completion_tokens"], 20);
}

#[tokio::test]
async fn log_probabilities_are_the_same_streamed_and_folded() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        for _ in 0..4 {
            let mut call = worker.call().await;
            // Half a character, whose text waits for the other half.
            call.say_surely("a", -0.25).await;
            call.say_surely("é!", -0.5).await;
            call.finish().await;
        }
    };
    let ask = async {
        let chat = |stream: bool| chat(json!({"logprobs": true, "top_logprobs": 2, "stream": stream}));
        let folded = front.post(CHAT, chat(false)).await.json().await;
        let chunks = front.post(CHAT, chat(true)).await.chunks().await;
        let completion = |stream: bool| completion(json!({"logprobs": 1, "stream": stream}));
        let plain = front.post(COMPLETIONS, completion(false)).await.json().await;
        (folded, chunks, plain, front.post(COMPLETIONS, completion(true)).await.chunks().await)
    };
    let ((), (folded, chunks, plain, pieces)) = tokio::join!(speak, ask);

    let content = &folded["choices"][0]["logprobs"]["content"];
    let bytes: Vec<&Value> = content.as_array().unwrap().iter().map(|token| &token["bytes"]).collect();
    assert_eq!(bytes, [&json!([97]), &json!([0xC3]), &json!([0xA9]), &json!([33])]);
    assert_eq!((&content[0]["token"], &content[0]["logprob"]), (&json!("a"), &json!(-0.25)));
    let top = json!([{"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": [98]}]);
    assert_eq!(content[3]["top_logprobs"], top);
    let streamed = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(&json!(streamed.collect::<Vec<_>>()), content);

    let columns = &plain["choices"][0]["logprobs"];
    assert_eq!(columns["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "!"]));
    assert_eq!(columns["token_logprobs"], json!([-0.25, -0.5, -0.5, -0.5]));
    assert_eq!(columns["text_offset"], json!([0, 1, 2, 2]));
    assert_eq!(columns["top_logprobs"][3], json!({"a": -1.0, "!": -0.5}));
    for column in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
        let streamed = pieces.iter().filter_map(|piece| piece["choices"][0]["logprobs"][column].as_array()).flatten();
        assert_eq!(&json!(streamed.collect::<Vec<_>>()), &columns[column], "{column}");
    }
}

#[tokio::test]
async fn a_prompt_is_echoed_before_what_is_streamed() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("two").await;
        call.finish().await;
    };
    let body = completion(json!({"echo": true, "prompt": "one ", "stream": true}));
    let ((), answer) = tokio::join!(speak, async { front.post(COMPLETIONS, body).await.chunks().await });
    let said: String = answer.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect();
    assert_eq!(said, "one two");
}
