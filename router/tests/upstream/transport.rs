//! Connections, keys, retries and the breaker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_proto::ErrorCode;
use penstock_router::upstream::{BreakerState, ConfigError, KeySource, Timeouts, Trust, Upstream, UpstreamConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{BIG, Call, Fake, KEY, MAX_TOKENS, OPENAI, hi, read, soon, target, target_with};

async fn say_so(mut call: Call) {
    call.open().await;
    call.data(json!({"choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": "stop"}]})).await;
    call.data(json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})).await;
    assert!(call.piece("data: [DONE]\n\n").await);
    call.end().await;
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    for _ in 0..3 {
        let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            say_so(fake.call().await).await;
        });
        assert_eq!(read(&mut answer.unwrap()).await.text, "so");
    }
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        fake.call().await.answer("400 Bad Request", "", "no").await;
    });
    assert!(answer.is_err());
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        say_so(fake.call().await).await;
    });
    assert!(answer.is_ok());
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn dropping_an_answer_or_a_call_closes_the_upstreams_request() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    let (answer, mut call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        call.open().await;
        call.data(json!({"choices": [{"index": 0, "delta": {"content": "so"}}]})).await;
        call
    });
    drop(answer.unwrap());
    call.closed().await;
    let mut waiting = tokio::select! {
        _ = target.generate(&BIG, &request, MAX_TOKENS) => panic!("nobody answers"),
        call = fake.call() => call,
    };
    waiting.closed().await;
}

#[tokio::test]
async fn a_call_is_made_again_where_the_upstream_asks_for_it_in_time() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        for status in ["429 Too Many Requests", "503 Service Unavailable"] {
            fake.call().await.answer(status, "retry-after: 0\r\n", "").await;
        }
        say_so(fake.call().await).await;
    });
    assert_eq!(read(&mut answer.unwrap()).await.text, "so");
    let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        for _ in 0..3 {
            fake.call().await.answer("429 Too Many Requests", "retry-after: 0\r\n", "").await;
        }
    });
    let failure = answer.err().unwrap();
    assert_eq!((failure.code, failure.retry_after), (ErrorCode::ProviderRateLimited, Some(0)));
    for headers in ["", "retry-after: 100\r\n"] {
        let (answer, ()) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            fake.call().await.answer("503 Service Unavailable", headers, "").await;
        });
        assert_eq!(answer.err().unwrap().code, ErrorCode::ProviderUnavailable);
    }
    assert!(fake.is_quiet());
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_given_a_rest_and_comes_back() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let target = target(address, OPENAI);
    let request = hi();
    assert_eq!(target.state(), BreakerState::Closed);
    for _ in 0..2 {
        let failure = target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::ProviderUnavailable);
    }
    assert_eq!(target.state(), BreakerState::Open);
    let failure = target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap();
    assert!(failure.message.contains("not called for now") && failure.retry_after.is_some(), "{failure}");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(target.state(), BreakerState::HalfOpen);
    assert!(target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap().message.contains("reached"));
    assert_eq!(target.state(), BreakerState::Open);
}

#[tokio::test]
async fn a_key_is_read_again_when_its_file_changes() {
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    for key in [KEY, "sk-another-key"] {
        std::fs::write(target.key.path().join("key"), key).unwrap();
        let (_, call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            let call = fake.call().await;
            let head = call.head.clone();
            say_so(call).await;
            head
        });
        assert!(call.contains(&format!("Bearer {key}\r\n")), "{call}");
    }
    std::fs::remove_file(target.key.path().join("key")).unwrap();
    let failure = target.generate(&BIG, &request, MAX_TOKENS).await.err().unwrap();
    let expected = "the key of upstream acme cannot be read";
    assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::ProviderUnauthenticated, expected));
    assert!(fake.is_quiet());
}

#[tokio::test]
async fn a_proxy_is_used_where_the_catalogue_names_one() {
    let (mut proxy, upstream) = (Fake::start().await, Fake::start().await);
    let url = format!("http://{}", proxy.address);
    let target = target_with(upstream.address, OPENAI, |config| config.proxy = Some(url));
    let request = hi();
    let (answer, head) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
        let call = proxy.call().await;
        let head = call.head.clone();
        say_so(call).await;
        head
    });
    assert_eq!(read(&mut answer.unwrap()).await.text, "so");
    assert!(head.starts_with(&format!("POST http://{}/v1/chat/completions HTTP/1.1\r\n", upstream.address)), "{head}");
    assert_eq!(upstream.connections(), 0);
}

/// A server's TLS, and the authority that vouches for it.
fn authority() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}

#[tokio::test]
async fn an_upstream_must_be_the_one_that_a_trusted_authority_vouches_for() {
    let (acceptor, pem) = authority();
    let (_, stranger) = authority();
    let mut fake = Fake::start_with(Some(acceptor)).await;
    let dir = tempfile::tempdir().unwrap();
    let upstream = |host: &str, pem: &str| {
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, pem).unwrap();
        let port = fake.address.port();
        target_with(fake.address, OPENAI, |config| {
            config.url = format!("https://{host}:{port}/v1/");
            config.trust = Trust::And(path);
        })
    };
    let (vouched, other_host, unknown) =
        (upstream("localhost", &pem), upstream("127.0.0.1", &pem), upstream("localhost", &stranger));
    let request = hi();
    for target in [other_host, unknown] {
        let failure = soon(target.generate(&BIG, &request, MAX_TOKENS)).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::ProviderUnavailable);
    }
    assert!(fake.is_quiet());
    let (answer, ()) = tokio::join!(vouched.generate(&BIG, &request, MAX_TOKENS), async {
        say_so(fake.call().await).await;
    });
    assert_eq!(read(&mut answer.unwrap()).await.text, "so");
}

#[tokio::test]
async fn a_catalogue_that_cannot_be_is_refused() {
    let refused = |change: fn(&mut UpstreamConfig)| {
        let mut config = UpstreamConfig {
            name: "acme".to_owned(),
            protocol: OPENAI,
            url: "https://api.acme.example/v1".to_owned(),
            key: None,
            proxy: None,
            trust: Trust::System,
            timeouts: Timeouts::default(),
        };
        change(&mut config);
        Upstream::new(config).err().expect("it is refused")
    };
    let url = |change| matches!(refused(change), ConfigError::Url { field: "url" });
    assert!(url(|config| config.url = "api.acme.example".into()));
    assert!(url(|config| config.url = "ftp://acme.example".into()));
    assert!(url(|config| config.url = "https://user:pass@acme.example".into()));
    assert!(url(|config| config.url = "https://acme.example/v1?a=b".into()));
    let proxy = refused(|config| config.proxy = Some("nonsense".into()));
    assert_eq!(proxy.to_string(), "proxy must be an http or https URL with a host, without user, query and fragment");
    let plain = refused(|config| config.url = "http://acme.example/v1".into());
    assert_eq!(plain.to_string(), "url must begin with https, since acme.example is not this machine");
    let key = refused(|config| config.key = Some(KeySource::File(PathBuf::from("/nowhere/key"))));
    assert!(key.to_string().starts_with("key: the key file /nowhere/key cannot be read"), "{key}");
    let trust = refused(|config| config.trust = Trust::And(PathBuf::from("/nowhere/ca.pem")));
    assert!(matches!(trust, ConfigError::Authorities { .. }), "{trust}");
}
