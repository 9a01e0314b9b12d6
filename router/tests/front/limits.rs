//! Clients that send too much, too slowly, or do not read.

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Client, Front, Traits, chat, completion, soon};

const SHORT: Duration = Duration::from_millis(100);

/// Sends bytes as they stand and returns all that comes back until the router closes the connection.
async fn raw(front: &Front, pieces: &[&str]) -> String {
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    for piece in pieces {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const HEAD: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";

#[tokio::test]
async fn a_client_that_says_nothing_or_never_ends_its_head_is_closed() {
    let front = Front::start(|config| config.limits.head_time = SHORT).await;
    assert_eq!(raw(&front, &[]).await, "");
    assert_eq!(raw(&front, &["GET /v1/models HTTP/1.1\r\nhost: loc"]).await, "");
    assert!(!raw(&front, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]).await.starts_with("HTTP/1"));
    assert_eq!(front.get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_connection_that_rests_too_long_is_closed() {
    let front = Front::start(|config| config.limits.idle_time = SHORT).await;
    let answer = raw(&front, &["GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let front = Front::start(|_| {}).await;
    let long = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n", "x".repeat(100_000));
    let answer = raw(&front, &[&long]).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit_however_it_comes() {
    let front = Front::start(|config| config.limits.body_bytes = 1000).await;
    let whole = front.post("/v1/chat/completions", "x".repeat(1001)).await;
    assert_eq!(whole.status, 413);
    let body = whole.json().await;
    assert_eq!(body["error"]["code"], "caller_body_too_large");
    assert!(body["error"]["message"].as_str().unwrap().contains("1000"));

    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let chunked = raw(&front, &[HEAD, "transfer-encoding: chunked\r\n\r\n", &chunk, &chunk, &chunk, "0\r\n\r\n"]).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");

    let asking = raw(&front, &[HEAD, "expect: 100-continue\r\ncontent-length: 5000\r\n\r\n"]).await;
    assert!(asking.starts_with("HTTP/1.1 413"), "{asking}");
    let endless = raw(&front, &[HEAD, "transfer-encoding: chunked\r\n\r\n", &chunk.repeat(9)]).await;
    assert!(endless.starts_with("HTTP/1.1 413"), "{endless}");
}

/// Sends a head and a body without reading; how much of the body went out, and what was answered.
async fn write_first(front: &Front, body: usize) -> (std::io::Result<()>, String) {
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    let head = format!("{HEAD}content-length: {body}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let written = soon(stream.write_all(&vec![b'x'; body])).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    (written, String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_client_that_writes_before_it_reads_gets_its_refusal() {
    // More than the system's buffers hold, so that somebody must read it.
    const BODY: usize = 32 << 20;
    let front = Front::start(|config| config.limits.body_bytes = BODY / 4).await;
    let (written, answer) = write_first(&front, BODY).await;
    assert!(written.is_ok() && answer.starts_with("HTTP/1.1 413"), "{written:?} {answer}");
    // Nobody reads on for ever: neither so many bytes, nor for so long.
    let front = Front::start(|config| config.limits.body_bytes = 1000).await;
    assert!(write_first(&front, BODY).await.0.is_err());
    let front = Front::start(|config| config.limits.body_time = SHORT).await;
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    let head = format!("{HEAD}content-length: {BODY}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    soon(async { while stream.write_all(b"x").await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_chunked_body_is_as_good_as_another() {
    let (front, mut worker) = Front::with_worker().await;
    let body = chat(json!({})).to_string();
    let (head, tail) = body.split_at(10);
    let pieces = [format!("{:x}\r\n{head}\r\n", head.len()), format!("{:x}\r\n{tail}\r\n0\r\n\r\n", tail.len())];
    let speak = async {
        let mut call = worker.call().await;
        call.say("fine").await;
        call.finish().await;
    };
    let pieces = [HEAD, "transfer-encoding: chunked\r\n\r\n", &pieces[0], &pieces[1]];
    let (answer, ()) = tokio::join!(raw(&front, &pieces), speak);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fine"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_named() {
    let front = Front::start(|config| config.limits.body_idle = SHORT).await;
    let answer = raw(&front, &[HEAD, "content-length: 100\r\n\r\n{"]).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("nothing more of the body"), "{answer}");
    let front = Front::start(|config| config.limits.body_time = SHORT).await;
    let answer = raw(&front, &[HEAD, "content-length: 100\r\n\r\n{"]).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not arrive within"), "{answer}");
}

#[tokio::test]
async fn one_connection_too_many_is_closed() {
    let front = Front::start(|config| config.limits.connections = 1).await;
    let mut first = front.client().await;
    assert_eq!(first.ask(Method::GET, "/v1/models", &[], "").await.status, 200);
    assert_eq!(raw(&front, &[]).await, "");
    assert_eq!(first.ask(Method::GET, "/v1/models", &[], "").await.status, 200);
    first.leave().await;
    soon(async {
        while Client::connect(front.address()).await.try_ask(Method::GET, "/v1/models", &[], "").await.is_err() {}
    })
    .await;
}

/// A context that an endless answer does not fill.
fn endless() -> Traits {
    Traits { context: u32::MAX, ..Traits::default() }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_dropped_and_its_sequence_with_it() {
    let (front, mut worker) = Front::with(|config| config.limits.stall_time = SHORT, endless()).await;
    let body = completion(json!({"stream": true})).to_string();
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    // Returns once the router has dropped the call.
    soon(worker.call().await.babble()).await;
    front.metric("penstock_requests_in_flight 0").await;
}

#[tokio::test]
async fn an_http2_client_that_opens_no_window_is_dropped_too() {
    let (front, mut worker) = Front::with(|config| config.limits.stall_time = SHORT, endless()).await;
    let mut client = Client::connect_http2(front.address(), 16 << 10).await;
    let body = completion(json!({"stream": true}));
    let (_unread, ()) =
        tokio::join!(client.post("/v1/completions", body), async { worker.call().await.babble().await });
    front.metric("penstock_requests_in_flight 0").await;
}

#[tokio::test]
async fn an_http2_head_over_the_limit_is_refused_too() {
    let front = Front::start(|_| {}).await;
    let mut client = Client::connect_http2(front.address(), 1 << 20).await;
    let long = [("x-long", "x".repeat(100_000))];
    let long = long.each_ref().map(|(name, value)| (*name, value.as_str()));
    let refused = soon(client.try_ask(Method::GET, "/v1/models", &long, "")).await;
    assert!(refused.as_ref().map_or(true, |answer| answer.status == 431), "{}", refused.is_ok());
    assert_eq!(front.get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn http2_streams_over_the_limit_wait_for_room() {
    let (front, mut worker) = Front::with(|config| config.limits.streams = 1, Traits::default()).await;
    let mut client = Client::connect_http2(front.address(), 1 << 20).await;
    let (mut first, mut call) =
        tokio::join!(client.post("/v1/completions", completion(json!({"stream": true, "max_tokens": 60}))), async {
            let mut call = worker.call().await;
            call.say("a").await;
            call
        });
    let second = client.post("/v1/completions", completion(json!({})));
    let both = async {
        assert_eq!(first.chunk().await["choices"][0]["text"], "a");
        // As many turns on the same connection as would have let it through many times over.
        for _ in 0..50 {
            call.say("b").await;
            assert_eq!(first.chunk().await["choices"][0]["text"], "b");
        }
        assert!(!worker.was_called());
        call.finish().await;
        assert_eq!(first.chunks().await.len(), 1);
        let mut call = worker.call().await;
        call.say("c").await;
        call.finish().await;
    };
    let (second, ()) = tokio::join!(second, both);
    assert_eq!(second.json().await["choices"][0]["text"], "c");
}

#[tokio::test]
async fn http2_without_asking_first_is_served() {
    let (front, mut worker) = Front::with_worker().await;
    let mut client = Client::connect_http2(front.address(), 1 << 20).await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("fine").await;
        call.finish().await;
    };
    let (answer, ()) = tokio::join!(client.post("/v1/chat/completions", chat(json!({"stream": true}))), speak);
    assert_eq!(answer.chunks().await[1]["choices"][0]["delta"]["content"], "fine");
    let refused = client.post("/v1/chat/completions", "{").await;
    assert_eq!(refused.status, 400);
}
