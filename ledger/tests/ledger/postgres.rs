//! A real PostgreSQL: made for this process, reached by a Unix socket, gone with it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::support::{executable, until};

/// The one of this process.
pub(crate) static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

/// Nobody: PostgreSQL does not run as root.
const NOBODY: u32 = 65_534;

pub(crate) struct Server {
    dir: PathBuf,
    bin: PathBuf,
    databases: AtomicU32,
    /// Its input ends with this process; so does it.
    _child: Mutex<Child>,
}

impl Server {
    fn start() -> Self {
        let bin = binaries();
        let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap().keep();
        chown(&dir, Some(owner(&dir)), None).unwrap();
        let data = dir.join("data");
        let made = command(&bin.join("initdb"), &dir)
            .args(["--no-sync", "--auth=trust", "--username=penstock", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // The shell outlives the server by the time that tidying takes, and this process by no more.
        let script =
            "\"$1\" -D \"$2/data\" -k \"$2\" -c listen_addresses= -c max_connections=60 >\"$2/log\" 2>&1 & server=$!
                      cat >/dev/null; kill -INT $server; wait $server; rm -rf \"$2\"";
        let child = command(Path::new("/bin/sh"), &dir)
            .args(["-c", script, "sh"])
            .args([&bin.join("postgres"), &dir])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let server = Self { dir, bin, databases: AtomicU32::new(0), _child: Mutex::new(child) };
        until("PostgreSQL takes connections", || {
            let ready =
                command(&server.bin.join("pg_isready"), &server.dir).arg("-q").arg("-h").arg(&server.dir).status();
            ready.unwrap().success()
        });
        server
    }

    /// A fresh database.
    pub(crate) fn database(&'static self) -> Database {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let admin = Database { server: self, name: "postgres".to_owned() };
        admin.run(&format!("CREATE DATABASE {name}"));
        Database { server: self, name }
    }
}

/// Run as somebody who may run a server.
fn command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // Whoever runs this owns what it makes.
    tempfile::tempfile().unwrap().metadata().unwrap().uid() == 0
}

fn owner(dir: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    if is_root() { NOBODY } else { std::fs::metadata(dir).unwrap().uid() }
}

/// Where initdb and postgres are: as PENSTOCK_TEST_POSTGRES says, or as Debian and Fedora have them.
#[expect(clippy::disallowed_methods, reason = "tests find their real parts by the environment")]
fn binaries() -> PathBuf {
    if let Ok(bin) = std::env::var("PENSTOCK_TEST_POSTGRES") {
        return PathBuf::from(bin);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    let path = std::env::var("PATH").unwrap_or_default();
    let found = debian.chain(std::env::split_paths(&path)).find(|bin| executable(&bin.join("initdb")));
    found
        .expect("no PostgreSQL here: install it, or set PENSTOCK_TEST_POSTGRES to the directory of initdb and postgres")
}

#[derive(Clone)]
pub(crate) struct Database {
    server: &'static Server,
    name: String,
}

impl Database {
    pub(crate) fn url(&self) -> String {
        self.url_by(&self.server.dir)
    }

    fn url_by(&self, socket: &Path) -> String {
        let socket = socket.display().to_string().replace('/', "%2F");
        format!("postgres://penstock@{socket}/{}", self.name)
    }

    /// Runs SQL, and gives the cells of what it answers.
    pub(crate) fn run(&self, sql: &str) -> Vec<String> {
        let mut psql = command(&self.server.bin.join("psql"), &self.server.dir);
        psql.args(["-U", "penstock", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", &self.name, "-h"]).arg(&self.server.dir);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "{sql:.200}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().split(['|', '\n']).map(str::to_owned).collect()
    }

    /// Ends all of its connections, as a server that is restarted does.
    pub(crate) fn drop_connections(&self) {
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> \
                  pg_backend_pid()",
        );
    }

    /// A way to it that can be blocked.
    pub(crate) fn by_way(&self) -> Way {
        Way::new(self)
    }
}

/// A socket that passes bytes on, in both directions or, while the way back is blocked, in one.
pub(crate) struct Way {
    dir: tempfile::TempDir,
    url: String,
    blocked: Arc<AtomicBool>,
}

impl Way {
    fn new(database: &Database) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let blocked = Arc::new(AtomicBool::new(false));
        let (url, to) = (database.url_by(dir.path()), database.server.dir.join(".s.PGSQL.5432"));
        let block = Arc::clone(&blocked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = UnixStream::connect(&to).unwrap();
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), None);
                pass(server, client, Some(Arc::clone(&block)));
            }
        });
        Self { dir, url, blocked }
    }

    pub(crate) fn url(&self) -> String {
        assert!(self.dir.path().exists());
        self.url.clone()
    }

    /// From here on the server gets what it is sent, and its answers are lost.
    pub(crate) fn block(&self) {
        self.blocked.store(true, Ordering::SeqCst);
    }

    pub(crate) fn unblock(&self) {
        self.blocked.store(false, Ordering::SeqCst);
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, blocked: Option<Arc<AtomicBool>>) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if blocked.as_ref().is_some_and(|blocked| blocked.load(Ordering::SeqCst)) {
                continue;
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
