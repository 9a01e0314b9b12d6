//! `penstock tenant` and `penstock operator`: keys. A key is made here and shown once; the router is told its hash alone.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use penstock_cluster::catalog::{Key, Name};
use penstock_proto::DataClass;
use penstock_proto::admin::{
    CatalogChange, CreateOperatorRequest, CreateTenantRequest, KeyChange, RevokeOperatorRequest,
    RevokeTenantKeyRequest, RotateTenantKeyRequest,
};
use penstock_router::tenant::NewKey;
use serde_json::json;

use crate::apply::{report, warn};
use crate::budget::{self, BudgetArgs};
use crate::fault::Fault;
use crate::output::Format;
use crate::remote::ServerArgs;
use crate::{Global, get, output, units};

const TENANT: &str = "\
Examples:
  penstock tenant create web --class public --models assistant 'risk-*'
  penstock tenant create web -o json | jq -r .key
  penstock tenant rotate-key web --overlap 24h
  penstock tenant revoke-key web k1
  penstock tenant list
  penstock tenant budget web

A key is shown once, and only its hash is stored. Changes are in force on every router within a second.

Exit codes: 0 done, 1 failed, 2 bad usage or an unknown tenant, 3 the router is not reachable.";

/// What is done with tenants.
#[derive(Subcommand)]
#[command(after_help = TENANT)]
pub(crate) enum TenantCommand {
    /// Makes a tenant where there is none, and prints its first key
    #[command(after_help = TENANT)]
    Create(CreateArgs),
    /// Lists tenants and their keys
    #[command(after_help = TENANT)]
    List(ListArgs),
    /// Prints another key for a tenant; those that it has live on for a while
    #[command(after_help = TENANT)]
    RotateKey(RotateArgs),
    /// Ends a key at once, for good
    #[command(after_help = TENANT)]
    RevokeKey(RevokeArgs),
    /// Shows what tenants have spent of their budgets, and what is left
    #[command(after_help = budget::BUDGET)]
    Budget(BudgetArgs),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// The tenant's name
    name: Name,
    /// The least class of its requests: public, internal, confidential, restricted [default: internal]
    #[arg(long)]
    class: Option<DataClass>,
    /// What it may ask for: routes, models, versions, adapters; * stands for any number of characters [default: *]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    models: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(crate) struct RotateArgs {
    /// The tenant's name
    name: Name,
    /// How long the keys that it has live on
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = units::duration)]
    overlap: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(crate) struct RevokeArgs {
    /// The tenant's name
    name: Name,
    /// Which of its keys, as `penstock tenant list` calls it
    id: Name,
    #[command(flatten)]
    server: ServerArgs,
}

const OPERATOR: &str = "\
Examples:
  penstock operator create alice --role operator -o json | jq -r .key > alice.key
  penstock status --admin-key-file alice.key
  penstock operator revoke alice

  viewer      status, get, diff, explain
  operator    and drain, undrain, rollback, session
  admin       and apply, tenant, operator

Exit codes: 0 done, 1 failed, 2 bad usage or an unknown operator, 3 the router is not reachable.";

/// What is done with operators.
#[derive(Subcommand)]
#[command(after_help = OPERATOR)]
pub(crate) enum OperatorCommand {
    /// Lets an operator in, and prints the key
    #[command(after_help = OPERATOR)]
    Create(OperatorArgs),
    /// Ends an operator's key at once
    #[command(after_help = OPERATOR)]
    Revoke(RevokeOperatorArgs),
}

