//! A ledger in a file of SQLite's: WAL, every commit synced.
//!
//! What the log holds is moved into the file by a thread of its own (`Checkpoints`), since that takes many times as long as
//! a commit, and requests wait for commits.

mod checkpoints;

use std::path::Path;
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};

use self::checkpoints::Checkpoints;
use super::{Backend, ChainId, FORMAT, Group, Mode, Range, StoreError, Tail, Visit, signed, unsigned};
use crate::chain::{ChainName, Entry, Hash, Head, Seal};
use crate::key::Signature;

/// Marks the file as ours: "PSTK".
const APPLICATION: i32 = 0x5053_544b;
/// Records of a chain, as a power of two: a record's key is its chain's number and then its own, so that the file needs no
/// second index to find it.
const SPAN: u32 = 40;
/// Records that one transaction deletes, so that a router that writes meanwhile waits for little.
const DELETED_AT_ONCE: u64 = 5_000;

const SCHEMA: &str = "
CREATE TABLE chains (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE records (
  id INTEGER PRIMARY KEY, time INTEGER NOT NULL, behind INTEGER NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
  hash BLOB NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX records_request ON records (request) WHERE request <> '';
CREATE TABLE heads (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL) STRICT;
CREATE TABLE seals (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL) STRICT;
";

/// A ledger in a file.
pub(super) struct Sqlite {
    connection: Connection,
    checkpoints: Option<Checkpoints>,
    place: String,
}

impl Sqlite {
    pub(super) fn open(path: &Path, mode: Mode, patience: Duration) -> Result<Self, StoreError> {
        let place = path.display().to_string();
        let failed = |error| fault(&place, &error);
        let connection = match mode {
            Mode::Read if !path.exists() => return Err(StoreError::Missing { place }),
            Mode::Read => read_only(path).map_err(failed)?,
            Mode::Write => {
                let directory = path.parent().unwrap_or(Path::new("."));
                std::fs::create_dir_all(directory)
                    .map_err(|error| StoreError::Failed { place: place.clone(), reason: error.to_string() })?;
                Connection::open(path).map_err(failed)?
            }
        };
        connection.busy_timeout(patience).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(32);
        let mut ledger = Self { connection, checkpoints: None, place };
        ledger.check(mode)?;
        if mode == Mode::Write {
            ledger.prepare().map_err(|error| ledger.fault(&error))?;
            ledger.checkpoints = Some(Checkpoints::of(path));
        }
        Ok(ledger)
    }

    /// Refuses what is not a ledger, or not one that this program knows.
    fn check(&mut self, mode: Mode) -> Result<(), StoreError> {
        let number = |name| self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
        let read = number("application_id").and_then(|id| Ok((id, number("user_version")?, number("page_count")?)));
        match read.map_err(|error| self.fault(&error))? {
            (APPLICATION, format, _) if format > FORMAT => Err(StoreError::Newer { place: self.place.clone(), format }),
            (APPLICATION, _, _) => Ok(()),
            (_, _, 0) if mode == Mode::Write => Ok(()),
            (_, _, 0) => Err(StoreError::Missing { place: self.place.clone() }),
            _ => {
                let reason = "the file is another program's database".to_owned();
                Err(StoreError::Foreign { place: self.place.clone(), reason })
            }
        }
    }

    fn prepare(&self) -> rusqlite::Result<()> {
        // The page size holds for a file that is made now; WAL stays with the file, the others are of this connection.
        self.connection.execute_batch(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -16384; PRAGMA journal_size_limit = 67108864; BEGIN IMMEDIATE",
        )?;
        // A program that started beside this one may have made it meanwhile.
        let made: i32 = self.connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        if made != APPLICATION {
            let marks = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};");
            self.connection.execute_batch(&format!("{SCHEMA}{marks}"))?;
        }
        self.connection.execute_batch("COMMIT")
    }

    fn fault(&self, error: &rusqlite::Error) -> StoreError {
        fault(&self.place, error)
    }

    fn write(&mut self, write: impl FnOnce(&Connection) -> rusqlite::Result<u64>) -> Result<u64, StoreError> {
        let result = self.connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            let written = write(&self.connection)?;
            self.connection.execute_batch("COMMIT")?;
            Ok(written)
        });
        result.map_err(|error| {
            // What failed may have ended the transaction already; then there is nothing to take back.
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            self.fault(&error)
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        read(&self.connection).map_err(|error| self.fault(&error))
    }
}

/// Opens a file to be read. One that lies where nothing can be written, as evidence does, has nobody who writes it.
fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let escaped: String = path.display().to_string().chars().fold(String::new(), |mut escaped, c| {
        match c {
            '%' => escaped.push_str("%25"),
            '?' => escaped.push_str("%3f"),
            '#' => escaped.push_str("%23"),
            c => escaped.push(c),
        }
        escaped
    });
    let readable = |connection: &Connection| connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    let connection = Connection::open_with_flags(format!("file:{escaped}"), flags)?;
    match readable(&connection) {
        Err(rusqlite::Error::SqliteFailure(error, _))
            if matches!(error.code, ErrorCode::CannotOpen | ErrorCode::ReadOnly) =>
        {
            Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(connection),
    }
}

fn fault(place: &str, error: &rusqlite::Error) -> StoreError {
    let (place, reason) = (place.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { place },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::ReadOnly { place, reason },
        Some(ErrorCode::CannotOpen) => StoreError::Unreachable { place, reason },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Failed { place, reason: "another program has held its lock for too long".to_owned() }
        }
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { place, reason },
        Some(ErrorCode::NotADatabase) => StoreError::Foreign { place, reason },
        _ => StoreError::Failed { place, reason },
    }
}

