//! OpenAI's protocol, out and back.

use penstock_proto::{DataClass, ErrorCode};
use penstock_router::request::{
    Constraint, Finish, FinishReason, Input, Message, RankedToken, Request, Role, ToolCallDelta, ToolCallStart,
    ToolChoice, Usage,
};
use penstock_router::upstream::{OpenAiBound, Protocol, UsageSource};
use serde_json::{Value, json};

use crate::support::{
    BIG, Fake, KEY, MAX_TOKENS, OPENAI, authorised, chat, headers, hi, long_chat, read, request, soon, target,
};

fn chunk(delta: Value, finish: Value) -> Value {
    json!({"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

/// What is sent for a request.
async fn sent(request: Request, protocol: Protocol) -> Value {
    let mut fake = Fake::start().await;
    let target = target(fake.address, protocol);
    let (answer, call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let call = fake.call().await;
        let body = call.json();
        call.answer("400 Bad Request", "", "").await;
        body
    });
    assert_eq!(answer.err().unwrap().code, ErrorCode::ProviderRejected);
    call
}

#[tokio::test]
async fn every_byte_that_is_sent_is_of_the_typed_request_or_the_catalogue() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let mut request = long_chat();
    request.sampling.presence_penalty = Some(0.5);
    request.sampling.frequency_penalty = Some(-0.5);
    request.sampling.seed = Some(7);
    request.sampling.top_logprobs = Some(2);
    request.constraint = Some(Constraint::JsonSchema(r#"{"type":"number"}"#.into()));
    let (_, call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        assert!(call.write("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await);
        call
    });
    assert!(call.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", call.head);
    let bearer = format!("authorization: Bearer {KEY}");
    let agent = concat!("user-agent: penstock/", env!("CARGO_PKG_VERSION"));
    let accept = "accept: text/event-stream, application/json";
    assert_eq!(headers(&call), [accept, &bearer, "content-type: application/json", agent]);
    let called = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}});
    let expected = json!({
        "model": "big",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "well?"},
            {"role": "assistant", "content": null, "tool_calls": [called("c1", r#"{"at":"sea"}"#), called("c2", "{}")]},
            {"role": "tool", "content": "blue", "tool_call_id": "c1"},
            {"role": "tool", "content": "", "tool_call_id": "c2"},
            {"role": "user", "content": "and \"now\"?\n银行"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "look", "description": "looks",
                "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}, "strict": true}},
            {"type": "function", "function": {"name": "wait"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "number"}, "strict": true}},
        "logprobs": true,
        "top_logprobs": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 7,
        "stop": ["END"],
        "max_completion_tokens": 64,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    assert_eq!(String::from_utf8(call.body).unwrap(), expected.to_string());
}

#[tokio::test]
async fn what_a_request_leaves_open_is_left_open() {
    let least = json!({"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 64,
                       "stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(sent(hi(), OPENAI).await, least);
    let mut object = hi();
    object.constraint = Some(Constraint::JsonSchema(r#"{ "type" : "object" }"#.into()));
    // Off by their values.
    object.sampling.top_k = Some(0);
    object.sampling.min_p = Some(0.0);
    object.sampling.repetition_penalty = Some(1.0);
    let body = sent(object, Protocol::OpenAi { bound: OpenAiBound::MaxTokens }).await;
    assert_eq!(body["response_format"], json!({"type": "json_object"}));
    assert_eq!((&body["max_tokens"], &body["max_completion_tokens"]), (&json!(64), &Value::Null));
    assert!(["top_k", "min_p", "repetition_penalty"].iter().all(|name| body.get(name).is_none()), "{body}");
    for (choice, word) in [(ToolChoice::Auto, "auto"), (ToolChoice::None, "none"), (ToolChoice::Required, "required")] {
        let mut request = long_chat();
        (request.tools.choice, request.tools.parallel) = (choice, true);
        let body = sent(request, OPENAI).await;
        assert_eq!((&body["tool_choice"], &body["parallel_tool_calls"]), (&json!(word), &json!(true)));
    }
}

#[tokio::test]
async fn text_goes_to_completions_and_comes_back_as_text() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = request(Input::Text("once".into()));
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        assert!(call.head.starts_with("POST /v1/completions "));
        let expected = json!({"model": "big", "prompt": "once", "max_tokens": 64, "stream": true,
                              "stream_options": {"include_usage": true}});
        assert_eq!(call.json(), expected);
        call.open().await;
        call.data(json!({"choices": [{"index": 0, "text": " upon", "finish_reason": null}]})).await;
        call.data(json!({"choices": [{"index": 0, "text": " a", "finish_reason": "length"}]})).await;
        call.data(json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})).await;
        assert!(call.piece("data: [DONE]\n\n").await);
        call.end().await;
    });
    let read = read(&mut answer.unwrap()).await;
    let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 };
    assert_eq!(
        (read.text.as_str(), read.end),
        (" upon a", Ok(Finish { reason: FinishReason::Length, stop: None, usage }))
    );
}

#[tokio::test]
async fn text_calls_and_logprobs_come_as_they_are_streamed() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = long_chat();
    let (answer, mut call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        call.open().await;
        call.data(chunk(json!({"role": "assistant", "content": ""}), Value::Null)).await;
        let mut first = chunk(json!({"content": "h"}), Value::Null);
        let top =
            json!([{"token": "h", "bytes": [104], "logprob": -0.5}, {"token": "é", "bytes": null, "logprob": -2.0}]);
        first["choices"][0]["logprobs"] =
            json!({"content": [{"token": "h", "bytes": [104], "logprob": -0.5, "top_logprobs": top}]});
        call.data(first).await;
        call
    });
    let mut answer = answer.unwrap();
    let first = soon(answer.next()).await.unwrap().unwrap();
    assert_eq!(first.text, "h");
    let h = RankedToken { bytes: b"h".to_vec(), logprob: -0.5 };
    assert_eq!(first.logprobs[0].token, h);
    assert_eq!(first.logprobs[0].top, [h, RankedToken { bytes: "é".into(), logprob: -2.0 }]);
    let ((), rest) = tokio::join!(
        async {
            let begin = |index: u32, id: &str| json!({"index": index, "id": id, "type": "function", "function": {"name": "look", "arguments": ""}});
            let go_on = |index: u32, arguments: &str| json!({"index": index, "function": {"arguments": arguments}});
            call.data(chunk(json!({"tool_calls": [begin(0, "a1")]}), Value::Null)).await;
            call.data(chunk(json!({"tool_calls": [go_on(0, "{\"at\":")]}), Value::Null)).await;
            call.data(chunk(json!({"tool_calls": [go_on(0, "1}"), begin(5, "")]}), Value::Null)).await;
            // As OpenAI says where the request forced the call.
            call.data(chunk(json!({}), json!("stop"))).await;
            let usage =
                json!({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}});
            call.data(json!({"choices": [], "usage": usage})).await;
            assert!(call.piece(": comment\n\ndata: [DONE]\n\n").await);
            call.end().await;
        },
        read(&mut answer)
    );
    let calls: Vec<ToolCallDelta> = rest.deltas.iter().flat_map(|delta| delta.tool_calls.clone()).collect();
    let start = |id: &str| Some(ToolCallStart { id: id.into(), name: "look".into() });
    let more = |arguments: &str| ToolCallDelta { index: 0, start: None, arguments: arguments.into() };
    assert_eq!(calls[..3], [ToolCallDelta { start: start("a1"), ..more("") }, more("{\"at\":"), more("1}")]);
    assert_eq!((calls.len(), calls[3].index), (4, 1));
    let made_up = &calls[3].start.as_ref().unwrap().id;
    assert!(made_up.starts_with("call_") && made_up.len() > 20, "{made_up}");
    let usage = Usage { prompt_tokens: 9, cached_tokens: 8, completion_tokens: 3 };
    assert_eq!(rest.end, Ok(Finish { reason: FinishReason::ToolCalls, stop: None, usage }));
    assert_eq!(answer.usage_source(), UsageSource::Reported);
}

#[tokio::test]
async fn an_upstream_that_does_not_stream_is_understood() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let function = json!({"name": "look", "arguments": "{}"});
        let message = json!({"role": "assistant", "content": "so", "tool_calls": [{"id": "a", "function": function}]});
        let usage = json!({"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9});
        let choice = json!({"index": 0, "message": message, "finish_reason": "tool_calls"});
        fake.call().await.json_answer(json!({"choices": [choice], "usage": usage})).await;
    });
    let read = read(&mut answer.unwrap()).await;
    let start = Some(ToolCallStart { id: "a".into(), name: "look".into() });
    assert_eq!(read.deltas[0].tool_calls, [ToolCallDelta { index: 0, start, arguments: "{}".into() }]);
    let usage = Usage { prompt_tokens: 4, cached_tokens: 0, completion_tokens: 5 };
    assert_eq!(
        (read.text.as_str(), read.end),
        ("so", Ok(Finish { reason: FinishReason::ToolCalls, stop: None, usage }))
    );
}

