//! The catalogue of a cluster: applied from afar, in force on every router, while requests go on.

use std::path::PathBuf;
use std::process::Child;

use serde_json::{Value, json};

use crate::cluster::{Cluster, MODEL, Process};

/// Runs a command of an operator to its end beside the test's own tasks: its exit code, what it printed, what it said of
/// faults.
async fn operate(cluster: &Cluster, router: &Process, args: &[&str]) -> (Option<i32>, String, String) {
    let child: Child = cluster.operator(router, args).spawn().unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs one that must succeed and print JSON.
async fn json(cluster: &Cluster, router: &Process, args: &[&str]) -> Value {
    let (code, out, err) = operate(cluster, router, args).await;
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
}

fn write(cluster: &Cluster, name: &str, text: &str) -> PathBuf {
    let path = cluster.dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

async fn in_force(cluster: &Cluster, routers: &[&Process], version: u64) {
    for router in routers {
        cluster.metric(router, &format!("penstock_catalog_version {version}")).await;
    }
}

#[tokio::test]
async fn what_is_applied_is_in_force_on_every_router_and_no_request_is_lost() {
    let cluster = Cluster::start();
    let [r1, r2] = [cluster.router("r1", &[]), cluster.router("r2", &[])];
    let _worker = cluster.worker("w1", &[]);
    cluster.members(&r1, "ready", 1).await;
    cluster.members(&r2, "ready", 1).await;
    let event = async {
        for version in 1..=10 {
            let text =
                format!("models: [{{name: {MODEL}}}]\nroutes: [{{name: r{version}, targets: [{{model: {MODEL}}}]}}]\n");
            let file = write(&cluster, "bank.yaml", &text);
            // Each through another router.
            let (at, other) = if version % 2 == 0 { (&r1, &r2) } else { (&r2, &r1) };
            let told = json(&cluster, at, &["apply", "-f", file.to_str().unwrap()]).await;
            assert_eq!((&told["version"], &told["changed"]), (&json!(version), &json!(true)));
            let route = format!("r{version}");
            // Where it was applied it is in force already.
            cluster.ask_as(at, None, &route).await.unwrap();
            in_force(&cluster, &[other], version).await;
            cluster.ask_as(other, None, &route).await.unwrap();
        }
        let told = json(&cluster, &r2, &["rollback"]).await;
        assert_eq!((&told["version"], &told["restored"]), (&json!(11), &json!(9)));
        in_force(&cluster, &[&r1, &r2], 11).await;
        cluster.ask_as(&r1, None, "r9").await.unwrap();
        let gone = cluster.ask_as(&r1, None, "r10").await.unwrap_err();
        assert!(gone.starts_with("404") && gone.contains("r9"), "{gone}");
    };
    assert!(cluster.under_load(&[&r1, &r2], event).await > 16);
    let versions = json(&cluster, &r1, &["get", "versions"]).await;
    assert_eq!((versions.as_array().unwrap().len(), &versions[0]["restored"]), (11, &json!(9)));
}

#[tokio::test]
async fn keys_are_made_rotated_and_revoked_everywhere() {
    let cluster = Cluster::start();
    let [r1, r2] = [cluster.router("r1", &[]), cluster.router("r2", &[])];
    let _worker = cluster.worker("w1", &[]);
    cluster.members(&r1, "ready", 1).await;
    cluster.members(&r2, "ready", 1).await;
    let file = write(&cluster, "bank.yaml", &format!("# ours\nmodels: [{{name: {MODEL}}}]\n"));
    let file = file.to_str().unwrap();
    json(&cluster, &r1, &["apply", "-f", file]).await;

    let (code, out, err) =
        operate(&cluster, &r1, &["tenant", "create", "web", "--class", "public", "-o", "json"]).await;
    assert!(code == Some(0) && err.contains("warning: the catalogue has tenants now"), "{out}{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["tenant"], &told["id"], &told["version"]), (&json!("web"), &json!("k1"), &json!(2)));
    let first = told["key"].as_str().unwrap().to_owned();
    in_force(&cluster, &[&r1, &r2], 2).await;
    for router in [&r1, &r2] {
        cluster.ask_as(router, Some(&first), MODEL).await.unwrap();
        let nobody = cluster.ask_as(router, None, MODEL).await.unwrap_err();
        assert!(nobody.starts_with("401"), "{nobody}");
    }
    let told = json(&cluster, &r2, &["tenant", "rotate-key", "web", "--overlap", "1h"]).await;
    let second = told["key"].as_str().unwrap().to_owned();
    in_force(&cluster, &[&r1, &r2], 3).await;
    for (router, key) in [(&r1, &first), (&r1, &second), (&r2, &first), (&r2, &second)] {
        cluster.ask_as(router, Some(key), MODEL).await.unwrap();
    }
    json(&cluster, &r1, &["tenant", "revoke-key", "web", "k1"]).await;
    in_force(&cluster, &[&r1, &r2], 4).await;
    for router in [&r1, &r2] {
        let revoked = cluster.ask_as(router, Some(&first), MODEL).await.unwrap_err();
        assert!(revoked.starts_with("401") && revoked.contains("caller_unauthenticated"), "{revoked}");
        cluster.ask_as(router, Some(&second), MODEL).await.unwrap();
    }
    // The file is the operator's own still, and what is applied from it leaves the keys.
    let (_, yaml, _) = operate(&cluster, &r1, &["get", "-o", "yaml"]).await;
    assert!(yaml.starts_with(&format!("# {file}\n# ours\nmodels: ")) && yaml.contains("# issued\n"), "{yaml}");
    assert!(!yaml.contains(&first) && !yaml.contains(&second));
    let (code, out, _) = operate(&cluster, &r1, &["diff", "-f", file, "-o", "table"]).await;
    assert_eq!((code, out.as_str()), (Some(0), ""));
    let (code, out, _) = operate(&cluster, &r1, &["tenant", "list", "-o", "table"]).await;
    assert!(code == Some(0) && out.contains("web") && out.contains("k1 (ended), k2"), "{out}");
    // Who was let in says who did what.
    let told = json(&cluster, &r1, &["operator", "create", "alice", "--role", "viewer"]).await;
    let alice = write(&cluster, "alice.key", told["key"].as_str().unwrap());
    let alice = ["--admin-key-file", alice.to_str().unwrap()];
    json(&cluster, &r1, &[&["status"][..], &alice].concat()).await;
    let (code, _, err) = operate(&cluster, &r1, &[&["apply", "-f", file][..], &alice].concat()).await;
    assert!(code == Some(1) && err.contains("alice has the role viewer; this needs the role admin"), "{err}");
}

#[tokio::test]
async fn a_catalogue_that_is_not_valid_is_told_by_file_line_and_reason_and_changes_nothing() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let good = write(&cluster, "good.yaml", &format!("models: [{{name: {MODEL}}}]\n"));
    let good = good.to_str().unwrap();
    json(&cluster, &router, &["apply", "-f", good]).await;
    let upstream = "upstreams:\n  - {name: a, protocol: openai, url: 'https://a.example', ceiling: public, ";
    let cases = [
        ("models:\n  - nmae: m\n".to_owned(), 2, "did you mean name?"),
        ("models:\n  - name: m\n  - name: m\n".to_owned(), 3, "model m is there already"),
        (
            format!("routes:\n  - name: r\n    targets: [{{model: no}}]\nmodels: [{{name: {MODEL}}}]\n"),
            3,
            "there is no model no",
        ),
        ("tenants:\n  - {name: t, models: [no]}\n".to_owned(), 2, "there is no route, model, version or adapter no"),
        (
            format!(
                "models: [{{name: {MODEL}}}]\nroutes:\n  - name: r\n    targets: [{{model: {MODEL}}}]\n    rules: [{{when: request.task, targets: []}}]\n"
            ),
            5,
            "it must give a bool",
        ),
        (format!("{upstream}key: {{env: HOME}}}}\n"), 2, "--secret-env"),
        ("models: [\n".to_owned(), 1, ""),
    ];
    let bad = |text: &str| write(&cluster, "bad.yaml", text).to_str().unwrap().to_owned();
    for (text, line, why) in &cases {
        let file = bad(text);
        for command in [&["apply", "-f"][..], &["apply", "--dry-run", "-f"], &["diff", "-f"]] {
            let (code, out, err) = operate(&cluster, &router, &[command, &[file.as_str()]].concat()).await;
            assert_eq!(code, Some(2), "{text}: {out}{err}");
            let told = err.lines().any(|it| it.starts_with(&format!("{file}:{line}")) && it.contains(why));
            assert!(told, "{text}: {err}");
        }
    }
    let (code, out) = cluster.output("router", &["--config", &bad(&cases[0].0)]);
    assert!(code == Some(2) && out.contains("bad.yaml:2: unknown key \"nmae\""), "{out}");
    let (code, out) = cluster.output("router", &["--config", "/nowhere/bank.yaml"]);
    assert!(code == Some(2) && out.contains("--config /nowhere/bank.yaml"), "{out}");

    let two = [good, &bad("models: [{name: other}]\n")].map(str::to_owned);
    let (code, out, _) = operate(&cluster, &router, &["diff", "-o", "table", "-f", &two[0], &two[1]]).await;
    assert_eq!((code, out.as_str()), (Some(1), "+ model other\n"), "as kubectl's");
    let (_, out, _) = operate(&cluster, &router, &["get", "-o", "table"]).await;
    assert!(out.contains(MODEL) && !out.contains("other") && out.contains("version 1, applied by admin"), "{out}");
    for (args, code, words) in [
        (&["apply", "-f", "/nowhere/a.yaml"][..], 2, "-f /nowhere/a.yaml"),
        (&["apply", "-f", good, "--expect", "7"], 1, "the newest version is 1"),
        (&["rollback"], 2, "no version before"),
        (&["get", "model", "no"], 2, "there is no no; there are: rehearsal"),
        (&["get", "--version", "9"], 2, "version 9"),
        (&["tenant", "rotate-key", "no"], 2, "there is no tenant no"),
        (&["explain", "--model", MODEL, "--tenant", "no"], 2, "there is no tenant"),
        (&["explain", "no-request"], 2, "is no request id"),
        (&["session", "default", "s", "--class", "secret"], 2, "none of public"),
        (&["get", "--server", "127.0.0.1:9"], 3, "not reachable"),
        (&["apply", "-f", good, "--server", "127.0.0.1:9"], 3, "not reachable"),
    ] {
        let (told, out, err) = operate(&cluster, &router, args).await;
        assert!(told == Some(code) && err.contains(words), "{args:?}: {told:?} {out}{err}");
    }
}

#[tokio::test]
async fn a_router_applies_its_own_catalogue_once_and_explains_by_it() {
    let cluster = Cluster::start();
    let text = format!(
        "models: [{{name: {MODEL}}}]\nupstreams:\n  - {{name: acme, protocol: openai, url: 'https://acme.example/v1', \
         ceiling: public, price: {{input: 1, output: 2}}}}\nroutes:\n  - {{name: help, targets: [{{upstream: acme, model: \
         big}}], fallback: [{{model: {MODEL}}}]}}\n"
    );
    let file = write(&cluster, "bank.yaml", &text);
    let config = ["--config", file.to_str().unwrap()];
    let r1 = cluster.router("r1", &[&["--name", "r1"][..], &config].concat());
    let r2 = cluster.router("r2", &[&["--no-egress"][..], &config].concat());
    let _worker = cluster.worker("w1", &[]);
    cluster.members(&r1, "ready", 1).await;
    cluster.members(&r2, "ready", 1).await;
    let versions = json(&cluster, &r2, &["get", "versions"]).await;
    assert_eq!((versions.as_array().unwrap().len(), &versions[0]["by"]), (1, &json!("r1 --config")));
    let explain = ["explain", "--model", "help", "-o", "table"];
    let (code, out, err) = operate(&cluster, &r1, &explain).await;
    assert_eq!(code, Some(0), "{err}");
    let file = file.to_str().unwrap();
    for line in [
        "default asks for help".to_owned(),
        "catalogue: version 1".to_owned(),
        "class: internal (by tenant)".to_owned(),
        format!("ceiling public ({file}:3)"),
        format!("  fallback local/{MODEL}: may be called; ceiling restricted ({file}:1)"),
    ] {
        assert!(out.contains(&line), "{line} is not in {out}");
    }
    let public = [&explain[..], &["--class", "public"]].concat();
    let (_, out, _) = operate(&cluster, &r1, &public).await;
    assert!(out.contains("class: internal"), "a class only rises: {out}");
    let told = json(&cluster, &r2, &["explain", "--model", "help", "--prompt", "it is 4111 1111 1111 1111"]).await;
    assert_eq!(
        (&told["class"], &told["raised_by"][0]["by"]),
        (&json!("restricted"), &json!("detector card in prompt"))
    );
    json(&cluster, &r1, &["session", "default", "s1", "--class", "confidential"]).await;
    let told = json(&cluster, &r1, &["explain", "--model", "help", "--session", "s1"]).await;
    assert_eq!(told["raised_by"][0]["by"], "session");
}
