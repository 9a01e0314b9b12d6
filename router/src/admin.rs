//! The admin port: `penstock.v1.Admin` for operators. It knows the fleet, the catalogue and what was decided, and nothing
//! else of tenants' traffic.

mod access;
mod budget;
mod explain;
mod key;
mod publisher;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use penstock_cluster::Store;
use penstock_cluster::catalog::{self, Digest, Edit, InvalidWord, Moment, Name, Number, OperatorRole, Origin, Source};
use penstock_cluster::membership::LEASE_TTL;
use penstock_proto::ErrorCode;
use penstock_proto::admin as wire;
use penstock_proto::time::unix_now;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::budget::Budgets;
use crate::class::{Sessions, SessionsError};
use crate::fleet::{Connect, Fleet};
use crate::port::{Port, Service, refusal};
use crate::request::Failure;
use crate::ruling::Rulings;
use crate::server::{Error, Listen};
use access::{Access, Caller};
use workers::failed;

pub use key::{AdminKey, KeyError};
pub use publisher::{Change, Published, Publisher, Terms};

/// How long a change waits until this router goes by it.
const IN_FORCE: Duration = Duration::from_secs(2);
/// Versions that are told at most: as many as are kept.
const VERSIONS: usize = 64;

/// How long ago the router heard from the store.
pub type Staleness = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the service works on.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) fleet: Fleet,
    /// Reaches workers that the fleet has no channel to yet.
    pub(crate) connect: Connect,
    pub(crate) staleness: Staleness,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) publisher: Publisher,
    pub(crate) rulings: Arc<Rulings>,
    pub(crate) sessions: Sessions,
    pub(crate) budgets: Arc<Budgets>,
}

/// Serves the admin port.
pub(crate) async fn start(listen: Listen, admin: Admin, key: AdminKey) -> Result<Port, Error> {
    let leaving = CancellationToken::new();
    let access = Access::new(key, Arc::clone(&admin.rulings));
    let face = wire::AdminServer::new(Face { admin, access: access.clone(), leaving: leaving.clone() });
    let service = Service { name: "penstock.v1.Admin", routes: Routes::new(face), door: Arc::new(access) };
    let port = Port::start(listen, service, leaving).await?;
    port.health().tell(true).await;
    Ok(port)
}

struct Face {
    admin: Admin,
    access: Access,
    /// Cancelled as the port drains: what waits for a worker then waits no longer.
    leaving: CancellationToken,
}

/// What a call comes to: an answer, or a failure of the closed list.
type Answer<T> = Result<Response<T>, Status>;

impl Face {
    /// Lets a call through whose caller has at least this role.
    fn allow<T>(&self, request: Request<T>, least: OperatorRole) -> Result<(Caller, T), Status> {
        let caller = self.access.allow(request.metadata(), least).map_err(|failure| refusal(&failure))?;
        Ok((caller, request.into_inner()))
    }

    /// Changes the catalogue, and waits until this router goes by it.
    async fn change(&self, change: Change, caller: &Caller, terms: Terms) -> Result<Published, Status> {
        let published = self.admin.publisher.publish(&change, &caller.name, terms).await;
        let published = published.map_err(|failure| refusal(&failure))?;
        if let Some(version) = published.version.filter(|_| published.changed) {
            tracing::info!(%version, by = caller.name, "an operator has changed the catalogue");
            if timeout(IN_FORCE, self.admin.rulings.reach(version)).await.is_err() {
                tracing::warn!(%version, "the catalogue is stored, and not in force here yet");
            }
        }
        Ok(published)
    }

    async fn edit(&self, edit: Edit, caller: &Caller) -> Result<Published, Status> {
        self.change(Change::Edit(edit), caller, Terms::default()).await
    }
}

#[tonic::async_trait]
impl wire::Admin for Face {
    async fn status(&self, request: Request<wire::StatusRequest>) -> Answer<wire::StatusResponse> {
        self.allow(request, OperatorRole::Viewer)?;
        let snapshot = self.admin.fleet.snapshot();
        let workers = snapshot.workers.iter().map(|(name, known)| self.admin.worker(name, known));
        let workers = join_all(workers).await;
        let silent = (self.admin.staleness)();
        // While all is well the store is heard from twice in this time.
        let store_staleness_seconds = if silent <= LEASE_TTL / 4 { 0.0 } else { silent.as_secs_f64() };
        Ok(Response::new(wire::StatusResponse { workers, store_staleness_seconds }))
    }

