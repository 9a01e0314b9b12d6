//! The flags by which a process finds its cluster.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use penstock_cluster::Membership;
use penstock_cluster::store::{EtcdConfig, EtcdStore, EtcdTls, Identity, Login};

use crate::fault::Fault;
use crate::tls::{certificates, private_key, read};

/// Where the cluster's state is.
#[derive(Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// etcd's client addresses, http:// or https://
    #[arg(long, value_name = "URL[,URL]", required = true, value_delimiter = ',', env = "PENSTOCK_ETCD")]
    etcd: Vec<String>,
    /// The user to be in etcd
    #[arg(long, value_name = "NAME", requires = "etcd_password_file", env = "PENSTOCK_ETCD_USER")]
    etcd_user: Option<String>,
    /// The file that holds the user's password
    #[arg(long, value_name = "FILE", requires = "etcd_user", env = "PENSTOCK_ETCD_PASSWORD_FILE")]
    etcd_password_file: Option<PathBuf>,
    /// The authorities that etcd's certificate may come from, PEM
    #[arg(long, value_name = "FILE", env = "PENSTOCK_ETCD_CA")]
    etcd_ca: Option<PathBuf>,
    /// Our certificate for etcd, PEM
    #[arg(long, value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"], env = "PENSTOCK_ETCD_CERT")]
    etcd_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_cert", env = "PENSTOCK_ETCD_KEY")]
    etcd_key: Option<PathBuf>,
}

impl ClusterArgs {
    /// The way into the cluster. It connects at its first use.
    pub(crate) fn membership(&self, insecure: bool) -> Result<Arc<Membership>, Fault> {
        if let Some(exposed) = self.etcd.iter().find(|url| !insecure && is_exposed(url)) {
            let message = format!("--etcd {exposed} is plaintext off loopback: use https and --etcd-ca, or --insecure");
            return Err(Fault::bad_input(message));
        }
        let store = EtcdStore::new(self.config()?).map_err(|error| Fault::bad_input(format!("--etcd: {error}")))?;
        Ok(Arc::new(Membership::new(Arc::new(store))))
    }

    fn config(&self) -> Result<EtcdConfig, Fault> {
        let login = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(file)) => {
                let password = String::from_utf8(read("--etcd-password-file", file)?)
                    .map_err(|error| Fault::bad_input(format!("--etcd-password-file: {error}")))?;
                Some(Login { user: user.clone(), password: password.trim_end_matches('\n').to_owned() })
            }
            _ => None,
        };
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificates("--etcd-cert", certificate)?.into(),
                key: private_key("--etcd-key", key)?.into(),
            }),
            _ => None,
        };
        let tls = match &self.etcd_ca {
            Some(ca) => Some(EtcdTls { ca: certificates("--etcd-ca", ca)?.into(), identity }),
            None => None,
        };
        Ok(EtcdConfig { endpoints: self.etcd.clone(), login, tls })
    }
}

/// Whether anybody on the way to an address could read along.
pub(crate) fn is_exposed(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host != "localhost" && !ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_exposed_off_loopback() {
        for near in ["http://127.0.0.1:2379", "http://[::1]:2379/", "http://localhost:2379", "https://etcd:2379"] {
            assert!(!is_exposed(near), "{near}");
        }
        for far in ["http://etcd:2379", "http://10.1.2.3:2379", "http://localhost.example:2379", "http://etcd"] {
            assert!(is_exposed(far), "{far}");
        }
    }
}
