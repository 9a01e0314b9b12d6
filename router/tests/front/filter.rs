//! A route's filter on every face: what is planted in answers does not reach a client, and what it sends does not reach
//! a model.

use http::Method;
use penstock_router::tenant::NewKey;
use serde_json::{Value, json};

use crate::support::{Answer, Client, FakeWorker, Front, MODEL, Outside, Traits};

const CHAT: &str = "/v1/chat/completions";
const FACES: [&str; 3] = [CHAT, "/v1/responses", "/v1/messages"];
const CARD: &str = "4111 1111 1111 1111";
/// What is said, and what is told of it.
const PLANTED: [(&str, &str); 9] = [
    ("pay with 4111 1111 1111 1111 12/27 please", "pay with [card] 12/27 please"),
    ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban]."),
    ("身份证11010519491231002X，", "身份证[cn_resident_id]，"),
    ("电话13912345678谢谢", "电话[cn_mobile]谢谢"),
    ("SSN: 078-05-1120", "SSN: [us_ssn]"),
    ("call 415-555-2671 now", "call [phone] now"),
    ("写信给zhang＠bank．example。", "写信给[email]。"),
    ("the password: Tr0ub4dor&3x it is", "the password: [secret] it is"),
    ("合同AB12 34-56，", "[contract]，"),
];

/// A tenant, a local model, an upstream, and routes with filters to both.
struct Bank {
    front: Front,
    worker: FakeWorker,
    outside: Outside,
    key: NewKey,
}

impl Bank {
    async fn open() -> Self {
        let (outside, key) = (Outside::start().await, NewKey::generate().unwrap());
        let traits = Traits { context: 5000, ..Traits::default() };
        let (front, worker) = Front::with(|config| config.secrets.variables.extend(["PATH".to_owned()]), traits).await;
        let (address, digest) = (outside.address, key.digest());
        let all = "[card, iban, cn_resident_id, us_ssn, cn_mobile, phone, email, secret, contract]";
        let catalogue = format!(
            "tenants:\n\
             - {{name: web, class: public, models: ['*'], keys: [{{id: k1, sha256: {digest}}}]}}\n\
             upstreams:\n\
             - {{name: acme, protocol: openai, url: 'http://{address}/v1', key: {{env: PATH}}, ceiling: public, price: {{input: 1, output: 2}}}}\n\
             models:\n\
             - {{name: {MODEL}}}\n\
             detectors:\n\
             - {{name: contract, pattern: '合同[A-Z]{{2}}\\d{{6}}', class: confidential}}\n\
             - {{name: words, pattern: 'om outsi|: no$', class: public}}\n\
             routes:\n\
             - {{name: clean, targets: [{{model: {MODEL}}}], filter: {{output: {all}, action: redact}}}}\n\
             - {{name: strict, targets: [{{model: {MODEL}}}], filter: {{output: {all}, action: block}}}}\n\
             - {{name: masked, targets: [{{model: {MODEL}}}], filter: {{input: [card], output: [email]}}}}\n\
             - {{name: out, targets: [{{upstream: acme, model: big}}], filter: {{output: [words]}}}}\n"
        );
        front.apply(&catalogue).await;
        Self { front, worker, outside, key }
    }

    async fn post(&self, face: &str, body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.key.reveal());
        let mut client: Client = self.front.client().await;
        client.ask(Method::POST, face, &[("authorization", &bearer)], body).await.keep(client)
    }

    /// Asks, and has the worker say a text byte by byte. What comes back, and the prompt.
    async fn ask(&mut self, face: &str, body: &Value, said: &str) -> (u16, String, String) {
        let bearer = format!("Bearer {}", self.key.reveal());
        let headers = [("authorization", bearer.as_str())];
        let mut client: Client = self.front.client().await;
        let speak = async {
            let mut call = self.worker.call().await;
            let prompt = call.prompt();
            for byte in said.bytes() {
                // A stream that the filter has ended is not read any more.
                if !call.try_token(u32::from(byte) + 3).await {
                    return prompt;
                }
            }
            call.try_finish().await;
            prompt
        };
        let ask = async {
            let answer = client.ask(Method::POST, face, &headers, body).await;
            (answer.status, answer.text().await)
        };
        let ((status, text), prompt) = tokio::join!(ask, speak);
        (status, text, prompt)
    }
}

