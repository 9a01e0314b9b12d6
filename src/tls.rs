//! The flags by which a process proves who it is and checks the others.

use std::path::{Path, PathBuf};

use clap::Args;
use penstock_router::Tcp;
use penstock_worker::ServerTls;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::fault::Fault;

/// Certificates between the processes of a cluster.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// Our certificate, with those between it and its authority, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "PENSTOCK_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "PENSTOCK_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// The authorities that the others' certificates must come from, PEM; a worker then asks routers for one
    #[arg(long, value_name = "FILE", env = "PENSTOCK_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// What a worker serves with; None for plaintext.
    pub(crate) fn server(&self) -> Result<Option<ServerTls>, Fault> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return match &self.tls_ca {
                Some(_) => Err(Fault::bad_input("--tls-ca: a worker with TLS also needs --tls-cert and --tls-key")),
                None => Ok(None),
            };
        };
        let clients = self.tls_ca.as_deref().map(|file| read("--tls-ca", file)).transpose()?;
        let (certificate, key) = (read("--tls-cert", certificate)?, read("--tls-key", key)?);
        let tls = ServerTls::new(&certificate, &key, clients.as_deref());
        tls.map(Some).map_err(|error| Fault::bad_input(format!("--tls-cert, --tls-key, --tls-ca: {error}")))
    }

    /// How a router reaches workers.
    pub(crate) fn client(&self, insecure: bool) -> Result<Tcp, Fault> {
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(Identity::from_pem(certificates("--tls-cert", certificate)?, private_key("--tls-key", key)?))
            }
            _ => None,
        };
        let Some(authorities) = &self.tls_ca else {
            return match identity {
                Some(_) => {
                    Err(Fault::bad_input("--tls-cert: a router with TLS also needs --tls-ca, to know its workers"))
                }
                None => Ok(Tcp { tls: None, insecure }),
            };
        };
        let authorities = Certificate::from_pem(certificates("--tls-ca", authorities)?);
        let tls = ClientTlsConfig::new().ca_certificate(authorities);
        Ok(Tcp { tls: Some(identity.into_iter().fold(tls, ClientTlsConfig::identity)), insecure })
    }
}

/// A file that a flag names.
pub(crate) fn read(flag: &str, file: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(file).map_err(|error| Fault::bad_input(format!("{flag} {}: {error}", file.display())))
}

/// PEM with a certificate in it: without one, every handshake would fail without a word of why.
pub(crate) fn certificates(flag: &str, file: &Path) -> Result<Vec<u8>, Fault> {
    let pem = read(flag, file)?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(pem),
        Some(Err(error)) => Err(Fault::bad_input(format!("{flag} {}: {error}", file.display()))),
        None => Err(Fault::bad_input(format!("{flag} {}: there is no certificate in it", file.display()))),
    }
}

/// PEM with a private key in it.
pub(crate) fn private_key(flag: &str, file: &Path) -> Result<Vec<u8>, Fault> {
    let pem = read(flag, file)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(error) => Err(Fault::bad_input(format!("{flag} {}: {error}", file.display()))),
    }
}