/// The key of a record; with 0, what is below all of its chain.
fn id(chain: ChainId, seq: u64) -> i64 {
    let within = signed(seq.min((1 << SPAN) - 1));
    (chain.0 << SPAN) | within
}

fn seq(id: i64) -> u64 {
    unsigned(id & ((1 << SPAN) - 1))
}

fn bytes<const N: usize>(row: &Row<'_>, column: usize) -> rusqlite::Result<[u8; N]> {
    let blob = row.get_ref(column)?.as_blob()?;
    // What has another length was not written by us; no hash and no signature is all zero.
    Ok(blob.try_into().unwrap_or([0; N]))
}

fn entry<'a>(row: &'a Row<'_>) -> rusqlite::Result<Entry<'a>> {
    Ok(Entry {
        seq: seq(row.get(0)?),
        time: unsigned(row.get(1)?),
        behind: unsigned(row.get(2)?),
        kind: row.get_ref(3)?.as_str()?,
        request: row.get_ref(4)?.as_str()?,
        hash: Hash::from_bytes(bytes(row, 5)?),
        body: row.get_ref(6)?.as_blob()?,
    })
}

impl Backend for Sqlite {
    fn chain(&mut self, name: &ChainName) -> Result<ChainId, StoreError> {
        self.write(|connection| {
            connection.execute("INSERT OR IGNORE INTO chains (name) VALUES (?)", [name.as_str()]).map(|_| 0)
        })?;
        let select = "SELECT id FROM chains WHERE name = ?";
        self.read(|connection| connection.query_row(select, [name.as_str()], |row| row.get(0))).map(ChainId)
    }

