//! Moving the log into the file, beside the writer.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Bytes that a commit writes beside its records, about: the last page of each tree.
const OVERHEAD: usize = 20 << 10;
/// Bytes of the log after which it is moved.
const ENOUGH: usize = 8 << 20;
/// Bytes of the log beyond which the writer waits for the move.
const TOO_MANY: usize = 256 << 20;

/// When the log is moved, and by whom.
pub(super) struct Checkpoints {
    path: PathBuf,
    /// Bytes of the log, about.
    log: usize,
    running: Option<JoinHandle<()>>,
}

impl Checkpoints {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), log: 0, running: None }
    }

    /// Told of every commit. A move beside the writer leaves over what came meanwhile; the writer itself moves that, which
    /// is little, and then the log begins anew.
    pub(super) fn written(&mut self, bytes: usize, connection: &Connection) {
        self.log += bytes + OVERHEAD;
        match self.running.take() {
            Some(running) if !running.is_finished() && self.log < TOO_MANY => self.running = Some(running),
            Some(running) => {
                join(running);
                checkpoint(connection);
                self.log = 0;
            }
            None if self.log >= ENOUGH => {
                let path = self.path.clone();
                let name = "ledger-checkpoint".to_owned();
                let run = move || {
                    // A ledger that cannot be opened just now is moved later: nothing depends on when.
                    if let Ok(connection) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE) {
                        let _ = connection.busy_timeout(Duration::from_secs(1));
                        checkpoint(&connection);
                    }
                };
                self.running = std::thread::Builder::new().name(name).spawn(run).ok();
            }
            None => {}
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            join(running);
        }
    }
}

/// What is not moved stays in the log, where it is as durable: a failure costs space only.
fn checkpoint(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the ledger's log is not moved into its file");
    }
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
