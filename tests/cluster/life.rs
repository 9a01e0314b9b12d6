//! Workers come and go: they join, drain, die, come again, and are not what a router wants.

use serde_json::json;

use crate::cluster::{Cluster, MODEL};

#[tokio::test]
async fn workers_join_and_drain_and_no_request_fails() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &[]), cluster.router("r2", &["--balance", "round-robin"])];
    assert_eq!(cluster.readiness(&routers[0]).await.0, 503);
    let refused = cluster.ask(&routers[0], "early").await.unwrap_err();
    assert!(refused.starts_with("404") && refused.contains("none is served yet"), "{refused}");

    let mut first = cluster.worker("w1", &[]);
    for router in &routers {
        cluster.members(router, "ready", 1).await;
        assert_eq!(cluster.readiness(router).await, (200, r#"{"status":"ready","reasons":[]}"#.to_owned()));
    }
    // The same prompt has the same answer through either router.
    let answers = [cluster.ask(&routers[0], "water").await.unwrap(), cluster.ask(&routers[1], "water").await.unwrap()];
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    assert_eq!(
        answers[0]["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0}})
    );

    // A second one joins and the first drains, under load; what the first has under way is finished.
    let [r1, r2] = &routers;
    let mut second = None;
    let event = async {
        let long = cluster.stream(r1, 100).await;
        second = Some(cluster.worker("w2", &[]));
        cluster.members(r1, "ready", 2).await;
        cluster.members(r2, "ready", 2).await;
        first.signal("TERM");
        let text = long.finish().await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        cluster.members(r1, "ready", 1).await;
        cluster.members(r2, "ready", 1).await;
    };
    assert!(cluster.under_load(&[r1, r2], event).await > 16);
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}

#[tokio::test]
async fn a_killed_worker_ends_its_own_streams_with_the_right_error_and_no_other() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &["--balance", "round-robin"]), cluster.router("r2", &[])];
    let workers = [cluster.worker("w1", &[]), cluster.worker("w2", &[])];
    for router in &routers {
        cluster.members(router, "ready", 2).await;
    }
    // Two a worker, by turns.
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(cluster.stream(&routers[0], 400).await);
    }
    workers[0].signal("KILL");
    let mut texts = Vec::new();
    for stream in streams {
        texts.push(stream.finish().await);
    }
    let lost = texts.iter().filter(|text| text.contains("\"code\":\"capacity_worker_lost\""));
    assert!(lost.clone().all(|text| !text.contains("[DONE]")), "{texts:?}");
    let whole = texts.iter().filter(|text| text.ends_with("data: [DONE]\n\n"));
    assert_eq!((lost.count(), whole.count()), (2, 2), "{texts:?}");

    // New requests go to the one that lives, at once; the dead one is gone once its lease has ended.
    cluster.under_load(&[&routers[0], &routers[1]], async {}).await;
    for router in &routers {
        cluster.members(router, "ready", 1).await;
        router.logs(&["worker left", "w1"]).await;
    }
}

#[tokio::test]
async fn a_name_has_one_worker_and_is_free_again_after_it() {
    let cluster = Cluster::start();
    let mut first = cluster.worker("w1", &[]);
    let second = ["--name", "w1", "--grpc", "127.0.0.1:0", "--runner", "scripted", "--model", MODEL];
    let (code, text) = cluster.output("worker", &second);
    let address = first.address("grpc");
    assert!(
        code == Some(1) && text.contains(&format!("the name w1 is taken by the worker at http://{address}")),
        "{text}"
    );
    first.signal("TERM");
    assert_eq!(first.wait().code(), Some(0));
    cluster.worker("w1", &[]);
}

#[tokio::test]
async fn a_worker_of_another_protocol_version_gets_no_work_and_is_named() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let worker = cluster.worker("w1", &[]);
    cluster.members(&router, "ready", 1).await;
    let member = json!({"name": "w9", "endpoint": format!("http://{}", worker.address("grpc")), "state": "ready",
        "models": [{"name": "other", "digest": "0"}], "protocol": 99});
    // Base64, as the gateway wants it.
    let encode = |text: &str| base64(text.as_bytes());
    let put = json!({"key": encode("/penstock/v1/members/w9"), "value": encode(&member.to_string())});
    cluster.etcd_post("/v3/kv/put", put).await;
    cluster.members(&router, "mismatched", 1).await;
    router.logs(&["w9", "protocol version", "99"]).await;
    cluster.ask(&router, "on it goes").await.unwrap();
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        let digit = |i: usize| if i > chunk.len() { '=' } else { DIGITS[(bits >> (18 - 6 * i) & 63) as usize].into() };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[tokio::test]
async fn a_second_signal_ends_a_worker_at_once() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let mut worker = cluster.worker("w1", &["--scripted-step-time", "50ms"]);
    cluster.members(&router, "ready", 1).await;
    let stream = cluster.stream(&router, 4000).await;
    worker.signal("TERM");
    worker.logs(&["ending"]).await;
    worker.signal("INT");
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    let text = stream.finish().await;
    assert!(text.contains("capacity_worker_lost"), "{text}");
}
