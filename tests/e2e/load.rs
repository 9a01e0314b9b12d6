//! Many at once, some of whom leave.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::up::{MODEL, Up, model_file};

/// How the client of one request behaves.
enum Manner {
    Folded,
    Streamed,
    /// Leaves after so many pieces of the body.
    Leaves(usize),
    /// Gives up after so long.
    GivesUp(Duration),
}

async fn one(up: &Up, number: u64) -> &'static str {
    let manner = match number % 5 {
        0 => Manner::Folded,
        1 | 2 => Manner::Streamed,
        3 => Manner::Leaves((number % 7) as usize),
        _ => Manner::GivesUp(Duration::from_millis(20 * (number % 11))),
    };
    let words = 1 + (number * 37 % 120) as usize;
    let body = json!({"model": MODEL, "prompt": format!("{number} {}", "river ".repeat(words)), "seed": number,
        "max_tokens": 1 + number % 24, "temperature": (number % 3) as f64 / 2.0, "ignore_eos": true,
        "stream": !matches!(manner, Manner::Folded)});
    let request = up.post("/v1/completions", body.to_string());
    match manner {
        Manner::Folded => {
            let response = request.await;
            assert_eq!(response.status(), 200);
            let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(answer["usage"]["completion_tokens"], 1 + number % 24, "{answer}");
            "folded"
        }
        Manner::Streamed => {
            let body = request.await.text().await.unwrap();
            assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
            "streamed"
        }
        Manner::Leaves(after) => {
            let mut stream = request.await.bytes_stream();
            for _ in 0..after {
                if stream.next().await.is_none() {
                    break;
                }
            }
            "left"
        }
        Manner::GivesUp(after) => {
            let _ = tokio::time::timeout(after, async { request.await.text().await }).await;
            "gave up"
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_end_and_leave_nothing_behind() {
    let up = Up::start(&["--max-waiting", "256"]);
    let ends: Vec<_> =
        futures_util::stream::iter(0..200).map(|number| one(&up, number)).buffer_unordered(200).collect().await;
    let count = |what: &str| ends.iter().filter(|end| **end == what).count();
    assert_eq!((count("folded"), count("streamed"), count("left"), count("gave up")), (40, 80, 40, 40));
    up.idle().await;
    assert_eq!(up.metric("penstock_requests_in_flight").await, 0.0);
    let (status, answer) = up.ask("/v1/completions", &json!({"model": MODEL, "prompt": "Hi", "max_tokens": 1})).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn memory_stays_within_file_pool_and_a_margin() {
    let up = Up::start(&["--kv-memory", "256MiB"]);
    let prompt = "river ".repeat(2_000);
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 8, "ignore_eos": true});
    assert_eq!(up.ask("/v1/completions", &body).await.0, 200);
    let file = std::fs::metadata(model_file()).unwrap().len();
    let bound = file + (256 << 20) + (300 << 20);
    let peak = up.memory("VmHWM");
    assert!(peak <= bound, "peak of resident memory {peak} is over {bound}");
}
