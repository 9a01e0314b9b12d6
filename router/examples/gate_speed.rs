//! How long the stages before dispatch take, on this machine: class detection over 4 KiB and 64 KiB of prose and
//! of what costs most, and one decision over a catalogue of a thousand tenants.
//!
//! `cargo run --release -p penstock-router --example gate_speed`

use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use penstock_cluster::catalog::{Catalog, Name, Source};
use penstock_proto::DataClass;
use penstock_router::class::{Classed, Detectors};
use penstock_router::policy::{Bucket, Egress, Inputs, Load, Purse, Served, Shape, Tide, Time, decide};

const CATALOG: &str = "\
detectors:
  - {name: account_no, pattern: '\\b62\\d{14,17}\\b', check: luhn, class: restricted}
  - {name: vip, dictionary: vip, class: confidential}
";

const ROUTES: &str = "\
upstreams:
  - {name: acme, protocol: openai, url: \"https://acme.example\", ceiling: public, price: {input: 2.5, output: 10}}
models:
  - {name: small, versions: [{id: v1, source: a}, {id: v2, source: b}]}
routes:
  - name: assistant
    targets: [{model: small, version: v1, weight: 95}, {model: small, version: v2, weight: 5}]
    rules:
      - {when: 'request.task == \"contract-review\" || request.prompt_bytes > 24000', targets: [{upstream: acme, model: big}]}
      - {when: 'class in [\"confidential\", \"restricted\"] && load.wait_ms > 5000', targets: [{model: small}]}
    overflow: {targets: [{upstream: acme, model: small}], above_wait_ms: 2000, below_wait_ms: 500}
    fallback: [{upstream: acme, model: small}]
    shadow: {targets: [{model: small, version: v2}], sample: 0.05}
";

const ENGLISH: &str = "The committee met on 14 March 2024 to review the bank's lending policy. In the third quarter, net \
    interest income rose by 4.2% to 1,250 million, while costs fell; the chair, Ms. Hall, asked whether the risk model \
    (version 12) should be retrained. \"Not before June,\" said the head of data, who wants 18 months of history first.\n";

const CHINESE: &str = "委员会于2024年3月14日开会，审议了银行的信贷政策。第三季度净利息收入增长4.2%，达到12.5亿元，而成本有所下降；\
    主席询问是否应重新训练风险模型（第12版）。数据负责人表示：“六月之前不行”，他希望先积累18个月的历史数据。\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Source { file: "c.yaml".to_owned(), text: CATALOG.to_owned() };
    let detectors =
        Detectors::compile(&Catalog::read(vec![source])?, |_| Ok("Ada Lovelace\nGrace Hopper\n".to_owned()))?;
    let hostile = [("digits", "4 1-1 "), ("secrets", "eyJ-token password "), ("addresses", "a@b-c.d@")];
    for (language, prose) in [("english", ENGLISH), ("chinese", CHINESE)].into_iter().chain(hostile) {
        for size in [4 << 10, 64 << 10] {
            let mut text = prose.repeat(size / prose.len() + 1);
            let end = (0..=size).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            report(&format!("class {language} {size} bytes"), || {
                black_box(detectors.scan(black_box(&text)));
            })?;
        }
    }
    decisions()
}

fn decisions() -> Result<(), Box<dyn std::error::Error>> {
    let tenants: String = (0..1000).map(|at| format!("  - {{name: t{at}, models: [assistant]}}\n")).collect();
    let text = format!("tenants:\n{tenants}{ROUTES}");
    let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }])?;
    let model = Name::new("small")?;
    let served = |version: &str| -> Result<Served, Box<dyn std::error::Error>> {
        Ok(Served { model: model.clone(), version: Some(Name::new(version)?), wait_ms: 100 })
    };
    let load = Load { served: vec![served("v1")?, served("v2")?] };
    let class = Classed::of_tenant(DataClass::Internal);
    let mut hash = 0_u64;
    report("decide", || {
        hash += 1;
        black_box(decide(black_box(&Inputs {
            catalog: &catalog,
            version: None,
            tenant: "t500",
            class: &class,
            asked: "assistant",
            shape: Shape { prompt_bytes: 4096, messages: 5, task: "summarise", stream: true, tools: 0 },
            load: &load,
            bucket: Bucket::of(hash),
            time: Time { hour: 12, weekday: 3 },
            egress: Egress::Allowed,
            broken: &[],
            purse: Purse::Unbounded,
            tide: Tide::Low,
        })));
    })?;
    Ok(())
}

/// Tells the median and the 99th percentile of a thousand runs.
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn report(what: &str, mut work: impl FnMut()) -> std::io::Result<()> {
    let mut runs = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        work();
        runs.push(start.elapsed());
    }
    runs.sort();
    writeln!(std::io::stdout(), "{what}: median {:?}, p99 {:?}", runs[500], runs[990])
}
