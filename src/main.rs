//! `penstock`: the command line. It parses, calls a crate and prints; no logic lives here.

mod admin;
mod apply;
mod bench;
mod budget;
mod chat;
mod cluster;
mod explain;
mod fault;
mod get;
mod ledger;
mod logs;
mod model;
mod output;
mod process;
mod remote;
mod router;
mod rules;
mod sse;
mod tenant;
mod tls;
mod units;
mod up;
mod usage;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::fault::Fault;
use crate::logs::LogFormat;
use crate::output::Format;

const EXAMPLES: &str = "\
Examples:
  penstock up                                   serve the default model on 127.0.0.1:8080
  penstock chat 'What is the capital of France?'
  penstock model pull smollm2-135m
  penstock status                               the workers of a cluster, and what is wrong with them
  penstock apply -f bank.yaml                   tenants, routes and rules, in force at once

Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 3 not reachable.
Every flag may also come from the environment: --http is PENSTOCK_HTTP.";

/// Serves open models on your own machines behind OpenAI's interface, and knows where every request went.
#[derive(Parser)]
#[command(name = "penstock", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
struct Global {
    /// Where model files and state live [default: $XDG_DATA_HOME/penstock, else ~/.local/share/penstock]
    #[arg(long, global = true, value_name = "DIR", env = "PENSTOCK_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// How logs look; `auto` is text on a terminal and JSON in a pipe
    #[arg(long, global = true, value_enum, default_value = "auto", env = "PENSTOCK_LOG_FORMAT")]
    log_format: LogFormat,

    /// What is logged, as `LEVEL` or `CRATE=LEVEL,…`: error, warn, info, debug, trace
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "PENSTOCK_LOG_LEVEL")]
    log_level: String,

    /// How data is printed [default: table on a terminal, json in a pipe]
    #[arg(long, short, global = true, value_enum, env = "PENSTOCK_OUTPUT")]
    output: Option<Format>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs everything in one process: router, worker and cluster state
    Up(Box<up::UpArgs>),
    /// Runs the front door of a cluster
    Router(Box<router::RouterArgs>),
    /// Runs one engine of a cluster
    Worker(Box<worker::WorkerArgs>),
    /// Lists a cluster's workers: who takes work, how much each has, what is wrong
    Status(admin::StatusArgs),
    /// Gives a worker no new work, and waits until nothing is in flight on it
    Drain(admin::WorkerArgs),
    /// Gives a drained worker work again
    Undrain(admin::WorkerArgs),
    /// Puts a catalogue in force: tenants, upstreams, models, routes, rules, detectors
    Apply(apply::ApplyArgs),
    /// Says what applying files would change
    Diff(apply::DiffArgs),
    /// Shows the catalogue: as it was written, as a table, as JSON
    Get(get::GetArgs),
    /// Brings back the files of the catalogue as they were before they last changed
    Rollback(apply::RollbackArgs),
    /// Makes tenants, and keys for them
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Lets operators in, and out again
    #[command(subcommand)]
    Operator(tenant::OperatorCommand),
    /// Says where a request would go, or where one went, and why
    Explain(explain::ExplainArgs),
    /// Gives the requests of a session a least data class, for 24 hours
    Session(explain::SessionArgs),
    /// Talks to a model in the terminal
    Chat(chat::ChatArgs),
    /// Sends load to an OpenAI endpoint and says what its clients would have felt
    Bench(bench::BenchArgs),
    /// Fetches, lists and inspects model files
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Checks, exports, prunes and reads the ledger, offline
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Adds up what was used, what it cost, and what the same tokens cost elsewhere
    Usage(usage::UsageArgs),
}

impl Global {
    /// Where model files and state live.
    fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(penstock_worker::config::default_data_dir)
    }

    /// Where a router keeps the key of its admin port.
    fn admin_key_file(&self) -> PathBuf {
        self.data_dir().join("admin.key")
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            if !fault.is_told() {
                eprintln!("penstock: {fault}");
            }
            fault.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Fault> {
    logs::init(cli.global.log_format, &cli.global.log_level)?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return Err(Fault::failed("another TLS provider is installed already"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("cannot start the async runtime: {error}")))?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(*args, &cli.global).await,
            Command::Router(args) => router::run(*args, &cli.global).await,
            Command::Worker(args) => worker::run(*args, &cli.global).await,
            Command::Status(args) => admin::status(args, &cli.global).await,
            Command::Drain(args) => admin::drain(args, &cli.global).await,
            Command::Undrain(args) => admin::undrain(args, &cli.global).await,
            Command::Apply(args) => apply::apply(args, &cli.global).await,
            Command::Diff(args) => apply::diff(args, &cli.global).await,
            Command::Get(args) => get::run(args, &cli.global).await,
            Command::Rollback(args) => apply::rollback(args, &cli.global).await,
            Command::Tenant(command) => tenant::tenant(command, &cli.global).await,
            Command::Operator(command) => tenant::operator(command, &cli.global).await,
            Command::Explain(args) => explain::explain(args, &cli.global).await,
            Command::Session(args) => explain::session(args, &cli.global).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Bench(args) => bench::run(args, cli.global.output).await,
            Command::Model(command) => model::run(command, &cli.global).await,
            Command::Ledger(command) => ledger::run(command, &cli.global).await,
            Command::Usage(args) => usage::run(args, &cli.global).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
