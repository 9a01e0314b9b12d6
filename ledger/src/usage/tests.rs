use super::*;
use crate::record::Idle;

const DAY: u64 = 86_400_000_000;
/// 2026-11-30, the last of its month.
const NOVEMBER: u64 = 20_787 * DAY;

fn settled(tenant: &str, target: &str, tokens: (u64, u64, u64), cost_nanos: u64) -> Settled {
    let (prompt, cached, completion) = tokens;
    Settled {
        request: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        tenant: tenant.to_owned(),
        task: String::new(),
        model: "assistant".to_owned(),
        target: Some(target.to_owned()).filter(|target| !target.is_empty()),
        worker: None,
        shadow: false,
        attempts: 1,
        outcome: "ok".to_owned(),
        finish: None,
        tokens: Tokens { prompt, cached, completion },
        estimated: false,
        compute_us: 1_000_000,
        cost_nanos,
        duration_us: 0,
        first_token_us: None,
        answer: None,
        filtered: Vec::new(),
    }
}

fn accounts() -> Accounts {
    let price = Price { input: 2_500_000_000, output: 10_000_000_000, cached_input: Some(1_250_000_000) };
    let mut accounts = Accounts::new(vec![PricedAs { name: "acme/<big>".to_owned(), price }]);
    let mut add = |time, settled| accounts.add(time, &Record::Settled(Box::new(settled)));
    add(NOVEMBER, settled("retail", "local/m@v1", (1_000, 400, 10), 100_000));
    add(NOVEMBER + DAY - 1, settled("risk", "acme/big", (100, 0, 0), 250_000));
    add(NOVEMBER + DAY, settled("retail", "local/m@v1", (0, 0, 100), 200_000));
    add(NOVEMBER + DAY, Settled { outcome: "capacity_full".to_owned(), ..settled("retail", "", (0, 0, 0), 0) });
    add(NOVEMBER + DAY, Settled { shadow: true, ..settled("retail", "local/m@v2", (500, 0, 500), 40_000) });
    accounts.add(NOVEMBER, &Record::Idle(Idle { model: "m".to_owned(), compute_us: 9, cost_nanos: 10_000 }));
    accounts
}

#[test]
fn lines_add_up_to_the_total_by_whatever_they_are_made() {
    let accounts = accounts();
    for by in By::ALL {
        let usage = accounts.usage(by);
        let requests: u64 = usage.lines.iter().map(|line| line.requests).sum();
        let cost: u64 = usage.lines.iter().map(|line| line.cost_nanos).sum();
        assert_eq!((requests, usage.total.requests), (4, 4), "{by:?}");
        assert_eq!(cost + usage.idle.cost_nanos, usage.total.cost_nanos, "{by:?}");
        assert_eq!(usage.total.cost_nanos, 600_000, "{by:?}");
        assert_eq!(usage.total.failed, 1);
    }
    let names = |by| accounts.usage(by).lines.into_iter().map(|line| line.name).collect::<Vec<_>>();
    assert_eq!(names(By::Tenant), ["retail", "risk"]);
    assert_eq!(names(By::Target), ["acme/big", "local/m@v1", "local/m@v2", "none"]);
    assert_eq!(names(By::Day), ["2026-11-30", "2026-12-01"]);
    assert_eq!(names(By::Task), ["none"]);
}

#[test]
fn the_same_tokens_are_priced_elsewhere_and_copies_are_not() {
    let usage = accounts().usage(By::Tenant);
    let retail = &usage.lines[0];
    // 600 × 2,500 + 400 × 1,250 + 10 × 10,000, and 100 × 10,000; the copy costs here and would not have been sent there.
    assert_eq!(retail.elsewhere_nanos, [3_100_000]);
    assert_eq!(retail.cost_nanos, 340_000);
    assert_eq!(retail.saved_nanos(), [2_760_000]);
    assert_eq!(usage.lines[1].saved_nanos(), [0]);
    // Idle machines are paid for, too.
    assert_eq!(usage.total.saved_nanos(), [3_350_000 - 600_000]);
}

#[test]
fn the_report_has_every_month_its_plots_and_no_markup_of_names() {
    let html = accounts().html();
    assert!(html.contains("<h2>2026-11</h2>") && html.contains("<h2>2026-12</h2>"));
    assert_eq!(html.matches("<svg").count(), 4);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.contains("acme/&lt;big&gt;") && !html.contains("<big>"));
    assert!(!html.contains("NaN") && !html.contains("inf") && !html.contains("http"), "self-contained");
    assert!(Accounts::new(Vec::new()).html().contains("Nothing was settled"));
}

#[test]
fn amounts_are_readable() {
    let text = [0, 1, 999, 1_234_000, 9_999_999, 10_000_000, 12_345_000_000, -2_500_000_000].map(dollars);
    assert_eq!(text, ["$0.00", "$0.000001", "$0.000001", "$0.001234", "$0.010000", "$0.01", "$12.35", "-$2.50"]);
}
