//! What operators do to a running cluster: look at it, drain workers and give them work again.

use std::process::Child;

use serde_json::Value;

use crate::cluster::{Cluster, MODEL, Process};

fn status(cluster: &Cluster, router: &Process) -> Value {
    let (code, text) = cluster.operate(router, &["status"]);
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Waits beside the test's own tasks: one of them may be closing a connection.
async fn end(child: Child) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn a_drain_through_one_router_reaches_all_and_no_request_fails() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &[]), cluster.router("r2", &["--balance", "round-robin"])];
    let mut workers = [cluster.worker("w1", &[]), cluster.worker("w2", &[])];
    let [r1, r2] = &routers;
    let both = async |state, count| {
        cluster.members(r1, state, count).await;
        cluster.members(r2, state, count).await;
    };
    both("ready", 2).await;
    let event = async {
        // Each in turn, and each through another router than it comes back by.
        for (name, there, back) in [("w1", r1, r2), ("w2", r2, r1)] {
            let drain = cluster.operator(there, &["drain", name]).spawn().unwrap();
            both("draining", 1).await;
            let (code, text) = end(drain).await;
            assert!(code == Some(0) && text.starts_with(&format!("{name} is drained")), "{code:?} {text}");
            // The other one serves alone.
            cluster.ask(back, "alone").await.unwrap();
            let told = status(&cluster, back);
            let worker = told["workers"].as_array().unwrap().iter().find(|worker| worker["name"] == name).unwrap();
            assert_eq!(
                (&worker["state"], &worker["running"], &worker["in_flight"]),
                (&"draining".into(), &0.into(), &0.into())
            );
            let (code, text) = cluster.operate(back, &["undrain", name]);
            assert_eq!((code, text), (Some(0), format!("{name} takes work again\n")));
            both("ready", 2).await;
        }
    };
    assert!(cluster.under_load(&[r1, r2], event).await > 16);

    // A drained worker still ends as it should.
    assert_eq!(cluster.operate(r1, &["drain", "w1"]).0, Some(0));
    workers[0].signal("TERM");
    assert_eq!(workers[0].wait().code(), Some(0), "{}", workers[0].log());
    both("ready", 1).await;
}

#[tokio::test]
async fn a_drain_waits_for_what_is_in_flight_and_can_be_called_off() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let _worker = cluster.worker("w1", &[]);
    cluster.members(&router, "ready", 1).await;

    let stream = cluster.stream(&router, 4000).await;
    let mut drain = cluster.operator(&router, &["drain", "w1"]).spawn().unwrap();
    cluster.members(&router, "draining", 1).await;
    let refused = cluster.ask(&router, "more").await.unwrap_err();
    assert!(refused.starts_with("503") && refused.contains("capacity_"), "{refused}");
    assert_eq!(status(&cluster, &router)["workers"][0]["running"], 1);
    assert!(drain.try_wait().unwrap().is_none(), "it does not wait");
    drop(stream);
    assert_eq!(end(drain).await.0, Some(0));

    assert_eq!(cluster.operate(&router, &["undrain", "w1"]).0, Some(0));
    cluster.members(&router, "ready", 1).await;
    let stream = cluster.stream(&router, 100).await;
    let drain = cluster.operator(&router, &["drain", "w1"]).spawn().unwrap();
    cluster.members(&router, "draining", 1).await;
    assert_eq!(cluster.operate(&router, &["undrain", "w1"]).0, Some(0));
    let (code, text) = end(drain).await;
    assert!(code == Some(1) && text.contains("w1: the drain was called off"), "{code:?} {text}");
    assert!(stream.finish().await.ends_with("data: [DONE]\n\n"));
    cluster.members(&router, "ready", 1).await;
    cluster.ask(&router, "again").await.unwrap();
}

#[tokio::test]
async fn status_is_a_table_or_json_and_names_what_is_wrong() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let (code, text) = cluster.operate(&router, &["status", "-o", "table"]);
    assert!(code == Some(0) && text.starts_with("NAME") && text.contains("no worker has joined"), "{text}");

    let worker = cluster.worker("w1", &[]);
    // One that nobody answers for.
    let away = cluster.worker("w2", &["--advertise", "127.0.0.1:9"]);
    cluster.members(&router, "ready", 1).await;
    router.logs(&["cannot take a worker in yet", "w2"]).await;
    let told = status(&cluster, &router);
    let [w1, w2] = told["workers"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!((&w1["name"], &w1["state"]), (&"w1".into(), &"ready".into()));
    assert_eq!((&w1["models"][0], &w1["problem"]), (&MODEL.into(), &Value::Null));
    assert_eq!(w1["endpoint"], format!("http://{}", worker.address("grpc")));
    assert!(w1["kv_blocks_total"].as_u64().unwrap() > 0);
    assert_eq!((&w2["state"], &w2["endpoint"]), (&"unusable".into(), &"http://127.0.0.1:9".into()));
    assert!(w2["problem"].as_str().unwrap().contains("refused"), "{w2}");
    assert_eq!(told["store_staleness_seconds"], 0.0);

    let (_, text) = cluster.operate(&router, &["status", "-o", "table"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("w1") && lines[1].contains("ready") && lines[1].contains(MODEL), "{text}");
    assert!(lines[2].starts_with("w2") && lines[2].contains("unusable"), "{text}");
    drop(away);
}

#[tokio::test]
async fn mistakes_have_their_exit_codes_and_say_what_to_do() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let _worker = cluster.worker("w1", &[]);
    cluster.members(&router, "ready", 1).await;
    let wrong = cluster.dir.path().join("wrong.key");
    std::fs::write(&wrong, "0".repeat(64)).unwrap();
    let wrong = wrong.to_str().unwrap();
    let cases: [(&[&str], i32, &[&str]); 7] = [
        (&["drain", "w9"], 2, &["w9", "there are: w1"]),
        (&["drain", "not a name"], 2, &["not a name"]),
        (&["status", "--admin-key-file", wrong], 1, &["not the admin key", "--data-dir"]),
        (&["status", "--admin-key-file", "/nowhere/admin.key"], 2, &["/nowhere/admin.key", "--data-dir"]),
        (&["status", "--tls-ca", "/nowhere/ca.pem"], 2, &["--tls-ca", "/nowhere/ca.pem"]),
        (&["status", "--server", "10.0.0.1:8081"], 2, &["--server", "plaintext", "--tls-ca", "--insecure"]),
        (&["status", "--server", "127.0.0.1:9"], 3, &["http://127.0.0.1:9", "not reachable", "refused"]),
    ];
    for (args, code, words) in cases {
        let (told, text) = cluster.operate(&router, args);
        assert_eq!(told, Some(code), "{args:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {text}");
    }
    let key = std::fs::read_to_string(cluster.dir.path().join("admin.key")).unwrap();
    assert!(router.log().contains("admin call refused") && !router.log().contains(key.trim()));
}