    async fn drain_worker(&self, request: Request<wire::DrainWorkerRequest>) -> Answer<wire::DrainWorkerResponse> {
        let (caller, asked) = self.allow(request, OperatorRole::Operator)?;
        let (worker, control) = self.admin.find(&asked.name).map_err(|failure| refusal(&failure))?;
        tracing::info!(%worker, by = caller.name, "draining a worker, as an operator asked");
        tokio::select! {
            drained = control.drain() => drained.map_err(|status| refusal(&failed(&worker, &status)))?,
            () = self.leaving.cancelled() => {
                let message = format!("the router is leaving; {worker} goes on draining: ask another router");
                return Err(ErrorCode::Draining.status(message, None));
            }
        }
        tracing::info!(%worker, "a worker is drained");
        Ok(Response::new(wire::DrainWorkerResponse {}))
    }

    async fn undrain_worker(
        &self,
        request: Request<wire::UndrainWorkerRequest>,
    ) -> Answer<wire::UndrainWorkerResponse> {
        let (caller, asked) = self.allow(request, OperatorRole::Operator)?;
        let (worker, control) = self.admin.find(&asked.name).map_err(|failure| refusal(&failure))?;
        tracing::info!(%worker, by = caller.name, "giving a worker work again, as an operator asked");
        control.undrain().await.map_err(|status| refusal(&failed(&worker, &status)))?;
        Ok(Response::new(wire::UndrainWorkerResponse {}))
    }

    async fn get_catalog(&self, request: Request<wire::GetCatalogRequest>) -> Answer<wire::GetCatalogResponse> {
        let (_, asked) = self.allow(request, OperatorRole::Viewer)?;
        let applied = catalog::get(&*self.admin.store, Number::new(asked.version)).await.map_err(not_read)?;
        let version = applied.as_ref().map(|applied| version(applied.number, &applied.origin));
        let sources = applied.iter().flat_map(|applied| applied.catalog.sources());
        let sources = sources.cloned().map(|Source { file, text }| wire::CatalogSource { file, text });
        Ok(Response::new(wire::GetCatalogResponse { version, sources: sources.collect() }))
    }

    async fn list_versions(&self, request: Request<wire::ListVersionsRequest>) -> Answer<wire::ListVersionsResponse> {
        let (_, asked) = self.allow(request, OperatorRole::Viewer)?;
        let limit = usize::try_from(asked.limit).ok().filter(|limit| (1..VERSIONS).contains(limit)).unwrap_or(VERSIONS);
        let versions = catalog::versions(&*self.admin.store, limit).await.map_err(not_read)?;
        let versions = versions.iter().map(|(number, origin)| version(*number, origin)).collect();
        Ok(Response::new(wire::ListVersionsResponse { versions }))
    }

