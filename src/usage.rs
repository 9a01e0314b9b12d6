//! `penstock usage`: what was used, what it cost, and what the same tokens cost elsewhere.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use penstock_cluster::catalog::{Catalog, Source};
use penstock_ledger::{Accounts, By, Line, Price, PricedAs, Reader, Record, Usage, dollars};

use crate::fault::Fault;
use crate::ledger::{PlaceArgs, blocking, store_fault};
use crate::output::{self, Format};
use crate::{Global, units};

const EXAMPLES: &str = "\
Examples:
  penstock usage --by tenant --since 30d
  penstock usage --by target -f catalogue.yaml            and what the same tokens cost on each of its upstreams
  penstock usage -f catalogue.yaml --html report.html     a page for each month, with plots

Days and months are UTC. Costs of the cluster's own models are their share of its machines' time; the time that nobody
used is the line `idle`. ESTIMATED counts requests whose provider told no numbers: they count as what was reserved.";

/// The flags of `penstock usage`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// A line for each of these
    #[arg(long, value_enum, default_value = "tenant")]
    by: ByArg,
    /// Since then: 30d, 2026-11-01 [default: all]
    #[arg(long, value_name = "TIME", value_parser = units::moment)]
    since: Option<Duration>,
    /// Catalogues whose upstreams the same tokens are priced at
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Writes a report by month there, a page that opens from disk
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What lines are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ByArg {
    /// Who asked.
    Tenant,
    /// What was asked for.
    Model,
    /// What answered.
    Target,
    /// The day.
    Day,
    /// The client's word.
    Task,
}

impl From<ByArg> for By {
    fn from(by: ByArg) -> Self {
        match by {
            ByArg::Tenant => Self::Tenant,
            ByArg::Model => Self::Model,
            ByArg::Target => Self::Target,
            ByArg::Day => Self::Day,
            ByArg::Task => Self::Task,
        }
    }
}

/// Runs `penstock usage`.
pub(crate) async fn run(args: UsageArgs, global: &Global) -> Result<(), Fault> {
    let global = global.clone();
    blocking(move || usage(&args, &global)).await
}

fn usage(args: &UsageArgs, global: &Global) -> Result<(), Fault> {
    let mut accounts = Accounts::new(prices(&args.file)?);
    let mut reader = Reader::open(&args.place.place(global)).map_err(store_fault)?;
    let mut unreadable = None;
    let add = |chain: &penstock_ledger::ChainName, entry: penstock_ledger::Entry<'_>| {
        match Record::read(entry.kind, entry.body) {
            Ok(record) => accounts.add(entry.time, &record),
            Err(error) => unreadable = Some(format!("record {} of the chain {chain}: {error}", entry.seq)),
        }
        if unreadable.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    reader.records(args.since.unwrap_or_default(), add).map_err(store_fault)?;
    if let Some(unreadable) = unreadable {
        return Err(Fault::failed(unreadable));
    }
    if let Some(path) = &args.html {
        let named = |error: std::io::Error| Fault::failed(format!("--html {}: {error}", path.display()));
        std::fs::write(path, accounts.html()).map_err(named)?;
    }
    let usage = accounts.usage(args.by.into());
    match Format::or_default(global.output) {
        Format::Json | Format::Yaml => output::json(&usage),
        Format::Table => table(&usage, args.by),
    }
}

/// The prices of all upstreams of some catalogues, one for each model that has one.
fn prices(files: &[PathBuf]) -> Result<Vec<PricedAs>, Fault> {
    let read = |path: &PathBuf| {
        let named = |error: std::io::Error| Fault::bad_input(format!("{}: {error}", path.display()));
        Ok(Source { file: file_name(path), text: std::fs::read_to_string(path).map_err(named)? })
    };
    let sources = files.iter().map(read).collect::<Result<Vec<_>, Fault>>()?;
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let catalog = Catalog::read(sources).map_err(Fault::bad_input)?;
    let mut prices = Vec::new();
    for (name, upstream) in &catalog.upstreams {
        let models =
            upstream.models.iter().map(|model| (format!("{name}/{}", model.name), model.price.or(upstream.price)));
        let any = upstream.models.is_empty().then(|| (format!("{name}/*"), upstream.price));
        prices.extend(models.chain(any).filter_map(|(name, price)| {
            let price = price?;
            let cached_input = price.cached_input.map(|cached| cached.nanos());
            let price = Price { input: price.input.nanos(), output: price.output.nanos(), cached_input };
            Some(PricedAs { name, price })
        }));
    }
    Ok(prices)
}

fn file_name(path: &Path) -> String {
    path.display().to_string()
}

fn table(usage: &Usage, by: ByArg) -> Result<(), Fault> {
    let nanos = |nanos: u64| dollars(i64::try_from(nanos).unwrap_or(i64::MAX));
    let row = |line: &Line| {
        [
            line.name.clone(),
            line.requests.to_string(),
            line.failed.to_string(),
            line.estimated.to_string(),
            line.tokens.prompt.to_string(),
            line.tokens.cached.to_string(),
            line.tokens.completion.to_string(),
            format!("{:.1}", line.compute_us as f64 / 1e6),
            nanos(line.cost_nanos),
        ]
    };
    let lines = usage.lines.iter().chain([&usage.idle, &usage.total]).map(row).collect::<Vec<_>>();
    let name = By::from(by).as_str().to_uppercase();
    let header = [&name, "REQUESTS", "FAILED", "ESTIMATED", "PROMPT", "CACHED", "COMPLETION", "SECONDS", "COST"];
    output::table(header, &lines)?;
    if usage.elsewhere.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let elsewhere = |line: &Line| {
        let saved = line.saved_nanos().into_iter();
        let costs = line.elsewhere_nanos.iter().zip(saved).zip(&usage.elsewhere);
        let row = |((cost, saved), priced): ((&u64, i64), &PricedAs)| {
            [line.name.clone(), priced.name.clone(), nanos(*cost), dollars(saved)]
        };
        costs.map(row).collect::<Vec<_>>()
    };
    let lines = usage.lines.iter().chain([&usage.total]).flat_map(elsewhere).collect::<Vec<_>>();
    output::table([&name, "THE SAME ON", "COST THERE", "SAVED"], &lines)
}
