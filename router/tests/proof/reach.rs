//! Who can write to a worker or an upstream at all: the two files that hold a client, whose calls want the gate's word.

use std::collections::BTreeSet;
use std::path::Path;

use walk::files;

mod walk {
    use std::path::{Path, PathBuf};

    /// The source files under a directory.
    pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }
}

/// The files of the router that have one of these words in them.
fn naming(words: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        words.iter().any(|word| text.contains(word))
    };
    let found = files(&root).into_iter().filter(|path| names(path));
    found.map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect()
}

fn set<const N: usize>(files: [&str; N]) -> BTreeSet<String> {
    files.map(str::to_owned).into()
}

#[test]
fn one_file_calls_upstreams_and_one_asks_workers_to_generate() {
    // Another HTTP client, or another connection, would be another way out. The keys of issuers are fetched, with nothing
    // of any request.
    assert_eq!(
        naming(&["reqwest::", "hyper::client", "legacy::Client"]),
        set(["tenant/jwt/source.rs", "upstream/answer.rs", "upstream/transport.rs"])
    );
    assert_eq!(
        naming(&["Client::builder", "self.client.post"]),
        set(["tenant/jwt/source.rs", "upstream/transport.rs"])
    );
    assert_eq!(naming(&["TcpStream::connect", "UdpSocket", "UnixStream"]), set([]));
    // The worker's other calls carry no request's data.
    assert_eq!(naming(&["WorkerClient"]), set(["replica.rs", "replica/control.rs", "replica/fetch.rs"]));
    assert_eq!(naming(&["client.generate(", "client.clone().generate("]), set(["replica.rs"]));
}

#[test]
fn the_gates_word_is_given_by_the_gate_alone() {
    assert_eq!(naming(&["Authorised {"]), set(["policy/gate.rs"]));
    assert_eq!(naming(&["Covered(())"]), set(["policy/gate.rs"]));
}
