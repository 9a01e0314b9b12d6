//! What external calls may cost: a budget that is reserved, settled and spent, through the whole router.

use http::Method;
use penstock_proto::admin::{AdminClient, Budget, GetBudgetRequest};
use penstock_router::tenant::NewKey;
use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::support::{Answer, Client, FakeWorker, Front, MODEL, Outside, Traits, soon};

/// What a call to `acme` costs: 9 tokens of prompt and 2 of answer at a cent each.
const CALL: u64 = 110_000_000;
/// The longest answer that is asked for.
const MAX_TOKENS: u64 = 10;

struct Bank {
    front: Front,
    worker: FakeWorker,
    outside: Outside,
    keys: [NewKey; 2],
}

impl Bank {
    /// Two tenants with a budget of so many dollars: 0 goes on at home once it is spent, 1 is refused.
    async fn open(usd: &str) -> Self {
        let outside = Outside::start().await;
        let keys = [(); 2].map(|()| NewKey::generate().unwrap());
        let [local, refused] = keys.each_ref().map(NewKey::digest);
        let address = outside.address;
        let text = format!(
            "tenants:\n\
             - {{name: local, class: public, models: ['*'], keys: [{{id: k, sha256: {local}}}],\n\
             \x20  budget: {{usd: {usd}, period: month, when_spent: local_only}}}}\n\
             - {{name: refused, class: public, models: ['*'], keys: [{{id: k, sha256: {refused}}}],\n\
             \x20  budget: {{usd: {usd}, period: day, when_spent: refuse}}}}\n\
             - {{name: free, class: public, models: ['*']}}\n\
             upstreams:\n\
             - {{name: acme, protocol: openai, url: 'http://{address}/v1', key: {{env: PATH}}, ceiling: public, price: {{input: 10000, output: 10000}}}}\n\
             models:\n\
             - {{name: {MODEL}}}\n\
             routes:\n\
             - {{name: help, targets: [{{upstream: acme, model: big}}], fallback: [{{model: {MODEL}}}]}}\n\
             - {{name: out, targets: [{{upstream: acme, model: big}}]}}\n\
             - {{name: both, targets: [{{model: {MODEL}}}], shadow: {{targets: [{{upstream: acme, model: big}}], sample: 1.0}}}}\n"
        );
        let allow = |config: &mut penstock_router::Config| {
            config.secrets.variables.insert("PATH".to_owned());
        };
        let (front, worker) = Front::with(allow, Traits::default()).await;
        front.apply(&text).await;
        Self { front, worker, outside, keys }
    }

    async fn ask(&self, tenant: usize, route: &str) -> Answer {
        let bearer = format!("Bearer {}", self.keys[tenant].reveal());
        let body =
            json!({"model": route, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": "hello"}]});
        let mut client: Client = self.front.client().await;
        client.ask(Method::POST, "/v1/chat/completions", &[("authorization", &bearer)], body).await.keep(client)
    }

    async fn ask_at_home(&mut self, tenant: usize, route: &str) -> Answer {
        let bearer = format!("Bearer {}", self.keys[tenant].reveal());
        let body =
            json!({"model": route, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": "hello"}]});
        let mut client: Client = self.front.client().await;
        let speak = async {
            let mut call = self.worker.call().await;
            call.say("from home").await;
            call.finish().await;
        };
        let headers = [("authorization", bearer.as_str())];
        let (answer, ()) = tokio::join!(client.ask(Method::POST, "/v1/chat/completions", &headers, body), speak);
        answer.keep(client)
    }

    async fn budgets(&self, tenant: &str) -> Result<Vec<Budget>, tonic::Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.front.router.admin_addr())).unwrap();
        let mut client = AdminClient::new(endpoint.connect().await.unwrap());
        let mut request = Request::new(GetBudgetRequest { tenant: tenant.to_owned() });
        request.metadata_mut().insert("authorization", self.front.key.header().to_str().unwrap().parse().unwrap());
        Ok(soon(client.get_budget(request)).await?.into_inner().budgets)
    }

    async fn spent(&self, tenant: &str) -> u64 {
        let budgets = self.budgets(tenant).await.unwrap();
        assert_eq!((budgets.len(), budgets[0].reserved_nanos), (1, 0), "nothing is under way");
        budgets[0].spent_nanos
    }

    /// The most that the call that was made last may cost.
    async fn reserve(&mut self) -> u64 {
        let (_, sent) = self.outside.call().await;
        (serde_json::to_vec(&sent).unwrap().len() as u64 + 16 + MAX_TOKENS) * 10_000_000
    }
}

fn target(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.header("x-penstock-target"))
}

async fn usage(answer: Answer) -> Value {
    answer.json().await["usage"].clone()
}

