//! The catalogues that follow each other, and what each of them allows: the proof's own account of classes, which asks
//! nothing of the code that it is to judge.

use std::net::SocketAddr;
use std::path::Path;

use fastrand::Rng;
use penstock_proto::DataClass;
use penstock_router::tenant::NewKey;

use crate::canary::Kind;
use crate::worker::MODEL;

const TENANTS: [&str; 3] = ["web", "staff", "risk"];
/// What clients may ask for.
pub(crate) const MODELS: [&str; 13] =
    ["split", "ruled", "over", "help", "far", "out", "anth", "copies", "copies-far", "cheap", "chain", "split", MODEL];
pub(crate) const TASKS: [&str; 4] = ["secret", "low", "out", "far"];
/// The models of the upstreams, in the order of [`Side`].
pub(crate) const OUTSIDE: [&str; 2] = ["big", "large"];

/// Which of the upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// Speaks OpenAI's protocol.
    Acme,
    /// Speaks Anthropic's.
    Ocean,
}

/// What a version of the catalogue says, as far as classes go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    ceilings: [DataClass; 2],
    tenants: [DataClass; 3],
    secret_task: DataClass,
    email: DataClass,
    contract: DataClass,
    vip: DataClass,
    /// Whether the catalogue says less than this does: then something goes where it must not.
    flawed: bool,
}

impl Version {
    pub(crate) fn make(rng: &mut Rng, flawed: bool) -> Self {
        use DataClass::{Confidential, Internal, Public, Restricted};
        let of = |rng: &mut Rng, classes: &[DataClass]| *rng.choice(classes).unwrap();
        // Where nothing is above a ceiling, the recording must see what it looks for.
        let open = rng.u8(..4) == 0;
        let ceiling = |rng: &mut Rng| of(rng, &[Public, Public, Internal, Internal, Confidential]);
        Self {
            ceilings: [(); 2].map(|()| if open { Restricted } else { ceiling(rng) }),
            tenants: [of(rng, &[Public, Public, Internal]), of(rng, &[Public, Internal, Internal]), Restricted]
                .map(|class| if open { Public } else { class }),
            secret_task: of(rng, &[Confidential, Restricted]),
            email: of(rng, &[Internal, Confidential, Restricted]),
            contract: of(rng, &[Internal, Confidential, Restricted]),
            vip: of(rng, &[Confidential, Restricted]),
            flawed,
        }
    }

    pub(crate) fn is_flawed(&self) -> bool {
        self.flawed
    }

    pub(crate) fn ceiling(&self, side: Side) -> DataClass {
        self.ceilings[side as usize]
    }

    pub(crate) fn class_of(&self, kind: Kind) -> DataClass {
        match kind {
            Kind::Card | Kind::Iban | Kind::CnResidentId | Kind::UsSsn | Kind::Secret => DataClass::Restricted,
            Kind::CnMobile | Kind::Phone => DataClass::Confidential,
            Kind::Email => self.email,
            Kind::Contract => self.contract,
            Kind::Vip => self.vip,
        }
    }

    /// The least class of what a tenant asks with a header and a task, whatever is in it.
    pub(crate) fn class_asked(&self, tenant: usize, header: Option<DataClass>, task: Option<&str>) -> DataClass {
        let task = match task {
            Some("secret") => self.secret_task,
            Some(_) | None => DataClass::Public,
        };
        self.tenants[tenant].max(header.unwrap_or(DataClass::Public)).max(task)
    }
}

/// What stays the same from one catalogue to the next.
pub(crate) struct Ground<'a> {
    pub(crate) addresses: [SocketAddr; 2],
    /// Of the upstreams, in a directory for secrets.
    pub(crate) directory: &'a Path,
    pub(crate) keys: &'a [NewKey; 3],
}

