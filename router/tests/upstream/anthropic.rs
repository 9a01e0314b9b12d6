//! Anthropic's protocol, out and back.

use penstock_proto::ErrorCode;
use penstock_router::request::{
    Constraint, Finish, FinishReason, Input, Message, Request, Role, ToolCallDelta, ToolCallStart, ToolChoice, Usage,
};
use penstock_router::upstream::{Protocol, UsageSource};
use serde_json::{Value, json};

use crate::support::{
    BIG, Call, Fake, KEY, MAX_TOKENS, Target, chat, headers, hi, long_chat, read, request, soon, target,
};

const OBJECT: &str = r#"{"type":"object","properties":{"n":{"type":"number"}}}"#;

async fn upstream() -> (Fake, Target) {
    let fake = Fake::start().await;
    let target = target(fake.address, Protocol::Anthropic);
    (fake, target)
}

fn structured() -> Request {
    Request { constraint: Some(Constraint::JsonSchema(OBJECT.into())), ..hi() }
}

async fn start(call: &mut Call) {
    call.open().await;
    let usage = json!({"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1});
    call.event(json!({"type": "message_start", "message": {"role": "assistant", "content": [], "usage": usage}})).await;
    call.event(json!({"type": "ping"})).await;
}

async fn block(call: &mut Call, index: usize, block: Value, deltas: &[Value]) {
    call.event(json!({"type": "content_block_start", "index": index, "content_block": block})).await;
    for delta in deltas {
        call.event(json!({"type": "content_block_delta", "index": index, "delta": delta})).await;
    }
    call.event(json!({"type": "content_block_stop", "index": index})).await;
}

async fn stop(mut call: Call, reason: &str) {
    call.event(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}})).await;
    call.event(json!({"type": "message_stop"})).await;
    call.end().await;
}

fn text(text: &str) -> Value {
    json!({"type": "text_delta", "text": text})
}

fn input(json: &str) -> Value {
    json!({"type": "input_json_delta", "partial_json": json})
}

#[tokio::test]
async fn every_byte_that_is_sent_is_of_the_typed_request_or_the_catalogue() {
    let (mut fake, target) = upstream().await;
    let mut request = long_chat();
    request.sampling.top_k = Some(40);
    let (_, call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        assert!(call.write("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await);
        call
    });
    assert!(call.head.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{}", call.head);
    let (key, agent) = (format!("x-api-key: {KEY}"), concat!("user-agent: penstock/", env!("CARGO_PKG_VERSION")));
    let accept = "accept: text/event-stream, application/json";
    let expected = [accept, "anthropic-version: 2023-06-01", "content-type: application/json", agent, &key];
    assert_eq!(headers(&call), expected);
    let used = |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "look", "input": input});
    let expected = json!({
        "model": "big",
        "max_tokens": 64,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "well?"}]},
            {"role": "assistant", "content": [used("c1", json!({"at": "sea"})), used("c2", json!({}))]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "blue"},
                {"type": "tool_result", "tool_use_id": "c2"},
                {"type": "text", "text": "and \"now\"?\n银行"},
            ]},
        ],
        "tools": [
            {"name": "look", "description": "looks",
                "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}, "strict": true},
            {"name": "wait", "input_schema": {"type": "object"}},
        ],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": true},
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "stop_sequences": ["END"],
        "stream": true,
    });
    assert_eq!(String::from_utf8(call.body).unwrap(), expected.to_string());
}

