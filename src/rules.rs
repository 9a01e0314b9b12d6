//! The flags by which `up` and `router` know their rules: the catalogue that is applied at start, and what a catalogue may
//! name of this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use penstock_cluster::Store;
use penstock_cluster::catalog::{Draft, Error, Source};
use penstock_proto::ErrorCode;
use penstock_router::{Change, Config, Publisher, Secrets, Terms};
use tokio::time::sleep;

use crate::apply::read_sources;
use crate::fault::Fault;
use crate::units;

/// Before the store is asked once more.
const PAUSE: Duration = Duration::from_secs(1);

/// What a front door goes by; `up` and `router` share it.
#[derive(Args)]
#[command(next_help_heading = "Rules")]
pub(crate) struct RulesArgs {
    /// A catalogue to apply at start, unless it is in force already
    #[arg(long, value_name = "FILE", num_args = 1.., env = "PENSTOCK_CONFIG", value_delimiter = ',')]
    config: Vec<PathBuf>,
    /// Calls no upstream, whatever the catalogue says
    #[arg(long, env = "PENSTOCK_NO_EGRESS")]
    no_egress: bool,
    /// Files in it may be named by a catalogue that is applied later: keys, dictionaries, authorities
    #[arg(long, value_name = "DIR", env = "PENSTOCK_SECRETS_DIR")]
    secrets_dir: Option<PathBuf>,
    /// A variable that may be named so, as an upstream's key; may be given several times
    #[arg(long, value_name = "NAME", env = "PENSTOCK_SECRET_ENV", value_delimiter = ',')]
    secret_env: Vec<String>,
    /// How old its knowledge of keys and rules may get, while etcd is away, before keyed requests are refused
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = units::duration, env = "PENSTOCK_MAX_STALE")]
    max_stale: Duration,
}

impl RulesArgs {
    /// Fills the router's settings in, and applies the catalogue of `--config` in the name of `by`. Waits for a store
    /// that is away.
    pub(crate) async fn enforce(&self, store: Arc<dyn Store>, by: &str, config: Config) -> Result<Config, Fault> {
        let mut secrets = Secrets {
            directory: self.secrets_dir.clone(),
            variables: self.secret_env.iter().cloned().collect(),
            own: None,
        };
        if !self.config.is_empty() {
            let files = read_sources("--config", &self.config)?;
            while !self.apply(&store, files.clone(), by, &mut secrets).await? {
                sleep(PAUSE).await;
            }
        }
        Ok(Config { no_egress: self.no_egress, max_stale: self.max_stale, secrets, ..config })
    }

    /// False where the store is away.
    async fn apply(
        &self,
        store: &Arc<dyn Store>,
        files: Vec<Source>,
        by: &str,
        secrets: &mut Secrets,
    ) -> Result<bool, Fault> {
        let waits = |why: &dyn std::fmt::Display| tracing::warn!(%why, "--config cannot be applied yet");
        match Draft::of_files(&**store, files.clone()).await {
            // Whoever starts a router may have it read what the catalogue names.
            Ok(draft) => secrets.own = Some(Arc::new(draft.after().clone())),
            Err(error) if error.retryable() => {
                waits(&error);
                return Ok(false);
            }
            Err(error @ Error::Given(_)) => return Err(Fault::bad_input(format!("--config: {error}"))),
            Err(error) => return Err(Fault::failed(format!("--config: {error}"))),
        }
        let publisher = Publisher::new(Arc::clone(store), secrets.clone());
        match publisher.publish(&Change::Files(files), by, Terms::default()).await {
            Ok(published) => {
                published.warnings.iter().for_each(|warning| tracing::warn!(warning, "--config"));
                if let Some(version) = published.version.filter(|_| published.changed) {
                    tracing::info!(%version, "--config is applied");
                }
                Ok(true)
            }
            Err(failure) if failure.code.retryable() => {
                waits(&failure);
                Ok(false)
            }
            Err(failure) if failure.code == ErrorCode::InvalidCatalogue => {
                Err(Fault::bad_input(format!("--config: {failure}")))
            }
            Err(failure) => Err(Fault::failed(format!("--config: {failure}"))),
        }
    }
}
