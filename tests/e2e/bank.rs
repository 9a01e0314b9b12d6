//! docs/bank.md, walked: its commands, in its order, against what `make bank` starts; and what its prose says beyond them.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::up::{MODEL, PENSTOCK, client, model_file};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const EXAMPLES: &str = "deploy/examples";
/// The stand-in's port in the committed files.
const PORT: &str = "8090";
/// Stands between the commands' outputs.
const MARK: &str = "@@ next @@";
const FREE: &str = "127.0.0.1:0";

/// What `make bank` runs, on free ports, in a folder that looks as the repository does to it.
struct Bank {
    child: Child,
    dir: tempfile::TempDir,
}

impl Bank {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path(EXAMPLES)).unwrap();
        std::fs::create_dir_all(path("target/release")).unwrap();
        std::os::unix::fs::symlink(PENSTOCK, path("target/release/penstock")).unwrap();
        let port = TcpListener::bind(FREE).unwrap().local_addr().unwrap().port().to_string();
        for file in std::fs::read_dir(Path::new(ROOT).join(EXAMPLES)).unwrap().map(Result::unwrap) {
            let text = std::fs::read_to_string(file.path()).unwrap().replace(PORT, &port);
            std::fs::write(path(EXAMPLES).join(file.file_name()), text).unwrap();
        }
        let mut child = Command::new("bash")
            .arg("deploy/examples/bank.sh")
            .args(["--http", FREE, "--grpc", FREE, "--admin", FREE, "--ops", FREE])
            .args(flags)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let ready = out.by_ref().lines().any(|line| line.unwrap().starts_with("ready"));
        let bank = Self { child, dir };
        assert!(ready, "{}", std::fs::read_to_string(bank.dir.path().join("log")).unwrap());
        bank
    }

    /// What each of some commands says, run one after the other in one shell that has sourced what `make bank` wrote.
    fn run(&self, commands: &[String]) -> Vec<String> {
        let mut script = "exec 2>&1\nsource target/bank/env\n".to_owned();
        commands.iter().for_each(|command| writeln!(script, "echo '{MARK}'\n{command}").unwrap());
        let output = Command::new("bash").args(["-c", &script]).current_dir(self.dir.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(&format!("{MARK}\n")).skip(1).map(str::to_owned).collect()
    }

    /// Asks with the key in a variable: status, target and body.
    async fn ask(&self, key: &str, model: &str, prompt: &str) -> (u16, String, String) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4});
        let url = format!("{}/v1/chat/completions", self.variable("BANK"));
        let request = client().post(url).bearer_auth(self.variable(key)).body(body.to_string());
        let response = request.send().await.unwrap();
        let target = response.headers().get("x-penstock-target").map(|target| target.to_str().unwrap().to_owned());
        (response.status().as_u16(), target.unwrap_or_default(), response.text().await.unwrap())
    }

    /// What one command says.
    fn say(&self, command: &str) -> String {
        self.run(&[command.to_owned()]).remove(0)
    }

    /// The value of a variable that `make bank` wrote.
    fn variable(&self, name: &str) -> String {
        self.say(&format!("printf %s \"${name}\""))
    }
}

impl Drop for Bank {
    /// As Ctrl-C would, so that what it has started ends too.
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// The commands of a document's `console` blocks, each with what it is said to print.
fn console(text: &str) -> Vec<(String, String)> {
    let mut said: Vec<(String, String)> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        for line in block.lines() {
            match (line.strip_prefix("$ "), line.strip_prefix("> "), said.last_mut()) {
                (Some(command), ..) => said.push((command.to_owned(), String::new())),
                (None, Some(more), Some((command, _))) => write!(command, "\n{more}").unwrap(),
                (None, _, Some((_, output))) => writeln!(output, "{line}").unwrap(),
                (None, _, None) => panic!("{line} stands before the first command"),
            }
        }
    }
    said
}

/// Whether a text is as expected, where `…` stands for anything.
fn is_like(text: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn the_walk_through_says_what_happens() {
    let bank = Bank::start(&["--model", &format!("{MODEL}={}", model_file().display())]);
    let said = console(&std::fs::read_to_string(Path::new(ROOT).join("docs/bank.md")).unwrap());
    let commands: Vec<String> = said.iter().map(|(command, _)| command.clone()).collect();
    let outputs = bank.run(&commands);
    assert_eq!(outputs.len(), said.len());
    for ((command, expected), output) in said.iter().zip(&outputs) {
        assert!(
            is_like(output.trim_end(), expected.trim_end()),
            "$ {command}\n{output}\nbut docs/bank.md says\n{expected}"
        );
    }
}

#[tokio::test]
async fn while_home_is_behind_staff_go_to_the_provider_under_contract() {
    let slow = ["--runner", "scripted", "--model", MODEL, "--scripted-prefill-rate", "500"];
    let bank = Bank::start(&slow);
    assert_eq!(bank.ask("STAFF_KEY", "assistant", "Hi").await.1, format!("local/{MODEL}"));
    let explain = "penstock explain --tenant staff --model assistant -o table";
    // The stand-in engine has a token for each byte: it reads this for some 16 s.
    let long = "word ".repeat(1_600);
    let behind = async {
        while !bank.say(explain).contains("overflow: the route's own targets are ") {
            tokio::task::yield_now().await;
        }
        bank.ask("STAFF_KEY", "assistant", "Hi").await
    };
    let (status, target, body) = tokio::select! {
        done = bank.ask("STAFF_KEY", "assistant", &long) => panic!("home was never behind: {done:?}"),
        behind = behind => behind,
    };
    assert_eq!((status, target.as_str()), (200, "notary/large"), "{body}");
}

#[tokio::test]
async fn without_egress_everything_stays_at_home_and_the_start_up_needs_nobody_else() {
    let bank = Bank::start(&["--runner", "scripted", "--model", MODEL, "--no-egress"]);
    for (key, model) in [("WEB_KEY", "support"), ("STAFF_KEY", "assistant"), ("LAB_KEY", "lab")] {
        let (status, target, body) = bank.ask(key, model, "When do you open?").await;
        assert_eq!((status, target), (200, format!("local/{MODEL}")), "{body}");
    }
    let (status, _, body) = bank.ask("STAFF_KEY", "translate", "When do you open?").await;
    assert!(status == 403 && body.contains("--no-egress") && body.contains("notary/large"), "{status} {body}");
    let told = bank.say("penstock explain --tenant web --model support -o table");
    assert!(told.contains("--no-egress"), "{told}");
    assert_eq!(bank.say("curl -s $PROVIDER/seen"), "");

    let applied = bank.say("penstock apply -f deploy/examples/startup.yaml -o table");
    assert!(applied.contains("+ tenant northwind") && applied.contains("is in force"), "{applied}");
    let made = bank.say("penstock tenant create northwind -o json 2>/dev/null");
    let made: Value = serde_json::from_str(&made).unwrap();
    let line = format!("export NORTHWIND_KEY={}\n", made["key"].as_str().unwrap());
    let env = bank.dir.path().join("target/bank/env");
    std::fs::write(&env, std::fs::read_to_string(&env).unwrap() + &line).unwrap();
    let (status, target, body) = bank.ask("NORTHWIND_KEY", "chat", "Hi").await;
    assert_eq!((status, target), (200, format!("local/{MODEL}")), "{body}");
    assert_eq!(bank.ask("WEB_KEY", "support", "Hi").await.0, 401, "the bank's tenants are gone");
}