fn body(face: &str, route: &str, stream: bool) -> Value {
    let mut body = match face {
        "/v1/responses" => json!({"model": route, "input": "hi"}),
        "/v1/messages" => {
            json!({"model": route, "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}]})
        }
        _ => json!({"model": route, "messages": [{"role": "user", "content": "hi"}]}),
    };
    if stream {
        body["stream"] = json!(true);
    }
    body
}

fn tool(face: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}});
    match face {
        "/v1/responses" => json!({"type": "function", "name": "look", "parameters": parameters}),
        "/v1/messages" => json!({"name": "look", "input_schema": parameters}),
        _ => json!({"type": "function", "function": {"name": "look", "parameters": parameters}}),
    }
}

/// All that a stream says under these names of a face's pieces.
fn streamed(text: &str, pointers: &[&str]) -> String {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let events = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
    // The last events of a response say all of it once more.
    let pieces = events.filter(|event| !event["type"].as_str().is_some_and(|kind| kind.ends_with(".done")));
    let said = |event: Value| {
        pointers.iter().filter_map(|at| event.pointer(at)?.as_str().map(str::to_owned)).collect::<String>()
    };
    pieces.map(said).collect()
}

/// What is said in a whole answer or a stream of a face.
fn text(face: &str, answer: &str, stream: bool) -> String {
    let (whole, pieces) = match face {
        "/v1/responses" => ("/output/0/content/0/text", "/delta"),
        "/v1/messages" => ("/content/0/text", "/delta/text"),
        _ => ("/choices/0/message/content", "/choices/0/delta/content"),
    };
    if stream {
        return streamed(answer, &[pieces]);
    }
    let answer: Value = serde_json::from_str(answer).unwrap();
    answer.pointer(whole).unwrap_or_else(|| panic!("{answer}")).as_str().unwrap().to_owned()
}

/// The arguments of the call in a whole answer or a stream of a face.
fn arguments(face: &str, answer: &str, stream: bool) -> Value {
    let pieces = match face {
        "/v1/responses" => "/delta",
        "/v1/messages" => "/delta/partial_json",
        _ => "/choices/0/delta/tool_calls/0/function/arguments",
    };
    if stream {
        return serde_json::from_str(&streamed(answer, &[pieces])).unwrap();
    }
    let answer: Value = serde_json::from_str(answer).unwrap();
    match face {
        "/v1/responses" => serde_json::from_str(answer["output"][0]["arguments"].as_str().unwrap()).unwrap(),
        "/v1/messages" => answer["content"][0]["input"].clone(),
        _ => {
            let call = &answer["choices"][0]["message"]["tool_calls"][0];
            serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap()
        }
    }
}