#[tokio::test]
async fn what_a_request_leaves_open_is_left_open_and_every_choice_has_its_word() {
    let (_, target) = upstream().await;
    let body = |request: &Request| -> Value {
        serde_json::from_slice(target.prepare("big", request, MAX_TOKENS).unwrap().body()).unwrap()
    };
    let hello = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
    assert_eq!(body(&hi()), json!({"model": "big", "max_tokens": 64, "messages": hello, "stream": true}));
    let word = |choice: ToolChoice, parallel: bool| {
        let mut request = long_chat();
        (request.tools.choice, request.tools.parallel) = (choice, parallel);
        body(&request)["tool_choice"].clone()
    };
    assert_eq!(word(ToolChoice::Auto, true), json!({"type": "auto", "disable_parallel_tool_use": false}));
    assert_eq!(word(ToolChoice::Required, false), json!({"type": "any", "disable_parallel_tool_use": true}));
    assert_eq!(word(ToolChoice::None, false), json!({"type": "none"}));
    let any = Request { constraint: Some(Constraint::JsonSchema(r#"{"type":"object"}"#.into())), ..hi() };
    assert_eq!(body(&any)["tools"], json!([{"name": "answer", "input_schema": {"type": "object"}}]));
}

#[tokio::test]
async fn text_and_calls_come_as_they_are_streamed() {
    let (mut fake, target) = upstream().await;
    let request = long_chat();
    let (answer, mut call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        start(&mut call).await;
        block(
            &mut call,
            0,
            json!({"type": "thinking", "thinking": ""}),
            &[json!({"type": "thinking_delta", "thinking": "hm"})],
        )
        .await;
        block(&mut call, 1, json!({"type": "text", "text": ""}), &[text("h")]).await;
        call
    });
    let mut answer = answer.unwrap();
    assert_eq!(soon(answer.next()).await.unwrap().unwrap().text, "h");
    let ((), rest) = tokio::join!(
        async {
            let tool = |id: &str| json!({"type": "tool_use", "id": id, "name": "look", "input": {}});
            block(&mut call, 2, tool("t1"), &[input(""), input("{\"at\":"), input("1}")]).await;
            block(&mut call, 3, tool("t2"), &[]).await;
            stop(call, "tool_use").await;
        },
        read(&mut answer)
    );
    let calls: Vec<ToolCallDelta> = rest.deltas.iter().flat_map(|delta| delta.tool_calls.clone()).collect();
    let begin = |index: u32, id: &str| {
        let start = Some(ToolCallStart { id: id.into(), name: "look".into() });
        ToolCallDelta { index, start, arguments: String::new() }
    };
    let more = |index: u32, arguments: &str| ToolCallDelta { index, start: None, arguments: arguments.into() };
    let expected = [begin(0, "t1"), more(0, ""), more(0, "{\"at\":"), more(0, "1}"), begin(1, "t2"), more(1, "{}")];
    assert_eq!(calls, expected);
    let usage = Usage { prompt_tokens: 60, cached_tokens: 30, completion_tokens: 7 };
    assert_eq!(rest.end, Ok(Finish { reason: FinishReason::ToolCalls, stop: None, usage }));
    assert_eq!(answer.usage_source(), UsageSource::Reported);
}

#[tokio::test]
async fn stop_reasons_have_their_meaning() {
    let stopped = FinishReason::Stop;
    let cases = [("end_turn", stopped), ("stop_sequence", stopped), ("max_tokens", FinishReason::Length)];
    let (mut fake, target) = upstream().await;
    let request = hi();
    for (word, reason) in cases {
        let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            let mut call = fake.call().await;
            start(&mut call).await;
            block(&mut call, 0, json!({"type": "text", "text": "a"}), &[text("b")]).await;
            stop(call, word).await;
        });
        let read = read(&mut answer.unwrap()).await;
        assert_eq!((read.text.as_str(), read.end.unwrap().reason), ("ab", reason));
    }
    for (word, code) in [("refusal", ErrorCode::ProviderFiltered), ("odd", ErrorCode::ProviderInvalidAnswer)] {
        let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            let mut call = fake.call().await;
            start(&mut call).await;
            block(&mut call, 0, json!({"type": "text", "text": ""}), &[text("a")]).await;
            let stopped =
                json!({"type": "message_delta", "delta": {"stop_reason": word}, "usage": {"output_tokens": 7}});
            call.event(stopped).await;
        });
        assert_eq!(read(&mut answer.unwrap()).await.end.unwrap_err().code, code, "{word}");
    }
}