#[tokio::test]
async fn once_a_budget_is_spent_requests_stay_at_home_or_are_refused() {
    // The reserve of a call is more than a dollar, and what it costs a ninth of one.
    let mut bank = Bank::open("3").await;
    let mut calls = 0;
    let refused = loop {
        let answer = bank.ask(1, "help").await;
        if answer.status != 200 {
            break answer;
        }
        assert_eq!(target(&answer), (200, "acme/big"));
        assert_eq!(usage(answer).await["prompt_tokens"], 9);
        calls += 1;
        assert_eq!(bank.spent("refused").await, calls * CALL);
    };
    assert!(calls > 1);
    assert_eq!((refused.status, &refused.json().await["error"]["code"]), (403, &json!("policy_budget")));
    // The other tenant's budget is for as many.
    for _ in 0..calls {
        let answer = bank.ask(0, "help").await;
        assert_eq!(target(&answer), (200, "acme/big"));
        answer.text().await;
    }
    let answer = bank.ask_at_home(0, "help").await;
    assert_eq!(target(&answer), (200, "local/parrot"));
    assert_eq!(bank.spent("local").await, calls * CALL);
    bank.front.metric(r#"penstock_refusals_total{reason="policy_budget"} 1"#).await;
}

#[tokio::test]
async fn what_a_budget_does_not_cover_is_answered_at_home_or_refused_with_the_reason() {
    let mut bank = Bank::open("1").await;
    let answer = bank.ask_at_home(0, "help").await;
    assert_eq!(target(&answer), (200, "local/parrot"));
    let answer = bank.ask(0, "out").await;
    assert_eq!(answer.status, 403);
    let error = answer.json().await["error"].clone();
    assert_eq!(error["code"], "policy_budget");
    let told = error["message"].as_str().unwrap();
    assert!(told.contains("tenant local has less left of its 1.00 USD a month"), "{told}");
    let answer = bank.ask(1, "help").await;
    assert_eq!((answer.status, &answer.json().await["error"]["code"]), (403, &json!("policy_budget")));
    // A copy is left out; the request itself is not refused for it.
    let answer = bank.ask_at_home(0, "both").await;
    assert_eq!(target(&answer), (200, "local/parrot"));
    bank.front.metric(r#"penstock_shadows_total{code="policy_budget",target="acme/big"} 1"#).await;
    assert!(bank.outside.is_quiet());
    assert_eq!((bank.spent("local").await, bank.spent("refused").await), (0, 0));
}

#[tokio::test]
async fn a_usage_that_cannot_be_or_is_not_told_costs_the_reserve() {
    let mut bank = Bank::open("1000").await;
    let mut expected = 0;
    for usage in [
        Value::Null,
        json!({"prompt_tokens": -9, "completion_tokens": 2}),
        json!({"prompt_tokens": 9, "completion_tokens": 4_000_000_000_u64}),
        json!({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}),
    ] {
        let cost = (!usage["prompt_tokens_details"].is_null()).then_some(CALL);
        bank.outside.tells(usage.clone());
        let answer = bank.ask(0, "help").await;
        assert_eq!(target(&answer), (200, "acme/big"), "{usage}");
        let told = self::usage(answer).await;
        let reserve = bank.reserve().await;
        expected += cost.unwrap_or(reserve);
        assert_eq!(bank.spent("local").await, expected, "{usage}");
        assert_eq!(told["completion_tokens"], if cost.is_some() { 2 } else { MAX_TOKENS }, "{usage}");
    }
    // An upstream that says no has done nothing.
    bank.outside.answers_with(400);
    bank.ask(0, "out").await;
    assert_eq!(bank.spent("local").await, expected);
    let cost =
        |line: &str| line.strip_prefix(r#"penstock_cost_usd_total{target="acme/big",tenant="local"} "#)?.parse().ok();
    let metrics = penstock_router::render(std::slice::from_ref(&bank.front.registry));
    let told: Vec<f64> = metrics.lines().filter_map(cost).collect();
    assert!((told[0] * 1e9 - expected as f64).abs() < 1.0, "{told:?} {expected}");
}

#[tokio::test]
async fn a_copy_is_paid_from_the_same_budget() {
    let mut bank = Bank::open("1000").await;
    let answer = bank.ask_at_home(0, "both").await;
    assert_eq!(target(&answer), (200, "local/parrot"));
    bank.front.metric(r#"penstock_shadows_total{code="ok",target="acme/big"} 1"#).await;
    assert_eq!(bank.spent("local").await, CALL);
    assert_eq!(bank.budgets("").await.unwrap().len(), 2);
    let unknown = bank.budgets("nobody").await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let unbounded = bank.budgets("free").await.unwrap_err();
    assert!(unbounded.message().contains("tenant free has no budget"), "{unbounded}");
}

#[tokio::test]
async fn a_router_that_drains_writes_down_what_was_spent() {
    let bank = Bank::open("1000").await;
    assert_eq!(usage(bank.ask(0, "help").await).await["completion_tokens"], 2);
    let Bank { front, .. } = bank;
    let store = std::sync::Arc::clone(&front.store);
    soon(front.router.drain()).await;
    let spent = penstock_cluster::store::Prefix::new("/penstock/v1/budgets/");
    let entries = store.list(&spent).await.unwrap().entries;
    let values: Vec<&[u8]> = entries.iter().map(|entry| &*entry.value).collect();
    assert_eq!(values, [CALL.to_string().as_bytes()], "no slice is left");
}
