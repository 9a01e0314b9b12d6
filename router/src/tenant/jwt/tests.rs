//! Tokens of an issuer that runs here: its keys come over HTTP, and time is in the test's hand.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use penstock_cluster::catalog::Source as Written;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const NOW: u64 = 1_800_000_000;

/// Who signs tokens.
enum Signer {
    Rsa(Box<ring::signature::RsaKeyPair>, Value),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    /// The key pair that RFC 7515 prints in A.2: ring makes none.
    fn rsa() -> Self {
        let jwk: Value = serde_json::from_str(include_str!("rfc7515_a2.json")).unwrap();
        let member = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
        let public_key = PublicKeyComponents { n: member("n"), e: member("e") };
        let [d, p, q] = ["d", "p", "q"].map(member);
        #[expect(non_snake_case, reason = "ring's names")]
        let [dP, dQ, qInv] = ["dp", "dq", "qi"].map(member);
        let pair = KeyPairComponents { public_key, d, p, q, dP, dQ, qInv };
        Self::Rsa(Box::new(ring::signature::RsaKeyPair::from_components(&pair).unwrap()), jwk)
    }

    fn p256() -> Self {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.as_ref(), &random).unwrap())
    }

    fn ed25519() -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap())
    }

    fn alg(&self) -> &'static str {
        match self {
            Self::Rsa(..) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(_, jwk) => json!({"kty": "RSA", "kid": kid, "n": jwk["n"], "e": jwk["e"]}),
            Self::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": base64(x), "y": base64(y)})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64(pair.public_key().as_ref())})
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair, _) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
        format!("{signed}.{}", base64(&self.sign(signed.as_bytes())))
    }

    /// A good token under a key's name.
    fn good(&self, kid: &str) -> String {
        self.token(&json!({"alg": self.alg(), "kid": kid, "typ": "JWT"}), &claims())
    }
}

fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn claims() -> Value {
    json!({
        "iss": "https://login.corp.example", "aud": ["other", "penstock"], "sub": "alice", "team": "retail-banking",
        "exp": NOW + 3600, "nbf": NOW - 300,
    })
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

/// A server of one answer, which the test sets.
struct Server {
    url: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/certs", listener.local_addr().unwrap());
        let (answer, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let mut task = JoinSet::new();
        task.spawn({
            let (answer, asked) = (Arc::clone(&answer), Arc::clone(&asked));
            async move {
                loop {
                    let (mut peer, _) = listener.accept().await.unwrap();
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && peer.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                    asked.fetch_add(1, Ordering::AcqRel);
                    let text = answer.lock().unwrap().clone();
                    // A client that has read enough may have gone.
                    drop(peer.write_all(text.as_bytes()).await);
                }
            }
        });
        Self { url, answer, asked, _task: task }
    }

    fn answer(&self, status: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    }

    fn keys(&self, keys: &[(&Signer, &str)]) {
        let keys: Vec<Value> = keys.iter().map(|(signer, kid)| signer.jwk(kid)).collect();
        self.answer("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Acquire)
    }
}

fn catalog(jwks: &str, more: &str) -> Catalog {
    let text = format!(
        "tenants: [{{name: retail, models: []}}, {{name: risk, models: []}}]\n\
         issuers:\n\
         \x20 - name: corp\n    issuer: https://login.corp.example\n    audience: [penstock, gateway]\n    jwks: {jwks}\n{more}\n"
    );
    Catalog::read(vec![Written { file: "c.yaml".to_owned(), text }]).unwrap_or_else(|error| panic!("{error}"))
}

const TEAMS: &str = "    claim: team\n    tenants: {retail-banking: retail}";

/// An issuer of that server, and the clock, in seconds.
struct World {
    issuers: Issuers,
    server: Server,
    clock: Arc<AtomicU64>,
}

impl World {
    async fn new(more: &str) -> Self {
        let server = Server::start().await;
        let clock = Arc::new(AtomicU64::new(NOW));
        let catalog = catalog(&format!("{{url: \"{}\"}}", server.url), more);
        let time = Arc::clone(&clock);
        let time = Arc::new(move || Duration::from_secs(time.load(Ordering::Acquire)));
        Self { issuers: Issuers::with_clock(&catalog, &TaskTracker::new(), time), server, clock }
    }

    fn later(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::AcqRel);
    }

    async fn refused(&self, token: &str) -> String {
        let failure = self.issuers.verify(token).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unauthenticated, "{failure:?}");
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!failure.message.contains(part), "{failure:?}");
        }
        failure.message
    }

    async fn accepts(&self, token: &str) -> bool {
        self.issuers.verify(token).await.is_ok()
    }
}

