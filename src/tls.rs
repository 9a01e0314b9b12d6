//! The flags by which a process proves who it is and checks the others.

use std::path::{Path, PathBuf};

use clap::Args;
use penstock_cluster::tls::ServerTls;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::fault::Fault;

/// What a process proves itself with.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct IdentityArgs {
    /// Our certificate, with those between it and its authority, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "PENSTOCK_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "PENSTOCK_TLS_KEY")]
    tls_key: Option<PathBuf>,
}

impl IdentityArgs {
    /// What a server serves with; None for plaintext. `clients` names the flag and the file of the authorities that
    /// clients' certificates must come from.
    pub(crate) fn server(&self, clients: Option<(&str, &Path)>) -> Result<Option<ServerTls>, Fault> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return match clients {
                Some((flag, _)) => {
                    Err(Fault::bad_input(format!("{flag}: a server with TLS also needs --tls-cert and --tls-key")))
                }
                None => Ok(None),
            };
        };
        let flags = clients.map_or(String::new(), |(flag, _)| format!(", {flag}"));
        let clients = clients.map(|(flag, file)| read(flag, file)).transpose()?;
        let (certificate, key) = (read("--tls-cert", certificate)?, read("--tls-key", key)?);
        let tls = ServerTls::new(&certificate, &key, clients.as_deref());
        tls.map(Some).map_err(|error| Fault::bad_input(format!("--tls-cert, --tls-key{flags}: {error}")))
    }

    /// What we show to servers that ask.
    fn identity(&self) -> Result<Option<Identity>, Fault> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Ok(Some(Identity::from_pem(certificates("--tls-cert", certificate)?, private_key("--tls-key", key)?)))
            }
            _ => Ok(None),
        }
    }
}

/// Certificates between the processes of a cluster.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// The authorities that the other side's certificate must come from, PEM; a worker then asks routers for one
    #[arg(long, value_name = "FILE", env = "PENSTOCK_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// What a worker serves with; None for plaintext.
    pub(crate) fn server(&self) -> Result<Option<ServerTls>, Fault> {
        self.identity.server(self.tls_ca.as_deref().map(|file| ("--tls-ca", file)))
    }

    /// How servers are checked, and who we are to them; None where no authorities are given.
    pub(crate) fn client(&self) -> Result<Option<ClientTlsConfig>, Fault> {
        let Some(authorities) = &self.tls_ca else { return Ok(None) };
        let authorities = Certificate::from_pem(certificates("--tls-ca", authorities)?);
        let tls = ClientTlsConfig::new().ca_certificate(authorities);
        Ok(Some(self.identity.identity()?.into_iter().fold(tls, ClientTlsConfig::identity)))
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
