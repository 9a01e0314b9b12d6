//! A catalogue in force: who may ask, what raises a class, where requests go, what is said where nothing may serve.

use http::Method;
use penstock_router::tenant::NewKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Answer, Client, FakeWorker, Front, MODEL, Outside, Traits};

const CHAT: &str = "/v1/chat/completions";
const CARD: &str = "4111 1111 1111 1111";

/// A bank: one tenant of each kind, a local model, and an upstream for what is public.
struct Bank {
    front: Front,
    worker: FakeWorker,
    outside: Outside,
    keys: [NewKey; 3],
    /// Where the upstream's key lies.
    secrets: TempDir,
}

/// The upstream's.
const KEY: &str = "sk-of-the-bank";

impl Bank {
    async fn open() -> Self {
        Self::with(|_| {}, "").await
    }

    async fn with(change: impl FnOnce(&mut penstock_router::Config), more: &str) -> Self {
        let outside = Outside::start().await;
        let keys = [(); 3].map(|()| NewKey::generate().unwrap());
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("acme"), KEY).unwrap();
        let text = catalogue(&outside, &keys, &secrets, more);
        let (front, worker) = Front::with(
            |config| {
                config.secrets.directory = Some(secrets.path().to_owned());
                change(config);
            },
            Traits::default(),
        )
        .await;
        front.apply(&text).await;
        Self { front, worker, outside, keys, secrets }
    }

    async fn ask(&self, tenant: usize, headers: &[(&str, &str)], body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.keys[tenant].reveal());
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        let mut client: Client = self.front.client().await;
        client.ask(Method::POST, CHAT, &headers, body).await.keep(client)
    }

    /// Asks where the worker answers.
    async fn ask_at_home(&mut self, tenant: usize, headers: &[(&str, &str)], body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.keys[tenant].reveal());
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        let mut client: Client = self.front.client().await;
        let speak = async {
            let mut call = self.worker.call().await;
            call.say("from home").await;
            call.finish().await;
        };
        let (answer, ()) = tokio::join!(client.ask(Method::POST, CHAT, &headers, body), speak);
        answer.keep(client)
    }
}

/// Tenants: 0 web (public), 1 staff (internal), 2 risk (restricted).
fn catalogue(outside: &Outside, keys: &[NewKey; 3], secrets: &TempDir, more: &str) -> String {
    let key = secrets.path().join("acme");
    let key = key.display();
    let [web, staff, risk] = keys.each_ref().map(NewKey::digest);
    let address = outside.address;
    format!(
        "tenants:\n\
         - {{name: web, class: public, models: [help, both, 'canary*'], keys: [{{id: k1, sha256: {web}}}]}}\n\
         - {{name: staff, class: internal, models: ['*'], tasks: {{risk: restricted}}, keys: [{{id: k1, sha256: {staff}}}]}}\n\
         - {{name: risk, class: restricted, models: ['*'], keys: [{{id: k1, sha256: {risk}}}]}}\n\
         upstreams:\n\
         - {{name: acme, protocol: openai, url: 'http://{address}/v1', key: {{file: {key}}}, ceiling: public, price: {{input: 1, output: 2}}}}\n\
         models:\n\
         - {{name: {MODEL}}}\n\
         routes:\n\
         - {{name: help, targets: [{{upstream: acme, model: big}}], fallback: [{{model: {MODEL}}}]}}\n\
         - {{name: out, targets: [{{upstream: acme, model: big}}]}}\n\
         - {{name: both, targets: [{{model: {MODEL}}}], shadow: {{targets: [{{upstream: acme, model: big}}], sample: 1.0}}}}\n\
         - {{name: ruled, targets: [{{model: {MODEL}}}],\n\
         \x20  rules: [{{when: 'request.task == \"public\"', targets: [{{upstream: acme, model: big}}]}}]}}\n\
         {more}"
    )
}

fn hello(route: &str) -> Value {
    json!({"model": route, "messages": [{"role": "user", "content": "hello"}]})
}