#[tokio::test]
async fn a_good_token_of_each_algorithm_stands_for_its_tenant() {
    let world = World::new(TEAMS).await;
    let signers = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    world.server.keys(&[(&signers[0], "r"), (&signers[1], "p"), (&signers[2], "e")]);
    let name = |name: &str| Name::new(name).unwrap();
    let alice = Verified { tenant: name("retail"), issuer: name("corp"), subject: "alice".to_owned() };
    for (signer, kid) in signers.iter().zip(["r", "p", "e"]) {
        assert!(is_jwt(&signer.good(kid)));
        assert_eq!(world.issuers.verify(&signer.good(kid)).await.unwrap(), alice);
    }
    let header = json!({"alg": "ES256"});
    assert!(world.accepts(&signers[1].token(&header, &claims())).await, "the only key for it needs no name");
    let nobody = signers[1].token(&header, &with("sub", Value::Null));
    assert_eq!(world.issuers.verify(&nobody).await.unwrap().subject, "");
    assert_eq!(world.server.asked(), 1);
}

#[tokio::test]
async fn a_token_that_is_not_good_is_refused_with_what_is_wrong() {
    let world = World::new(TEAMS).await;
    let (signer, stranger) = (Signer::p256(), Signer::p256());
    world.server.keys(&[(&signer, "k")]);
    let header = json!({"alg": "ES256", "kid": "k"});
    let leeway = 60;
    for (claims, why) in [
        (with("iss", json!("https://evil.example")), "its issuer \"https://evil.example\" is not trusted"),
        (with("iss", json!("https://login.corp.example/")), "is not trusted"),
        (with("iss", Value::Null), "its issuer \"\" is not trusted"),
        (with("aud", json!("other")), "not meant for us (aud)"),
        (with("aud", json!(["penstock2"])), "not meant for us (aud)"),
        (with("aud", Value::Null), "not meant for us (aud)"),
        (with("exp", json!(NOW - leeway)), "expired (exp)"),
        (with("exp", Value::Null), "does not say when it expires (exp)"),
        (with("exp", json!("never")), "does not say when it expires (exp)"),
        (with("nbf", json!(NOW + leeway + 1)), "not valid yet (nbf)"),
        (with("nbf", json!("soon")), "not valid yet (nbf)"),
        (with("team", json!("treasury")), "its claim \"team\" says \"treasury\", which is no tenant here"),
        (with("team", json!("retail")), "which is no tenant here"),
        (with("team", json!(["retail-banking"])), "no claim \"team\" that is a string"),
        (with("team", Value::Null), "no claim \"team\" that is a string"),
    ] {
        let message = world.refused(&signer.token(&header, &claims)).await;
        assert!(message.starts_with("the bearer token is refused: ") && message.contains(why), "{message} / {why}");
    }
    for claims in [
        with("exp", json!(NOW - leeway + 1)),
        with("nbf", json!(NOW + leeway)),
        with("aud", json!("gateway")),
        with("exp", json!(1_800_000_001.5)),
    ] {
        assert!(world.accepts(&signer.token(&header, &claims)).await, "{claims}");
    }
    for (token, why) in [
        (stranger.token(&header, &claims()), "its signature is wrong"),
        (signer.token(&json!({"alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false}), &claims()), "(crit)"),
        (signer.token(&json!({"alg": "ES384", "kid": "k"}), &claims()), "signed with \"ES384\", which issuer corp"),
        (signer.token(&json!({"alg": "RS256", "kid": "k"}), &claims()), "issuer corp has no key \"k\" that fits"),
        (signer.token(&json!({"kid": "k"}), &claims()), "not three parts"),
        (signer.token(&json!({"alg": "ES256", "kid": 7}), &claims()), "not three parts"),
        (signer.token(&header, &json!(["iss"])), "not three parts"),
        ("psk_0123".to_owned(), "not three parts"),
        ("a.b".to_owned(), "not three parts"),
        (format!("{}=", signer.good("k")), "not three parts"),
        (format!("{}.{}", signer.good("k"), "e30"), "not three parts"),
        ("a".repeat(TOKEN_LIMIT + 1), "longer than"),
        (signer.token(&header, &with("iss", json!("x".repeat(5000)))), &format!("\"{}\" is not", "x".repeat(SHOWN))),
    ] {
        let message = world.refused(&token).await;
        assert!(message.contains(why), "{message} / {why}");
    }
}

#[tokio::test]
async fn neither_none_nor_a_public_key_as_a_secret_signs_anything() {
    let world = World::new(TEAMS).await;
    let (rsa, ed) = (Signer::rsa(), Signer::ed25519());
    world.server.keys(&[(&rsa, "k"), (&ed, "e")]);
    assert!(world.accepts(&rsa.good("k")).await);
    for alg in ["none", "None", "NONE", ""] {
        let (header, claims) = (json!({"alg": alg, "kid": "k"}).to_string(), claims().to_string());
        let message = world.refused(&format!("{}.{}.", base64(header.as_bytes()), base64(claims.as_bytes()))).await;
        assert!(message.contains("which issuer corp does not use (alg)"), "{message}");
    }
    // HMAC under what everybody knows: the key as the set has it.
    let jwk = rsa.jwk("k").to_string();
    for (alg, secret) in [("HS256", jwk.as_bytes()), ("HS256", b"".as_slice()), ("hs256", jwk.as_bytes())] {
        let header = json!({"alg": alg, "kid": "k"}).to_string();
        let signed = format!("{}.{}", base64(header.as_bytes()), base64(claims().to_string().as_bytes()));
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), signed.as_bytes());
        let message = world.refused(&format!("{signed}.{}", base64(tag.as_ref()))).await;
        assert!(message.contains("which issuer corp does not use (alg)"), "{message}");
    }
    // A key of one kind under another's algorithm, and a key that the token brings along.
    let message = world.refused(&ed.token(&json!({"alg": "RS256", "kid": "e"}), &claims())).await;
    assert!(message.contains("has no key \"e\" that fits"), "{message}");
    let own = Signer::ed25519();
    let brought = json!({"alg": "EdDSA", "kid": "e", "jwk": own.jwk("e"), "jku": "http://127.0.0.1:1/"});
    assert!(world.refused(&own.token(&brought, &claims())).await.contains("its signature is wrong"));
}

#[tokio::test]
async fn only_algorithms_that_the_catalogue_names_are_taken() {
    let world = World::new(&format!("{TEAMS}\n    algorithms: [EdDSA]")).await;
    let (p256, ed) = (Signer::p256(), Signer::ed25519());
    world.server.keys(&[(&p256, "p"), (&ed, "e")]);
    assert!(world.accepts(&ed.good("e")).await);
    assert!(world.refused(&p256.good("p")).await.contains("signed with \"ES256\", which issuer corp does not use"));
}

#[tokio::test]
async fn without_a_map_the_claim_is_the_tenants_name() {
    let world = World::new("").await;
    let signer = Signer::ed25519();
    world.server.keys(&[(&signer, "k")]);
    let header = json!({"alg": "EdDSA", "kid": "k"});
    let verified = world.issuers.verify(&signer.token(&header, &with("tenant", json!("risk")))).await.unwrap();
    assert_eq!(verified.tenant.as_str(), "risk");
    let message = world.refused(&signer.token(&header, &with("tenant", json!("lab")))).await;
    assert!(message.contains("its claim \"tenant\" says \"lab\", which is no tenant here"), "{message}");
}

#[tokio::test]
async fn keys_rotate_and_a_flood_of_unknown_names_fetches_no_more_than_it_may() {
    let world = World::new(TEAMS).await;
    let (first, second, third) = (Signer::ed25519(), Signer::ed25519(), Signer::ed25519());
    world.server.keys(&[(&first, "1")]);
    assert!(world.accepts(&first.good("1")).await);
    world.server.keys(&[(&first, "1"), (&second, "2")]);
    assert!(world.refused(&second.good("2")).await.contains("has no key \"2\" that fits"), "it was asked just now");
    world.later(30);
    assert!(world.accepts(&second.good("2")).await && world.accepts(&first.good("1")).await);
    assert_eq!(world.server.asked(), 2);

    let issuers = Arc::new(world.issuers.renew(&catalog(&format!("{{url: \"{}\"}}", world.server.url), TEAMS)));
    for _ in 0..3 {
        world.later(30);
        let mut flood = JoinSet::new();
        for at in 0..200 {
            let (issuers, token) = (Arc::clone(&issuers), third.good(&format!("made-up-{at}")));
            flood.spawn(async move { issuers.verify(&token).await.is_err() });
        }
        assert!(flood.join_all().await.into_iter().all(|refused| refused));
    }
    assert_eq!(world.server.asked(), 5, "one in 30 seconds, and those of the catalogue before are known");

    // What is withdrawn is gone once the set is stale and was fetched anew.
    world.server.keys(&[(&second, "2")]);
    world.later(10 * 60);
    assert!(issuers.verify(&first.good("1")).await.is_ok(), "nobody waits for a stale set");
    let fetched = || async { issuers.verify(&first.good("1")).await.is_err() };
    while !fetched().await {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.server.asked(), 6);
    assert!(issuers.verify(&second.good("2")).await.is_ok());
    world.server.keys(&[(&third, "3")]);
    world.later(20 * 60);
    assert!(issuers.verify(&second.good("2")).await.is_err(), "after a long silence the set is not trusted unasked");
    assert_eq!(world.server.asked(), 7);
}

#[tokio::test]
async fn a_set_that_cannot_be_fetched_leaves_the_last_one_good_for_a_day() {
    let world = World::new(TEAMS).await;
    let signer = Signer::ed25519();
    let elsewhere = Server::start().await;
    elsewhere.keys(&[(&signer, "k")]);
    let huge = format!("{{\"keys\": [{}], \"x\": \"{}\"}}", signer.jwk("k"), "x".repeat(300 << 10));
    let moved =
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", elsewhere.url);
    for (at, spoil) in [
        (|server: &Server, _: &str| server.answer("500 Oops", "")) as fn(&Server, &str),
        |server, _| server.answer("200 OK", "<html>"),
        |server, _| server.answer("200 OK", "{\"keys\": []}"),
        |server, text| server.answer("200 OK", text),
        |server, _| server.answer.lock().unwrap().clear(),
    ]
    .into_iter()
    .enumerate()
    {
        spoil(&world.server, &huge);
        let failure = world.issuers.verify(&signer.good("k")).await.unwrap_err();
        assert_eq!((failure.code, failure.retry_after), (ErrorCode::Internal, Some(5)), "{at}: {failure:?}");
        world.later(5);
    }
    moved.clone_into(&mut world.server.answer.lock().unwrap());
    assert_eq!(world.issuers.verify(&signer.good("k")).await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(elsewhere.asked(), 0, "nobody is sent elsewhere");
    world.later(5);
    world.server.keys(&[(&signer, "k")]);
    let long = with("exp", json!(NOW + 1_000_000));
    let token = signer.token(&json!({"alg": "EdDSA", "kid": "k"}), &long);
    assert!(world.accepts(&token).await);
    world.server.answer("500 Oops", "");
    for _ in 0..23 {
        world.later(60 * 60);
        assert!(world.accepts(&token).await);
        assert!(world.refused(&signer.good("other")).await.contains("has no key"));
    }
    world.later(60 * 60);
    assert_eq!(world.issuers.verify(&token).await.unwrap_err().code, ErrorCode::Internal);
}

#[tokio::test]
async fn keys_in_a_file_are_read_anew_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let (one, two) = (Signer::ed25519(), Signer::p256());
    let clock = Arc::new(AtomicU64::new(NOW));
    let time = Arc::clone(&clock);
    let time: Clock = Arc::new(move || Duration::from_secs(time.load(Ordering::Acquire)));
    let catalog = catalog(&format!("{{file: \"{}\"}}", path.display()), TEAMS);
    let issuers = Issuers::with_clock(&catalog, &TaskTracker::new(), time);
    assert_eq!(issuers.verify(&one.good("1")).await.unwrap_err().code, ErrorCode::Internal, "there is no file yet");
    for (signer, kid) in [(&one, "1"), (&two, "2")] {
        std::fs::write(&path, json!({ "keys": [signer.jwk(kid)] }).to_string()).unwrap();
        clock.fetch_add(30, Ordering::AcqRel);
        assert!(issuers.verify(&signer.good(kid)).await.is_ok());
    }
    assert!(issuers.verify(&one.good("1")).await.is_err());
}

#[test]
fn a_key_is_no_token() {
    for (presented, token) in [
        ("a.b.c", true),
        ("a.b.", true),
        ("psk_0123456789abcdef", false),
        ("a.b", false),
        ("a.b.c.d", false),
        (".b.c", false),
        ("a..c", false),
        ("a.b.c=", false),
        ("a.b. c", false),
        ("", false),
    ] {
        assert_eq!(is_jwt(presented), token, "{presented}");
    }
}

/// A runtime, an issuer whose keys are in a file, and a token of it that is good.
fn still() -> &'static (tokio::runtime::Runtime, Issuers, String) {
    static STILL: OnceLock<(tokio::runtime::Runtime, Issuers, String)> = OnceLock::new();
    STILL.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let signer = Signer::p256();
        std::io::Write::write_all(&mut file, json!({ "keys": [signer.jwk("k")] }).to_string().as_bytes()).unwrap();
        let catalog = catalog(&format!("{{file: \"{}\"}}", file.path().display()), TEAMS);
        let issuers = Issuers::with_clock(&catalog, &TaskTracker::new(), Arc::new(|| Duration::from_secs(NOW)));
        let token = signer.good("k");
        runtime.block_on(issuers.verify(&token)).unwrap();
        (runtime, issuers, token)
    })
}

proptest! {
    #[test]
    fn a_token_of_which_one_character_is_another_is_refused(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.-]") {
        let (runtime, issuers, token) = still();
        let at = at.index(token.len());
        let changed = format!("{}{with}{}", &token[..at], &token[at + 1..]);
        prop_assert_eq!(runtime.block_on(issuers.verify(&changed)).is_ok(), changed == *token);
    }

    #[test]
    fn whatever_is_presented_is_refused(text in "\\PC*", parts in prop::collection::vec("[ -~]*", 0..5)) {
        let (runtime, issuers, _) = still();
        let encoded: Vec<String> = parts.iter().map(|part| base64(part.as_bytes())).collect();
        for token in [text, parts.join("."), encoded.join(".")] {
            prop_assert!(runtime.block_on(issuers.verify(&token)).is_err());
        }
    }
}
