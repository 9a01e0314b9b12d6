//! The catalogue over the admin port: who may change it, what is refused, keys, explanations.

use http::Method;
use penstock_proto::ErrorCode;
use penstock_proto::admin::{
    AdminClient, ApplyRequest, CatalogSource, CreateOperatorRequest, CreateTenantRequest, DiffCatalogRequest,
    DrainWorkerRequest, ExplainDecidedRequest, ExplainRequest, GetCatalogRequest, ListVersionsRequest,
    RevokeOperatorRequest, RevokeTenantKeyRequest, RollbackRequest, RotateTenantKeyRequest, SetSessionClassRequest,
    StatusRequest,
};
use penstock_router::tenant::NewKey;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::support::{FakeWorker, Front, MODEL, chat, soon};

const BANK: &str = "\
models: [{name: parrot, ceiling: confidential}]
routes:
  - name: help
    targets: [{model: parrot}]
tenants: [{name: staff, models: [help], tasks: {audit: confidential}}]
";

/// An operator at work.
struct Operator {
    client: AdminClient<Channel>,
    bearer: String,
}

impl Operator {
    /// Whoever has the router's own key.
    async fn owner(front: &Front) -> Self {
        Self::of(front, front.key.header().to_str().unwrap()).await
    }

    /// Whoever has a key of the catalogue.
    async fn with(front: &Front, key: &NewKey) -> Self {
        Self::of(front, &format!("Bearer {}", key.reveal())).await
    }

    async fn of(front: &Front, bearer: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", front.router.admin_addr())).unwrap();
        Self { client: AdminClient::new(endpoint.connect().await.unwrap()), bearer: bearer.to_owned() }
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.parse().unwrap());
        request
    }

    async fn apply(&mut self, text: &str) -> Result<(u64, Vec<String>), Status> {
        let request = self.ask(apply(text));
        let change = soon(self.client.apply(request)).await?.into_inner();
        Ok((change.version, change.warnings))
    }

    async fn newest(&mut self) -> Option<u64> {
        let request = self.ask(GetCatalogRequest { version: 0 });
        let answer = soon(self.client.get_catalog(request)).await.unwrap().into_inner();
        answer.version.map(|version| version.number)
    }

    async fn explain(&mut self, request: ExplainRequest) -> (String, Value) {
        let request = self.ask(request);
        let told = soon(self.client.explain(request)).await.unwrap().into_inner();
        (told.text, serde_json::from_str(&told.json).unwrap())
    }
}

fn sources(text: &str) -> Vec<CatalogSource> {
    vec![CatalogSource { file: "bank.yaml".to_owned(), text: text.to_owned() }]
}

fn apply(text: &str) -> ApplyRequest {
    ApplyRequest { sources: sources(text), dry_run: false, expected_version: None }
}

fn code(status: &Status) -> ErrorCode {
    ErrorCode::from_status(status).unwrap().0
}

fn about(tenant: &str, model: &str, prompt: &str) -> ExplainRequest {
    let [tenant, model, prompt] = [tenant, model, prompt].map(str::to_owned);
    ExplainRequest { tenant, model, prompt, ..ExplainRequest::default() }
}

/// Asks the route with a tenant's key.
async fn answer(front: &Front, worker: &mut FakeWorker, key: &NewKey) -> (u16, Value) {
    let mut client = front.client().await;
    let bearer = format!("Bearer {}", key.reveal());
    let headers = [("authorization", bearer.as_str())];
    let response = {
        let ask = client.ask(Method::POST, "/v1/chat/completions", &headers, chat(json!({"model": "help"})));
        tokio::pin!(ask);
        tokio::select! {
            response = &mut ask => response,
            mut call = worker.call() => {
                call.say("hi").await;
                call.finish().await;
                ask.await
            }
        }
    };
    let status = response.status;
    (status, response.keep(client).json().await)
}

