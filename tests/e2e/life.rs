//! Start, readiness, drain, end.

use std::net::TcpListener;

use futures_util::StreamExt as _;
use serde_json::json;

use crate::up::{MODEL, Up, model_file, penstock};

#[tokio::test]
async fn ops_answers_and_every_metric_has_its_help() {
    let up = Up::start(&[]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(up.http.get(format!("{}{path}", up.ops)).send().await.unwrap().status(), 200, "{path}");
    }
    up.ask("/v1/completions", &json!({"model": MODEL, "prompt": "Hi", "max_tokens": 2})).await;
    let text = up.http.get(format!("{}/metrics", up.ops)).send().await.unwrap().text().await.unwrap();
    for name in [
        "penstock_requests_total",
        "penstock_request_duration_seconds_bucket",
        "penstock_time_to_first_token_seconds_bucket",
        "penstock_tokens_total",
        "penstock_sequences",
        "penstock_kv_blocks",
        "penstock_step_duration_seconds",
        "penstock_preemptions_total",
        "penstock_members",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "no {name} in:\n{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_exits_with_0() {
    let mut up = Up::start(&[]);
    let body = json!({"model": MODEL, "prompt": "Once", "max_tokens": 64, "ignore_eos": true, "stream": true});
    let mut stream = up.post("/v1/completions", body.to_string()).await.bytes_stream();
    let mut text = stream.next().await.unwrap().unwrap().to_vec();
    up.signal("TERM");
    while let Some(bytes) = stream.next().await {
        text.extend_from_slice(&bytes.unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(up.wait().code(), Some(0), "{}", up.log());
}

#[test]
fn a_taken_port_is_named_with_the_flag_that_moves_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let model = format!("{MODEL}={}", model_file().display());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let flags = ["--http", "--grpc", "--admin", "--ops"];
    for flag in flags {
        let at = |it| if it == flag { address.as_str() } else { "127.0.0.1:0" };
        let ports = flags.map(|it| [it, at(it)]).concat();
        let output = penstock(&[&["up", "--data-dir", data, "--model", &model][..], &ports].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&address) && text.contains(flag), "{text}");
    }
}

#[test]
fn an_admin_port_off_loopback_wants_tls_or_insecure() {
    let model = format!("{MODEL}={}", model_file().display());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--ops", "127.0.0.1:0"];
    let output = penstock(&[&["up", "--data-dir", data, "--model", &model][..], &ports].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--insecure") && text.contains("--tls-cert"), "{text}");
}