#[tokio::test]
async fn what_is_planted_in_text_is_redacted_on_every_face() {
    let mut bank = Bank::open().await;
    for face in FACES {
        for stream in [false, true] {
            for (said, expected) in PLANTED {
                let (status, answer, _) = bank.ask(face, &body(face, "clean", stream), said).await;
                assert_eq!((status, text(face, &answer, stream).as_str()), (200, expected), "{face} {stream}");
            }
        }
    }
    bank.front.metric(r#"penstock_filter_hits_total{action="redact",detector="card"} 6"#).await;
    // What goes to the model by its own name has no route's filter.
    let (_, answer, _) = bank.ask(CHAT, &body(CHAT, MODEL, false), CARD).await;
    assert_eq!(text(CHAT, &answer, false), CARD);
}

#[tokio::test]
async fn what_is_planted_in_arguments_is_redacted_on_every_face() {
    let mut bank = Bank::open().await;
    for face in FACES {
        for stream in [false, true] {
            let mut asked = body(face, "clean", stream);
            asked["tools"] = json!([tool(face)]);
            for (said, expected) in PLANTED {
                let call = json!({"name": "look", "arguments": {"at": said, "n": [1, {"deep": said}]}});
                let said = format!("<tool_call>\n{call}\n</tool_call>");
                let (status, answer, _) = bank.ask(face, &asked, &said).await;
                assert_eq!(status, 200, "{answer}");
                let expected = json!({"at": expected, "n": [1, {"deep": expected}]});
                assert_eq!(arguments(face, &answer, stream), expected, "{face} {stream}");
            }
        }
    }
}

#[tokio::test]
async fn where_it_blocks_the_answer_ends_on_every_face() {
    let mut bank = Bank::open().await;
    for face in FACES {
        for stream in [false, true] {
            let said = format!("it is {CARD}, you know");
            let (status, answer, _) = bank.ask(face, &body(face, "strict", stream), &said).await;
            assert_eq!(status, if stream { 200 } else { 403 }, "{answer}");
            assert!(answer.contains("policy_filter") && answer.contains("detector card"), "{face}: {answer}");
            assert!(!answer.contains("4111") && !answer.contains("you know"), "{face}: {answer}");
        }
    }
    // A placeholder would not be of the form that was asked for.
    let mut asked = body(CHAT, "clean", false);
    asked["response_format"] = json!({"type": "json_object"});
    let (status, answer, _) = bank.ask(CHAT, &asked, r#"{"pay": "4111\u00201111 11111111"}"#).await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer.contains("policy_filter") && !answer.contains("4111"));
    bank.front.metric(r#"penstock_filter_hits_total{action="block",detector="card"} 7"#).await;
}

#[tokio::test]
async fn every_choice_is_filtered_and_logprobs_are_refused() {
    let mut bank = Bank::open().await;
    let mut asked = body(CHAT, "clean", false);
    asked["n"] = json!(2);
    let bearer = format!("Bearer {}", bank.key.reveal());
    let speak = async {
        for _ in 0..2 {
            let mut call = bank.worker.call().await;
            call.say(CARD).await;
            call.finish().await;
        }
    };
    let mut client = bank.front.client().await;
    let headers = [("authorization", bearer.as_str())];
    let (answer, ()) = tokio::join!(client.ask(Method::POST, CHAT, &headers, &asked), speak);
    let answer = answer.json().await;
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], "[card]");
    }
    asked["logprobs"] = json!(true);
    let answer = bank.post(CHAT, &asked).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json().await["error"]["param"], "logprobs");
}

#[tokio::test]
async fn what_a_client_sends_is_masked_and_put_back() {
    let mut bank = Bank::open().await;
    for face in FACES {
        let asked = match face {
            "/v1/responses" => json!({"model": "masked", "input": format!("mine is {CARD}")}),
            _ => json!({"model": "masked", "max_tokens": 400,
                        "messages": [{"role": "user", "content": format!("mine is {CARD}")}]}),
        };
        let (status, answer, prompt) = bank.ask(face, &asked, "yours is [card-1], not [card-2], a@b.example").await;
        assert_eq!(status, 200, "{answer}");
        assert!(prompt.contains("mine is [card-1]") && !prompt.contains("4111"), "{prompt}");
        assert_eq!(text(face, &answer, false), format!("yours is {CARD}, not [card-2], [email]"), "{face}");
        // It is as confidential as what stood there.
        let answer = bank
            .post(
                face,
                &json!({"model": "out", "max_tokens": 9, "input": CARD,
            "messages": [{"role": "user", "content": CARD}]}),
            )
            .await;
        assert_eq!(answer.header("x-penstock-class"), "restricted");
    }
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn an_upstreams_answers_and_its_errors_are_filtered() {
    let bank = Bank::open().await;
    for face in FACES {
        for stream in [false, true] {
            let answer = bank.post(face, &body(face, "out", stream)).await;
            assert_eq!(answer.header("x-penstock-target"), "acme/big");
            assert_eq!(text(face, &answer.text().await, stream), "fr[words]de", "{face} {stream}");
        }
    }
    bank.outside.answers_with(400);
    let answer = bank.post(CHAT, &body(CHAT, "out", false)).await.json().await;
    let told = answer["error"]["message"].as_str().unwrap();
    assert!(told.ends_with("400 Bad Request[words]"), "{told}");
}
