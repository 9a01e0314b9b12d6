//! `penstock ledger`: the ledger, checked and read without a router.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use penstock_ledger::{
    ChainName, Checked, ExportError, Head, KeyError, LedgerKey, Place, PruneError, PublicKey, Reader, Report,
    StoreError, jsonl, parquet, prune, verify,
};
use penstock_proto::RequestId;
use penstock_proto::time::unix_now;
use serde::Serialize;

use crate::fault::Fault;
use crate::output::{self, Format};
use crate::{Global, units};

/// Where a ledger is.
#[derive(Args, Clone)]
#[command(next_help_heading = "Ledger")]
pub(crate) struct PlaceArgs {
    /// The ledger's database, `postgres://USER@HOST/DATABASE` [default: ledger.db under --data-dir]
    #[arg(long, value_name = "URL", env = "PENSTOCK_LEDGER_URL", hide_env_values = true)]
    ledger_url: Option<String>,
}

impl PlaceArgs {
    /// The database, or the file under the data directory.
    pub(crate) fn place(&self, global: &Global) -> Place {
        match &self.ledger_url {
            Some(url) => Place::Postgres(url.clone()),
            None => Place::Sqlite(global.data_dir().join("ledger.db")),
        }
    }
}

/// The key of a ledger.
#[derive(Args, Clone)]
pub(crate) struct KeyArgs {
    /// The file of the key that signs the ledger [default: ledger.key under --data-dir]
    #[arg(long, value_name = "FILE", env = "PENSTOCK_LEDGER_KEY")]
    ledger_key: Option<PathBuf>,
}

impl KeyArgs {
    /// The file.
    pub(crate) fn file(&self, global: &Global) -> PathBuf {
        self.ledger_key.clone().unwrap_or_else(|| global.data_dir().join("ledger.key"))
    }

    fn read(&self, global: &Global) -> Result<LedgerKey, Fault> {
        LedgerKey::read(&self.file(global)).map_err(key_fault)
    }
}

const VERIFY: &str = "\
Examples:
  penstock ledger verify --public-key \"$(cat ledger.pub)\"
  penstock ledger verify --public-key \"$(cat ledger.pub)\" --head r1.head
  penstock ledger verify --ledger-url postgres://auditor@db/penstock --chain r1 --public-key …

Finds every record that was changed, dropped, moved or added, and names the first. A head that was kept elsewhere shows
also what was cut off the end; each run prints the newest ones, to be kept.

Exit codes: 0 the ledger holds, 1 it does not, 2 bad usage or no ledger, 3 the database is not reachable.";

const EXPORT: &str = "\
Examples:
  penstock ledger export --since 7d | jq -r 'select(.kind == \"settled\") | .record.target' | sort | uniq -c
  penstock ledger export --format parquet --out ledger.parquet";

const PRUNE: &str = "\
Example:
  penstock ledger prune --before 365d

Checks the ledger, deletes the records that are older, and puts a signed seal in their place, so that the rest still
verifies. A router may write meanwhile. The newest record of each chain stays.";

