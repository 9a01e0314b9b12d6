//! The ledger: what was decided of every request, where it went and what it cost, so that this can be shown later to
//! somebody who believes nobody.
//!
//! A router writes its records into a chain of its own ([`Ledger`]): every record's hash covers all before it, and signed
//! heads cover the chain ([`Head`]). [`verify()`] finds every change of it from the public key alone, without a router.
//! This crate owns the format, its stores and its readers; what is worth a record is the router's to know.

mod calendar;
mod chain;
mod export;
mod hex;
mod key;
mod prune;
mod reader;
mod record;
mod store;
mod usage;
mod verify;
mod writer;

pub use calendar::parse_day;
pub use chain::{ChainName, Entry, Hash, Head, InvalidChainName, InvalidHead, Seal};
pub use export::{ExportError, jsonl, parquet};
pub use hex::NotHex;
pub use key::{KeyError, LedgerKey, Mac, MacOfParts, PublicKey, Signature};
pub use prune::{PruneError, Pruned, prune};
pub use reader::{Found, Reader};
pub use record::*;
pub use store::{Place, StoreError};
pub use usage::{Accounts, By, Line, PricedAs, Usage, dollars};
pub use verify::{Checked, Problem, Report, verify};
pub use writer::{Config, Error, Ledger, Mirror, OpenError, Unwritten, Writer, Written};
