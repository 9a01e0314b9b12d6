//! Signed tokens (JWT, RFC 7519) in place of keys: who issued one, whether it is still good, and which tenant it stands
//! for. Tokens are checked with public keys only, by the rules of RFC 8725; no algorithm here has a secret, so no public
//! key can be mistaken for one.

mod jwk;
mod source;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use penstock_cluster::catalog::{Algorithm, Catalog, Name};
use penstock_proto::ErrorCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

use self::source::Source;
use crate::request::Failure;

/// Bytes of the longest token that is looked at.
const TOKEN_LIMIT: usize = 16 << 10;
/// How far the issuer's clock may be from this one, in seconds.
const LEEWAY: f64 = 60.0;
/// Characters of a token's claim that an answer repeats.
const SHOWN: usize = 100;
/// Seconds after which an issuer's keys may be there.
const KEYS_RETRY: u32 = 5;

type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Whether what a caller presents is a signed token rather than a key: three parts of base64url with dots between them.
/// Keys have no dot.
pub fn is_jwt(presented: &str) -> bool {
    let base64url = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let parts: Vec<&str> = presented.splitn(4, '.').collect();
    parts.len() == 3 && parts.iter().all(|part| base64url(part)) && !parts[0].is_empty() && !parts[1].is_empty()
}

/// The issuers of one catalogue, with their keys as far as they are known.
pub struct Issuers {
    /// By what their tokens say in `iss`.
    trusted: HashMap<String, Trusted>,
    tenants: HashSet<Name>,
    tasks: TaskTracker,
    clock: Clock,
}

/// Whom a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The tenant.
    pub tenant: Name,
    /// What the catalogue calls the issuer.
    pub issuer: Name,
    /// Who the issuer says that it is, `sub`; empty where it does not say.
    pub subject: String,
}

struct Trusted {
    name: Name,
    audience: Vec<String>,
    claim: String,
    tenants: Option<BTreeMap<String, Name>>,
    algorithms: Vec<Algorithm>,
    source: Arc<Source>,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it is longer than {TOKEN_LIMIT} bytes")]
    Long,
    #[error("it is not three parts of base64url with dots between them, the first two of them JSON objects")]
    Malformed,
    #[error("its header names extensions that are not known here (crit)")]
    Critical,
    #[error("its issuer {0} is not trusted here (iss)")]
    Issuer(Shown),
    #[error("it is signed with {found}, which issuer {issuer} does not use (alg)")]
    Algorithm { issuer: Name, found: Shown },
    #[error("issuer {issuer} has no key {kid} that fits (kid)")]
    Key { issuer: Name, kid: Shown },
    #[error("its signature is wrong")]
    Signature,
    #[error("it is not meant for us (aud)")]
    Audience,
    #[error("it does not say when it expires (exp)")]
    Endless,
    #[error("it has expired (exp)")]
    Expired,
    #[error("it is not valid yet (nbf)")]
    Early,
    #[error("it has no claim {0} that is a string, which would name the tenant")]
    NoClaim(Shown),
    #[error("its claim {claim} says {value}, which is no tenant here")]
    Tenant { claim: Shown, value: Shown },
}

/// A caller's own words, short and on one line.
#[derive(Debug)]
struct Shown(String);

impl Shown {
    fn new(text: &str) -> Self {
        Self(text.chars().take(SHOWN).collect())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorCode::Unauthenticated, format!("the bearer token is refused: {refusal}"))
    }
}

