//! stub
use super::face::Call;
use super::{Api, Reply, not_found};
use crate::metrics::{Observation, Route};
use crate::request::Failure;
use http::Method;
pub(super) const PATH: &str = "/openapi.json";
pub(super) fn route(method: &Method, _path: &str) -> Route { if method == Method::GET { Route::OpenApi } else { Route::Unknown } }
impl Api { pub(super) fn spec(&self, call: &Call<'_>, mut observation: Observation) -> Result<Reply, Failure> { observation.done(); Err(not_found(call.method, call.path)) } }
