//! How long it takes, on this machine, to know who asks and whether they may: the digest of a key, the signature of a
//! token, and a permit with its tokens, from slices in hand.
//!
//! `cargo run --release -p penstock-router --example tenant_speed`

use std::hint::black_box;
use std::io::Write as _;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use penstock_cluster::catalog::{Catalog, Limits, Name, Source};
use penstock_cluster::store::MemoryStore;
use penstock_router::tenant::{Issuers, Keys, Limiter, NewKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

/// Some time at which no key has ended.
const NOW: std::time::Duration = std::time::Duration::from_secs(1_800_000_000);

const RUNS: usize = 20_000;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    keys()?;
    tokens().await?;
    let tasks = TaskTracker::new();
    let limiter = Arc::new(Limiter::new(Arc::new(MemoryStore::new()), "router", &tasks));
    let tenant = Name::new("retail")?;
    permits("no limits", &limiter, &tenant, &Limits::default()).await?;
    // High enough that nearly all is admitted from what is in hand.
    let limits = Limits {
        requests_per_minute: NonZeroU32::new(100_000_000),
        tokens_per_minute: NonZeroU64::new(1_000_000_000_000),
        concurrent: NonZeroU32::new(1000),
    };
    permits("three limits", &limiter, &tenant, &limits).await?;
    crowd(&limiter, &tenant, &limits).await?;
    limiter.stop();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn permits(what: &str, limiter: &Limiter, tenant: &Name, limits: &Limits) -> Result<(), Failed> {
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = now();
        let permit = limiter.admit(tenant, limits).await.map_err(|failure| failure.message)?;
        permit.tokens(4096).await.map_err(|failure| failure.message)?.settle(black_box(300));
        drop(permit);
        times.push(start.elapsed());
    }
    report(&format!("admit, tokens, settle: {what}"), times)
}

/// Many at once for one tenant, which is the worst case for its counters.
async fn crowd(limiter: &Arc<Limiter>, tenant: &Name, limits: &Limits) -> Result<(), Failed> {
    let mut clients = tokio::task::JoinSet::new();
    let start = now();
    for _ in 0..64 {
        let (limiter, tenant, limits) = (Arc::clone(limiter), tenant.clone(), limits.clone());
        clients.spawn(async move {
            for at in 0..RUNS {
                if let Ok(permit) = limiter.admit(&tenant, &limits).await
                    && let Ok(hold) = permit.tokens(4096).await
                {
                    hold.settle(300);
                }
                if at % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    clients.join_all().await;
    let each = start.elapsed() / u32::try_from(64 * RUNS)?;
    writeln!(std::io::stdout(), "64 clients of one tenant: one in {each:?}")?;
    Ok(())
}

fn keys() -> Result<(), Failed> {
    let key = NewKey::generate()?;
    let text = format!("tenants: [{{name: t, models: [], keys: [{{id: k, sha256: {}}}]}}]\n", key.digest());
    let keys = Keys::new(&Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }])?);
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = now();
        assert!(black_box(keys.find(black_box(key.reveal()), NOW)).is_ok());
        times.push(start.elapsed());
    }
    report("a key", times)
}

async fn tokens() -> Result<(), Failed> {
    let random = SystemRandom::new();
    let failed = |_| "no key can be made";
    let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(failed)?;
    let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.as_ref(), &random)
        .map_err(|_| "no key can be made")?;
    let pair = Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?;
    let ed = Ed25519KeyPair::from_pkcs8(pair.as_ref()).map_err(|_| "no key can be made")?;
    let (x, y) = p256.public_key().as_ref()[1..].split_at(32);
    let set = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "ES256", "x": base64(x), "y": base64(y)},
        {"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": base64(ed.public_key().as_ref())},
    ]});
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(set.to_string().as_bytes())?;
    let text = format!(
        "tenants: [{{name: t, models: []}}]\nissuers: [{{name: i, issuer: \"https://i.example\", audience: [a], jwks: {{file: \
         \"{}\"}}}}]\n",
        file.path().display()
    );
    let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }])?;
    let issuers = Issuers::new(&catalog, &TaskTracker::new());
    let claims = json!({"iss": "https://i.example", "aud": "a", "exp": 1e10, "sub": "s", "tenant": "t"});
    let es256 = parts("ES256", &claims);
    let signature = p256.sign(&random, es256.as_bytes()).map_err(failed)?;
    let es256 = format!("{es256}.{}", base64(signature.as_ref()));
    let eddsa = parts("EdDSA", &claims);
    let eddsa = format!("{eddsa}.{}", base64(ed.sign(eddsa.as_bytes()).as_ref()));
    for (name, token) in [("ES256", es256), ("EdDSA", eddsa)] {
        let mut times = Vec::new();
        for _ in 0..RUNS / 10 {
            let start = now();
            black_box(issuers.verify(&token).await).map_err(|failure| failure.message)?;
            times.push(start.elapsed());
        }
        report(&format!("a token, {name}"), times)?;
    }
    Ok(())
}

fn parts(alg: &str, claims: &Value) -> String {
    let header = json!({"alg": alg, "kid": alg}).to_string();
    format!("{}.{}", base64(header.as_bytes()), base64(claims.to_string().as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

fn report(what: &str, mut times: Vec<Duration>) -> Result<(), Failed> {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100];
    writeln!(std::io::stdout(), "{what}: median {:?}, p99 {:?}", at(50), at(99))?;
    Ok(())
}
