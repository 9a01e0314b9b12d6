//! The router's settings: typed, with their defaults, checked at start. The command line fills them; the environment is
//! read for the keys of upstreams alone, whose catalogue names the variables.

use std::net::SocketAddr;
use std::time::Duration;

use penstock_cluster::tls::ServerTls;

use crate::balance::Balance;
use crate::server::Error;

/// Settings of one router.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the HTTP faces listen; port 0 takes a free one.
    pub http: SocketAddr,
    /// Where the gRPC face listens; port 0 takes a free one.
    pub grpc: SocketAddr,
    /// Where `penstock.v1.Admin` listens; port 0 takes a free one.
    pub admin: SocketAddr,
    /// What the HTTP, gRPC and admin ports prove themselves with; None for plaintext.
    pub tls: Option<ServerTls>,
    /// Serves without keys and in plaintext on any address, and lets foreign Host and Origin headers in.
    pub insecure: bool,
    /// The time that a request has when it names none.
    pub deadline: Duration,
    /// How a worker is chosen.
    pub balance: Balance,
    /// How long a drain waits for what is in flight.
    pub grace: Duration,
    /// What a client may take of each server.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            grpc: SocketAddr::from(([127, 0, 0, 1], 50051)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            tls: None,
            insecure: false,
            deadline: Duration::from_secs(600),
            balance: Balance::default(),
            grace: Duration::from_secs(600),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Refuses addresses on which anybody could ask, or read the admin key.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let exposed = |address: &SocketAddr| !self.insecure && !address.ip().is_loopback();
        let clients_are_known = self.tls.as_ref().is_some_and(ServerTls::asks_clients);
        if let Some(address) = [self.http, self.grpc].into_iter().find(|address| exposed(address) && !clients_are_known)
        {
            return Err(Error::Exposed { address });
        }
        if exposed(&self.admin) && self.tls.is_none() {
            return Err(Error::Plaintext { address: self.admin });
        }
        Ok(())
    }
}

/// What clients may take of a server. Each limit bounds memory or time that a silent, slow or greedy client
/// would hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; one more is closed as it comes.
    pub connections: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams: u32,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// From the connection's start to its first whole head.
    pub head_time: Duration,
    /// From the end of the last answer to the next whole head.
    pub idle_time: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// For the whole of a body.
    pub body_time: Duration,
    /// Between two pieces of a body.
    pub body_idle: Duration,
    /// How long a client may leave a piece of its answer unread before the connection is dropped.
    pub stall_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            streams: 128,
            head_bytes: 64 << 10,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            body_idle: Duration::from_secs(10),
            stall_time: Duration::from_secs(30),
        }
    }
}

/// A variable that a catalogue names; None where it is not set or not Unicode.
#[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