    async fn diff_catalog(&self, request: Request<wire::DiffCatalogRequest>) -> Answer<wire::CatalogChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Viewer)?;
        let terms = Terms { dry_run: true, ..Terms::default() };
        told(&self.change(files(asked.sources), &caller, terms).await?)
    }

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Answer<wire::CatalogChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        let terms = Terms { dry_run: asked.dry_run, over: asked.expected_version.map(Number::new) };
        told(&self.change(files(asked.sources), &caller, terms).await?)
    }

    async fn rollback(&self, request: Request<wire::RollbackRequest>) -> Answer<wire::CatalogChange> {
        let (caller, _) = self.allow(request, OperatorRole::Operator)?;
        told(&self.change(Change::Earlier, &caller, Terms::default()).await?)
    }

    async fn create_tenant(&self, request: Request<wire::CreateTenantRequest>) -> Answer<wire::KeyChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        let class = match asked.class.as_str() {
            "" => None,
            class => Some(class.parse().map_err(|error| wrong("class", error))?),
        };
        let sha256 = digest(asked.key_sha256)?;
        let edit = Edit::CreateTenant { name: name("name", &asked.name)?, class, models: asked.models, sha256 };
        key_told(&self.edit(edit, &caller).await?, sha256)
    }

    async fn rotate_tenant_key(&self, request: Request<wire::RotateTenantKeyRequest>) -> Answer<wire::KeyChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        let sha256 = digest(asked.key_sha256)?;
        let until = Moment::at(unix_now().saturating_add(Duration::from_secs(asked.overlap_seconds)));
        let edit = Edit::RotateKey { tenant: name("tenant", &asked.tenant)?, sha256, until };
        key_told(&self.edit(edit, &caller).await?, sha256)
    }

    async fn revoke_tenant_key(&self, request: Request<wire::RevokeTenantKeyRequest>) -> Answer<wire::CatalogChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        let edit = Edit::RevokeKey { tenant: name("tenant", &asked.tenant)?, id: name("id", &asked.id)? };
        told(&self.edit(edit, &caller).await?)
    }

    async fn get_budget(&self, request: Request<wire::GetBudgetRequest>) -> Answer<wire::GetBudgetResponse> {
        let (_, asked) = self.allow(request, OperatorRole::Viewer)?;
        let told = budget::tell(&self.admin, &asked.tenant).await;
        told.map(Response::new).map_err(|failure| refusal(&failure))
    }

    async fn create_operator(&self, request: Request<wire::CreateOperatorRequest>) -> Answer<wire::CatalogChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        let role = match asked.role.as_str() {
            "viewer" => OperatorRole::Viewer,
            "operator" => OperatorRole::Operator,
            "admin" => OperatorRole::Admin,
            other => return Err(wrong("role", format!("{other:?} is none of viewer, operator, admin"))),
        };
        let edit = Edit::CreateOperator { name: name("name", &asked.name)?, role, sha256: digest(asked.key_sha256)? };
        told(&self.edit(edit, &caller).await?)
    }

    async fn revoke_operator(&self, request: Request<wire::RevokeOperatorRequest>) -> Answer<wire::CatalogChange> {
        let (caller, asked) = self.allow(request, OperatorRole::Admin)?;
        told(&self.edit(Edit::RevokeOperator { name: name("name", &asked.name)? }, &caller).await?)
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Answer<wire::Explanation> {
        let (_, asked) = self.allow(request, OperatorRole::Viewer)?;
        let told = explain::foresee(&self.admin.rulings, &self.admin.sessions, asked).await;
        told.map(Response::new).map_err(|failure| refusal(&failure))
    }

    async fn explain_decided(&self, request: Request<wire::ExplainDecidedRequest>) -> Answer<wire::Explanation> {
        let (_, asked) = self.allow(request, OperatorRole::Viewer)?;
        let told = explain::decided(&self.admin.rulings, &asked.request_id);
        told.map(Response::new).map_err(|failure| refusal(&failure))
    }

    async fn set_session_class(
        &self,
        request: Request<wire::SetSessionClassRequest>,
    ) -> Answer<wire::SetSessionClassResponse> {
        let (caller, asked) = self.allow(request, OperatorRole::Operator)?;
        let book = self.admin.rulings.book().map_err(|failure| refusal(&failure))?;
        let (tenant, _) = explain::tenant_of(&book, &asked.tenant).map_err(|failure| refusal(&failure))?;
        if asked.session.is_empty() {
            return Err(wrong("session", "it is empty; x-penstock-session of its requests is meant"));
        }
        let class = asked.class.parse().map_err(|error| wrong("class", error))?;
        let set = self.admin.sessions.set((&tenant, &asked.session), class, &caller.name, unix_now()).await;
        let until = set.map_err(|error| {
            let code = match error {
                SessionsError::Store(_) => ErrorCode::StaleState,
                SessionsError::Full => ErrorCode::Overloaded,
            };
            code.status(error.to_string(), None)
        })?;
        tracing::info!(tenant, %class, by = caller.name, "an operator has given a session a class");
        Ok(Response::new(wire::SetSessionClassResponse { until: until.get().as_secs() }))
    }
}

fn files(sources: Vec<wire::CatalogSource>) -> Change {
    Change::Files(sources.into_iter().map(|wire::CatalogSource { file, text }| Source { file, text }).collect())
}

fn told(published: &Published) -> Answer<wire::CatalogChange> {
    catalog_change(published).map(Response::new)
}

/// What was changed, and what the new key is called.
fn key_told(published: &Published, sha256: Digest) -> Answer<wire::KeyChange> {
    let keys = published.catalog.keys.iter();
    let id = keys.filter(|key| key.sha256 == sha256).map(|key| key.id.to_string()).next().unwrap_or_default();
    Ok(Response::new(wire::KeyChange { change: Some(catalog_change(published)?), id }))
}

fn catalog_change(published: &Published) -> Result<wire::CatalogChange, Status> {
    let number = |number: Option<Number>| number.map_or(0, Number::get);
    let diff_json = serde_json::to_string(&published.diff)
        .map_err(|error| ErrorCode::Internal.status(format!("the change cannot be told: {error}"), None))?;
    Ok(wire::CatalogChange {
        version: number(published.version),
        changed: published.changed,
        warnings: published.warnings.clone(),
        diff: published.diff.to_string(),
        diff_json,
        restored: number(published.restored),
    })
}

fn version(number: Number, origin: &Origin) -> wire::CatalogVersion {
    wire::CatalogVersion {
        number: number.get(),
        by: origin.by.clone(),
        applied_at: origin.at.as_secs(),
        restored: origin.restored.map_or(0, Number::get),
    }
}

fn name(field: &'static str, name: &str) -> Result<Name, Status> {
    Name::new(name).map_err(|error| wrong(field, error))
}

fn digest(hex: String) -> Result<Digest, Status> {
    Digest::try_from(hex).map_err(|error: InvalidWord| wrong("key_sha256", error))
}

fn wrong(field: &str, why: impl std::fmt::Display) -> Status {
    refusal(&Failure::field(field, format!("{field}: {why}")))
}

fn not_read(error: catalog::Error) -> Status {
    refusal(&publisher::failure(&error))
}