/// What a token says of how it is signed. Keys and their addresses that it brings along (`jwk`, `jku`, `x5u`) are not
/// read: who signs a token could choose them.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// A token in its parts; nothing of it is known to be true.
struct Token<'a> {
    header: Header,
    claims: Map<String, Value>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl Issuers {
    /// The issuers of a catalogue. Tasks of `tasks` fetch their keys, when a token asks for them.
    pub fn new(catalog: &Catalog, tasks: &TaskTracker) -> Self {
        Self::with_clock(catalog, tasks, Arc::new(penstock_proto::time::unix_now))
    }

    fn with_clock(catalog: &Catalog, tasks: &TaskTracker, clock: Clock) -> Self {
        let none = Self { trusted: HashMap::new(), tenants: HashSet::new(), tasks: tasks.clone(), clock };
        none.renew(catalog)
    }

    /// The issuers of the next catalogue. Keys that are known stay known, wherever they are fetched from the same place.
    #[must_use]
    pub fn renew(&self, catalog: &Catalog) -> Self {
        let known = self.trusted.values().map(|trusted| (trusted.source.place().clone(), Arc::clone(&trusted.source)));
        let mut sources: HashMap<_, _> = known.collect();
        let trusted = catalog.issuers.values().map(|issuer| {
            let place = &*issuer.jwks;
            let source = sources
                .entry(place.clone())
                .or_insert_with(|| Arc::new(Source::new(place.clone(), self.tasks.clone())));
            let tenants = issuer.tenants.as_ref();
            let trusted = Trusted {
                name: issuer.name.clone(),
                audience: issuer.audience.value.clone(),
                claim: issuer.claim.clone(),
                tenants: tenants.map(|map| map.iter().map(|(said, name)| (said.clone(), name.value.clone())).collect()),
                algorithms: issuer.algorithms.value.clone(),
                source: Arc::clone(source),
            };
            (issuer.issuer.value.clone(), trusted)
        });
        Self {
            trusted: trusted.collect(),
            tenants: catalog.tenants.keys().cloned().collect(),
            tasks: self.tasks.clone(),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Whom a token stands for.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Unauthenticated`] with what is wrong with the token, which itself is never repeated;
    /// [`ErrorCode::Internal`] where the keys of its issuer cannot be had.
    pub async fn verify(&self, token: &str) -> Result<Verified, Failure> {
        let token = Token::parse(token)?;
        let text = |claim: &str| token.claims.get(claim).and_then(Value::as_str);
        let issuer = text("iss").unwrap_or_default();
        let trusted = self.trusted.get(issuer).ok_or_else(|| Refusal::Issuer(Shown::new(issuer)))?;
        trusted.signed(&token, (self.clock)()).await?;
        trusted.current(&token.claims, (self.clock)().as_secs_f64())?;
        let tenant = trusted.tenant(&token.claims, &self.tenants)?;
        Ok(Verified { tenant, issuer: trusted.name.clone(), subject: text("sub").unwrap_or_default().to_owned() })
    }
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Result<Self, Refusal> {
        if token.len() > TOKEN_LIMIT {
            return Err(Refusal::Long);
        }
        if !is_jwt(token) {
            return Err(Refusal::Malformed);
        }
        let malformed = |_| Refusal::Malformed;
        let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed);
        let header: Header = serde_json::from_slice(&bytes(header)?).map_err(malformed)?;
        let claims = serde_json::from_slice(&bytes(claims)?).map_err(malformed)?;
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        Ok(Self { header, claims, signed, signature: bytes(signature)? })
    }
}

impl Trusted {
    /// Whether this issuer has signed the token.
    async fn signed(&self, token: &Token<'_>, now: Duration) -> Result<(), Failure> {
        let (alg, kid) = (token.header.alg.as_str(), token.header.kid.as_deref());
        // What the catalogue does not name is not tried, whatever keys there are: `none` and HMAC have no name there.
        let algorithm = self.algorithms.iter().copied().find(|algorithm| jwk::name(*algorithm) == alg);
        let foreign = || Refusal::Algorithm { issuer: self.name.clone(), found: Shown::new(alg) };
        let algorithm = algorithm.ok_or_else(foreign)?;
        let keys = self.source.keys(now, |keys| keys.find(kid, algorithm).is_some()).await;
        let keys = keys.ok_or_else(|| {
            let message =
                format!("the keys of issuer {} cannot be had now, so no token of it can be checked", self.name);
            Failure { retry_after: Some(KEYS_RETRY), ..Failure::new(ErrorCode::Internal, message) }
        })?;
        let unknown = || Refusal::Key { issuer: self.name.clone(), kid: Shown::new(kid.unwrap_or_default()) };
        let key = keys.find(kid, algorithm).ok_or_else(unknown)?;
        if key.verifies(token.signed.as_bytes(), &token.signature) { Ok(()) } else { Err(Refusal::Signature.into()) }
    }

    /// Whether the token is meant for us, and for now (in seconds since 1970).
    fn current(&self, claims: &Map<String, Value>, now: f64) -> Result<(), Refusal> {
        let ours = |said: &Value| said.as_str().is_some_and(|said| self.audience.iter().any(|known| known == said));
        let meant = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        };
        if !meant {
            return Err(Refusal::Audience);
        }
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(Refusal::Endless)?;
        if now >= expires + LEEWAY {
            return Err(Refusal::Expired);
        }
        match claims.get("nbf").map(Value::as_f64) {
            None => Ok(()),
            Some(Some(from)) if now >= from - LEEWAY => Ok(()),
            Some(_) => Err(Refusal::Early),
        }
    }

    fn tenant(&self, claims: &Map<String, Value>, tenants: &HashSet<Name>) -> Result<Name, Refusal> {
        let claim = || Shown::new(&self.claim);
        let value = claims.get(&self.claim).and_then(Value::as_str).ok_or_else(|| Refusal::NoClaim(claim()))?;
        let tenant = match &self.tenants {
            Some(map) => map.get(value),
            None => tenants.get(value),
        };
        tenant.cloned().ok_or_else(|| Refusal::Tenant { claim: claim(), value: Shown::new(value) })
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuers").field("trusted", &self.trusted.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
