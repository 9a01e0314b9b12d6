//! TLS between clients, routers, workers and etcd: what works, and what is refused with a line on both sides.

use std::path::Path;

use penstock_proto::inference::{InferenceClient, ListModelsRequest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::Value;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::cluster::{Cluster, MODEL, Process};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// The flags for its certificate in a file.
    fn ca(&self, dir: &Path, name: &str) -> [String; 2] {
        ["--tls-ca".to_owned(), write(dir, &format!("{name}-ca.pem"), &self.0.pem())]
    }

    /// The flags for a new certificate and its key in files.
    fn sign(&self, dir: &Path, host: &str, change: impl FnOnce(&mut CertificateParams)) -> [String; 4] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        change(&mut params);
        let name = format!("{host}-{}", key.public_key_raw().iter().map(|b| u64::from(*b)).sum::<u64>());
        let certificate = write(dir, &format!("{name}.pem"), &params.signed_by(&key, &self.0).unwrap().pem());
        let key = write(dir, &format!("{name}.key"), &key.serialize_pem());
        ["--tls-cert".to_owned(), certificate, "--tls-key".to_owned(), key]
    }
}

fn write(dir: &Path, name: &str, pem: &str) -> String {
    let file = dir.join(name);
    std::fs::write(&file, pem).unwrap();
    file.to_str().unwrap().to_owned()
}

fn flags<const A: usize, const B: usize>(first: &[String; A], second: &[String; B]) -> Vec<String> {
    [first.as_slice(), second.as_slice()].concat()
}

fn start(cluster: &Cluster, part: &str, name: &str, flags: &[String]) -> Process {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    if part == "worker" { cluster.worker(name, &flags) } else { cluster.router(name, &flags) }
}

/// An HTTP client that trusts one authority, and shows a certificate where it has one.
fn https(authority: &Authority, shown: Option<&[String; 4]>) -> reqwest::Client {
    let trusted = reqwest::Certificate::from_pem(authority.0.pem().as_bytes()).unwrap();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]);
    let identity = |[_, certificate, _, key]: &[String; 4]| {
        let pem = [std::fs::read(certificate).unwrap(), std::fs::read(key).unwrap()].concat();
        reqwest::Identity::from_pem(&pem).unwrap()
    };
    shown.into_iter().fold(builder, |builder, files| builder.identity(identity(files))).build().unwrap()
}

/// The name of the first model that a router lists over HTTPS, or the client's error with its causes.
async fn listed(router: &Process, client: &reqwest::Client) -> Result<String, String> {
    let causes = |error: reqwest::Error| format!("{:#}", anyhow::Error::new(error));
    let response = client.get(format!("https://{}/v1/models", router.address("http"))).send().await.map_err(causes)?;
    let body: Value = serde_json::from_slice(&response.bytes().await.map_err(causes)?).unwrap();
    Ok(body["data"][0]["id"].as_str().unwrap().to_owned())
}

async fn models(router: &Process, authority: &Authority) -> Result<String, String> {
    listed(router, &https(authority, None)).await
}

#[tokio::test]
async fn certificates_on_both_sides_work() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let ours = Authority::new("ours");
    let ca = ours.ca(dir, "ours");
    let worker = start(&cluster, "worker", "w1", &flags(&ours.sign(dir, "127.0.0.1", |_| {}), &ca));
    let router = start(&cluster, "router", "r1", &flags(&ours.sign(dir, "127.0.0.1", |_| {}), &ca));
    cluster.members(&router, "ready", 1).await;
    assert_eq!(models(&router, &ours).await, Ok(MODEL.to_owned()));

    // One without a certificate of its own, one of strangers, and one that speaks plaintext.
    let bare = start(&cluster, "router", "r2", &ca);
    bare.logs(&["cannot take a worker in yet", "w1", "own certificate"]).await;
    worker.logs(&["TLS handshake failed", "no certificates"]).await;
    let strange = Authority::new("strange").sign(dir, "router", |_| {});
    let stranger = start(&cluster, "router", "r3", &flags(&strange, &ca));
    stranger.logs(&["cannot take a worker in yet", "w1", "own certificate"]).await;
    worker.logs(&["TLS handshake failed", "invalid peer certificate"]).await;
    let plain = cluster.router("r4", &[]);
    plain.logs(&["cannot take a worker in yet", "w1", "--tls-ca"]).await;
    std::net::TcpStream::connect(worker.address("grpc"))
        .and_then(|mut stream| std::io::Write::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        .unwrap();
    worker.logs(&["TLS handshake failed", "the client speaks plaintext"]).await;
    assert_eq!(models(&router, &ours).await, Ok(MODEL.to_owned()));
}

