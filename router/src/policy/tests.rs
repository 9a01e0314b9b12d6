//! Decisions over a catalogue that is written here, and over random ones.

use std::collections::BTreeMap;

use penstock_cluster::catalog::{self, Catalog, Name, Source, Usd, WhenSpent};
use penstock_proto::DataClass;
use proptest::prelude::*;

use super::{
    Asked, BUCKETS, Bucket, Decision, Denied, Egress, Inputs, Load, Purse, Refusal, Served, Shape, Tide, Time,
};
use super::{allowed, authorise, decide, explain};
use crate::class::{Classed, Raiser};

const BANK: &str = "\
tenants:
  - {name: retail, models: [assistant, \"small*\"]}
  - {name: web, class: public, models: [assistant, cheap]}
upstreams:
  - {name: acme, protocol: openai, url: \"https://acme.example\", ceiling: public, price: {input: 2.5, output: 10}}
  - {name: near, protocol: openai, url: \"https://near.example\", ceiling: internal, price: {input: 1, output: 2}}
models:
  - {name: small, versions: [{id: v1, source: \"file:1\"}, {id: v2, source: \"file:2\"}]}
adapters:
  - {name: tone, base: small, source: \"file:a\", tenants: [web]}
routes:
  - name: assistant
    targets: [{model: small, version: v1, weight: 95}, {model: small, version: v2, weight: 5}]
    rules: [{when: request.task == 'public', targets: [{upstream: acme, model: big}, {upstream: near, model: big}]}]
    overflow: {targets: [{upstream: near, model: small}], above_wait_ms: 2000, below_wait_ms: 500}
    fallback: [{upstream: acme, model: small}]
    shadow: {targets: [{upstream: near, model: shadow}], sample: 0.05}
  - name: cheap
    targets: [{upstream: acme, model: big}, {upstream: near, model: big}]
    order: cheapest
";

fn catalog(text: &str) -> Catalog {
    Catalog::read(vec![Source { file: "bank.yaml".to_owned(), text: text.to_owned() }]).unwrap()
}

fn load(wait_ms: u64) -> Load {
    let served = |version: &str| Served { model: name("small"), version: Some(name(version)), wait_ms };
    Load { served: vec![served("v1"), served("v2")] }
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

struct Case {
    catalog: Catalog,
    tenant: &'static str,
    class: Classed,
    load: Load,
}

impl Case {
    fn new(class: DataClass) -> Self {
        Self { catalog: catalog(BANK), tenant: "retail", class: Classed::of_tenant(class), load: load(0) }
    }

    fn inputs<'a>(&'a self, asked: &'a str) -> Inputs<'a> {
        Inputs {
            catalog: &self.catalog,
            version: None,
            tenant: self.tenant,
            class: &self.class,
            asked,
            shape: Shape { prompt_bytes: 100, messages: 1, task: "", stream: true, tools: 0 },
            load: &self.load,
            bucket: Bucket::of(0),
            time: Time { hour: 12, weekday: 1 },
            egress: Egress::Allowed,
            broken: &[],
            purse: Purse::Unbounded,
            tide: Tide::Low,
        }
    }
}

fn order(decision: &Decision) -> Vec<String> {
    decision.candidates().map(|candidate| candidate.target().to_string()).collect()
}

#[test]
fn the_class_and_its_ceilings_choose_among_the_routes_targets() {
    let case = Case::new(DataClass::Public);
    let decision = decide(&case.inputs("assistant"));
    assert_eq!(order(&decision), ["local/small@v1", "local/small@v2", "acme/small"]);
    let case = Case::new(DataClass::Internal);
    let decision = decide(&case.inputs("assistant"));
    assert_eq!(order(&decision), ["local/small@v1", "local/small@v2"]);
    let ceiling = Refusal::Ceiling { class: DataClass::Internal, ceiling: DataClass::Public };
    assert_eq!(decision.refused().map(|(_, refusal)| *refusal).collect::<Vec<_>>(), [ceiling]);
}

#[test]
fn a_rule_takes_the_place_of_the_split() {
    let case = Case::new(DataClass::Internal);
    let inputs = case.inputs("assistant");
    let decision = decide(&Inputs { shape: Shape { task: "public", ..inputs.shape }, ..inputs });
    assert_eq!(order(&decision), ["near/big"]);
    assert!(explain(&decision).arm.starts_with("the rule at bank.yaml:14 holds: request.task == 'public'"));
}

#[test]
fn what_is_asked_for_directly_needs_the_tenants_leave() {
    let case = Case::new(DataClass::Restricted);
    for (asked, expected) in [
        ("small", vec!["local/small"]),
        ("small@v2", vec!["local/small@v2"]),
        ("small@v3", vec![]),
        ("small:tone", vec![]),
        ("cheap", vec![]),
        ("nothing", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(order(&decide(&case.inputs(asked))), expected, "{asked}");
    }
    assert_eq!(decide(&case.inputs("cheap")).asked, Asked::NotAllowed("cheap".to_owned()));
    assert_eq!(allowed(&case.catalog, "retail"), ["assistant", "small", "small:tone", "small@v1", "small@v2"]);
    let refused = decide(&case.inputs("small:tone"));
    assert_eq!(refused.refused().map(|(_, refusal)| *refusal).collect::<Vec<_>>(), [Refusal::NotAllowed]);
    let stranger = Case { tenant: "nobody", ..case };
    assert_eq!(decide(&stranger.inputs("small")).asked, Asked::NotAllowed("small".to_owned()));
}

#[test]
fn without_tenants_everybody_may_reach_what_is_served_and_nothing_outside() {
    let case = Case { catalog: Catalog::default(), tenant: "default", ..Case::new(DataClass::Restricted) };
    assert_eq!(order(&decide(&case.inputs("small"))), ["local/small"]);
    assert_eq!(order(&decide(&case.inputs("other"))), Vec::<String>::new(), "nobody serves it");
}

#[test]
fn overflow_begins_above_one_wait_and_ends_below_another() {
    let mut case = Case::new(DataClass::Internal);
    let mut tide = Tide::Low;
    for (wait, expected) in [
        (100, Tide::Low),
        (1999, Tide::Low),
        (2000, Tide::Low),
        (2001, Tide::High),
        (600, Tide::High),
        (500, Tide::High),
        (499, Tide::Low),
        (600, Tide::Low),
    ] {
        case.load = load(wait);
        let decision = decide(&Inputs { tide, ..case.inputs("assistant") });
        tide = decision.tide;
        assert_eq!(tide, expected, "{wait}");
        assert_eq!(order(&decision)[0] == "near/small", tide == Tide::High, "{wait}");
    }
    case.load = Load::default();
    let decision = decide(&case.inputs("assistant"));
    assert_eq!(order(&decision), ["near/small"], "nobody serves the targets");
}

#[test]
fn overflow_does_not_lift_a_class() {
    let case = Case { load: load(9999), ..Case::new(DataClass::Restricted) };
    assert_eq!(order(&decide(&case.inputs("assistant"))), ["local/small@v1", "local/small@v2"]);
}

#[test]
fn the_cheapest_that_may_be_called_comes_first() {
    let case = Case { tenant: "web", ..Case::new(DataClass::Public) };
    assert_eq!(order(&decide(&case.inputs("cheap"))), ["near/big", "acme/big"]);
    let near = Name::new("near").unwrap();
    let decision = decide(&Inputs { broken: &[near], ..case.inputs("cheap") });
    assert_eq!(order(&decision), ["acme/big"]);
    assert_eq!(decision.refused().map(|(_, refusal)| *refusal).collect::<Vec<_>>(), [Refusal::Broken]);
}

#[test]
fn nothing_leaves_without_egress() {
    let case = Case { tenant: "web", ..Case::new(DataClass::Public) };
    let decision = decide(&Inputs { egress: Egress::Forbidden, ..case.inputs("cheap") });
    assert_eq!(decision.candidates().count(), 0);
    assert!(decision.refused().all(|(_, refusal)| *refusal == Refusal::NoEgress));
}

#[test]
fn what_a_budget_does_not_cover_is_passed_over() {
    let case = Case::new(DataClass::Public);
    // 100 bytes of prompt and a token of answer: 260,000 nano-dollars at acme, 102,000 at near.
    let public = Shape { task: "public", ..case.inputs("assistant").shape };
    let decided = |asked, shape, left: Option<u64>, when_spent| {
        let purse = Purse::Budget { left: left.map(Usd::from_nanos), when_spent };
        decide(&Inputs { purse, shape, ..case.inputs(asked) })
    };
    let rule = |left| order(&decided("assistant", public, left, WhenSpent::LocalOnly));
    assert_eq!(rule(None), ["acme/big", "near/big", "acme/small"]);
    assert_eq!(rule(Some(260_000)), ["acme/big", "near/big", "acme/small"]);
    assert_eq!(rule(Some(259_999)), ["near/big"]);
    assert_eq!(rule(Some(101_999)), [""; 0]);
    let plain = case.inputs("assistant").shape;
    let spent = decided("assistant", plain, Some(0), WhenSpent::LocalOnly);
    assert_eq!(order(&spent), ["local/small@v1", "local/small@v2"]);
    assert!(explain(&spent).to_string().contains("fallback acme/small: the tenant's budget does not cover it"));
    let web = Case { tenant: "web", ..Case::new(DataClass::Public) };
    let purse = Purse::Budget { left: Some(Usd::default()), when_spent: WhenSpent::LocalOnly };
    assert_eq!(decide(&Inputs { purse, ..web.inputs("cheap") }).denied(), Some(Denied::Budget));
}

#[test]
fn where_a_spent_budget_refuses_nothing_may_be_called() {
    let case = Case::new(DataClass::Public);
    let refuse = |left, case: &Case, task: &'static str| {
        let purse = Purse::Budget { left: Some(Usd::from_nanos(left)), when_spent: WhenSpent::Refuse };
        let inputs = case.inputs("assistant");
        decide(&Inputs { purse, shape: Shape { task, ..inputs.shape }, ..inputs })
    };
    assert_eq!(refuse(0, &case, "").denied(), Some(Denied::Budget));
    assert_eq!(
        refuse(0, &Case { load: Load::default(), ..Case::new(DataClass::Public) }, "").denied(),
        Some(Denied::Budget)
    );
    // What comes before the first target that cannot be paid for may be called.
    assert_eq!(order(&refuse(150_000, &case, "")), ["local/small@v1", "local/small@v2"]);
    assert_eq!(
        refuse(150_000, &case, "public").denied(),
        Some(Denied::Budget),
        "near could be paid for, and comes after acme"
    );
    // A class that may not leave is told first.
    let secret = Case { tenant: "web", ..Case::new(DataClass::Restricted) };
    let purse = Purse::Budget { left: Some(Usd::default()), when_spent: WhenSpent::Refuse };
    assert_eq!(decide(&Inputs { purse, ..secret.inputs("cheap") }).denied(), Some(Denied::Class));
}

#[test]
fn the_split_follows_the_weights_and_copies_follow_the_sample() {
    let case = Case::new(DataClass::Internal);
    let mut firsts: BTreeMap<String, u32> = BTreeMap::new();
    let (mut copies, mut copies_of_v2) = (0, 0);
    for hash in 0..u64::from(BUCKETS) {
        let decision = decide(&Inputs { bucket: Bucket::of(hash), ..case.inputs("assistant") });
        let first = order(&decision)[0].clone();
        copies += decision.copies().count();
        copies_of_v2 += if first == "local/small@v2" { decision.copies().count() } else { 0 };
        *firsts.entry(first).or_default() += 1;
    }
    assert_eq!(firsts["local/small@v1"], 9500);
    assert_eq!(firsts["local/small@v2"], 500);
    assert_eq!(copies, 500);
    assert!((15..=35).contains(&copies_of_v2), "the sample has nothing to do with the split: {copies_of_v2}");
}

#[test]
fn an_explanation_names_class_raiser_ceiling_and_line() {
    let mut case = Case::new(DataClass::Internal);
    let by = Raiser::Detector { name: name("card"), place: "messages[2].content".to_owned() };
    case.class.raise(by, DataClass::Restricted);
    case.load = Load::default();
    let explanation = explain(&decide(&case.inputs("assistant")));
    let text = explanation.to_string();
    for line in [
        "retail asks for assistant",
        "class: restricted (by detector card in messages[2].content)",
        "first: overflow: no worker serves the route's own targets",
        "  overflow near/small: class restricted is above its ceiling, internal; ceiling internal (bank.yaml:6)",
        "  split local/small@v1: no worker serves it now; ceiling restricted (bank.yaml:8)",
        "nothing may serve this request",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["raised_by"][0]["by"], "detector card in messages[2].content");
    assert_eq!(json["targets"][0]["ceiling_at"], "bank.yaml:6");
}

#[test]
fn a_denial_has_the_reason_that_passes_soonest() {
    let denied = |case: &Case, asked: &str, egress| decide(&Inputs { egress, ..case.inputs(asked) }).denied();
    let web = Case { tenant: "web", ..Case::new(DataClass::Public) };
    assert_eq!(denied(&web, "cheap", Egress::Allowed), None);
    assert_eq!(denied(&web, "cheap", Egress::Forbidden), Some(Denied::Egress));
    assert_eq!(denied(&web, "small", Egress::Allowed), Some(Denied::Name));
    let web = Case { tenant: "web", ..Case::new(DataClass::Restricted) };
    assert_eq!(denied(&web, "cheap", Egress::Allowed), Some(Denied::Class));
    let refusal = explain(&decide(&web.inputs("cheap"))).refusal();
    let expected = "nothing may serve cheap for class restricted (by tenant): \
        split acme/big: class restricted is above its ceiling, public; ceiling public (bank.yaml:5); ";
    assert!(refusal.starts_with(expected), "{refusal}");
    let idle = Case { load: Load::default(), ..Case::new(DataClass::Restricted) };
    assert_eq!(denied(&idle, "assistant", Egress::Allowed), Some(Denied::Unavailable));
    assert_eq!(denied(&idle, "small:tone", Egress::Allowed), Some(Denied::Name));
}

const CLASSES: [DataClass; 4] =
    [DataClass::Public, DataClass::Internal, DataClass::Confidential, DataClass::Restricted];
const RULES: [&str; 4] = ["true", "class == 'internal'", "request.prompt_bytes * 9000000000 > 5", "load.wait_ms > 300"];

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..4_u8).prop_map(|model| format!("model: m{model}")),
        (0..4_u8, 1..3_u8).prop_map(|(model, version)| format!("model: m{model}, version: v{version}")),
        (0..3_u8, 0..3_u8).prop_map(|(upstream, model)| format!("upstream: u{upstream}, model: x{model}")),
    ]
}

/// A list of targets: none twice, weights on all or on none, and one of them above 0.
fn targets(weights: bool) -> impl Strategy<Value = String> {
    (prop::collection::btree_map(target(), 0..5_u32, 1..5), any::<bool>()).prop_map(move |(targets, weighted)| {
        let written = targets.iter().enumerate().map(|(at, (target, weight))| {
            let weight = if at == 0 { weight + 1 } else { *weight };
            if weights && weighted { format!("{{{target}, weight: {weight}}}") } else { format!("{{{target}}}") }
        });
        format!("[{}]", written.collect::<Vec<_>>().join(", "))
    })
}

fn route(number: usize) -> impl Strategy<Value = String> {
    let parts = (
        targets(true),
        prop::option::of((prop::sample::select(RULES.to_vec()), targets(true))),
        prop::option::of(targets(false)),
        prop::option::of(targets(false)),
        prop::option::of(targets(false)),
        prop::sample::select(vec!["listed", "cheapest"]),
    );
    parts.prop_map(move |(targets, rule, overflow, fallback, shadow, order)| {
        let mut text = format!("  - name: r{number}\n    targets: {targets}\n    order: {order}\n");
        if let Some((when, targets)) = rule {
            text += &format!("    rules: [{{when: \"{when}\", targets: {targets}}}]\n");
        }
        if let Some(targets) = overflow {
            text += &format!("    overflow: {{targets: {targets}, above_wait_ms: 500, below_wait_ms: 200}}\n");
        }
        if let Some(targets) = fallback {
            text += &format!("    fallback: {targets}\n");
        }
        if let Some(targets) = shadow {
            text += &format!("    shadow: {{targets: {targets}, sample: 0.5}}\n");
        }
        text
    })
}

fn random_catalog() -> impl Strategy<Value = Catalog> {
    let ceilings = prop::collection::vec(prop::sample::select(CLASSES.to_vec()), 7);
    (ceilings, route(0), route(1)).prop_map(|(ceilings, first, second)| {
        let mut text = "tenants: [{name: t, models: [\"*\"]}]\nmodels:\n".to_owned();
        let versions = "[{id: v1, source: a}, {id: v2, source: b}]";
        for (model, ceiling) in ceilings[..4].iter().enumerate() {
            text += &format!("  - {{name: m{model}, ceiling: {ceiling}, versions: {versions}}}\n");
        }
        text += "upstreams:\n";
        for (upstream, ceiling) in ceilings[4..].iter().enumerate() {
            let url = format!("protocol: openai, url: \"https://u{upstream}.example\"");
            let price = format!("price: {{input: {}, output: 3}}", 3 - upstream);
            text += &format!("  - {{name: u{upstream}, {url}, ceiling: {ceiling}, {price}}}\n");
        }
        catalog(&format!("{text}routes:\n{first}{second}"))
    })
}

fn random_load() -> impl Strategy<Value = Load> {
    let served = (0..4_u8, prop::option::of(1..3_u8), 0..1000_u64).prop_map(|(model, version, wait_ms)| Served {
        model: name(&format!("m{model}")),
        version: version.map(|version| name(&format!("v{version}"))),
        wait_ms,
    });
    prop::collection::vec(served, 0..6).prop_map(|served| Load { served })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_target_is_authorised_below_the_class(
        catalog in random_catalog(),
        load in random_load(),
        class in prop::sample::select(CLASSES.to_vec()),
        asked in prop_oneof![Just("r0".to_owned()), Just("r1".to_owned()), Just("m1@v2".to_owned()), ".{0,12}"],
        hash in any::<u64>(),
        tide in prop::sample::select(vec![Tide::Low, Tide::High]),
        egress in prop::sample::select(vec![Egress::Allowed, Egress::Forbidden]),
        tenant in prop::sample::select(vec!["t", "other"]),
        prompt_bytes in any::<u64>(),
    ) {
        let classed = Classed::of_tenant(class);
        let inputs = Inputs {
            catalog: &catalog,
            version: None,
            tenant,
            class: &classed,
            asked: &asked,
            shape: Shape { prompt_bytes, messages: 1, task: "", stream: false, tools: 0 },
            load: &load,
            bucket: Bucket::of(hash),
            time: Time { hour: 0, weekday: 7 },
            egress,
            broken: &[],
            purse: Purse::Unbounded,
            tide,
        };
        let decision = decide(&inputs);
        prop_assert_eq!(&decision, &decide(&inputs), "the same inputs give the same decision");
        for authorised in decision.candidates().chain(decision.copies()) {
            let ceiling = match authorised.target().name() {
                catalog::Target::Local { model, .. } => catalog.models[model].ceiling,
                catalog::Target::Upstream { upstream, .. } => {
                    prop_assert_eq!(egress, Egress::Allowed);
                    catalog.upstreams[upstream].ceiling
                }
            };
            prop_assert!(class <= ceiling && authorised.class() == class && tenant == "t");
            prop_assert!(authorise(class, authorised.target()).is_ok());
        }
        let names: Vec<String> = decision.considered.iter().map(|it| it.target.to_string()).collect();
        let mut once = names.clone();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), names.len(), "no target is tried twice");
        if let Asked::Route(route) = &decision.asked
            && catalog.routes[route].order == catalog::Order::Cheapest
        {
            let allowed: Vec<u64> =
                decision.considered.iter().filter(|it| it.authorised().is_some()).map(super::Considered::cost).collect();
            prop_assert!(allowed.is_sorted(), "{:?}", allowed);
        }
        prop_assert!(!explain(&decision).to_string().is_empty());
    }
}