#[tokio::test]
async fn without_a_usage_block_the_usage_is_the_bound_and_said_to_be_estimated() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    let prepared = target.prepare("big", &request, MAX_TOKENS).unwrap();
    let prompt_tokens = prepared.body().len() as u32 + 16;
    let bound = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: MAX_TOKENS };
    assert_eq!(prepared.bound(), bound);
    let (answer, ()) = tokio::join!(target.send(&BIG, &prepared), async {
        let mut call = fake.call().await;
        call.open().await;
        // Neither usage nor [DONE].
        call.data(chunk(json!({"content": "so"}), json!("stop"))).await;
        call.end().await;
    });
    let mut answer = answer.unwrap();
    assert_eq!(read(&mut answer).await.end, Ok(Finish { reason: FinishReason::Stop, stop: None, usage: bound }));
    assert_eq!(answer.usage_source(), UsageSource::Estimated);
}

#[tokio::test]
async fn a_usage_block_that_cannot_be_counts_as_none() {
    for usage in [
        json!({"prompt_tokens": -1, "completion_tokens": 2}),
        json!({"prompt_tokens": 1, "completion_tokens": 1e30}),
        json!({"prompt_tokens": 1, "completion_tokens": 2.5}),
        json!({"completion_tokens": 2}),
        json!("much"),
    ] {
        let mut fake = Fake::start().await;
        let target = target(fake.address, OPENAI);
        let prepared = target.prepare("big", &hi(), MAX_TOKENS).unwrap();
        let (answer, ()) = tokio::join!(target.send(&BIG, &prepared), async {
            let mut call = fake.call().await;
            call.open().await;
            call.data(chunk(json!({"content": "so"}), json!("stop"))).await;
            call.data(json!({"choices": [], "usage": usage})).await;
            assert!(call.piece("data: [DONE]\n\n").await);
            call.end().await;
        });
        let mut answer = answer.unwrap();
        let read = read(&mut answer).await;
        let finish = Finish { reason: FinishReason::Stop, stop: None, usage: prepared.bound() };
        assert_eq!((read.text.as_str(), read.end), ("so", Ok(finish)), "{usage}");
        assert_eq!(answer.usage_source(), UsageSource::Estimated);
    }
}