#[tokio::test]
async fn a_catalogue_is_applied_whole_told_of_and_rolled_back() {
    let (front, _worker) = Front::with_worker().await;
    let mut owner = Operator::owner(&front).await;
    assert_eq!(owner.newest().await, None);
    let (version, warnings) = owner.apply(BANK).await.unwrap();
    assert_eq!(version, 1);
    assert!(warnings.iter().any(|it| it.starts_with("bank.yaml:5: tenant staff has no key")), "{warnings:?}");
    assert!(warnings.iter().any(|it| it.contains("from here on every request needs a key")), "{warnings:?}");
    // It is in force where it was applied as soon as that is told.
    assert_eq!(front.post("/v1/chat/completions", chat(json!({}))).await.status, 401);
    assert_eq!(owner.apply(BANK).await.unwrap().0, 1, "the same again is no change");

    let request = owner.ask(DiffCatalogRequest { sources: sources("models: [{name: parrot}]\n") });
    let change = owner.client.diff_catalog(request).await.unwrap().into_inner();
    let text = "- tenant staff\n~ model parrot\n    ceiling: \"confidential\" -> \"restricted\"\n- route help\n";
    assert_eq!((change.diff.as_str(), change.changed, change.version), (text, false, 1));
    let request = owner.ask(ApplyRequest { dry_run: true, ..apply("models: []\n") });
    assert!(!owner.client.apply(request).await.unwrap().into_inner().changed);
    for (expected, is_fine) in [(0, false), (7, false), (1, true)] {
        let request = owner.ask(ApplyRequest { expected_version: Some(expected), ..apply("models: []\n") });
        match owner.client.apply(request).await {
            Ok(change) => assert!(is_fine && change.into_inner().version == 2),
            Err(status) => assert!(!is_fine && code(&status) == ErrorCode::Conflict, "{status}"),
        }
    }
    let request = owner.ask(RollbackRequest {});
    let change = owner.client.rollback(request).await.unwrap().into_inner();
    assert_eq!((change.version, change.restored), (3, 1));
    let request = owner.ask(RollbackRequest {});
    let status = owner.client.rollback(request).await.unwrap_err();
    assert!(code(&status) == ErrorCode::InvalidRequest && status.message().contains("no version before"), "{status}");
    let request = owner.ask(ListVersionsRequest { limit: 0 });
    let versions = owner.client.list_versions(request).await.unwrap().into_inner().versions;
    let told: Vec<_> = versions.iter().map(|it| (it.number, it.by.as_str(), it.restored)).collect();
    assert_eq!(told, [(3, "admin", 1), (2, "admin", 0), (1, "admin", 0)]);
    let request = owner.ask(GetCatalogRequest { version: 9 });
    assert_eq!(code(&owner.client.get_catalog(request).await.unwrap_err()), ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn what_is_not_valid_or_not_usable_here_changes_nothing_and_every_problem_is_told() {
    let front = Front::start(|config| {
        config.secrets.variables.insert("ALLOWED".to_owned());
    })
    .await;
    let mut owner = Operator::owner(&front).await;
    let upstream = |key: &str| {
        format!("upstreams: [{{name: a, protocol: openai, url: 'https://a.example', ceiling: public, key: {key}}}]\n")
    };
    for (text, told) in [
        ("modles: []\n".to_owned(), &["bank.yaml:1: unknown key \"modles\"; did you mean models?"][..]),
        (
            "models: [{name: a}]\nroutes:\n  - {name: r, targets: [{model: b}]}\n  - {name: s, targets: [{model: c}]}\n"
                .to_owned(),
            &["bank.yaml:3: there is no model b", "bank.yaml:4: there is no model c"],
        ),
        (upstream("{env: HOME}"), &["bank.yaml:1: upstream a: the variable HOME may not be read", "--secret-env"]),
        (upstream("{file: /etc/shadow}"), &["bank.yaml:1: upstream a: /etc/shadow may not be read", "--secrets-dir"]),
        (upstream("{env: ALLOWED}"), &["bank.yaml:1: upstream a: ", "ALLOWED"]),
        ("detectors: [{name: d, dictionary: /etc/passwd, class: public}]\n".to_owned(), &["bank.yaml:1: ", "/etc/passwd"]),
    ] {
        let status = owner.apply(&text).await.unwrap_err();
        assert_eq!(code(&status), ErrorCode::InvalidCatalogue, "{status}");
        assert!(told.iter().all(|told| status.message().contains(told)), "{status}");
    }
    // However many there are, they fit into an answer.
    let many: String = (0..2000).map(|number| format!("  - {{name: r{number}, targets: [{{model: no}}]}}\n")).collect();
    let status = owner.apply(&format!("routes:\n{many}")).await.unwrap_err();
    assert!(status.message().contains("bank.yaml:2: ") && status.message().ends_with(" more"), "{status}");
    let twice = [sources("models: []\n"), sources("models: []\n")].concat();
    let request = owner.ask(ApplyRequest { sources: twice, dry_run: false, expected_version: None });
    let status = owner.client.apply(request).await.unwrap_err();
    assert!(status.message().contains("bank.yaml: this file is given twice"), "{status}");
    assert_eq!(owner.newest().await, None);
}

#[tokio::test]
async fn each_role_may_do_its_own_and_what_those_below_may() {
    let front = Front::start(|_| {}).await;
    let mut owner = Operator::owner(&front).await;
    owner.apply(BANK).await.unwrap();
    let keys = [(); 3].map(|()| NewKey::generate().unwrap());
    let roles = ["viewer", "operator", "admin"];
    for (role, key) in roles.iter().zip(&keys) {
        let [name, role] = [format!("{role}-1"), (*role).to_owned()];
        let request = owner.ask(CreateOperatorRequest { name, role, key_sha256: key.digest().to_string() });
        soon(owner.client.create_operator(request)).await.unwrap();
    }
    for (rank, key) in keys.iter().enumerate() {
        let mut operator = Operator::with(&front, key).await;
        let request = operator.ask(StatusRequest {});
        operator.client.status(request).await.unwrap();
        let request = operator.ask(DiffCatalogRequest { sources: sources(BANK) });
        operator.client.diff_catalog(request).await.unwrap();
        operator.explain(about("staff", "help", "")).await;

        let refused = |status: &Status, needs: &str| {
            let words = format!("{}-1 has the role {}; this needs the role {needs}", roles[rank], roles[rank]);
            assert_eq!((code(status), status.message()), (ErrorCode::Forbidden, words.as_str()));
        };
        let request = operator.ask(DrainWorkerRequest { name: "w9".to_owned() });
        let status = operator.client.drain_worker(request).await.unwrap_err();
        if rank == 0 {
            refused(&status, "operator")
        } else {
            assert_eq!(code(&status), ErrorCode::WorkerNotFound)
        }
        let session = SetSessionClassRequest {
            tenant: "staff".to_owned(),
            session: "s1".to_owned(),
            class: "restricted".to_owned(),
        };
        let request = operator.ask(session);
        match operator.client.set_session_class(request).await {
            Ok(_) => assert!(rank > 0),
            Err(status) => refused(&status, "operator"),
        }
        if rank == 0 {
            let request = operator.ask(RollbackRequest {});
            refused(&operator.client.rollback(request).await.unwrap_err(), "operator");
        }
        if rank < 2 {
            refused(&operator.apply("models: []\n").await.unwrap_err(), "admin");
            let request = operator.ask(RevokeOperatorRequest { name: "admin-1".to_owned() });
            refused(&operator.client.revoke_operator(request).await.unwrap_err(), "admin");
        }
    }
    let mut admin = Operator::with(&front, &keys[2]).await;
    admin.apply(&format!("{BANK}# again\n")).await.unwrap();
    let request = admin.ask(ListVersionsRequest { limit: 1 });
    assert_eq!(admin.client.list_versions(request).await.unwrap().into_inner().versions[0].by, "admin-1");
    // Whoever is let out is out; a tenant never was in.
    let request = owner.ask(RevokeOperatorRequest { name: "admin-1".to_owned() });
    owner.client.revoke_operator(request).await.unwrap();
    assert_eq!(code(&admin.apply("models: []\n").await.unwrap_err()), ErrorCode::Unauthenticated);
    let key = NewKey::generate().unwrap();
    let request = owner.ask(CreateTenantRequest {
        name: "web".to_owned(),
        key_sha256: key.digest().to_string(),
        ..CreateTenantRequest::default()
    });
    owner.client.create_tenant(request).await.unwrap();
    let mut tenant = Operator::with(&front, &key).await;
    let status = tenant.apply("models: []\n").await.unwrap_err();
    assert!(code(&status) == ErrorCode::Forbidden && status.message().contains("a tenant's key"), "{status}");
    for wrong in ["", "Bearer", "Basic abc", "Bearer psk_0"] {
        let mut stranger = Operator::of(&front, wrong).await;
        assert_eq!(code(&stranger.apply("models: []\n").await.unwrap_err()), ErrorCode::Unauthenticated, "{wrong}");
    }
}

#[tokio::test]
async fn a_tenants_keys_are_made_rotated_with_overlap_and_revoked_at_once() {
    let (front, mut worker) = Front::with_worker().await;
    let mut owner = Operator::owner(&front).await;
    owner.apply(BANK).await.unwrap();
    let keys = [(); 3].map(|()| NewKey::generate().unwrap());
    let key_sha256 = |number: usize| NewKey::digest(&keys[number]).to_string();
    let create = |name: &str, class: &str| CreateTenantRequest {
        name: name.to_owned(),
        class: class.to_owned(),
        models: Vec::new(),
        key_sha256: key_sha256(0),
    };
    let request = owner.ask(create("staff", ""));
    let made = owner.client.create_tenant(request).await.unwrap().into_inner();
    assert_eq!((made.id.as_str(), made.change.unwrap().version), ("k1", 2));
    assert_eq!(answer(&front, &mut worker, &keys[0]).await.0, 200);
    assert_eq!(answer(&front, &mut worker, &keys[1]).await.0, 401);

    let rotate = |number: usize, overlap_seconds| RotateTenantKeyRequest {
        tenant: "staff".to_owned(),
        key_sha256: key_sha256(number),
        overlap_seconds,
    };
    let request = owner.ask(rotate(1, 3600));
    assert_eq!(owner.client.rotate_tenant_key(request).await.unwrap().into_inner().id, "k2");
    for key in &keys[..2] {
        assert_eq!(answer(&front, &mut worker, key).await.0, 200, "both live");
    }
    // Files that are applied take no key away, nor does a rollback bring one back.
    owner.apply(&format!("{BANK}# changed\n")).await.unwrap();
    let request = owner.ask(RevokeTenantKeyRequest { tenant: "staff".to_owned(), id: "k1".to_owned() });
    owner.client.revoke_tenant_key(request).await.unwrap();
    let request = owner.ask(RollbackRequest {});
    owner.client.rollback(request).await.unwrap();
    let (status, body) = answer(&front, &mut worker, &keys[0]).await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("caller_unauthenticated")));
    assert!(body["error"]["message"].as_str().unwrap().contains("expired"), "{body}");
    assert_eq!(answer(&front, &mut worker, &keys[1]).await.0, 200);
    let request = owner.ask(rotate(2, 0));
    owner.client.rotate_tenant_key(request).await.unwrap();
    assert_eq!(answer(&front, &mut worker, &keys[1]).await.0, 401, "no overlap was asked for");
    assert_eq!(answer(&front, &mut worker, &keys[2]).await.0, 200);

    for (request, words) in [
        (create("staff", "public"), "tenant staff is there already, at bank.yaml:5"),
        (create("staff", ""), "has a key already (k3)"),
        (create("we b", ""), "is no name"),
        (create("web", "secret"), "none of public, internal"),
    ] {
        let request = owner.ask(request);
        let status = owner.client.create_tenant(request).await.unwrap_err();
        assert!(code(&status) == ErrorCode::InvalidRequest && status.message().contains(words), "{status}");
    }
    let request = owner.ask(RevokeTenantKeyRequest { tenant: "staff".to_owned(), id: "k9".to_owned() });
    let status = owner.client.revoke_tenant_key(request).await.unwrap_err();
    assert!(status.message().contains("no key k9 that lives; it has: k3"), "{status}");
    let request = owner.ask(CreateTenantRequest { key_sha256: keys[0].reveal().to_owned(), ..create("web", "") });
    let status = owner.client.create_tenant(request).await.unwrap_err();
    assert!(status.message().contains("no SHA-256") && !status.message().contains(keys[0].reveal()), "{status}");
}

