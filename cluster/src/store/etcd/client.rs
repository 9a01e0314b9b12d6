//! Calls to etcd: which member, which token, how long, and when to call again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::fault::{Fault, describe};
use super::pb::AuthenticateRequest;
use super::pb::auth_client::AuthClient;
use super::{EtcdConfig, EtcdTls, Login};
use crate::backoff::Backoff;
use crate::store::Error;

/// How long one try may take. etcd itself gives up on a proposal after 5 s and an election.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// How long a call goes on trying.
const CALL_LIMIT: Duration = Duration::from_secs(4);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
pub(super) const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

// A connection that is dead but open must not leave a watch silent. etcd hangs up on clients that ping more often than
// every 5 s, or while no call is open.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_LIMIT: Duration = Duration::from_secs(3);

/// What may be done with a call whose outcome is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Call again: twice does no more than once.
    Freely,
    /// Call again only where the request certainly had no effect.
    Unsent,
}

/// One member of etcd, and who we are to it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Link {
    /// A request that bears what etcd wants to know of its sender.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A member that is cut off from the others must say so instead of answering slowly or never.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// One member of etcd.
#[derive(Debug)]
struct Etcd {
    address: String,
    channel: Channel,
}

/// The members of etcd; one is used until it fails.
#[derive(Debug)]
pub(super) struct Client {
    members: Vec<Etcd>,
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl Client {
    pub(super) fn new(config: EtcdConfig) -> Result<Self, Error> {
        let tls = config.tls.as_ref();
        let members = config.endpoints.into_iter().map(|address| Etcd::new(address, tls));
        let members: Vec<Etcd> = members.collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err(Error::Invalid { reason: "no address of etcd".to_owned() });
        }
        Ok(Self { members, current: AtomicUsize::new(0), login: config.login, token: Mutex::new(None) })
    }

    /// Makes a call, again where that is safe and may help, for a few seconds.
    pub(super) async fn call<T, F>(&self, repeat: Repeat, call: impl Fn(Link) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut backoff = BACKOFF;
        let mut logins = 0;
        loop {
            let (again, reason) = match self.attempt(&call).await {
                Ok(response) => return Ok(response),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Login) if self.login.is_some() && logins < 2 => {
                    logins += 1;
                    self.forget_token().await;
                    continue;
                }
                Err(Fault::Login) => return Err(Error::Denied { reason: "it wants a user and a password".to_owned() }),
                Err(Fault::Unsent(reason)) => (true, reason),
                Err(Fault::Open(reason)) => (repeat == Repeat::Freely, reason),
            };
            let wait = backoff.next();
            if !again || started.elapsed() + wait > CALL_LIMIT {
                return Err(Error::Unavailable { reason });
            }
            sleep(wait).await;
        }
    }

    /// The member that comes next, after one has failed.
    pub(super) fn move_on(&self, from: usize) {
        let next = (from + 1) % self.members.len();
        // Whoever else saw it fail may have moved on already.
        let _ = self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub(super) async fn forget_token(&self) {
        *self.token.lock().await = None;
    }

    async fn attempt<T, F>(&self, call: &impl Fn(Link) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let index = self.current();
        let Etcd { address, channel } = &self.members[index];
        let attempt = async {
            let token = self.token(channel).await?;
            match call(Link { channel: channel.clone(), token }).await {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(Fault::of(&status)),
            }
        };
        let late = || Err(Fault::Open(format!("no answer within {} s", TRY_LIMIT.as_secs())));
        let result = timeout(TRY_LIMIT, attempt).await.unwrap_or_else(|_| late());
        result.map_err(|fault| match fault {
            Fault::Unsent(reason) => {
                self.move_on(index);
                Fault::Unsent(format!("{address}: {reason}"))
            }
            Fault::Open(reason) => {
                self.move_on(index);
                Fault::Open(format!("{address}: {reason}"))
            }
            Fault::Login | Fault::Final(_) => fault,
        })
    }

    /// The token of our login; None where etcd knows us without one.
    async fn token(&self, channel: &Channel) -> Result<Option<MetadataValue<Ascii>>, Fault> {
        let Some(login) = &self.login else { return Ok(None) };
        let mut token = self.token.lock().await;
        if token.is_none() {
            let request = AuthenticateRequest { name: login.user.clone(), password: login.password.clone() };
            let response = match AuthClient::new(channel.clone()).authenticate(request).await {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::debug!(reason = describe(&status), "etcd asks for no login");
                    return Ok(None);
                }
                Err(status) => return Err(unsent(Fault::of(&status))),
            };
            let fresh = response
                .token
                .parse()
                .map_err(|_| Fault::Final(Error::Failed { reason: "the token is not fit for a header".to_owned() }))?;
            *token = Some(fresh);
        }
        Ok(token.clone())
    }
}

/// The fault of a call that came to nothing before its request was sent.
fn unsent(login: Fault) -> Fault {
    match login {
        Fault::Open(reason) => Fault::Unsent(reason),
        Fault::Login | Fault::Unsent(_) | Fault::Final(_) => login,
    }
}

impl Etcd {
    /// Connects with the first call.
    fn new(address: String, tls: Option<&EtcdTls>) -> Result<Self, Error> {
        Ok(Self { channel: channel(&address, tls)?, address })
    }
}

fn channel(address: &str, tls: Option<&EtcdTls>) -> Result<Channel, Error> {
    let invalid = |reason: String| Error::Invalid { reason: format!("the address {address:?} of etcd: {reason}") };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| invalid(error.to_string()))?;
    let endpoint = match (endpoint.uri().scheme_str(), tls) {
        (Some("http"), _) => endpoint,
        (Some("https"), Some(tls)) => {
            let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some(identity) = &tls.identity {
                config = config.identity(tonic::transport::Identity::from_pem(&identity.certificate, &identity.key));
            }
            endpoint.tls_config(config).map_err(|error| invalid(error.to_string()))?
        }
        (Some("https"), None) => return Err(invalid("https needs the certificate of an authority".to_owned())),
        _ => return Err(invalid("it starts with neither http:// nor https://".to_owned())),
    };
    let endpoint = endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(false);
    Ok(endpoint.connect_lazy())
}
