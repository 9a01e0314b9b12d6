//! `penstock apply`, `diff`, `rollback`: the catalogue changed over a router's admin port.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use penstock_cluster::catalog::Source;
use penstock_proto::admin::{ApplyRequest, CatalogChange, CatalogSource, DiffCatalogRequest, RollbackRequest};
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::output::Format;
use crate::remote::ServerArgs;
use crate::{Global, output};

/// What stands for standard input.
const STDIN: &str = "-";

const APPLY: &str = "\
Examples:
  penstock apply -f bank.yaml --dry-run         checks it, and says what it would change
  penstock apply -f bank.yaml
  penstock apply -f tenants.yaml routes.yaml    several files are one catalogue
  penstock apply -f bank.yaml --expect 7        only if nobody has changed version 7 meanwhile

The files take the place of all files that were applied before, as a whole or not at all, and are in force on every
router within a second. What `penstock tenant` and `penstock operator` have issued stays. Of what is wrong, each line
names file, line and reason.

Exit codes: 0 done, 1 failed, 2 the catalogue is not valid, 3 the router is not reachable.";

/// The flags of `penstock apply`.
#[derive(Args)]
#[command(after_help = APPLY)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Checks it and says what it would change, and changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Applies only where this is the newest version; 0: where nothing was applied yet
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
struct FileArgs {
    /// YAML files; - is standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

const DIFF: &str = "\
Examples:
  penstock diff -f bank.yaml
  penstock diff -f bank.yaml -o json | jq '.changes'

  + tenant web                     is new
  - route lab                      goes
  ~ upstream acme                  is another
      ceiling: \"public\" -> \"internal\"

Exit codes: 0 no difference, 1 there are differences, or it failed, 2 the catalogue is not valid, 3 not reachable.";

/// The flags of `penstock diff`.
#[derive(Args)]
#[command(after_help = DIFF)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    server: ServerArgs,
}

const ROLLBACK: &str = "\
Examples:
  penstock rollback
  penstock get versions      which ones there are
  penstock get --version 3   what one says

It brings back the files as they were before they last changed, as a new version; done again it goes further back. Keys,
tenants and operators that the command line has issued or revoked stay so.

Exit codes: 0 done, 1 failed, 2 there is nothing to go back to, 3 the router is not reachable.";

/// The flags of `penstock rollback`.
#[derive(Args)]
#[command(after_help = ROLLBACK)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    server: ServerArgs,
}

/// Puts files in force.
pub(crate) async fn apply(args: ApplyArgs, global: &Global) -> Result<(), Fault> {
    let sources = args.files.sources()?;
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(ApplyRequest { sources, dry_run: args.dry_run, expected_version: args.expect });
    let change = router.client.apply(request).await.map_err(|status| router.failed(&status))?.into_inner();
    let done = match (args.dry_run, change.changed, change.version) {
        (true, _, _) => "valid; nothing was changed (--dry-run)".to_owned(),
        (false, true, version) => format!("version {version} is in force"),
        (false, false, version) => format!("nothing to change: version {version} is in force"),
    };
    tell(&change, &done, global)
}

/// Says what files would change.
pub(crate) async fn diff(args: DiffArgs, global: &Global) -> Result<(), Fault> {
    let sources = args.files.sources()?;
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(DiffCatalogRequest { sources });
    let change = router.client.diff_catalog(request).await.map_err(|status| router.failed(&status))?.into_inner();
    tell(&change, "", global)?;
    if change.diff.is_empty() { Ok(()) } else { Err(Fault::told()) }
}

/// Brings back the files before the newest ones.
pub(crate) async fn rollback(args: RollbackArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(RollbackRequest {});
    let change = router.client.rollback(request).await.map_err(|status| router.failed(&status))?.into_inner();
    let done = format!("version {} is in force: the files are as in version {}", change.version, change.restored);
    tell(&change, &done, global)
}

/// Says what a change came to. Warnings stand beside it, on standard error.
fn tell(change: &CatalogChange, done: &str, global: &Global) -> Result<(), Fault> {
    warn(change);
    match Format::or_default(global.output) {
        Format::Json | Format::Yaml => output::json(&report(change)?),
        Format::Table => {
            let lines = change.diff.lines().chain((!done.is_empty()).then_some(done));
            lines.into_iter().try_for_each(output::line)
        }
    }
}

/// Prints a change's warnings on standard error.
pub(crate) fn warn(change: &CatalogChange) {
    change.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

/// A change for scripts.
pub(crate) fn report(change: &CatalogChange) -> Result<Value, Fault> {
    let diff: Value = serde_json::from_str(&change.diff_json).map_err(Fault::failed)?;
    let CatalogChange { version, changed, warnings, restored, .. } = change;
    let restored = (*restored > 0).then_some(restored);
    Ok(json!({
        "version": version,
        "changed": changed,
        "restored": restored,
        "changes": diff["changes"],
        "warnings": warnings,
    }))
}

impl FileArgs {
    fn sources(&self) -> Result<Vec<CatalogSource>, Fault> {
        let read = read_sources("-f", &self.files)?;
        Ok(read.into_iter().map(|Source { file, text }| CatalogSource { file, text }).collect())
    }
}

/// Reads the files of a catalogue, which the flag `flag` names.
pub(crate) fn read_sources(flag: &str, files: &[PathBuf]) -> Result<Vec<Source>, Fault> {
    let source = |path: &PathBuf| {
        let bad = |error| Fault::bad_input(format!("{flag} {}: {error}", path.display()));
        if path == Path::new(STDIN) {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(bad)?;
            return Ok(Source { file: "stdin".to_owned(), text });
        }
        let text = std::fs::read_to_string(path).map_err(bad)?;
        Ok(Source { file: path.display().to_string(), text })
    };
    files.iter().map(source).collect()
}