#[tokio::test]
async fn a_field_that_nobody_knows_passes_where_the_catalogue_says_and_changes_none_that_is_known() {
    let fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let unknown = json!({"effort": {"level": 3}, "model": "other", "mood": 1}).as_object().unwrap().clone();
    let (plain, asking) = (hi(), Request { unknown, ..hi() });
    let [plain, prepared] = [plain, asking].map(|request| target.prepare("big", &request, MAX_TOKENS).unwrap());
    let mut body: Value = serde_json::from_slice(prepared.body()).unwrap();
    assert_eq!(body.as_object_mut().unwrap().remove("effort"), Some(json!({"level": 3})));
    assert_eq!(body, serde_json::from_slice::<Value>(plain.body()).unwrap());
    let more = (prepared.body().len() - plain.body().len()) as u32;
    assert_eq!(prepared.bound().prompt_tokens, plain.bound().prompt_tokens + more);
}

#[tokio::test]
async fn a_call_that_the_gate_did_not_allow_is_not_made() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    let prepared = target.prepare("big", &request, MAX_TOKENS).unwrap();
    // For another upstream, and for a lower class than the request's.
    for to in [authorised("other", DataClass::Restricted), authorised("acme", DataClass::Public)] {
        let failure = target.send(&to, &prepared).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::Internal);
    }
    assert!(fake.is_quiet());
}

#[tokio::test]
async fn what_the_protocol_has_no_word_for_is_refused_by_name_and_nobody_is_called() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let chat = |change: fn(&mut Request)| {
        let mut request = chat(vec![Message::new(Role::User, "hi")]);
        change(&mut request);
        request
    };
    let text = |change: fn(&mut Request)| {
        let mut request = request(Input::Text("hi".into()));
        change(&mut request);
        request
    };
    let cases = [
        ("prompt", request(Input::Tokens(vec![1]))),
        ("logit_bias", chat(|it| it.sampling.logit_bias = [(1, 1.0)].into())),
        ("stop_token_ids", chat(|it| it.sampling.stop_token_ids = vec![1])),
        ("top_k", chat(|it| it.sampling.top_k = Some(1))),
        ("min_p", chat(|it| it.sampling.min_p = Some(0.1))),
        ("repetition_penalty", chat(|it| it.sampling.repetition_penalty = Some(1.1))),
        ("min_tokens", chat(|it| it.sampling.min_tokens = 1)),
        ("ignore_eos", chat(|it| it.sampling.ignore_eos = true)),
        ("seed", chat(|it| it.sampling.seed = Some(u64::MAX))),
        ("response_format", chat(|it| it.constraint = Some(Constraint::Regex("a".into())))),
        ("response_format", chat(|it| it.constraint = Some(Constraint::Grammar("start: \"a\"".into())))),
        ("response_format", chat(|it| it.constraint = Some(Constraint::JsonSchema("{".into())))),
        ("include_stop_str_in_output", {
            let mut request = long_chat();
            request.stop.include = true;
            request
        }),
        (
            "add_generation_prompt",
            chat(|it| match &mut it.input {
                Input::Chat(chat) => chat.add_generation_prompt = false,
                Input::Text(_) | Input::Tokens(_) => {}
            }),
        ),
        (
            "chat_template_kwargs",
            chat(|it| match &mut it.input {
                Input::Chat(chat) => drop(chat.template_kwargs.insert("a".into(), true.into())),
                Input::Text(_) | Input::Tokens(_) => {}
            }),
        ),
        ("tools", text(|it| it.tools = long_chat().tools)),
        ("response_format", text(|it| it.constraint = Some(Constraint::JsonSchema("{}".into())))),
        ("logprobs", text(|it| it.sampling.top_logprobs = Some(0))),
    ];
    for (param, request) in cases {
        let failure = target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap();
        assert_eq!((failure.code, failure.param.as_deref()), (ErrorCode::InvalidRequest, Some(param)), "{failure}");
        assert!(failure.message.contains(param), "{failure}");
    }
    assert!(fake.is_quiet());
}