/// The catalogue of a version. Its number stands in the paths by which upstreams are called: a recording tells under
/// which catalogue each byte was sent.
pub(crate) fn catalogue(number: usize, version: &Version, ground: &Ground<'_>) -> String {
    let [acme, ocean] = ground.addresses;
    let Version { ceilings: [acme_ceiling, ocean_ceiling], tenants, secret_task, .. } = version;
    let said = |class| if version.flawed { DataClass::Public } else { class };
    let [email, contract, vip] = [version.email, version.contract, version.vip].map(said);
    let dir = ground.directory.display();
    let tenant = |at: usize| {
        let (name, class, digest) = (TENANTS[at], tenants[at], ground.keys[at].digest());
        format!(
            "- {{name: {name}, class: {class}, models: ['*'], tasks: {{secret: {secret_task}, low: public}}, \
             keys: [{{id: k1, sha256: {digest}}}]}}\n"
        )
    };
    let tenants: String = (0..3).map(tenant).collect();
    let [big, large] = OUTSIDE;
    // The price makes an upstream now dearer, now cheaper than the other.
    let (price, other) = if number.is_multiple_of(2) { (1, 2) } else { (2, 1) };
    format!(
        "tenants:\n{tenants}\
         upstreams:\n\
         - {{name: acme, protocol: openai, url: 'http://{acme}/g{number}/v1', key: {{file: {dir}/key}}, \
             ceiling: {acme_ceiling}, price: {{input: {price}, output: {price}}}, timeouts: {{first_byte: 1s, idle: 1s}}}}\n\
         - {{name: ocean, protocol: anthropic, url: 'http://{ocean}/g{number}/v1', key: {{file: {dir}/key}}, \
             ceiling: {ocean_ceiling}, price: {{input: {other}, output: {other}}}, timeouts: {{first_byte: 1s, idle: 1s}}}}\n\
         models:\n\
         - {{name: {MODEL}}}\n\
         detectors:\n\
         - {{name: email, class: {email}}}\n\
         - {{name: contract, pattern: '\\b99\\d{{12}}\\b', check: luhn, class: {contract}}}\n\
         - {{name: vip, dictionary: {dir}/vip.txt, class: {vip}}}\n\
         routes:\n\
         - {{name: split, targets: [{{upstream: acme, model: {big}, weight: 2}}, {{upstream: ocean, model: {large}, weight: 2}}, \
             {{model: {MODEL}, weight: 1}}]}}\n\
         - {{name: ruled, targets: [{{model: {MODEL}}}], fallback: [{{model: {MODEL}}}], \
             rules: [{{when: 'request.task == \"out\"', targets: [{{upstream: acme, model: {big}}}]}}, \
                     {{when: 'request.tools > 0 || request.stream', targets: [{{upstream: ocean, model: {large}}}]}}]}}\n\
         - {{name: over, targets: [{{model: {MODEL}}}], \
             overflow: {{targets: [{{upstream: acme, model: {big}}}], above_wait_ms: 100, below_wait_ms: 50}}}}\n\
         - {{name: help, targets: [{{upstream: acme, model: {big}}}], fallback: [{{model: {MODEL}}}]}}\n\
         - {{name: far, targets: [{{upstream: ocean, model: {large}}}], fallback: [{{upstream: acme, model: {big}}}, {{model: {MODEL}}}]}}\n\
         - {{name: out, targets: [{{upstream: acme, model: {big}}}]}}\n\
         - {{name: anth, targets: [{{upstream: ocean, model: {large}}}]}}\n\
         - {{name: copies, targets: [{{model: {MODEL}}}], shadow: {{targets: [{{upstream: acme, model: {big}}}], sample: 0.8}}}}\n\
         - {{name: copies-far, targets: [{{upstream: acme, model: {big}}}], fallback: [{{model: {MODEL}}}], \
             shadow: {{targets: [{{upstream: ocean, model: {large}}}], sample: 0.8}}}}\n\
         - {{name: cheap, order: cheapest, targets: [{{upstream: acme, model: {big}}}, {{upstream: ocean, model: {large}}}, {{model: {MODEL}}}]}}\n\
         - {{name: chain, targets: [{{model: {MODEL}}}], fallback: [{{upstream: acme, model: {big}}}, {{upstream: ocean, model: {large}}}]}}\n"
    )
}