#[tokio::test]
async fn a_worker_that_cannot_prove_itself_gets_no_work_and_both_say_why() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    };
    let router = start(&cluster, "router", "r1", &ours.ca(dir, "ours"));
    for (name, certificate, theirs, ours) in [
        ("foreign", others.sign(dir, "127.0.0.1", |_| {}), "UnknownCA", "UnknownIssuer"),
        ("expired", ours.sign(dir, "127.0.0.1", expired), "CertificateExpired", "expired"),
        ("elsewhere", ours.sign(dir, "elsewhere", |_| {}), "BadCertificate", "not valid for name"),
    ] {
        let worker = start(&cluster, "worker", name, &certificate);
        router.logs(&["cannot take a worker in yet", name, ours]).await;
        worker.logs(&["TLS handshake failed", theirs]).await;
    }
    // A worker that speaks plaintext where a TLS one is announced.
    let plain = cluster.worker("plain", &[]);
    let address = format!("--advertise={}", plain.address("grpc"));
    let front = start(&cluster, "worker", "front", &flags(&ours.sign(dir, "127.0.0.1", |_| {}), &[address]));
    router.logs(&["cannot take a worker in yet", "front"]).await;
    drop(front);
    cluster.members(&router, "ready", 1).await;
    cluster.ask(&router, "only plain serves, on loopback").await.unwrap();
}

#[tokio::test]
async fn a_routers_own_ports_have_tls_and_ask_clients_for_nothing() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let ours = Authority::new("ours");
    let _worker = cluster.worker("w1", &[]);
    // It needs no authorities for workers on loopback.
    let router = start(&cluster, "router", "r1", &ours.sign(dir, "127.0.0.1", |_| {}));
    cluster.members(&router, "ready", 1).await;
    assert_eq!(models(&router, &ours).await, Ok(MODEL.to_owned()));

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.0.pem()));
    let endpoint = Endpoint::from_shared(format!("https://{}", router.address("grpc"))).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let listed = InferenceClient::new(channel).list_models(ListModelsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.models[0].name, MODEL);

    let [ca, file] = ours.ca(dir, "ours");
    let (code, text) = cluster.operate(&router, &["status", &ca, &file]);
    assert!(code == Some(0) && text.contains("w1"), "{text}");
}

#[tokio::test]
async fn whoever_does_not_trust_a_router_says_why_and_so_does_the_router() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let [ca, file] = ours.ca(dir, "ours");
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    };
    for (name, certificate, router_says, client_says) in [
        ("foreign", others.sign(dir, "127.0.0.1", |_| {}), "UnknownCA", "UnknownIssuer"),
        ("expired", ours.sign(dir, "127.0.0.1", expired), "CertificateExpired", "expired"),
        ("elsewhere", ours.sign(dir, "elsewhere", |_| {}), "BadCertificate", "not valid for name"),
    ] {
        let router = start(&cluster, "router", name, &certificate);
        let (code, text) = cluster.operate(&router, &["status", &ca, &file]);
        assert!(code == Some(3) && text.contains(client_says), "{name}: {code:?} {text}");
        router.logs(&["TLS handshake failed", router_says]).await;
        let error = models(&router, &ours).await.unwrap_err();
        assert!(error.contains(client_says), "{name}: {error}");
    }
    // Plaintext to a port with TLS, and TLS to one without.
    let router = start(&cluster, "router", "tls", &ours.sign(dir, "127.0.0.1", |_| {}));
    let (code, text) = cluster.operate(&router, &["status"]);
    assert!(code == Some(3) && text.contains("not reachable") && text.contains("--tls-ca"), "{code:?} {text}");
    router.logs(&["TLS handshake failed", "the client speaks plaintext"]).await;
    assert!(cluster.ask(&router, "water").await.is_err());
    let plain = cluster.router("plain", &[]);
    let (code, text) = cluster.operate(&plain, &["status", &ca, &file]);
    assert!(code == Some(3) && text.contains("https://") && text.contains("router with TLS"), "{code:?} {text}");
}

