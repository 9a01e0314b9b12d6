//! How a server proves who it is: certificates, handshakes, and a line in the log for each connection that fails its
//! one. Routers and workers share it; which of their ports has TLS, and what runs over it, is theirs to say.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{InvalidMessage, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use tokio_rustls::server::TlsStream;

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a server proves of itself, and what it asks of clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    asks_clients: bool,
}

/// Certificates that cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// No PEM, or none of what is needed in it.
    #[error("{what}: {source}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// There is no certificate in it.
    #[error("{what}: there is no certificate in it")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// The certificate and its key do not go together, or an authority is broken.
    #[error(transparent)]
    Certificate(#[from] rustls::Error),
    /// The authorities cannot be checked against.
    #[error("the authorities of clients: {0}")]
    Authorities(#[from] VerifierBuilderError),
}

impl ServerTls {
    /// From PEM: the certificate with those between it and its authority, its private key, and the authorities that
    /// clients' certificates must come from; without them clients need none.
    pub fn new(certificate: &[u8], key: &[u8], clients: Option<&[u8]>) -> Result<Self, InvalidTls> {
        let builder = ServerConfig::builder();
        let builder = match clients {
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates("the authorities of clients", authorities)? {
                    roots.add(authority)?;
                }
                builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build()?)
            }
            None => builder.with_no_client_auth(),
        };
        let chain = certificates("the certificate", certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|source| InvalidTls::Pem { what: "the private key", source })?;
        Ok(Self { config: Arc::new(builder.with_single_cert(chain, key)?), asks_clients: clients.is_some() })
    }

    /// The same for a port that speaks these protocols, by their ALPN names, the preferred one first.
    #[must_use]
    pub fn speaking(&self, protocols: &[&str]) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config: Arc::new(config), ..*self }
    }

    /// Whether clients must prove who they are.
    pub fn asks_clients(&self) -> bool {
        self.asks_clients
    }

    /// Shakes hands. None where that fails, which is then in the log.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let peer = stream.peer_addr().ok();
        match timeout(HANDSHAKE, TlsAcceptor::from(Arc::clone(&self.config)).accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => refused(peer, &reason(&error)),
            Err(_) => refused(peer, "it took too long"),
        }
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found.map_err(|source| InvalidTls::Pem { what, source })? {
        none if none.is_empty() => Err(InvalidTls::Empty { what }),
        found => Ok(found),
    }
}

fn refused(peer: Option<SocketAddr>, reason: &str) -> Option<TlsStream<TcpStream>> {
    tracing::warn!(?peer, reason, "refused a connection: its TLS handshake failed");
    None
}

/// rustls' words, and plain ones for the most common mistake.
fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the client speaks plaintext".to_owned()
        }
        _ => error.to_string(),
    }
}
