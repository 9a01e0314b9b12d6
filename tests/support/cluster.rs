//! A cluster of real processes over a real etcd, everything on free ports; all of it ends when dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

/// The program under test.
const PENSTOCK: &str = env!("CARGO_BIN_EXE_penstock");
/// The name of the stand-in that workers serve.
pub(crate) const MODEL: &str = "rehearsal";
/// A router's ports, free ones.
const FRONT: [&str; 6] = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
/// How long anything that is waited for may take before a test gives up.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at what another process shows only when it is asked.
const LOOK: Duration = Duration::from_millis(20);

/// A process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// What its ready file holds.
    addresses: Value,
}

impl Process {
    /// Sends a signal by name: TERM, KILL, STOP, CONT.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// `HOST:PORT` of one of its ports: http, grpc, admin, ops.
    pub(crate) fn address(&self, port: &str) -> &str {
        self.addresses[port].as_str().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Bytes of memory that it holds.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Waits until its log has all of `words` in one line.
    pub(crate) async fn logs(&self, words: &[&str]) {
        let has_all = |line: &str| words.iter().all(|word| line.contains(word));
        let said = until(|| async { self.log().lines().any(has_all) }).await;
        assert!(said, "no line with {words:?} in:\n{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until it is so; false where it takes too long.
async fn until<F: Future<Output = bool>>(mut so: impl FnMut() -> F) -> bool {
    let looks = async {
        while !so().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(LIMIT, looks).await.is_ok()
}

struct EtcdUrls {
    clients: String,
    peers: String,
}

/// An etcd and a folder for everybody's files.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    etcd: Mutex<Process>,
    etcd_urls: EtcdUrls,
    etcd_flags: Vec<String>,
    http: reqwest::Client,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "http", Vec::new())
    }

    /// Over an etcd with further flags, whose client address has this scheme.
    pub(crate) fn start_in(dir: tempfile::TempDir, scheme: &str, etcd_flags: Vec<String>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        // Somebody may take a port between our letting it go and etcd's taking it.
        for _ in 0..4 {
            let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let etcd_urls = EtcdUrls { clients: format!("{scheme}://{}", free()), peers: format!("http://{}", free()) };
            if let Some(etcd) = start_etcd(dir.path(), &etcd_urls, &etcd_flags) {
                return Self { dir, etcd: Mutex::new(etcd), etcd_urls, etcd_flags, http };
            }
        }
        panic!("etcd does not start: {}", std::fs::read_to_string(dir.path().join("etcd.log")).unwrap());
    }

    /// etcd's client address.
    pub(crate) fn etcd(&self) -> String {
        self.etcd_urls.clients.clone()
    }

    pub(crate) fn signal_etcd(&self, name: &str) {
        self.etcd.lock().unwrap().signal(name);
    }

    /// Kills etcd without notice and starts it again on what it has on disk.
    pub(crate) fn restart_etcd(&self) {
        let mut etcd = self.etcd.lock().unwrap();
        etcd.signal("KILL");
        etcd.wait();
        *etcd = start_etcd(self.dir.path(), &self.etcd_urls, &self.etcd_flags).expect("its own ports are still free");
    }

    /// Calls etcd's JSON gateway.
    pub(crate) async fn etcd_post(&self, path: &str, body: Value) -> Value {
        let response = self.http.post(format!("{}{path}", self.etcd())).body(body.to_string()).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Has etcd forget all of its history.
    pub(crate) async fn compact_etcd(&self) {
        let status = self.etcd_post("/v3/maintenance/status", json!({})).await;
        let body = json!({"revision": status["header"]["revision"], "physical": true});
        self.etcd_post("/v3/kv/compaction", body).await;
    }

    /// Starts a part on free ports and returns once it is ready.
    pub(crate) fn spawn(&self, part: &str, name: &str, flags: &[&str]) -> Process {
        let ready = self.dir.path().join(format!("{name}.json"));
        let log = self.dir.path().join(format!("{name}.log"));
        let mut child = Command::new(PENSTOCK)
            .args([part, "--etcd", &self.etcd(), "--ops", "127.0.0.1:0", "--data-dir"])
            .arg(self.dir.path())
            .arg("--ready-file")
            .arg(&ready)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let started = out.by_ref().lines().any(|line| line.unwrap().starts_with("ready"));
        // Whatever else it prints is read and dropped, so that it never blocks on a full pipe.
        std::thread::spawn(move || out.read_to_string(&mut String::new()));
        assert!(started, "{name} did not start: {}", std::fs::read_to_string(&log).unwrap());
        let addresses = serde_json::from_str(&std::fs::read_to_string(&ready).unwrap()).unwrap();
        Process { child, log, addresses }
    }

    /// A command of an operator towards a router.
    pub(crate) fn operator(&self, router: &Process, args: &[&str]) -> Command {
        let mut command = Command::new(PENSTOCK);
        command.args(args).env("PENSTOCK_SERVER", router.address("admin")).env("PENSTOCK_DATA_DIR", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command of an operator to its end: its exit code, and what it said on both outputs.
    pub(crate) fn operate(&self, router: &Process, args: &[&str]) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.operator(router, args).output().unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    /// Runs a part to its end.
    pub(crate) fn output(&self, part: &str, flags: &[&str]) -> (Option<i32>, String) {
        let ports = ["--etcd", &self.etcd(), "--ops", "127.0.0.1:0", "--data-dir", self.dir.path().to_str().unwrap()];
        let Output { status, stderr, .. } = Command::new(PENSTOCK).arg(part).args(ports).args(flags).output().unwrap();
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }

    /// A worker over the scripted runner: some hundred tokens a second a stream.
    pub(crate) fn worker(&self, name: &str, flags: &[&str]) -> Process {
        let own = ["--name", name, "--grpc", "127.0.0.1:0", "--runner", "scripted", "--model", MODEL];
        self.spawn("worker", name, &[&own, flags].concat())
    }

    pub(crate) fn router(&self, name: &str, flags: &[&str]) -> Process {
        self.spawn("router", name, &[&FRONT[..], flags].concat())
    }

    /// Waits until a router has so many members in a state.
    pub(crate) async fn members(&self, router: &Process, state: &str, count: usize) {
        self.metric(router, &format!("penstock_members{{state=\"{state}\"}} {count}")).await;
    }

    /// Waits until a line stands among a router's metrics.
    pub(crate) async fn metric(&self, router: &Process, line: &str) {
        let told = until(|| async {
            let response = self.http.get(format!("http://{}/metrics", router.address("ops"))).send().await.unwrap();
            response.text().await.unwrap().lines().any(|other| other == line)
        });
        assert!(told.await, "the router never had {line}:\n{}", router.log());
    }

    /// What a process says against its readiness.
    pub(crate) async fn readiness(&self, process: &Process) -> (u16, String) {
        let response = self.http.get(format!("http://{}/readyz", process.address("ops"))).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// One short answer.
    pub(crate) async fn ask(&self, router: &Process, prompt: &str) -> Result<Value, String> {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        let response = self.post(router, &body).await.map_err(|error| error.to_string())?;
        let (status, text) = (response.status(), response.text().await.map_err(|error| error.to_string())?);
        if status == 200 { Ok(serde_json::from_str(&text).unwrap()) } else { Err(format!("{status}: {text}")) }
    }

    /// One short answer of a route or a model, to whoever has this key.
    pub(crate) async fn ask_as(&self, router: &Process, key: Option<&str>, model: &str) -> Result<Value, String> {
        let body = json!({"model": model, "prompt": "Once", "max_tokens": 4, "ignore_eos": true});
        let request =
            self.http.post(format!("http://{}/v1/completions", router.address("http"))).body(body.to_string());
        let request = key.into_iter().fold(request, |request, key| request.bearer_auth(key));
        let response = request.send().await.map_err(|error| error.to_string())?;
        let (status, text) = (response.status(), response.text().await.map_err(|error| error.to_string())?);
        if status == 200 { Ok(serde_json::from_str(&text).unwrap()) } else { Err(format!("{status}: {text}")) }
    }

    /// A long answer, of which the first piece is there.
    pub(crate) async fn stream(&self, router: &Process, max_tokens: usize) -> Stream {
        let body =
            json!({"model": MODEL, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": true, "stream": true});
        let mut bytes = self.post(router, &body).await.unwrap().bytes_stream().boxed();
        let text = bytes.next().await.unwrap().unwrap().to_vec();
        Stream { bytes, text }
    }

    async fn post(&self, router: &Process, body: &Value) -> reqwest::Result<reqwest::Response> {
        self.http.post(format!("http://{}/v1/completions", router.address("http"))).body(body.to_string()).send().await
    }

    /// Keeps four clients a router asking while `event` goes on, and after it until each was answered once more; no
    /// request may fail. Returns how many were answered.
    pub(crate) async fn under_load(&self, routers: &[&Process], event: impl Future<Output = ()>) -> usize {
        let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let client = async |router: &Process| {
            loop {
                let last = over.load(Ordering::Relaxed);
                let number = answered.fetch_add(1, Ordering::Relaxed);
                if let Err(failed) = self.ask(router, &format!("{number} and")).await {
                    panic!("request {number} failed: {failed}\n{}", router.log());
                }
                if last {
                    return;
                }
            }
        };
        let clients = routers.iter().flat_map(|router| [router; 4]).map(|router| client(router));
        let event = async {
            event.await;
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(event, futures_util::future::join_all(clients));
        answered.into_inner()
    }
}

/// An answer under way.
pub(crate) struct Stream {
    bytes: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: Vec<u8>,
}

impl Stream {
    /// All of it.
    pub(crate) async fn finish(mut self) -> String {
        while let Some(bytes) = self.bytes.next().await {
            self.text.extend_from_slice(&bytes.unwrap());
        }
        String::from_utf8(self.text).unwrap()
    }
}

/// None where it ended instead of serving.
fn start_etcd(dir: &Path, EtcdUrls { clients, peers }: &EtcdUrls, flags: &[String]) -> Option<Process> {
    let program = std::env::var_os("PENSTOCK_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    let mut child = Command::new(&program)
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--logger", "zap", "--listen-client-urls", clients, "--advertise-client-urls", clients])
        .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {program:?}: {error}; `make test` says where etcd is"));
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = File::create(dir.join("etcd.log")).unwrap();
    let mut note = move |line: &str| std::io::Write::write_all(&mut log, line.as_bytes()).unwrap();
    let serves = lines.any(|line| {
        let line = line.unwrap();
        note(&line);
        line.contains("serving client") || line.contains("serving insecure client")
    });
    // Its log is read on, so that it never blocks on a full pipe.
    std::thread::spawn(move || lines.count());
    let process = Process { child, log: dir.join("etcd.log"), addresses: Value::Null };
    serves.then_some(process)
}