    fn chains(&mut self) -> Result<Vec<(ChainId, ChainName)>, StoreError> {
        let rows: Vec<(i64, String)> = self.read(|connection| {
            let mut statement = connection.prepare("SELECT id, name FROM chains ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        let damaged = |error: crate::InvalidChainName| StoreError::Damaged {
            place: self.place.clone(),
            reason: error.to_string(),
        };
        rows.into_iter().map(|(id, name)| Ok((ChainId(id), ChainName::new(name).map_err(damaged)?))).collect()
    }

    fn tail(&mut self, chain: ChainId) -> Result<Option<Tail>, StoreError> {
        let select = "SELECT id, hash, time + behind FROM records WHERE id > ? AND id < ? ORDER BY id DESC LIMIT 1";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(select)?;
            let tail = |row: &Row<'_>| {
                Ok(Tail { seq: seq(row.get(0)?), hash: Hash::from_bytes(bytes(row, 1)?), time: unsigned(row.get(2)?) })
            };
            statement.query_row([id(chain, 0), id(ChainId(chain.0 + 1), 0)], tail).optional()
        })
    }

    fn commit(&mut self, chain: ChainId, group: &Group) -> Result<(), StoreError> {
        self.write(|connection| {
            let mut insert = connection.prepare_cached("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)")?;
            for record in &group.records {
                let (time, behind) = (signed(record.time), signed(record.behind));
                let hash = record.hash.as_bytes();
                insert.execute(params![
                    id(chain, record.seq),
                    time,
                    behind,
                    record.kind,
                    record.request,
                    hash,
                    record.body
                ])?;
            }
            let head = &group.head;
            let superseded = [id(chain, head.block()), id(chain, head.seq)];
            connection.prepare_cached("DELETE FROM heads WHERE id >= ? AND id < ?")?.execute(superseded)?;
            connection.prepare_cached("INSERT INTO heads VALUES (?, ?, ?, ?)")?.execute(params![
                id(chain, head.seq),
                signed(head.time),
                head.hash.as_bytes(),
                head.signature.as_bytes()
            ])?;
            Ok(0)
        })?;
        if let Some(checkpoints) = &mut self.checkpoints {
            let written = group.records.iter().map(|record| record.body.len()).sum();
            checkpoints.written(written, &self.connection);
        }
        Ok(())
    }

    fn scan(&mut self, chain: ChainId, range: Range, visit: Visit<'_>) -> Result<(), StoreError> {
        let select = "SELECT id, time, behind, kind, request, hash, body FROM records WHERE id > ? AND id <= ? AND time >= ? \
                      ORDER BY id";
        let failed = |error| fault(&self.place, &error);
        let mut statement: CachedStatement<'_> = self.connection.prepare_cached(select).map_err(failed)?;
        let bounds = [id(chain, range.after), id(chain, range.until), signed(range.since)];
        let mut rows = statement.query(bounds).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if visit(entry(row).map_err(failed)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn find(&mut self, request: &str, visit: &mut dyn FnMut(ChainId, Entry<'_>)) -> Result<(), StoreError> {
        let select = "SELECT id, time, behind, kind, request, hash, body FROM records \
                      WHERE request = ? AND request <> '' ORDER BY id";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(select)?;
            let mut rows = statement.query([request])?;
            while let Some(row) = rows.next()? {
                visit(ChainId(row.get::<_, i64>(0)? >> SPAN), entry(row)?);
            }
            Ok(())
        })
    }

    fn heads(&mut self, chain: ChainId, name: &ChainName, after: u64) -> Result<Vec<Head>, StoreError> {
        let rows = self.signed(chain, "heads", after)?;
        let head = |(seq, time, hash, signature)| Head { chain: name.clone(), seq, time, hash, signature };
        Ok(rows.into_iter().map(head).collect())
    }

    fn seals(&mut self, chain: ChainId, name: &ChainName) -> Result<Vec<Seal>, StoreError> {
        let rows = self.signed(chain, "seals", 0)?;
        let seal = |(through, time, hash, signature)| Seal { chain: name.clone(), through, hash, time, signature };
        Ok(rows.into_iter().map(seal).collect())
    }

    fn seal(&mut self, chain: ChainId, seal: &Seal) -> Result<(), StoreError> {
        let (hash, signature) = (seal.hash.as_bytes(), seal.signature.as_bytes());
        let row = params![id(chain, seal.through), signed(seal.time), hash, signature];
        self.write(|connection| {
            connection.execute("INSERT OR REPLACE INTO seals VALUES (?, ?, ?, ?)", row).map(|_| 0)
        })?;
        Ok(())
    }

    fn delete(&mut self, chain: ChainId, through: u64) -> Result<u64, StoreError> {
        self.write(|connection| {
            let last = "SELECT max(id) FROM (SELECT id FROM records WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)";
            let bounds = [id(chain, 0), id(chain, through), signed(DELETED_AT_ONCE)];
            let last: Option<i64> = connection.query_row(last, bounds, |row| row.get(0))?;
            let bounds = [id(chain, 0), last.unwrap_or_else(|| id(chain, through))];
            connection.execute("DELETE FROM heads WHERE id > ? AND id <= ?", bounds)?;
            let deleted = connection.execute("DELETE FROM records WHERE id > ? AND id <= ?", bounds)?;
            Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
        })
    }

    fn freeze(&mut self) -> Result<(), StoreError> {
        // A read transaction sees the file as it was at its first read.
        self.read(|connection| {
            connection.execute_batch("BEGIN")?;
            connection.query_row("SELECT count(*) FROM chains", [], |_| Ok(()))
        })
    }
}

impl Sqlite {
    fn signed(&self, chain: ChainId, table: &str, after: u64) -> Result<Vec<(u64, u64, Hash, Signature)>, StoreError> {
        let select = format!("SELECT id, time, hash, signature FROM {table} WHERE id > ? AND id < ? ORDER BY id");
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&select)?;
            let rows = statement.query_map([id(chain, after), id(ChainId(chain.0 + 1), 0)], |row| {
                let (hash, signature) = (Hash::from_bytes(bytes(row, 2)?), Signature::from_bytes(bytes(row, 3)?));
                Ok((seq(row.get(0)?), unsigned(row.get(1)?), hash, signature))
            })?;
            rows.collect()
        })
    }
}
