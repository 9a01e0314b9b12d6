//! A router's admin port, as commands reach it: the flags that name it, the key that opens it, and what its refusals mean
//! for whoever typed the command.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use penstock_proto::ErrorCode;
use penstock_proto::admin::AdminClient;
use penstock_router::{AdminKey, Causes};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::Global;
use crate::cluster::is_exposed;
use crate::fault::Fault;
use crate::tls::TlsArgs;

/// How long a router may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Which router is asked, and with what key.
#[derive(Args)]
#[command(next_help_heading = "Router")]
pub(crate) struct ServerArgs {
    /// The admin port of any router of the cluster: HOST:PORT
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081", env = "PENSTOCK_SERVER")]
    server: String,
    /// The file that holds the router's admin key, or an operator's own key [default: admin.key under --data-dir]
    #[arg(long, value_name = "FILE", env = "PENSTOCK_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// Sends the key off loopback in plaintext: to anybody who reads along
    #[arg(long, env = "PENSTOCK_INSECURE")]
    insecure: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

/// A router that has answered.
pub(crate) struct Router {
    pub(crate) client: AdminClient<Channel>,
    key: AdminKey,
    url: String,
}

impl ServerArgs {
    /// Connects to it.
    pub(crate) async fn connect(&self, global: &Global) -> Result<Router, Fault> {
        let file = self.admin_key_file.clone().unwrap_or_else(|| global.admin_key_file());
        let key = AdminKey::read(&file).map_err(|error| {
            Fault::bad_input(format!("{error}; --data-dir or --admin-key-file names the one that the router wrote"))
        })?;
        let tls = self.tls.client()?;
        let url = self.url(tls.is_some())?;
        let bad = |error: tonic::transport::Error| Fault::bad_input(format!("--server {url}: {}", Causes(&error)));
        let endpoint = Endpoint::from_shared(url.clone()).map_err(bad)?.connect_timeout(CONNECT);
        let endpoint = tls.into_iter().try_fold(endpoint, Endpoint::tls_config).map_err(bad)?;
        let channel = endpoint.connect().await.map_err(|error| not_reachable(&url, &Causes(&error).to_string()))?;
        Ok(Router { client: AdminClient::new(channel), key, url })
    }

    fn url(&self, tls: bool) -> Result<String, Fault> {
        let url = match self.server.split_once("://") {
            None if tls => format!("https://{}", self.server),
            None => format!("http://{}", self.server),
            Some(("http", _)) if tls => {
                return Err(Fault::bad_input(format!("--server {}: --tls-ca is for https", self.server)));
            }
            Some(("https", _)) if !tls => {
                let message = format!("--server {}: --tls-ca names the authorities to check it against", self.server);
                return Err(Fault::bad_input(message));
            }
            Some(_) => self.server.clone(),
        };
        if !self.insecure && is_exposed(&url) {
            let message = format!("--server {url} is plaintext off loopback: give --tls-ca, or --insecure");
            return Err(Fault::bad_input(message));
        }
        Ok(url)
    }
}

impl Router {
    /// A message with the key that opens the port.
    pub(crate) fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(self.key.header().as_bytes()).expect("a key is letters and digits");
        request.metadata_mut().insert("authorization", value);
        request
    }

    /// A router's refusal, or the end of the way to it.
    pub(crate) fn failed(&self, status: &Status) -> Fault {
        match ErrorCode::from_status(status) {
            Some((ErrorCode::WorkerNotFound | ErrorCode::InvalidRequest | ErrorCode::InvalidCatalogue, _)) => {
                Fault::bad_input(status.message())
            }
            Some(_) => Fault::failed(status.message()),
            None => match std::error::Error::source(status) {
                Some(lost) => not_reachable(&self.url, &Causes(lost).to_string()),
                None => {
                    let (url, reason) = (&self.url, status.message());
                    Fault::failed(format!("{url} does not answer as the admin port of a router: {reason}"))
                }
            },
        }
    }
}

fn not_reachable(url: &str, reason: &str) -> Fault {
    let hint = if url.starts_with("https") {
        "is that the admin port of a router with TLS, and --tls-ca its authority? A router that asks clients for \
         certificates wants --tls-cert and --tls-key from its own authority; its log says why it refused"
    } else {
        "is that the admin port of a router? Where it has TLS, give --tls-ca"
    };
    Fault::not_reachable(format!("{url} is not reachable: {reason}; {hint}"))
}
