//! What a route's filter costs, on this machine: megabytes a second through all detectors, in pieces the size of tokens
//! and in large ones, and what it adds to a first token.
//!
//! `cargo run --release -p penstock-router --example filter_speed`

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_cluster::catalog::{Catalog, Name, Source};
use penstock_router::class::{Finder, Search};

const CATALOG: &str = "\
detectors:
  - {name: account_no, pattern: '\\b62\\d{14,17}\\b', check: luhn, class: restricted}
  - {name: vip, dictionary: vip, class: confidential}
";
const NAMES: [&str; 10] =
    ["card", "iban", "cn_resident_id", "us_ssn", "secret", "cn_mobile", "email", "phone", "account_no", "vip"];

const ENGLISH: &str = "The committee met on 14 March 2024 to review the bank's lending policy. In the third quarter, net \
    interest income rose by 4.2% to 1,250 million, while costs fell; the chair, Ms. Hall, asked whether the risk model \
    (version 12) should be retrained. \"Not before June,\" said the head of data, who wants 18 months of history first.\n";

const CHINESE: &str = "委员会于2024年3月14日开会，审议了银行的信贷政策。第三季度净利息收入增长4.2%，达到12.5亿元，而成本有所下降；\
    主席询问是否应重新训练风险模型（第12版）。数据负责人表示：“六月之前不行”，他希望先积累18个月的历史数据。\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: CATALOG.to_owned() }])?;
    let names = NAMES.iter().map(Name::new).collect::<Result<Vec<_>, _>>()?;
    let read = |_: &std::path::Path| Ok("Ada Lovelace\nGrace Hopper\n".to_owned());
    let finder = |names: &[Name]| Finder::compile(&catalog, names, read).map(Arc::new);
    let (all, built_in) = (finder(&names)?, finder(&names[..8])?);
    for (language, prose) in [("english", ENGLISH), ("chinese", CHINESE)] {
        let text = prose.repeat((1 << 20) / prose.len());
        for (which, finder) in [("all", &all), ("built-in", &built_in)] {
            for size in [4, 64, 4096, 64 << 10] {
                let speed = speed(finder, &text, size);
                writeln!(std::io::stdout(), "{language}, {which} detectors, pieces of {size} bytes: {speed:.1} MB/s")?;
            }
        }
    }
    for name in &names {
        let speed = speed(&finder(std::slice::from_ref(name))?, &ENGLISH.repeat(2500), 64 << 10);
        writeln!(std::io::stdout(), "english, {name} alone, pieces of 65536 bytes: {speed:.1} MB/s")?;
    }
    let mut runs: Vec<Duration> = (0..1001).map(|_| first_token(&all)).collect();
    runs.sort();
    writeln!(std::io::stdout(), "added to a first token: median {:?}, p99 {:?}", runs[500], runs[990])?;
    Ok(())
}

/// The best of several runs, in megabytes a second.
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn speed(finder: &Arc<Finder>, text: &str, size: usize) -> f64 {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = size.min(rest.len());
        while !rest.is_char_boundary(end) {
            end += 1;
        }
        let (piece, behind) = rest.split_at(end);
        pieces.push(piece);
        rest = behind;
    }
    let run = || {
        let start = Instant::now();
        let (mut search, mut cuts) = (Search::new(finder), Vec::new());
        for piece in &pieces {
            search.push(piece, &mut cuts);
            cuts.clear();
        }
        search.end(&mut cuts);
        black_box(cuts.len());
        start.elapsed()
    };
    let best = (0..5).map(|_| run()).min().unwrap_or_default();
    text.len() as f64 / best.as_secs_f64() / 1e6
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn first_token(finder: &Arc<Finder>) -> Duration {
    let start = Instant::now();
    let (mut search, mut cuts) = (Search::new(finder), Vec::new());
    search.push(black_box("The "), &mut cuts);
    black_box(cuts.len());
    start.elapsed()
}