#[tokio::test]
async fn a_router_that_asks_clients_for_certificates_serves_no_others() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let [ca, file] = ours.ca(dir, "ours");
    let asks = ["--tls-client-ca".to_owned(), file.clone()];
    let _worker = cluster.worker("w1", &[]);
    let router = start(&cluster, "router", "r1", &flags(&ours.sign(dir, "127.0.0.1", |_| {}), &asks));
    cluster.members(&router, "ready", 1).await;
    let known = ours.sign(dir, "client", |_| {});
    assert_eq!(listed(&router, &https(&ours, Some(&known))).await, Ok(MODEL.to_owned()));
    let operate = |shown: &[String]| {
        let args = [&["status".to_owned(), ca.clone(), file.clone()], shown].concat();
        cluster.operate(&router, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (code, text) = operate(&known);
    assert!(code == Some(0) && text.contains("w1"), "{text}");

    let (code, text) = operate(&[]);
    // The alert is told where it is read before the connection's end; the way out is told always.
    assert!(code == Some(3) && text.contains("wants --tls-cert"), "{code:?} {text}");
    router.logs(&["TLS handshake failed", "no certificates"]).await;
    let strange = others.sign(dir, "client", |_| {});
    let (code, text) = operate(&strange);
    assert!(code == Some(3) && text.contains("from its own authority"), "{code:?} {text}");
    router.logs(&["TLS handshake failed", "invalid peer certificate"]).await;
    assert!(models(&router, &ours).await.is_err());
    assert!(listed(&router, &https(&ours, Some(&strange))).await.is_err());
}

#[tokio::test]
async fn etcd_is_reached_over_tls_with_certificates_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let [_, ca] = ours.ca(dir.path(), "ours");
    let [_, other_ca] = others.ca(dir.path(), "others");
    let [_, certificate, _, key] = ours.sign(dir.path(), "127.0.0.1", |_| {});
    let [_, own, _, own_key] = ours.sign(dir.path(), "penstock", |_| {});
    let etcd = ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
    let cluster = Cluster::start_in(dir, "https", etcd.map(str::to_owned).to_vec());
    assert!(cluster.etcd().starts_with("https://"));
    let identity = ["--etcd-cert", &own, "--etcd-key", &own_key];
    let known = [&["--etcd-ca", &ca], &identity[..]].concat();
    let router = cluster.router("r1", &known);
    let mut worker = cluster.worker("w1", &known);
    cluster.members(&router, "ready", 1).await;
    cluster.ask(&router, "water").await.unwrap();
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0), "{}", worker.log());

    // A router listens at once, whatever etcd says.
    for (name, flags, word) in [
        ("foreign", [&["--etcd-ca", &other_ca], &identity[..]].concat(), "UnknownIssuer"),
        ("bare", vec!["--etcd-ca", &ca], "the store is not available"),
    ] {
        let router = cluster.router(name, &flags);
        router.logs(&["cannot follow the members", word]).await;
        assert_eq!(cluster.readiness(&router).await.0, 503);
    }
}

#[test]
fn plaintext_off_loopback_and_broken_files_are_refused_by_their_flags() {
    let cluster = Cluster::start();
    let dir = cluster.dir.path();
    let ours = Authority::new("ours");
    let ca = ours.ca(dir, "ours");
    let [_, certificate, _, key] = ours.sign(dir, "127.0.0.1", |_| {});
    let [_, _, _, other_key] = ours.sign(dir, "127.0.0.2", |_| {});
    let nonsense = write(dir, "nonsense.pem", "nonsense");
    let away = cluster.dir.path().join("away.pem").to_str().unwrap().to_owned();
    let worker = ["--runner", "scripted", "--model", MODEL, "--grpc", "127.0.0.1:0"];
    let cases: [(&str, &[&str], &[&str]); 11] = [
        ("worker", &["--grpc", "0.0.0.0:0"], &["--tls-cert", "--insecure"]),
        ("worker", &["--etcd", "http://192.0.2.1:2379"], &["--etcd", "--insecure"]),
        ("worker", &[&ca[0], &ca[1]], &["--tls-ca", "--tls-cert", "--tls-key"]),
        ("worker", &["--tls-cert", &certificate], &["--tls-key"]),
        ("worker", &["--tls-cert", &certificate, "--tls-key", &other_key], &["--tls-key"]),
        ("worker", &["--tls-cert", &nonsense, "--tls-key", &key], &["--tls-cert", "certificate"]),
        ("worker", &["--tls-cert", &away, "--tls-key", &key], &["--tls-cert", "away.pem"]),
        ("router", &["--tls-ca", &nonsense], &["--tls-ca", "nonsense.pem"]),
        ("router", &["--admin", "0.0.0.0:0"], &["--admin 0.0.0.0:0", "--tls-cert", "--insecure"]),
        ("router", &["--tls-client-ca", &ca[1]], &["--tls-cert"]),
        ("router", &["--tls-cert", &certificate, "--tls-key", &other_key], &["--tls-cert", "--tls-key"]),
    ];
    for (part, flags, words) in cases {
        // clap takes the last of a flag that is given twice only where it may be; `--etcd` adds up.
        let own: Vec<&str> = match part {
            "worker" if flags[0] == "--grpc" => worker[..4].to_vec(),
            "worker" => worker.to_vec(),
            _ if flags[0] == "--http" || flags[0] == "--admin" => Vec::new(),
            _ => vec!["--http", "127.0.0.1:0"],
        };
        let (code, text) = cluster.output(part, &[&own, flags].concat());
        assert_eq!(code, Some(2), "{part} {flags:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{part} {flags:?}: {text}");
    }
}
