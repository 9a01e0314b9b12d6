//! TLS between routers and workers: what works, and what is refused with a line on both sides.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

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
    fn ca(&self, cluster: &Cluster, name: &str) -> [String; 2] {
        ["--tls-ca".to_owned(), write(cluster, &format!("{name}-ca.pem"), &self.0.pem())]
    }

    /// The flags for a new certificate and its key in files.
    fn sign(&self, cluster: &Cluster, host: &str, change: impl FnOnce(&mut CertificateParams)) -> [String; 4] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        change(&mut params);
        let name = format!("{host}-{}", key.public_key_raw().iter().map(|b| u64::from(*b)).sum::<u64>());
        let certificate = write(cluster, &format!("{name}.pem"), &params.signed_by(&key, &self.0).unwrap().pem());
        let key = write(cluster, &format!("{name}.key"), &key.serialize_pem());
        ["--tls-cert".to_owned(), certificate, "--tls-key".to_owned(), key]
    }
}

fn write(cluster: &Cluster, name: &str, pem: &str) -> String {
    let file: PathBuf = cluster.dir.path().join(name);
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

#[tokio::test]
async fn certificates_on_both_sides_work() {
    let cluster = Cluster::start();
    let ours = Authority::new("ours");
    let ca = ours.ca(&cluster, "ours");
    let worker = start(&cluster, "worker", "w1", &flags(&ours.sign(&cluster, "127.0.0.1", |_| {}), &ca));
    let router = start(&cluster, "router", "r1", &flags(&ours.sign(&cluster, "router", |_| {}), &ca));
    cluster.members(&router, "ready", 1).await;
    cluster.ask(&router, "water").await.unwrap();

    // One without a certificate of its own, one of strangers, and one that speaks plaintext.
    let bare = start(&cluster, "router", "r2", &ca);
    bare.logs(&["cannot take a worker in yet", "w1", "CertificateRequired"]).await;
    worker.logs(&["TLS handshake failed", "no certificates"]).await;
    let strange = Authority::new("strange").sign(&cluster, "router", |_| {});
    let stranger = start(&cluster, "router", "r3", &flags(&strange, &ca));
    stranger.logs(&["cannot take a worker in yet", "w1", "received fatal alert"]).await;
    worker.logs(&["TLS handshake failed", "invalid peer certificate"]).await;
    let plain = cluster.router("r4", &[]);
    plain.logs(&["cannot take a worker in yet", "w1", "--tls-ca"]).await;
    std::net::TcpStream::connect(worker.address("grpc"))
        .and_then(|mut stream| std::io::Write::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        .unwrap();
    worker.logs(&["TLS handshake failed", "the client speaks plaintext"]).await;
    cluster.ask(&router, "gate").await.unwrap();
}

#[tokio::test]
async fn a_worker_that_cannot_prove_itself_gets_no_work_and_both_say_why() {
    let cluster = Cluster::start();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    };
    let router = start(&cluster, "router", "r1", &ours.ca(&cluster, "ours"));
    for (name, certificate, theirs, ours) in [
        ("foreign", others.sign(&cluster, "127.0.0.1", |_| {}), "UnknownCA", "UnknownIssuer"),
        ("expired", ours.sign(&cluster, "127.0.0.1", expired), "CertificateExpired", "expired"),
        ("elsewhere", ours.sign(&cluster, "elsewhere", |_| {}), "BadCertificate", "not valid for name"),
    ] {
        let worker = start(&cluster, "worker", name, &certificate);
        router.logs(&["cannot take a worker in yet", name, ours]).await;
        worker.logs(&["TLS handshake failed", theirs]).await;
    }
    // A worker that speaks plaintext where a TLS one is announced.
    let plain = cluster.worker("plain", &[]);
    let address = format!("--advertise={}", plain.address("grpc"));
    let front = start(&cluster, "worker", "front", &flags(&ours.sign(&cluster, "127.0.0.1", |_| {}), &[address]));
    router.logs(&["cannot take a worker in yet", "front"]).await;
    drop(front);
    cluster.members(&router, "ready", 1).await;
    cluster.ask(&router, "only plain serves, on loopback").await.unwrap();
}

#[test]
fn plaintext_off_loopback_and_broken_files_are_refused_by_their_flags() {
    let cluster = Cluster::start();
    let ours = Authority::new("ours");
    let ca = ours.ca(&cluster, "ours");
    let [_, certificate, _, key] = ours.sign(&cluster, "127.0.0.1", |_| {});
    let [_, _, _, other_key] = ours.sign(&cluster, "127.0.0.2", |_| {});
    let nonsense = write(&cluster, "nonsense.pem", "nonsense");
    let away = cluster.dir.path().join("away.pem").to_str().unwrap().to_owned();
    let worker = ["--runner", "scripted", "--model", MODEL, "--grpc", "127.0.0.1:0"];
    let cases: [(&str, &[&str], &[&str]); 9] = [
        ("worker", &["--grpc", "0.0.0.0:0"], &["--tls-cert", "--insecure"]),
        ("worker", &["--etcd", "http://192.0.2.1:2379"], &["--etcd", "--insecure"]),
        ("worker", &[&ca[0], &ca[1]], &["--tls-ca", "--tls-cert", "--tls-key"]),
        ("worker", &["--tls-cert", &certificate], &["--tls-key"]),
        ("worker", &["--tls-cert", &certificate, "--tls-key", &other_key], &["--tls-key"]),
        ("worker", &["--tls-cert", &nonsense, "--tls-key", &key], &["--tls-cert", "certificate"]),
        ("worker", &["--tls-cert", &away, "--tls-key", &key], &["--tls-cert", "away.pem"]),
        ("router", &["--tls-ca", &nonsense], &["--tls-ca", "nonsense.pem"]),
        ("router", &["--http", "0.0.0.0:0"], &["0.0.0.0:0", "--insecure"]),
    ];
    for (part, flags, words) in cases {
        // clap takes the last of a flag that is given twice only where it may be; `--etcd` adds up.
        let own: Vec<&str> = match part {
            "worker" if flags[0] == "--grpc" => worker[..4].to_vec(),
            "worker" => worker.to_vec(),
            _ if flags[0] == "--http" => Vec::new(),
            _ => vec!["--http", "127.0.0.1:0"],
        };
        let (code, text) = cluster.output(part, &[&own, flags].concat());
        assert_eq!(code, Some(2), "{part} {flags:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{part} {flags:?}: {text}");
    }
}
