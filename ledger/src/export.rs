//! A ledger for other programs: lines of JSON, or Parquet.

mod file;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::calendar;
use crate::chain::{ChainName, Entry, Hash};
use crate::reader::Reader;
use crate::record::{InvalidRecord, Record, Tokens};
use crate::store::StoreError;
use file::{Column, File, Type};

/// Why an export ends early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be written.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
    /// A record is none.
    #[error("record {seq} of the chain {chain}: {source}; `penstock ledger verify` tells whether it was changed")]
    Record {
        /// The chain.
        chain: ChainName,
        /// The record.
        seq: u64,
        /// What is wrong.
        source: InvalidRecord,
    },
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    chain: &'a ChainName,
    seq: u64,
    time: String,
    #[serde(skip_serializing_if = "is_zero")]
    behind_us: u64,
    kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request: &'a str,
    hash: Hash,
    record: &'a RawValue,
}

/// Writes all records since a time (since 1970), one JSON object a line; gives how many.
///
/// # Errors
///
/// [`ExportError`]; lines before it are written.
pub fn jsonl(reader: &mut Reader, since: Duration, mut out: impl Write) -> Result<u64, ExportError> {
    let count = each(reader, since, |chain, entry| {
        let record = serde_json::from_slice(entry.body).map_err(|source| invalid(chain, &entry, source))?;
        let Entry { seq, behind, kind, request, hash, .. } = entry;
        let time = calendar::timestamp(entry.time);
        let line = Line { chain, seq, time, behind_us: behind, kind, request, hash, record };
        serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        Ok(())
    })?;
    out.flush()?;
    Ok(count)
}

/// Records of one row group: what is held in memory at once.
const ROWS: u64 = 16_384;

/// Writes all records since a time (since 1970) as a Parquet file; gives how many. What is asked for most has columns of
/// its own; `record` is the whole of it, JSON.
///
/// # Errors
///
/// [`ExportError`]; then what is written is no Parquet file.
pub fn parquet(reader: &mut Reader, since: Duration, out: impl Write) -> Result<u64, ExportError> {
    let columns = vec![
        Column::required("chain", Type::Text),
        Column::required("seq", Type::Int),
        Column::required("time", Type::Micros),
        Column::required("behind_us", Type::Int),
        Column::required("kind", Type::Text),
        Column::optional("request", Type::Text),
        Column::required("hash", Type::Text),
        Column::optional("tenant", Type::Text),
        Column::optional("class", Type::Text),
        Column::optional("model", Type::Text),
        Column::optional("task", Type::Text),
        Column::optional("target", Type::Text),
        Column::optional("outcome", Type::Text),
        Column::optional("prompt_tokens", Type::Int),
        Column::optional("cached_tokens", Type::Int),
        Column::optional("completion_tokens", Type::Int),
        Column::optional("compute_us", Type::Int),
        Column::optional("cost_nanos", Type::Int),
        Column::optional("duration_us", Type::Int),
        Column::optional("first_token_us", Type::Int),
        Column::required("record", Type::Json),
    ];
    let mut file = File::begin(out, columns)?;
    let count = each(reader, since, |chain, entry| {
        let record = Record::read(entry.kind, entry.body).map_err(|source| ExportError::Record {
            chain: chain.clone(),
            seq: entry.seq,
            source,
        })?;
        row(&mut file, chain, &entry, &record);
        if file.rows() >= ROWS {
            file.end_group()?;
        }
        Ok(())
    })?;
    file.finish()?;
    Ok(count)
}

fn row<W: Write>(file: &mut File<W>, chain: &ChainName, entry: &Entry<'_>, record: &Record) {
    /// What only some records have.
    #[derive(Default)]
    struct Facts<'a> {
        tenant: Option<&'a str>,
        class: Option<&'a str>,
        model: Option<&'a str>,
        task: Option<&'a str>,
        target: Option<&'a str>,
        outcome: Option<&'a str>,
        tokens: Option<Tokens>,
        compute_us: Option<u64>,
        cost_nanos: Option<u64>,
        duration_us: Option<u64>,
        first_token_us: Option<u64>,
    }
    let facts = match record {
        Record::Decided(decided) => Facts {
            tenant: Some(&decided.inputs.tenant),
            class: Some(decided.inputs.class.class.as_str()),
            model: Some(&decided.inputs.asked),
            task: Some(&decided.inputs.shape.task),
            ..Facts::default()
        },
        Record::Settled(settled) => Facts {
            tenant: Some(&settled.tenant),
            class: None,
            model: Some(&settled.model),
            task: Some(&settled.task),
            target: settled.target.as_deref(),
            outcome: Some(&settled.outcome),
            tokens: Some(settled.tokens),
            compute_us: Some(settled.compute_us),
            cost_nanos: Some(settled.cost_nanos),
            duration_us: Some(settled.duration_us),
            first_token_us: settled.first_token_us,
        },
        Record::Idle(idle) => Facts {
            model: Some(&idle.model),
            compute_us: Some(idle.compute_us),
            cost_nanos: Some(idle.cost_nanos),
            ..Facts::default()
        },
        Record::Catalogue(_) | Record::Operator(_) => Facts::default(),
    };
    let Facts { tenant, class, model, task, target, outcome, tokens, .. } = facts;
    let hash = entry.hash.to_string();
    let mut row = file.row();
    row.text(Some(chain.as_str()));
    row.int(Some(entry.seq));
    row.int(Some(entry.time));
    row.int(Some(entry.behind));
    row.text(Some(entry.kind));
    row.text(Some(entry.request).filter(|request| !request.is_empty()));
    row.text(Some(&hash));
    row.text(tenant);
    row.text(class);
    row.text(model);
    row.text(task.filter(|task| !task.is_empty()));
    row.text(target);
    row.text(outcome);
    row.int(tokens.map(|tokens| tokens.prompt));
    row.int(tokens.map(|tokens| tokens.cached));
    row.int(tokens.map(|tokens| tokens.completion));
    row.int(facts.compute_us);
    row.int(facts.cost_nanos);
    row.int(facts.duration_us);
    row.int(facts.first_token_us);
    row.bytes(Some(entry.body));
}

fn each(
    reader: &mut Reader,
    since: Duration,
    mut visit: impl FnMut(&ChainName, Entry<'_>) -> Result<(), ExportError>,
) -> Result<u64, ExportError> {
    let (mut count, mut failed) = (0, None);
    reader.records(since, |chain, entry| match visit(chain, entry) {
        Ok(()) => {
            count += 1;
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(count), Err)
}

fn invalid(chain: &ChainName, entry: &Entry<'_>, source: serde_json::Error) -> ExportError {
    ExportError::Record { chain: chain.clone(), seq: entry.seq, source: InvalidRecord::Body { kind: "stored", source } }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives fields by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
