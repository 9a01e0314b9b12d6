//! A cluster of real processes over a real etcd: joins, drains, losses, an etcd that stops for a while.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::up::{MODEL, PENSTOCK, client, etcd, model_file};

/// A process of the cluster; killed when dropped.
struct Process {
    child: Child,
    addresses: Value,
}

impl Process {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn url(&self, part: &str) -> String {
        format!("http://{}", self.addresses[part].as_str().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An etcd and a folder for everybody's files.
struct Cluster {
    dir: tempfile::TempDir,
    etcd: Process,
    endpoint: String,
    http: reqwest::Client,
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (clients, peers) = (format!("http://{}", free()), format!("http://{}", free()));
        let mut child = Command::new(etcd())
            .arg("--data-dir")
            .arg(dir.path().join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("serving")), "etcd did not start");
        // Its log is read on, so that it never blocks on a full pipe.
        std::thread::spawn(move || lines.count());
        Self { dir, etcd: Process { child, addresses: Value::Null }, endpoint: clients, http: client() }
    }

    fn spawn(&self, part: &str, name: &str, flags: &[&str]) -> Process {
        let ready = self.dir.path().join(format!("{name}.json"));
        let mut child = Command::new(PENSTOCK)
            .args([part, "--etcd", &self.endpoint, "--ops", "127.0.0.1:0", "--ready-file"])
            .arg(&ready)
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.log_file(name)).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = lines.any(|line| line.unwrap().starts_with("ready"));
        assert!(started, "{name} did not start: {}", self.log(name));
        let addresses = serde_json::from_str(&std::fs::read_to_string(&ready).unwrap()).unwrap();
        Process { child, addresses }
    }

    fn worker(&self, name: &str) -> Process {
        let model = format!("{MODEL}={}", model_file().display());
        let flags =
            ["--name", name, "--grpc", "127.0.0.1:0", "--model", &model, "--threads", "1", "--kv-memory", "64MiB"];
        self.spawn("worker", name, &flags)
    }

    fn router(&self, name: &str) -> Process {
        self.spawn("router", name, &["--http", "127.0.0.1:0"])
    }

    fn log_file(&self, name: &str) -> impl AsRef<Path> {
        self.dir.path().join(format!("{name}.log"))
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    /// Asks a router until it has so many ready workers.
    async fn members(&self, router: &Process, count: usize) {
        let line = format!("penstock_members{{state=\"ready\"}} {count}");
        for _ in 0..200_000 {
            let response = self.http.get(format!("{}/metrics", router.url("ops"))).send().await.unwrap();
            if response.text().await.unwrap().lines().any(|other| other == line) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the router never had {count} ready workers");
    }

    async fn ask(&self, router: &Process, number: usize) -> Result<String, String> {
        let body = json!({"model": MODEL, "prompt": format!("{number} and"), "max_tokens": 4, "temperature": 0,
            "ignore_eos": true});
        let request = self.http.post(format!("{}/v1/completions", router.url("http"))).body(body.to_string());
        let response = request.send().await.map_err(|error| error.to_string())?;
        let (status, text) = (response.status(), response.text().await.map_err(|error| error.to_string())?);
        if status == 200 { Ok(text) } else { Err(format!("{status}: {text}")) }
    }

    /// Keeps four clients asking while `event` goes on, and returns how many were answered; none may fail.
    async fn under_load(&self, router: &Process, event: impl Future<Output = ()>) -> usize {
        let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let client = async || {
            while !over.load(Ordering::Relaxed) {
                let number = answered.fetch_add(1, Ordering::Relaxed);
                self.ask(router, number).await.unwrap();
            }
        };
        let event = async {
            event.await;
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(event, client(), client(), client(), client());
        answered.into_inner()
    }
}

#[tokio::test]
async fn workers_come_and_go_and_no_request_fails() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1"), cluster.router("r2")];
    let mut first = cluster.worker("w1");
    for router in &routers {
        cluster.members(router, 1).await;
        cluster.ask(router, 0).await.unwrap();
    }
    // A second one joins, and the first drains, under load.
    let second = cluster.worker("w2");
    cluster.members(&routers[0], 2).await;
    let answered = cluster
        .under_load(&routers[0], async {
            first.signal("TERM");
            cluster.members(&routers[0], 1).await;
        })
        .await;
    assert!(answered > 0);
    assert_eq!(first.wait().code(), Some(0), "{}", cluster.log("w1"));

    // Its name is free again; a living one's is not.
    let model = format!("{MODEL}={}", model_file().display());
    let taken =
        ["worker", "--etcd", &cluster.endpoint, "--name", "w2", "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0"];
    let refused = Command::new(PENSTOCK).args(taken).args(["--model", &model]).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains("the name w2 is taken"), "{text}");
    let _again = cluster.worker("w1");
    cluster.members(&routers[1], 2).await;
    drop(second);
}

#[tokio::test]
async fn a_killed_worker_ends_its_streams_with_the_right_error_and_is_gone() {
    let cluster = Cluster::start();
    let router = cluster.router("r1");
    let worker = cluster.worker("w1");
    cluster.members(&router, 1).await;
    let body = json!({"model": MODEL, "prompt": "Once", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let request = cluster.http.post(format!("{}/v1/completions", router.url("http"))).body(body.to_string());
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut text = stream.next().await.unwrap().unwrap().to_vec();
    worker.signal("KILL");
    while let Some(Ok(bytes)) = stream.next().await {
        text.extend_from_slice(&bytes);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("capacity_worker_lost") && !text.contains("[DONE]"), "{text}");
    // Gone once its lease has ended.
    cluster.members(&router, 0).await;
    let refused = cluster.ask(&router, 1).await.unwrap_err();
    assert!(refused.starts_with("503") && refused.contains("capacity_no_worker"), "{refused}");
}

#[tokio::test]
async fn an_etcd_that_stops_for_longer_than_a_lease_fails_no_request() {
    let cluster = Cluster::start();
    let router = cluster.router("r1");
    let _worker = cluster.worker("w1");
    cluster.members(&router, 1).await;
    let rejoined = || cluster.log("w1").matches("\"joined\"").count() > 1;
    cluster
        .under_load(&router, async {
            cluster.etcd.signal("STOP");
            // The worker's lease is of 10 s; it notices that it cannot keep it, and etcd ends it when it wakes.
            tokio::time::sleep(std::time::Duration::from_secs(12)).await;
            cluster.etcd.signal("CONT");
            while !rejoined() {
                tokio::task::yield_now().await;
            }
            cluster.members(&router, 1).await;
        })
        .await;
}