fn card(route: &str) -> Value {
    json!({"model": route, "messages": [{"role": "user", "content": format!("my card is {CARD}")}]})
}

#[tokio::test]
async fn what_is_public_goes_out_with_the_upstreams_key_and_none_of_the_tenants() {
    let mut bank = Bank::open().await;
    let answer = bank.ask(0, &[], &hello("help")).await;
    assert_eq!(answer.status, 200);
    assert_eq!((answer.header("x-penstock-target"), answer.header("x-penstock-class")), ("acme/big", "public"));
    let body = answer.json().await;
    assert_eq!(body["choices"][0]["message"]["content"], "from outside");
    assert_eq!((&body["model"], &body["usage"]["prompt_tokens"]), (&json!("help"), &json!(9)));
    let (head, sent) = bank.outside.call().await;
    assert_eq!(head["authorization"], format!("Bearer {KEY}"));
    assert!(!format!("{head:?}{sent}").contains(bank.keys[0].reveal()));
    assert_eq!(sent["model"], "big");
    bank.front
        .metric(r#"penstock_requests_total{code="ok",route="chat_completions",target="acme/big",tenant="web"} 1"#)
        .await;
}

#[tokio::test]
async fn what_is_above_the_ceiling_stays_at_home() {
    let mut bank = Bank::open().await;
    for (tenant, headers, body) in [
        (0, &[][..], card("help")),
        (0, &[("x-penstock-class", "internal")], hello("help")),
        (1, &[("x-penstock-class", "public")], hello("help")),
        (2, &[], hello("help")),
    ] {
        let answer = bank.ask_at_home(tenant, headers, &body).await;
        assert_eq!((answer.status, answer.header("x-penstock-target")), (200, "local/parrot"), "{tenant}");
        assert_eq!(answer.json().await["choices"][0]["message"]["content"], "from home");
    }
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn where_nothing_may_serve_the_class_its_raisers_and_the_ceilings_are_told() {
    let mut bank = Bank::open().await;
    let answer = bank.ask(1, &[("x-penstock-task", "risk")], &hello("out")).await;
    assert_eq!((answer.status, answer.header("x-penstock-class")), (403, "restricted"));
    let error = answer.json().await["error"].clone();
    assert_eq!(error["code"], "policy_class");
    let told = error["message"].as_str().unwrap();
    for part in ["class restricted", "task", "acme/big", "ceiling, public", "bank.yaml:"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let answer = bank.ask(1, &[], &card("out")).await;
    let told = answer.json().await["error"]["message"].as_str().unwrap().to_owned();
    assert!(told.contains("detector card in messages[0].content") && !told.contains("4111"), "{told}");
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn what_faces_leave_aside_raises_a_class_too() {
    let mut bank = Bank::open().await;
    let base = hello("help");
    for (field, value) in [
        ("metadata", json!({"note": CARD})),
        ("user", json!(CARD)),
        ("unheard_of", json!([{"of": CARD}])),
        ("stop", json!([CARD])),
    ] {
        let mut body = base.clone();
        body[field] = value;
        let answer = bank.ask_at_home(0, &[], &body).await;
        assert_eq!(answer.header("x-penstock-class"), "restricted", "{field}");
    }
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn a_key_is_wanted_and_opens_what_its_tenant_may_ask_for() {
    let bank = Bank::open().await;
    let operator = NewKey::generate().unwrap();
    for (name, value) in [
        ("authorization", ""),
        ("authorization", "Bearer psk_wrong"),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("x-api-key", "psk_wrong"),
        ("x-api-key", operator.reveal()),
        ("x-none", "x"),
    ] {
        let mut client = bank.front.client().await;
        let answer = client.ask(Method::POST, CHAT, &[(name, value)], &hello("help")).await;
        assert_eq!((answer.status, &answer.json().await["error"]["code"]), (401, &json!("caller_unauthenticated")));
    }
    let answer = bank.ask(0, &[], &hello("out")).await;
    let error = answer.json().await["error"].clone();
    assert_eq!(error["code"], "caller_model_not_found");
    let told = error["message"].as_str().unwrap();
    assert!(told.contains("both, help") && !told.contains("ruled"), "{told}");
    let mut client = bank.front.client().await;
    let models = client.ask(Method::GET, "/v1/models", &[("x-api-key", bank.keys[0].reveal())], "").await.json().await;
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["both", "help"]);
}

#[tokio::test]
async fn a_target_that_fails_is_followed_by_the_next_one_that_may_be_called() {
    let mut bank = Bank::open().await;
    bank.outside.answers_with(500);
    let answer = bank.ask_at_home(0, &[], &hello("help")).await;
    assert_eq!(answer.header("x-penstock-target"), "local/parrot");
    bank.outside.call().await;
    bank.front.metric("penstock_fallbacks_total 1").await;
    let answer = bank.ask(0, &[], &json!({"model": "help", "messages": [], "temperature": 1})).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_rule_chooses_targets_and_lifts_no_ceiling() {
    let mut bank = Bank::open().await;
    let answer = bank.ask_at_home(1, &[("x-penstock-task", "other")], &hello("ruled")).await;
    assert_eq!(answer.header("x-penstock-target"), "local/parrot");
    let answer = bank.ask(1, &[("x-penstock-task", "public")], &hello("ruled")).await;
    assert_eq!(answer.json().await["error"]["code"], "policy_class", "the rule names acme alone");
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn a_copy_is_sent_where_its_class_allows_and_nobody_waits_for_it() {
    let mut bank = Bank::open().await;
    let answer = bank.ask_at_home(0, &[], &hello("both")).await;
    assert_eq!(answer.header("x-penstock-target"), "local/parrot");
    let (_, copy) = bank.outside.call().await;
    assert_eq!(copy["messages"][0]["content"], "hello");
    bank.front.metric(r#"penstock_shadows_total{code="ok",target="acme/big"} 1"#).await;
    let answer = bank.ask_at_home(0, &[], &card("both")).await;
    assert_eq!(answer.header("x-penstock-class"), "restricted");
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn without_egress_nothing_leaves_whatever_the_catalogue_says() {
    let mut bank = Bank::with(|config| config.no_egress = true, "").await;
    let answer = bank.ask_at_home(0, &[], &hello("help")).await;
    assert_eq!(answer.header("x-penstock-target"), "local/parrot");
    let answer = bank.ask(1, &[], &hello("out")).await;
    assert_eq!(answer.json().await["error"]["code"], "policy_egress");
    assert!(bank.outside.is_quiet());
}

#[tokio::test]
async fn a_revoked_key_and_a_lower_ceiling_count_from_the_next_request_on() {
    let mut bank = Bank::open().await;
    assert_eq!(bank.ask(0, &[], &hello("help")).await.header("x-penstock-target"), "acme/big");
    bank.outside.call().await;
    let new = [(); 3].map(|()| NewKey::generate().unwrap());
    bank.front.apply(&catalogue(&bank.outside, &new, &bank.secrets, "")).await;
    assert_eq!(bank.ask(0, &[], &hello("help")).await.status, 401);
    bank.keys = new;
    assert_eq!(bank.ask(0, &[], &hello("help")).await.status, 200);
}

#[tokio::test]
async fn an_address_that_others_reach_wants_keys_where_there_are_none() {
    let front = Front::start(|config| config.http = ([0, 0, 0, 0], 0).into()).await;
    let port = front.address().port();
    let mut client = Client::connect(([127, 0, 0, 1], port).into()).await;
    let answer = client.ask(Method::GET, "/v1/models", &[], "").await;
    assert_eq!(answer.status, 401);
    let told = answer.json().await["error"]["message"].as_str().unwrap().to_owned();
    assert!(told.contains("--insecure") && told.contains("penstock apply"), "{told}");
}
