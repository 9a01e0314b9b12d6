//! `penstock tenant budget`: what tenants' external calls have cost, and what is left.

use clap::Args;
use penstock_cluster::catalog::Name;
use penstock_proto::admin::{Budget, GetBudgetRequest};
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::output::Format;
use crate::remote::ServerArgs;
use crate::{Global, output};

pub(crate) const BUDGET: &str = "\
Examples:
  penstock tenant budget
  penstock tenant budget web
  penstock tenant budget web -o json | jq '.[0].left_usd'

Amounts are US dollars; days and months are UTC. RESERVED is what calls under way may still cost; other routers tell
theirs each second.

Exit codes: 0 done, 1 failed, 2 an unknown tenant or one without a budget, 3 the router is not reachable.";

#[derive(Args)]
pub(crate) struct BudgetArgs {
    /// The tenant's name [default: all that have a budget]
    name: Option<Name>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints how budgets stand.
pub(crate) async fn show(args: BudgetArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let tenant = args.name.map(|name| name.to_string()).unwrap_or_default();
    let request = router.authorized(GetBudgetRequest { tenant });
    let answer = router.client.get_budget(request).await.map_err(|status| router.failed(&status))?;
    let budgets = answer.into_inner().budgets;
    match Format::or_default(global.output) {
        Format::Table => {
            let header = ["TENANT", "PERIOD", "CAP", "SPENT", "RESERVED", "LEFT"];
            output::table(header, &budgets.iter().map(row).collect::<Vec<_>>())
        }
        Format::Json | Format::Yaml => output::json(&budgets.iter().map(object).collect::<Vec<_>>()),
    }
}

fn row(budget: &Budget) -> [String; 6] {
    let Budget { tenant, cap_nanos, period, span, spent_nanos, reserved_nanos, left_nanos } = budget;
    let [cap, spent, reserved, left] = [*cap_nanos, *spent_nanos, *reserved_nanos, *left_nanos].map(usd);
    [tenant.clone(), format!("{period} {span}"), cap, spent, reserved, left]
}

fn object(budget: &Budget) -> Value {
    let Budget { tenant, cap_nanos, period, span, spent_nanos, reserved_nanos, left_nanos } = budget;
    let [cap, spent, reserved, left] = [*cap_nanos, *spent_nanos, *reserved_nanos, *left_nanos]
        .map(|nanos| f64::from(penstock_cluster::catalog::Usd::from_nanos(nanos)));
    json!({
        "tenant": tenant, "period": period, "span": span,
        "cap_usd": cap, "spent_usd": spent, "reserved_usd": reserved, "left_usd": left,
    })
}

/// Dollars to the hundredth of a cent, upwards where that shows too little.
fn usd(nanos: u64) -> String {
    let part = nanos.div_ceil(100_000);
    format!("{}.{:04}", part / 10_000, part % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_told_in_dollars() {
        let budget = Budget {
            tenant: "web".to_owned(),
            cap_nanos: 500_000_000_000,
            period: "month".to_owned(),
            span: "2026-11".to_owned(),
            spent_nanos: 1_250_000_001,
            reserved_nanos: 0,
            left_nanos: 498_749_999_999,
        };
        assert_eq!(row(&budget), ["web", "month 2026-11", "500.0000", "1.2501", "0.0000", "498.7500"]);
        let object = object(&budget);
        assert_eq!((&object["left_usd"], &object["span"]), (&json!(498.749_999_999), &json!("2026-11")));
    }
}
