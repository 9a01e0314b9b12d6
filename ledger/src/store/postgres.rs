//! A ledger in PostgreSQL. Each group is one statement: one way there and back, and written whole or not at all.
//!
//! The connection has a runtime of its own, so that a ledger can be read and written from plain threads; calls from async
//! code go through `spawn_blocking`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::{Backend, ChainId, FORMAT, Group, Mode, Range, StoreError, Tail, Visit, signed, tls, unsigned};
use crate::chain::{ChainName, Entry, Hash, Head, Seal};
use crate::key::Signature;

/// Records that are read or deleted with one statement.
const AT_ONCE: i64 = 5_000;
/// Of programs that make the tables at the same time, one does: "PSTK".
const LOCK: i64 = 0x5053_544b;

const SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS penstock_ledger;
CREATE TABLE IF NOT EXISTS penstock_ledger.format (version int NOT NULL);
CREATE TABLE IF NOT EXISTS penstock_ledger.chains (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS penstock_ledger.records (
  chain bigint NOT NULL, seq bigint NOT NULL, time bigint NOT NULL, behind bigint NOT NULL, kind text NOT NULL,
  request text NOT NULL, hash bytea NOT NULL, body bytea NOT NULL, PRIMARY KEY (chain, seq)
);
CREATE INDEX IF NOT EXISTS records_request ON penstock_ledger.records (request) WHERE request <> '';
CREATE TABLE IF NOT EXISTS penstock_ledger.heads (
  chain bigint NOT NULL, seq bigint NOT NULL, time bigint NOT NULL, hash bytea NOT NULL, signature bytea NOT NULL,
  PRIMARY KEY (chain, seq)
);
CREATE TABLE IF NOT EXISTS penstock_ledger.seals (
  chain bigint NOT NULL, seq bigint NOT NULL, time bigint NOT NULL, hash bytea NOT NULL, signature bytea NOT NULL,
  PRIMARY KEY (chain, seq)
);
";

const COMMIT: &str = "
WITH records AS (
  INSERT INTO penstock_ledger.records (chain, seq, time, behind, kind, request, hash, body)
  SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bytea[], $8::bytea[])
), superseded AS (
  DELETE FROM penstock_ledger.heads WHERE chain = $1 AND seq >= $9 AND seq < $10
)
INSERT INTO penstock_ledger.heads (chain, seq, time, hash, signature) VALUES ($1, $10, $11, $12, $13)";

/// A ledger in a database.
pub(super) struct Postgres {
    runtime: Runtime,
    config: Config,
    tls: Option<tls::Connector>,
    link: Option<Link>,
    frozen: bool,
    patience: Duration,
    place: String,
}

/// A connection and the statement that it is for.
struct Link {
    client: Client,
    commit: Option<Statement>,
}