#[tokio::test]
async fn an_explanation_names_class_raisers_targets_and_lines() {
    let (front, mut worker) = Front::with_worker().await;
    let mut owner = Operator::owner(&front).await;
    let (text, _) = owner.explain(about("", MODEL, "")).await;
    assert!(text.starts_with(&format!("default asks for {MODEL}")), "{text}");
    owner.apply(BANK).await.unwrap();
    let (text, json) = owner.explain(about("staff", "help", "")).await;
    assert_eq!(
        (&json["class"], &json["version"], &json["targets"][0]["refused"]),
        (&json!("internal"), &json!(1), &Value::Null)
    );
    assert!(text.contains("may be called; ceiling confidential (bank.yaml:1)"), "{text}");
    let (text, json) = owner.explain(about("staff", "help", "it is 4111 1111 1111 1111")).await;
    assert_eq!(
        (&json["class"], &json["raised_by"][0]["by"]),
        (&json!("restricted"), &json!("detector card in prompt"))
    );
    assert!(text.contains("nothing may serve this request") && !text.contains("4111"), "{text}");
    let (_, json) = owner.explain(ExplainRequest { task: "audit".to_owned(), ..about("staff", "help", "") }).await;
    assert_eq!((&json["class"], &json["raised_by"][0]["by"]), (&json!("confidential"), &json!("task")));
    let header = ExplainRequest { class: "confidential".to_owned(), ..about("staff", "help", "") };
    assert_eq!(owner.explain(header).await.1["raised_by"][0]["by"], "header");

    let [tenant, session, class] = ["staff", "s/1", "restricted"].map(str::to_owned);
    let request = owner.ask(SetSessionClassRequest { tenant, session: session.clone(), class });
    soon(owner.client.set_session_class(request)).await.unwrap();
    let (_, json) = owner.explain(ExplainRequest { session, ..about("staff", "help", "") }).await;
    assert_eq!((&json["class"], &json["raised_by"][0]["by"]), (&json!("restricted"), &json!("session")));

    for request in [about("web", "help", ""), ExplainRequest { class: "x".to_owned(), ..about("staff", "help", "") }] {
        let request = owner.ask(request);
        assert_eq!(code(&owner.client.explain(request).await.unwrap_err()), ErrorCode::InvalidRequest);
    }
    // What was decided is told as it was decided.
    let key = NewKey::generate().unwrap();
    let [name, key_sha256] = ["staff".to_owned(), key.digest().to_string()];
    let request = owner.ask(CreateTenantRequest { name, key_sha256, ..CreateTenantRequest::default() });
    owner.client.create_tenant(request).await.unwrap();
    let mut client = front.client().await;
    let bearer = format!("Bearer {}", key.reveal());
    let headers = [("authorization", bearer.as_str()), ("x-penstock-task", "audit")];
    let ask = client.ask(Method::POST, "/v1/chat/completions", &headers, chat(json!({"model": "help"})));
    let speak = async {
        let mut call = worker.call().await;
        call.say("hi").await;
        call.finish().await;
    };
    let (response, ()) = tokio::join!(ask, speak);
    let request_id = response.header("x-penstock-request-id").to_owned();
    let request = owner.ask(ExplainDecidedRequest { request_id });
    let told = owner.client.explain_decided(request).await.unwrap().into_inner();
    let json: Value = serde_json::from_str(&told.json).unwrap();
    assert_eq!(
        (&json["tenant"], &json["class"], &json["version"]),
        (&json!("staff"), &json!("confidential"), &json!(2))
    );
    for (unknown, words) in [("x", "is no request id"), ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "remembers its last 4096")] {
        let request = owner.ask(ExplainDecidedRequest { request_id: unknown.to_owned() });
        let status = owner.client.explain_decided(request).await.unwrap_err();
        assert!(code(&status) == ErrorCode::InvalidRequest && status.message().contains(words), "{status}");
    }
}