/// The commands under `penstock ledger`.
#[derive(Subcommand)]
pub(crate) enum LedgerCommand {
    /// Checks every record against its chain and the signed heads
    #[command(after_help = VERIFY)]
    Verify {
        #[command(flatten)]
        place: PlaceArgs,
        /// What signatures are checked with, as `penstock ledger key` prints it [default: from --ledger-key]
        #[arg(long, value_name = "HEX")]
        public_key: Option<PublicKey>,
        /// A head that was kept elsewhere, or the file that holds it
        #[arg(long, value_name = "HEAD|FILE", value_parser = head)]
        head: Option<Head>,
        /// One chain alone: the name of its router
        #[arg(long, value_name = "NAME")]
        chain: Option<ChainName>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Writes records as lines of JSON or as Parquet
    #[command(after_help = EXPORT)]
    Export {
        #[command(flatten)]
        place: PlaceArgs,
        /// How
        #[arg(long, value_enum, default_value = "jsonl")]
        format: ExportFormat,
        /// Records since then: 7d, 12h, 2026-11-25 [default: all]
        #[arg(long, value_name = "TIME", value_parser = units::moment)]
        since: Option<Duration>,
        /// Where to [default: the standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Deletes old records under a signed seal
    #[command(after_help = PRUNE)]
    Prune {
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        key: KeyArgs,
        /// Records older than that: 365d, 2026-01-01
        #[arg(long, value_name = "TIME", value_parser = units::moment)]
        before: Duration,
        /// Of one chain alone: the name of its router
        #[arg(long, value_name = "NAME")]
        chain: Option<ChainName>,
    },
    /// Shows what was recorded of a request
    #[command(after_help = "Example:\n  penstock ledger show 01K9S2Q7F0M3T8V5W6X7Y8Z9AB     (x-penstock-request-id)")]
    Show {
        /// The router's id of it
        #[arg(value_name = "REQUEST_ID", value_parser = request_id)]
        request: RequestId,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Prints the public half of the ledger's key, for those who check
    #[command(after_help = "Example:\n  penstock ledger key -o json | jq -r .public_key > ledger.pub")]
    Key {
        #[command(flatten)]
        key: KeyArgs,
    },
}

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// One JSON object a line.
    Jsonl,
    /// One file of columns.
    Parquet,
}

/// Runs a command of `penstock ledger`.
pub(crate) async fn run(command: LedgerCommand, global: &Global) -> Result<(), Fault> {
    let global = global.clone();
    blocking(move || dispatch(command, &global)).await
}

/// Runs what reads a ledger: that blocks.
pub(crate) async fn blocking(run: impl FnOnce() -> Result<(), Fault> + Send + 'static) -> Result<(), Fault> {
    tokio::task::spawn_blocking(run).await.map_err(Fault::failed)?
}

fn dispatch(command: LedgerCommand, global: &Global) -> Result<(), Fault> {
    let format = Format::or_default(global.output);
    match command {
        LedgerCommand::Verify { place, public_key, head, chain, key } => {
            let public = match public_key {
                Some(public) => public,
                None => key.read(global).map(|key| key.public()).map_err(|fault| {
                    Fault::bad_input(format!("{fault}; give --public-key where the ledger's key is not at hand"))
                })?,
            };
            let mut reader = Reader::open(&place.place(global)).map_err(store_fault)?;
            let report = verify(&mut reader, &public, chain.as_ref(), head.as_ref()).map_err(store_fault)?;
            print_report(&report, format)
        }
        LedgerCommand::Export { place, format, since, out } => {
            export(&place.place(global), format, since.unwrap_or_default(), out.as_deref())
        }
        LedgerCommand::Prune { place, key, before, chain } => {
            let (place, key) = (place.place(global), key.read(global)?);
            let pruned = prune(&place, &key, chain.as_ref(), before, unix_now()).map_err(prune_fault)?;
            match format {
                Format::Json | Format::Yaml => output::json(&pruned),
                Format::Table => {
                    let row = |pruned: &penstock_ledger::Pruned| {
                        [pruned.chain.to_string(), pruned.records.to_string(), pruned.through.to_string()]
                    };
                    output::table(["CHAIN", "PRUNED", "THROUGH"], &pruned.iter().map(row).collect::<Vec<_>>())
                }
            }
        }
        LedgerCommand::Show { request, place } => show(&place.place(global), request, format),
        LedgerCommand::Key { key } => {
            #[derive(Serialize)]
            struct Key {
                public_key: PublicKey,
                file: PathBuf,
            }
            let public_key = key.read(global)?.public();
            match format {
                Format::Json | Format::Yaml => output::json(&Key { public_key, file: key.file(global) }),
                Format::Table => output::line(&public_key.to_string()),
            }
        }
    }
}

/// What scripts read of a chain.
#[derive(Serialize)]
struct ChainRow<'a> {
    chain: &'a ChainName,
    records: u64,
    pruned: u64,
    clock_set_back: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_bad: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl<'a> ChainRow<'a> {
    fn of(checked: &'a Checked) -> Self {
        Self {
            chain: &checked.chain,
            records: checked.records,
            pruned: checked.pruned,
            clock_set_back: checked.set_back,
            // A head of a chain that does not hold is nothing to keep.
            head: checked.head.as_ref().filter(|_| checked.problem.is_none()).map(Head::to_string),
            ok: checked.problem.is_none(),
            first_bad: checked.problem.as_ref().map(penstock_ledger::Problem::first_bad),
            problem: checked.problem.as_ref().map(ToString::to_string),
        }
    }
}

fn print_report(report: &Report, format: Format) -> Result<(), Fault> {
    let rows: Vec<ChainRow<'_>> = report.chains.iter().map(ChainRow::of).collect();
    match format {
        Format::Json | Format::Yaml => output::json(&rows)?,
        Format::Table => {
            let row = |row: &ChainRow<'_>| {
                let state = if row.ok { "holds" } else { "BAD" };
                let (records, pruned) = (row.records.to_string(), row.pruned.to_string());
                [row.chain.to_string(), records, pruned, row.clock_set_back.to_string(), state.to_owned()]
            };
            let header = ["CHAIN", "RECORDS", "PRUNED TO", "CLOCK SET BACK", "STATE"];
            output::table(header, &rows.iter().map(row).collect::<Vec<_>>())?;
            for head in rows.iter().filter_map(|row| row.head.as_ref()) {
                output::line(&format!("head {head}"))?;
            }
        }
    }
    match report.problem() {
        Some((chain, problem)) => Err(Fault::failed(format!("the chain {chain} does not hold: {problem}"))),
        None => Ok(()),
    }
}

fn export(place: &Place, format: ExportFormat, since: Duration, out: Option<&Path>) -> Result<(), Fault> {
    let mut reader = Reader::open(place).map_err(store_fault)?;
    let result = match out {
        Some(path) => {
            let named = |error: &dyn std::fmt::Display| Fault::failed(format!("--out {}: {error}", path.display()));
            let mut file = BufWriter::new(File::create(path).map_err(|error| named(&error))?);
            let written = write(&mut reader, format, since, &mut file);
            file.flush().map_err(|error| named(&error))?;
            written
        }
        None => write(&mut reader, format, since, &mut BufWriter::new(std::io::stdout().lock())),
    };
    match result {
        // A reader that has gone has read enough.
        Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(ExportError::Store(error)) => Err(store_fault(error)),
        Err(error) => Err(Fault::failed(error)),
        Ok(_) => Ok(()),
    }
}

fn write(
    reader: &mut Reader,
    format: ExportFormat,
    since: Duration,
    out: &mut dyn std::io::Write,
) -> Result<u64, ExportError> {
    match format {
        ExportFormat::Jsonl => jsonl(reader, since, out),
        ExportFormat::Parquet => parquet(reader, since, out),
    }
}

fn show(place: &Place, request: RequestId, format: Format) -> Result<(), Fault> {
    #[derive(Serialize)]
    struct Row {
        chain: ChainName,
        seq: u64,
        time: String,
        kind: &'static str,
        hash: String,
        record: serde_json::Value,
    }
    let found = Reader::open(place).and_then(|mut reader| reader.request(request)).map_err(store_fault)?;
    if found.is_empty() {
        return Err(Fault::bad_input(format!("the ledger at {place} has no record of the request {request}")));
    }
    let mut rows = Vec::new();
    for found in found {
        let (time, hash) = (found.timestamp(), found.hash.to_string());
        let record = found.record.map_err(Fault::failed)?;
        let (kind, record) = (record.kind().as_str(), record.to_json());
        rows.push(Row { chain: found.chain, seq: found.seq, time, kind, hash, record });
    }
    match format {
        Format::Json | Format::Yaml => output::json(&rows),
        Format::Table => rows.iter().try_for_each(|row| {
            output::line(&format!("{} {} (record {} of {})", row.time, row.kind, row.seq, row.chain))?;
            output::json(&row.record)
        }),
    }
}

/// The fault of a ledger that cannot be read.
pub(crate) fn store_fault(error: StoreError) -> Fault {
    match error {
        StoreError::Missing { .. } | StoreError::Foreign { .. } | StoreError::Newer { .. } | StoreError::Url { .. } => {
            Fault::bad_input(error)
        }
        StoreError::Unreachable { .. } | StoreError::Slow { .. } => Fault::not_reachable(error),
        StoreError::Full { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Damaged { .. }
        | StoreError::Failed { .. } => Fault::failed(error),
    }
}

fn prune_fault(error: PruneError) -> Fault {
    match error {
        PruneError::Store(error) => store_fault(error),
        PruneError::Problem { .. } => Fault::failed(error),
        PruneError::Unknown(_) => Fault::bad_input(error),
    }
}

fn key_fault(error: KeyError) -> Fault {
    match error {
        KeyError::Malformed { .. } => Fault::bad_input(error),
        KeyError::File { ref source, .. } if source.kind() == ErrorKind::NotFound => Fault::bad_input(error),
        KeyError::File { .. } => Fault::failed(error),
    }
}

fn request_id(text: &str) -> Result<RequestId, String> {
    text.parse()
        .map_err(|_| "this is no request id: 26 letters and digits are, as x-penstock-request-id tells it".to_owned())
}

/// A head, or the file that holds one.
fn head(text: &str) -> Result<Head, String> {
    let read = || std::fs::read_to_string(text).ok().and_then(|content| content.parse().ok());
    text.parse().or_else(|error: penstock_ledger::InvalidHead| read().ok_or_else(|| error.to_string()))
}