impl Postgres {
    pub(super) fn open(url: &str, mode: Mode, patience: Duration) -> Result<Self, StoreError> {
        let (url, authority) = split_authority(url);
        let mut config: Config = url.parse().map_err(|error| invalid(&error))?;
        let tls = match is_local(&config) {
            true => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            false if config.get_ssl_mode() == SslMode::Disable => {
                let reason = "sslmode=disable off loopback: anybody on the way reads and changes records; leave it out";
                return Err(StoreError::Url { reason: reason.to_owned() });
            }
            false => {
                config.ssl_mode(SslMode::Require);
                Some(tls::Connector::new(authority.as_deref()).map_err(|reason| StoreError::Url { reason })?)
            }
        };
        config.connect_timeout(patience).application_name("penstock").keepalives_idle(Duration::from_secs(30));
        let place = without_secrets(&url);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| StoreError::Failed { place: place.clone(), reason: error.to_string() })?;
        let mut ledger = Self { runtime, config, tls, link: None, frozen: false, patience, place };
        ledger.prepare(mode)?;
        Ok(ledger)
    }

    fn prepare(&mut self, mode: Mode) -> Result<(), StoreError> {
        let there = "SELECT to_regclass('penstock_ledger.format') IS NOT NULL";
        let there: bool = self.call(async |link| link.client.query_one(there, &[]).await?.try_get(0))?;
        if !there && mode == Mode::Read {
            return Err(StoreError::Missing { place: self.place.clone() });
        }
        if there {
            self.check_format()?;
        }
        if mode == Mode::Write {
            self.call(async |link| {
                let transaction = link.client.transaction().await?;
                transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
                transaction.batch_execute(SCHEMA).await?;
                let once = "INSERT INTO penstock_ledger.format SELECT $1 WHERE NOT EXISTS \
                            (SELECT FROM penstock_ledger.format)";
                transaction.execute(once, &[&FORMAT]).await?;
                transaction.commit().await
            })?;
            self.check_format()?;
        }
        Ok(())
    }

    fn check_format(&mut self) -> Result<(), StoreError> {
        let select = "SELECT max(version) FROM penstock_ledger.format";
        let format: Option<i32> = self.call(async |link| link.client.query_one(select, &[]).await?.try_get(0))?;
        match format {
            Some(format) if format > FORMAT => Err(StoreError::Newer { place: self.place.clone(), format }),
            Some(_) | None => Ok(()),
        }
    }

    /// Runs a call on the connection, which is made anew where the last one broke. What does not answer in time loses
    /// its connection: whether the server did it is then not known, and found out by reading.
    fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Link) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let slow = || StoreError::Slow { place: self.place.clone(), patience: self.patience };
        let deadline = self.patience;
        let mut link = match self.link.take().filter(|link| !link.client.is_closed()) {
            Some(link) => link,
            None if self.frozen => {
                let reason = "the connection broke while the ledger was read".to_owned();
                return Err(StoreError::Unreachable { place: self.place.clone(), reason });
            }
            None => {
                let connecting = connect(&self.runtime, &self.config, self.tls.as_ref());
                let connected = self.runtime.block_on(async { tokio::time::timeout(deadline, connecting).await });
                connected.map_err(|_| slow())?.map_err(|error| fault(&self.place, &error))?
            }
        };
        let called = self.runtime.block_on(async { tokio::time::timeout(deadline, call(&mut link)).await });
        let result = called.map_err(|_| slow())?;
        self.link = Some(link);
        result.map_err(|error| fault(&self.place, &error))
    }

    fn signed(
        &mut self,
        chain: ChainId,
        table: &str,
        after: u64,
    ) -> Result<Vec<(u64, u64, Hash, Signature)>, StoreError> {
        let select = format!(
            "SELECT seq, time, hash, signature FROM penstock_ledger.{table} WHERE chain = $1 AND seq > $2 ORDER BY seq"
        );
        let after = signed(after);
        self.call(async |link| {
            let rows = link.client.query(&select, &[&chain.0, &after]).await?;
            let read = |row: &Row| {
                let (hash, signature) = (Hash::from_bytes(bytes(row, 2)?), Signature::from_bytes(bytes(row, 3)?));
                Ok((unsigned(row.try_get(0)?), unsigned(row.try_get(1)?), hash, signature))
            };
            rows.iter().map(read).collect()
        })
    }
}

async fn connect(
    runtime: &Runtime,
    config: &Config,
    tls: Option<&tls::Connector>,
) -> Result<Link, tokio_postgres::Error> {
    // The runtime ends with the ledger, and the connection's task with it.
    let client = match tls {
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            runtime.spawn(connection);
            client
        }
        Some(tls) => {
            let (client, connection) = config.connect(tls.clone()).await?;
            runtime.spawn(connection);
            client
        }
    };
    client.batch_execute("SET synchronous_commit = on").await?;
    Ok(Link { client, commit: None })
}

/// Takes `sslrootcert=FILE` out of a URL: an authority of one's own, as libpq has it.
fn split_authority(url: &str) -> (String, Option<PathBuf>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let (own, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|part| part.starts_with("sslrootcert="));
    let authority = own.first().and_then(|part| part.split_once('=')).map(|(_, file)| PathBuf::from(file));
    let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
    (url, authority)
}

/// A URL as it may be shown: the part between scheme and host may hold a password, and so may the query.
pub(super) fn without_secrets(url: &str) -> String {
    let base = url.split_once('?').map_or(url, |(base, _)| base);
    match base.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host)),
        None => "PostgreSQL".to_owned(),
    }
}

/// Whether the way to a database never leaves this machine.
fn is_local(config: &Config) -> bool {
    let loopback = |address: &IpAddr| address.is_loopback();
    let hosts = config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address| loopback(&address)),
    });
    hosts && config.get_hostaddrs().iter().all(loopback)
}

fn invalid(error: &tokio_postgres::Error) -> StoreError {
    let reason = format!("{}: postgres://USER@HOST/DATABASE is expected", causes(error));
    StoreError::Url { reason }
}

