//! What issuers say of each other and of tenants.

use std::collections::BTreeMap;

use super::super::{Issuer, KeySet, Name, Placed};
use super::{Checker, Reach};

impl Checker<'_> {
    pub(super) fn issuer(&mut self, issuer: &Placed<Issuer>) {
        if matches!(Reach::of(&issuer.issuer), Reach::No) {
            let why = "an issuer is known by its URL, https://HOST/…, as its tokens spell it in iss";
            self.refuse(issuer.line(issuer.issuer.line), why);
        }
        if issuer.audience.is_empty() || issuer.audience.iter().any(String::is_empty) {
            let why = "an issuer needs an audience, or tokens meant for others would do here";
            self.refuse(issuer.line(issuer.audience.line), why);
        }
        let keys = issuer.line(issuer.jwks.line);
        match &*issuer.jwks {
            KeySet::Url(url) => match Reach::of(url) {
                Reach::Safe => {}
                Reach::Clear(host) => {
                    let why = format!("keys that come from {host} in the clear prove nothing; use https");
                    self.refuse(keys, why);
                }
                Reach::No => self.refuse(keys, "the url of a key set must be https://HOST/…, without user or query"),
            },
            KeySet::File(path) if path.as_os_str().is_empty() => self.refuse(keys, "the file of a key set has no name"),
            KeySet::File(_) => {}
        }
        if issuer.claim.is_empty() {
            self.refuse(issuer.at.clone(), "the claim that names the tenant has no name");
        }
        if issuer.algorithms.is_empty() {
            self.refuse(issuer.line(issuer.algorithms.line), "without algorithms no token can be signed");
        }
        for tenant in issuer.tenants.iter().flat_map(BTreeMap::values) {
            if !self.catalog.tenants.contains_key(&tenant.value) {
                let why = self.no("tenant", tenant, self.catalog.tenants.keys());
                self.refuse(issuer.line(tenant.line), why);
            }
        }
    }

    /// Whether some issuer's tokens may stand for a tenant.
    pub(super) fn issued(&self, tenant: &Name) -> bool {
        let means = |issuer: &Issuer| match &issuer.tenants {
            Some(map) => map.values().any(|named| named.value == *tenant),
            None => true,
        };
        self.catalog.issuers.values().any(|issuer| means(issuer))
    }

    /// A token says only who issued it, so two of the same would not be told apart.
    pub(super) fn one_of_each_issuer(&mut self) {
        let issuers = self.catalog.issuers.values();
        self.unique("issuer", issuers.map(|issuer| (issuer.issuer.as_str(), issuer.line(issuer.issuer.line))));
    }
}
