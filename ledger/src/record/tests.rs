use penstock_proto::DataClass;

use super::*;
use crate::key::LedgerKey;

fn decided() -> Decided {
    let target = |version: Option<&str>| Target::Local {
        model: "smollm2-135m".to_owned(),
        version: version.map(str::to_owned),
        adapter: None,
    };
    let upstream = Target::Upstream { upstream: "acme".to_owned(), model: "small".to_owned() };
    let key = LedgerKey::from_seed(&[1; 32]);
    let price = Some(Price { input: 150_000_000, output: 600_000_000, cached_input: None });
    Decided {
        request: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        key: Some("k1".to_owned()),
        session: Some(key.mac("session 7")),
        inputs: Inputs {
            version: Some(3),
            tenant: "retail".to_owned(),
            class: Class {
                class: DataClass::Confidential,
                raised_by: vec![
                    Raised { by: Raiser::Tenant, to: DataClass::Internal },
                    Raised {
                        by: Raiser::Detector { name: "card".to_owned(), place: "messages[2].content".to_owned() },
                        to: DataClass::Confidential,
                    },
                ],
            },
            asked: "assistant".to_owned(),
            shape: Shape { prompt_bytes: 812, messages: 3, task: "support".to_owned(), stream: true, tools: 0 },
            load: vec![Served { model: "smollm2-135m".to_owned(), version: Some("v1".to_owned()), wait_ms: 12 }],
            bucket: 4_711,
            time: Time { hour: 14, weekday: 3 },
            egress: Egress::Allowed,
            broken: vec![upstream.clone()],
            tide: Tide::High,
        },
        arm: "the split of the traffic, bucket 4711".to_owned(),
        candidates: vec![Candidate { target: target(Some("v1")), stage: "split".to_owned(), price: None }],
        refusals: vec![Refusal { target: upstream.clone(), stage: "fallback".to_owned(), reason: "broken".to_owned() }],
        shadows: vec![Candidate { target: upstream, stage: "shadow".to_owned(), price }],
        failed_rules: vec!["bank.yaml:12".to_owned()],
        prompt: key.mac("my card is 4111 1111 1111 1111"),
    }
}

fn settled() -> Settled {
    Settled {
        request: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        tenant: "retail".to_owned(),
        task: String::new(),
        model: "assistant".to_owned(),
        target: Some("local/smollm2-135m@v1".to_owned()),
        worker: Some("w1".to_owned()),
        shadow: false,
        attempts: 2,
        outcome: "ok".to_owned(),
        finish: Some("stop".to_owned()),
        tokens: Tokens { prompt: 200, cached: 64, completion: 31 },
        estimated: false,
        compute_us: 81_000,
        cost_nanos: 47_250,
        duration_us: 640_000,
        first_token_us: None,
        answer: None,
        filtered: vec![FilterHit { detector: "card".to_owned(), action: "redact".to_owned(), count: 1 }],
    }
}

#[test]
fn every_kind_of_record_is_read_as_it_was_written() {
    let records = [
        Record::Decided(Box::new(decided())),
        Record::Settled(Box::new(settled())),
        Record::Catalogue(Catalogue { version: 4, by: "alice".to_owned(), restored: Some(2) }),
        Record::Operator(Operator { name: "bob".to_owned(), action: "drain".to_owned(), on: "w1".to_owned() }),
        Record::Idle(Idle { model: "smollm2-135m".to_owned(), compute_us: 5, cost_nanos: 3 }),
    ];
    assert_eq!(records.len(), Kind::ALL.len());
    for record in records {
        let read = Record::read(record.kind().as_str(), &record.body()).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.body(), record.body());
    }
}

#[test]
fn no_text_of_a_request_stands_in_its_record() {
    let body = String::from_utf8(Record::Decided(Box::new(decided())).body()).unwrap();
    assert!(!body.contains("4111") && !body.contains("session 7"), "{body}");
    assert!(body.contains("messages[2].content") && body.contains(&decided().prompt.to_string()));
}

#[test]
fn targets_are_told_as_the_header_tells_them() {
    let target = |model: &str, version: Option<&str>, adapter: Option<&str>| {
        let (version, adapter) = (version.map(str::to_owned), adapter.map(str::to_owned));
        Target::Local { model: model.to_owned(), version, adapter }.to_string()
    };
    assert_eq!(target("m", None, None), "local/m");
    assert_eq!(target("m", Some("v2"), Some("tone")), "local/m@v2:tone");
    let upstream = Target::Upstream { upstream: "acme".to_owned(), model: "small".to_owned() };
    assert_eq!(upstream.to_string(), "acme/small");
    let json = serde_json::to_string(&upstream).unwrap();
    assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), upstream);
}

#[test]
fn a_price_counts_cached_tokens_once_and_rounds_up() {
    let price = Price { input: 2_500_000_000, output: 10_000_000_000, cached_input: Some(1_250_000_000) };
    let tokens = Tokens { prompt: 1_000, cached: 400, completion: 10 };
    // 600 × 2,500 + 400 × 1,250 + 10 × 10,000 nanos.
    assert_eq!(price.of(&tokens), 2_100_000);
    assert_eq!(Price { cached_input: None, ..price }.of(&tokens), 2_600_000);
    // More cached tokens than tokens are a provider's error, and lower no price below nothing.
    assert_eq!(price.of(&Tokens { prompt: 1, cached: 9, completion: 0 }), 1_250);
    assert_eq!(
        Price { input: 1, output: 0, cached_input: None }.of(&Tokens { prompt: 1, cached: 0, completion: 0 }),
        1
    );
    assert_eq!(price.of(&Tokens { prompt: u64::MAX, cached: 0, completion: u64::MAX }), u64::MAX);
}

#[test]
fn what_is_no_record_is_told_and_never_a_panic() {
    assert!(Record::read("forecast", b"{}").unwrap_err().to_string().contains("\"forecast\""));
    for body in [&b""[..], b"{}", b"null", b"\xff", br#"{"version":"x"}"#] {
        assert!(matches!(Record::read("catalogue", body), Err(InvalidRecord::Body { kind: "catalogue", .. })));
    }
    let newer = br#"{"version":1,"by":"alice","reason":"a field of tomorrow"}"#;
    assert!(Record::read("catalogue", newer).is_ok());
}