fn causes(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn fault(place: &str, error: &tokio_postgres::Error) -> StoreError {
    let (place, reason) = (place.to_owned(), causes(error));
    match error.code() {
        Some(&SqlState::DISK_FULL) => StoreError::Full { place },
        Some(&SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::INSUFFICIENT_PRIVILEGE) => {
            StoreError::ReadOnly { place, reason }
        }
        Some(&SqlState::DATA_CORRUPTED | &SqlState::INDEX_CORRUPTED) => StoreError::Damaged { place, reason },
        // Class 08 is the connection's, 57P is the server that ends.
        Some(code) if code.code().starts_with("08") || code.code().starts_with("57P") => {
            StoreError::Unreachable { place, reason }
        }
        Some(_) => StoreError::Failed { place, reason },
        None => StoreError::Unreachable { place, reason },
    }
}

fn bytes<const N: usize>(row: &Row, column: usize) -> Result<[u8; N], tokio_postgres::Error> {
    let bytes: &[u8] = row.try_get(column)?;
    // What has another length was not written by us; no hash and no signature is all zero.
    Ok(bytes.try_into().unwrap_or([0; N]))
}

fn entry(row: &Row) -> Result<Entry<'_>, tokio_postgres::Error> {
    Ok(Entry {
        seq: unsigned(row.try_get(0)?),
        time: unsigned(row.try_get(1)?),
        behind: unsigned(row.try_get(2)?),
        kind: row.try_get(3)?,
        request: row.try_get(4)?,
        hash: Hash::from_bytes(bytes(row, 5)?),
        body: row.try_get(6)?,
    })
}

impl Backend for Postgres {
    fn chain(&mut self, name: &ChainName) -> Result<ChainId, StoreError> {
        self.call(async |link| {
            let insert = "INSERT INTO penstock_ledger.chains (name) VALUES ($1) ON CONFLICT DO NOTHING";
            link.client.execute(insert, &[&name.as_str()]).await?;
            let select = "SELECT id FROM penstock_ledger.chains WHERE name = $1";
            link.client.query_one(select, &[&name.as_str()]).await?.try_get(0).map(ChainId)
        })
    }

    fn chains(&mut self) -> Result<Vec<(ChainId, ChainName)>, StoreError> {
        let rows: Vec<(i64, String)> = self.call(async |link| {
            let rows = link.client.query("SELECT id, name FROM penstock_ledger.chains ORDER BY id", &[]).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })?;
        let damaged = |error: crate::InvalidChainName| StoreError::Damaged {
            place: self.place.clone(),
            reason: error.to_string(),
        };
        rows.into_iter().map(|(id, name)| Ok((ChainId(id), ChainName::new(name).map_err(damaged)?))).collect()
    }

    fn tail(&mut self, chain: ChainId) -> Result<Option<Tail>, StoreError> {
        let select =
            "SELECT seq, hash, time + behind FROM penstock_ledger.records WHERE chain = $1 ORDER BY seq DESC LIMIT 1";
        self.call(async |link| {
            let Some(row) = link.client.query_opt(select, &[&chain.0]).await? else { return Ok(None) };
            let (seq, time) = (unsigned(row.try_get(0)?), unsigned(row.try_get(2)?));
            Ok(Some(Tail { seq, hash: Hash::from_bytes(bytes(&row, 1)?), time }))
        })
    }