#[derive(Args)]
pub(crate) struct OperatorArgs {
    /// The operator's name
    name: Name,
    /// What the operator may do
    #[arg(long)]
    role: Role,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(crate) struct RevokeOperatorArgs {
    /// The operator's name
    name: Name,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Viewer,
    Operator,
    Admin,
}

/// Runs one of the commands on tenants.
pub(crate) async fn tenant(command: TenantCommand, global: &Global) -> Result<(), Fault> {
    match command {
        TenantCommand::Create(args) => create(args, global).await,
        TenantCommand::List(args) => list(args, global).await,
        TenantCommand::RotateKey(args) => rotate(args, global).await,
        TenantCommand::RevokeKey(args) => revoke(args, global).await,
        TenantCommand::Budget(args) => budget::show(args, global).await,
    }
}

/// Runs one of the commands on operators.
pub(crate) async fn operator(command: OperatorCommand, global: &Global) -> Result<(), Fault> {
    match command {
        OperatorCommand::Create(args) => let_in(args, global).await,
        OperatorCommand::Revoke(args) => let_out(args, global).await,
    }
}

async fn create(args: CreateArgs, global: &Global) -> Result<(), Fault> {
    let key = new_key()?;
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(CreateTenantRequest {
        name: args.name.to_string(),
        class: args.class.map(|class| class.to_string()).unwrap_or_default(),
        models: args.models,
        key_sha256: key.digest().to_string(),
    });
    let change = router.client.create_tenant(request).await.map_err(|status| router.failed(&status))?.into_inner();
    show_tenant_key(&args.name, &key, change, global)
}

async fn rotate(args: RotateArgs, global: &Global) -> Result<(), Fault> {
    let key = new_key()?;
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(RotateTenantKeyRequest {
        tenant: args.name.to_string(),
        key_sha256: key.digest().to_string(),
        overlap_seconds: args.overlap.as_secs(),
    });
    let change = router.client.rotate_tenant_key(request).await.map_err(|status| router.failed(&status))?.into_inner();
    show_tenant_key(&args.name, &key, change, global)
}

async fn revoke(args: RevokeArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(RevokeTenantKeyRequest { tenant: args.name.to_string(), id: args.id.to_string() });
    let change = router.client.revoke_tenant_key(request).await.map_err(|status| router.failed(&status))?.into_inner();
    done(&change, &format!("key {} of tenant {} is revoked", args.id, args.name), global)
}

async fn let_in(args: OperatorArgs, global: &Global) -> Result<(), Fault> {
    let key = new_key()?;
    let mut router = args.server.connect(global).await?;
    let role = format!("{:?}", args.role).to_lowercase();
    let (name, key_sha256) = (args.name.to_string(), key.digest().to_string());
    let request = router.authorized(CreateOperatorRequest { name, role: role.clone(), key_sha256 });
    let change = router.client.create_operator(request).await.map_err(|status| router.failed(&status))?.into_inner();
    warn(&change);
    match Format::or_default(global.output) {
        Format::Table => show(&format!("operator {} has the role {role}", args.name), &key),
        Format::Json | Format::Yaml => output::json(&json!({
            "operator": args.name,
            "role": role,
            "key": key.reveal(),
            "version": change.version,
        })),
    }
}

async fn let_out(args: RevokeOperatorArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(RevokeOperatorRequest { name: args.name.to_string() });
    let change = router.client.revoke_operator(request).await.map_err(|status| router.failed(&status))?.into_inner();
    done(&change, &format!("the key of operator {} is revoked", args.name), global)
}

async fn list(args: ListArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let (_, catalog) = get::catalog(&mut router, 0).await?;
    let keys = catalog.tenant_keys();
    let tenants = catalog.tenants.values().map(|tenant| {
        let models: Vec<String> = tenant.models.iter().map(|glob| String::from(glob.value.clone())).collect();
        (tenant, models, keys.get(&tenant.name).map(Vec::as_slice).unwrap_or_default())
    });
    match Format::or_default(global.output) {
        Format::Json | Format::Yaml => {
            let key = |key: &Key| json!({"id": key.id, "expires": key.expires});
            let rows = tenants.map(|(tenant, models, keys)| {
                let keys: Vec<_> = keys.iter().map(key).collect();
                json!({"name": tenant.name, "class": tenant.class, "models": models, "keys": keys})
            });
            output::json(&rows.collect::<Vec<_>>())
        }
        Format::Table => {
            let key = |key: &Key| match &key.expires {
                None => key.id.to_string(),
                Some(end) if end.get() <= penstock_proto::time::unix_now() => format!("{} (ended)", key.id),
                Some(end) => format!("{} (until {end})", key.id),
            };
            let rows = tenants.map(|(tenant, models, keys)| {
                let keys: Vec<String> = keys.iter().map(key).collect();
                [
                    tenant.name.to_string(),
                    tenant.class.to_string(),
                    models.join(" "),
                    keys.join(", "),
                    tenant.at.to_string(),
                ]
            });
            output::table(["NAME", "CLASS", "MODELS", "KEYS", "AT"], &rows.collect::<Vec<_>>())
        }
    }
}

fn new_key() -> Result<NewKey, Fault> {
    NewKey::generate().map_err(|error| Fault::failed(format!("this system gives no random bits: {error}")))
}

fn show_tenant_key(tenant: &Name, key: &NewKey, change: KeyChange, global: &Global) -> Result<(), Fault> {
    let KeyChange { change, id } = change;
    let change = change.unwrap_or_default();
    warn(&change);
    match Format::or_default(global.output) {
        Format::Table => show(&format!("tenant {tenant} has the key {id}"), key),
        Format::Json | Format::Yaml => output::json(&json!({
            "tenant": tenant,
            "id": id,
            "key": key.reveal(),
            "version": change.version,
        })),
    }
}

fn show(what: &str, key: &NewKey) -> Result<(), Fault> {
    output::line(&format!("{what}, which is shown this once:"))?;
    output::line(key.reveal())
}

fn done(change: &CatalogChange, what: &str, global: &Global) -> Result<(), Fault> {
    warn(change);
    match Format::or_default(global.output) {
        Format::Table => output::line(what),
        Format::Json | Format::Yaml => output::json(&report(change)?),
    }
}