#[tokio::test]
async fn a_schema_becomes_a_forced_tool_and_its_arguments_the_text() {
    let (mut fake, target) = upstream().await;
    let request = structured();
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        let body = call.json();
        let schema: Value = serde_json::from_str(OBJECT).unwrap();
        assert_eq!(body["tools"], json!([{"name": "answer", "input_schema": schema, "strict": true}]));
        assert_eq!(body["tool_choice"]["name"], "answer");
        start(&mut call).await;
        let tool = json!({"type": "tool_use", "id": "t1", "name": "answer", "input": {}});
        block(&mut call, 0, tool, &[input("{\"n\":"), input("1}")]).await;
        stop(call, "tool_use").await;
    });
    let answered = read(&mut answer.unwrap()).await;
    assert_eq!((answered.text.as_str(), answered.end.unwrap().reason), ("{\"n\":1}", FinishReason::Stop));
    assert!(answered.deltas.iter().all(|delta| delta.tool_calls.is_empty()));
    // Text in its place breaks the promise, and so does nothing at all.
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        start(&mut call).await;
        call.event(
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "n is 1"}}),
        )
        .await;
    });
    assert_eq!(answer.err().unwrap().code, ErrorCode::ProviderInvalidAnswer);
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let message = json!({"type": "message", "content": [], "stop_reason": "end_turn"});
        fake.call().await.json_answer(message).await;
    });
    assert_eq!(answer.err().unwrap().code, ErrorCode::ProviderInvalidAnswer);
}

#[tokio::test]
async fn an_upstream_that_does_not_stream_is_understood() {
    let (mut fake, target) = upstream().await;
    let whole = json!({
        "type": "message", "role": "assistant", "stop_reason": "tool_use",
        "content": [{"type": "text", "text": "so"}, {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 1}}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    });
    let request = hi();
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        fake.call().await.json_answer(whole).await;
    });
    let read = read(&mut answer.unwrap()).await;
    let calls = &read.deltas[0].tool_calls;
    assert_eq!(calls[0].start, Some(ToolCallStart { id: "t".into(), name: "look".into() }));
    assert_eq!(calls.iter().map(|call| call.arguments.as_str()).collect::<String>(), r#"{"at":1}"#);
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 4 };
    assert_eq!(
        (read.text.as_str(), read.end),
        ("so", Ok(Finish { reason: FinishReason::ToolCalls, stop: None, usage }))
    );
}

#[tokio::test]
async fn what_the_protocol_has_no_word_for_is_refused_by_name_and_nobody_is_called() {
    let (mut fake, target) = upstream().await;
    let with = |change: fn(&mut Request)| {
        let mut request = hi();
        change(&mut request);
        request
    };
    let said = |messages: Vec<Message>| chat([vec![Message::new(Role::User, "hi")], messages].concat());
    let cases = [
        ("prompt", request(Input::Text("hi".into()))),
        ("prompt", request(Input::Tokens(vec![1]))),
        ("temperature", with(|it| it.sampling.temperature = Some(1.5))),
        ("presence_penalty", with(|it| it.sampling.presence_penalty = Some(0.5))),
        ("frequency_penalty", with(|it| it.sampling.frequency_penalty = Some(0.5))),
        ("seed", with(|it| it.sampling.seed = Some(1))),
        ("logprobs", with(|it| it.sampling.top_logprobs = Some(0))),
        ("logit_bias", with(|it| it.sampling.logit_bias = [(1, 1.0)].into())),
        ("stop", with(|it| it.stop.texts = vec!["\n".into()])),
        ("response_format", with(|it| it.constraint = Some(Constraint::Regex("a".into())))),
        ("response_format", with(|it| it.constraint = Some(Constraint::JsonSchema(r#"{"type":"array"}"#.into())))),
        ("response_format", Request { tools: long_chat().tools, ..structured() }),
        ("messages", chat(vec![Message::new(Role::System, "be brief")])),
        ("messages[1].role", said(vec![Message::new(Role::System, "be brief")])),
        ("messages[1].content", said(vec![Message::new(Role::Assistant, "")])),
        ("messages[1].name", said(vec![Message { name: Some("bob".into()), ..Message::new(Role::User, "hi") }])),
        ("messages[2].tool_calls[0].function.arguments", {
            let mut request = long_chat();
            if let Input::Chat(chat) = &mut request.input {
                chat.messages[2].tool_calls[0].arguments = "[1]".into();
            }
            request
        }),
    ];
    for (param, request) in cases {
        let failure = target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap();
        assert_eq!((failure.code, failure.param.as_deref()), (ErrorCode::InvalidRequest, Some(param)), "{failure}");
        assert!(failure.message.contains(param), "{failure}");
    }
    assert!(fake.is_quiet());
}