    fn commit(&mut self, chain: ChainId, group: &Group) -> Result<(), StoreError> {
        let records = &group.records;
        let seqs: Vec<i64> = records.iter().map(|record| signed(record.seq)).collect();
        let times: Vec<i64> = records.iter().map(|record| signed(record.time)).collect();
        let behind: Vec<i64> = records.iter().map(|record| signed(record.behind)).collect();
        let kinds: Vec<&str> = records.iter().map(|record| record.kind).collect();
        let requests: Vec<&str> = records.iter().map(|record| record.request.as_str()).collect();
        let hashes: Vec<&[u8]> = records.iter().map(|record| record.hash.as_bytes().as_slice()).collect();
        let bodies: Vec<&[u8]> = records.iter().map(|record| record.body.as_slice()).collect();
        let head = &group.head;
        let (block, seq, time) = (signed(head.block()), signed(head.seq), signed(head.time));
        let (hash, signature) = (head.hash.as_bytes().as_slice(), head.signature.as_bytes().as_slice());
        self.call(async |link| {
            let statement = match link.commit.clone() {
                Some(statement) => statement,
                None => link.commit.insert(link.client.prepare(COMMIT).await?).clone(),
            };
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 13] = [
                &chain.0, &seqs, &times, &behind, &kinds, &requests, &hashes, &bodies, &block, &seq, &time, &hash,
                &signature,
            ];
            link.client.execute(&statement, &values).await.map(|_| ())
        })
    }

    fn scan(&mut self, chain: ChainId, range: Range, visit: Visit<'_>) -> Result<(), StoreError> {
        let select = "SELECT seq, time, behind, kind, request, hash, body FROM penstock_ledger.records \
                      WHERE chain = $1 AND seq > $2 AND seq <= $3 AND time >= $4 ORDER BY seq LIMIT $5";
        let mut after = signed(range.after);
        loop {
            let (until, since) = (signed(range.until), signed(range.since));
            let rows =
                self.call(async |link| link.client.query(select, &[&chain.0, &after, &until, &since, &AT_ONCE]).await)?;
            for row in &rows {
                if visit(entry(row).map_err(|error| fault(&self.place, &error))?).is_break() {
                    return Ok(());
                }
            }
            match rows.last() {
                Some(row) => after = row.try_get(0).map_err(|error| fault(&self.place, &error))?,
                None => return Ok(()),
            }
        }
    }

    fn find(&mut self, request: &str, visit: &mut dyn FnMut(ChainId, Entry<'_>)) -> Result<(), StoreError> {
        let select = "SELECT seq, time, behind, kind, request, hash, body, chain FROM penstock_ledger.records \
                      WHERE request = $1 AND request <> '' ORDER BY chain, seq";
        let rows = self.call(async |link| link.client.query(select, &[&request]).await)?;
        for row in &rows {
            let chain = row.try_get(7).map_err(|error| fault(&self.place, &error))?;
            visit(ChainId(chain), entry(row).map_err(|error| fault(&self.place, &error))?);
        }
        Ok(())
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
        let (through, time) = (signed(seal.through), signed(seal.time));
        let (hash, signature) = (seal.hash.as_bytes().as_slice(), seal.signature.as_bytes().as_slice());
        let insert = "INSERT INTO penstock_ledger.seals VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        self.call(async |link| {
            link.client.execute(insert, &[&chain.0, &through, &time, &hash, &signature]).await.map(|_| ())
        })
    }

    fn delete(&mut self, chain: ChainId, through: u64) -> Result<u64, StoreError> {
        let delete = "WITH batch AS (SELECT seq FROM penstock_ledger.records WHERE chain = $1 AND seq <= $2 ORDER BY seq \
                    LIMIT $3), heads AS (DELETE FROM penstock_ledger.heads WHERE chain = $1 AND seq <= \
                    COALESCE((SELECT max(seq) FROM batch), $2)) \
                    DELETE FROM penstock_ledger.records WHERE chain = $1 AND seq IN (SELECT seq FROM batch)";
        let through = signed(through);
        self.call(async |link| link.client.execute(delete, &[&chain.0, &through, &AT_ONCE]).await)
    }

    fn freeze(&mut self) -> Result<(), StoreError> {
        self.call(async |link| link.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await)?;
        self.frozen = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        url.parse().unwrap()
    }

    #[test]
    fn a_url_is_shown_without_what_is_secret() {
        assert_eq!(without_secrets("postgres://me:p@ss@db:5432/ledger?password=x"), "postgres://db:5432/ledger");
        assert_eq!(without_secrets("host=db password=secret"), "PostgreSQL");
    }

    #[test]
    fn what_leaves_the_machine_is_told_from_what_does_not() {
        assert!(is_local(&config("postgres://me@127.0.0.1/x")) && is_local(&config("postgres://me@[::1]/x")));
        assert!(is_local(&config("postgres://me@%2Frun%2Fpg/x")) && is_local(&config("postgres://me@localhost/x")));
        assert!(!is_local(&config("postgres://me@db.example/x")) && !is_local(&config("postgres://a@127.0.0.1,db/x")));
        assert!(!is_local(&config("host=localhost hostaddr=10.0.0.1 user=me")));
    }

    #[test]
    fn plaintext_off_loopback_and_what_is_no_url_are_refused() {
        let open = |url| Postgres::open(url, Mode::Read, Duration::from_secs(1)).map(|_| ()).unwrap_err().to_string();
        assert!(open("postgres://me@db.example/x?sslmode=disable").contains("sslmode=disable off loopback"));
        assert!(open("postgres://me@db.example/x?sslmod=disable").contains("--ledger-url"));
        assert!(open("postgres://me@db.example/x?sslrootcert=/no/such.pem").contains("/no/such.pem"));
        let dead = open("postgres://me@127.0.0.1:1/x");
        assert!(dead.contains("is not reachable"), "{dead}");
    }

    #[test]
    fn an_authority_is_taken_out_of_the_url() {
        let (url, authority) = split_authority("postgres://db/x?sslmode=require&sslrootcert=/etc/ca.pem");
        assert_eq!((url.as_str(), authority), ("postgres://db/x?sslmode=require", Some(PathBuf::from("/etc/ca.pem"))));
        assert_eq!(split_authority("postgres://db/x"), ("postgres://db/x".to_owned(), None));
    }
}
