//! How tenants' budgets stand.

use penstock_cluster::catalog::{Name, Tenant};
use penstock_proto::ErrorCode;
use penstock_proto::admin as wire;

use super::Admin;
use crate::budget::{Statement, word};
use crate::request::Failure;

/// The budget of one tenant, or where none is named of all that have one.
pub(super) async fn tell(admin: &Admin, tenant: &str) -> Result<wire::GetBudgetResponse, Failure> {
    let book = admin.rulings.book()?;
    let tenants = &book.catalog().tenants;
    let field = |message: String| Failure::field("tenant", message);
    let named: Vec<(&Name, &Tenant)> = if tenant.is_empty() {
        tenants.iter().filter(|(_, known)| known.budget.is_some()).map(|(name, known)| (name, &**known)).collect()
    } else {
        let names = || tenants.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
        let unknown = || field(format!("there is no tenant {tenant:?}; there are: {}", names()));
        let (name, known) = tenants.get_key_value(tenant).ok_or_else(unknown)?;
        if known.budget.is_none() {
            return Err(field(format!("tenant {tenant} has no budget: nothing bounds what its external calls cost")));
        }
        vec![(name, &**known)]
    };
    let mut budgets = Vec::new();
    for (name, known) in named {
        let Some(budget) = &known.budget else { continue };
        let standing = admin.budgets.statement(name.as_str(), budget).await;
        let Statement { span, spent, reserved, left } = standing
            .map_err(|error| Failure::new(ErrorCode::StaleState, format!("what is spent is not known: {error}")))?;
        budgets.push(wire::Budget {
            tenant: name.to_string(),
            cap_nanos: budget.usd.nanos(),
            period: word(budget.period).to_owned(),
            span,
            spent_nanos: spent.nanos(),
            reserved_nanos: reserved.nanos(),
            left_nanos: left.nanos(),
        });
    }
    Ok(wire::GetBudgetResponse { budgets })
}
