//! A real etcd: started on free ports, stopped, paused, restarted, compacted.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::store::{EtcdConfig, EtcdStore, EtcdTls, Identity, Store};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// etcd grants no lease a shorter time to live.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// One etcd, in its own directory; killed when dropped.
pub(crate) struct Etcd {
    process: Child,
    ports: [u16; 2],
    directory: TempDir,
    security: Option<Security>,
}

/// Certificates, in PEM, for an etcd that speaks TLS and asks for a client's certificate.
#[derive(Clone)]
pub(crate) struct Security {
    pub(crate) ca: String,
    pub(crate) server: (String, String),
    pub(crate) client: (String, String),
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(security: Option<Security>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(Security { ca, server: (certificate, key), .. }) = &security {
            for (name, pem) in [("ca", ca), ("cert", certificate), ("key", key)] {
                std::fs::write(directory.path().join(name), pem).unwrap();
            }
        }
        let ports = free_ports();
        let process = spawn(&directory, ports, security.is_some());
        let mut etcd = Self { process, ports, directory, security };
        // Somebody may take a port between our letting it go and etcd's taking it.
        for _ in 0..4 {
            if etcd.is_up().await {
                return etcd;
            }
            etcd.ports = free_ports();
            etcd.restart();
        }
        panic!("etcd does not start; its log:\n{}", etcd.log());
    }

    /// How to reach it, without a login.
    pub(crate) fn config(&self) -> EtcdConfig {
        let scheme = if self.security.is_some() { "https" } else { "http" };
        let tls = self.security.clone().map(|Security { ca, client: (certificate, key), .. }| EtcdTls {
            ca: ca.into(),
            identity: Some(Identity { certificate: certificate.into(), key: key.into() }),
        });
        EtcdConfig { endpoints: vec![format!("{scheme}://127.0.0.1:{}", self.ports[0])], login: None, tls }
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(EtcdStore::new(self.config()).unwrap())
    }

    /// Kills it without notice and starts it again on what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.directory, self.ports, self.security.is_some());
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops its clock and everything else: it holds its connections and says nothing.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Compacts its whole history.
    pub(crate) async fn compact(&self) {
        let revision = self.store().revision().await.unwrap().get();
        self.post("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).await;
    }

    /// Calls its JSON gateway, over plain HTTP.
    pub(crate) async fn post(&self, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.ports[0])).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path} {body}: {answer}");
        answer
    }

    /// Waits until it answers; false where it ended instead.
    async fn is_up(&mut self) -> bool {
        let store = self.store();
        let started = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            match timeout(Duration::from_secs(1), store.revision()).await {
                Ok(Ok(_)) => return true,
                Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(20)).await,
            }
            assert!(started.elapsed() < Duration::from_secs(30), "etcd does not answer; its log:\n{}", self.log());
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let command = format!("kill -{signal} {}", self.process.id());
        assert!(Command::new("sh").arg("-c").arg(command).status().unwrap().success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &TempDir, [client, peer]: [u16; 2], secure: bool) -> Child {
    let path = |name: &str| directory.path().join(name);
    let scheme = if secure { "https" } else { "http" };
    let (client, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program());
    command.arg("--data-dir").arg(path("data")).args(["--name", "e"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("e={peer}"), "--logger", "zap"]);
    if secure {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(path("ca"));
        command.arg("--cert-file").arg(path("cert")).arg("--key-file").arg(path("key"));
    }
    let log = File::options().create(true).append(true).open(path("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    match command.spawn() {
        Ok(process) => process,
        Err(error) => panic!(
            "cannot start {:?}: {error}. `make test` installs etcd and says where it is in PENSTOCK_TEST_ETCD; by hand: \
             put an etcd 3.4 or later on PATH",
            program()
        ),
    }
}

/// Where `make test` put etcd, else whatever is on PATH.
fn program() -> PathBuf {
    std::env::var_os("PENSTOCK_TEST_ETCD").unwrap_or_else(|| OsString::from("etcd")).into()
}

fn free_ports() -> [u16; 2] {
    [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|listener| listener.local_addr().unwrap().port())
}
