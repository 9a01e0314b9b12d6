//! So many requests through the whole of a router, while everything around it fails in turn; and the account of where
//! they went.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use penstock_proto::inference::InferenceClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::audit::complaints;
use crate::canary::{Spelling, undone};
use crate::client::{Client, Outcome};
use crate::outside::Sent;
use crate::places::Face;
use crate::plan::{Plan, number};
use crate::rig::{Rig, Versions};
use crate::world::Version;

/// Requests at once.
const CLIENTS: usize = 48;
/// Requests between two things that happen around the router.
const CALM: usize = 100;
/// Requests that are remembered, for whatever is still to be seen of them.
const REMEMBERED: usize = 40_000;
/// Places of all faces that the recording may have seen nothing of.
const UNSEEN: usize = 4;
/// Wrongs that are told.
const TOLD: usize = 12;

/// What was seen.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) requests: usize,
    pub(crate) codes: BTreeMap<String, usize>,
    /// Answers by what gave them.
    pub(crate) inside: usize,
    pub(crate) outside: usize,
    pub(crate) refused: usize,
    /// What upstreams were sent.
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
    /// Canaries seen there that were allowed to be: the recording sees what it looks for.
    pub(crate) seen: usize,
    pub(crate) seen_spellings: BTreeSet<String>,
    pub(crate) seen_places: BTreeSet<String>,
    /// Whose class was told.
    pub(crate) classed: usize,
    /// Canaries, or requests, above a ceiling.
    pub(crate) leaks: Vec<String>,
    /// Bytes that nobody may be sent.
    pub(crate) strays: Vec<String>,
    /// Canaries that raised no class.
    pub(crate) missed: Vec<String>,
    /// Answers whose headers an upstream made.
    pub(crate) forged: Vec<String>,
    pub(crate) fallbacks: usize,
    pub(crate) shadows: usize,
    pub(crate) events: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, inside, outside, refused, calls, bytes, seen, classed, fallbacks, shadows, .. } = self;
        write!(
            f,
            "{requests} requests: {outside} answered outside, {inside} inside, {refused} refused by class, rest failed; \
             {calls} calls of {bytes} bytes recorded, {shadows} shadows, {fallbacks} fallbacks; {classed} classes told; \
             {seen} canaries seen where allowed, above a ceiling: {}, unclassed: {}, stray: {}, forged: {}; {:?}; {:?}",
            self.leaks.len(),
            self.missed.len(),
            self.strays.len(),
            self.forged.len(),
            self.events,
            self.codes,
        )
    }
}

type Plans = Mutex<BTreeMap<usize, Arc<Plan>>>;

/// Sends so many requests. Where the catalogues are `flawed`, some go where they must not.
pub(crate) async fn run(requests: usize, seed: u64, flawed: bool) -> Account {
    let mut rng = Rng::with_seed(seed);
    let (told, sent) = mpsc::unbounded_channel();
    let rig = Arc::new(Rig::start(told, Version::make(&mut rng, flawed)).await);
    let (plans, account) = (Arc::new(Plans::default()), Arc::new(Mutex::new(Account::default())));
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(watch::Sender::new(0)));
    let mut auditor = JoinSet::new();
    auditor.spawn(audit(Arc::clone(&rig.versions), Arc::clone(&plans), Arc::clone(&account), sent));
    let mut around = JoinSet::new();
    around.spawn(trouble(Arc::clone(&rig), Arc::clone(&account), done.subscribe(), rng.fork()));
    let channel = Endpoint::from_shared(format!("http://{}", rig.router.grpc_addr())).unwrap().connect_lazy();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (rig, plans, account) = (Arc::clone(&rig), Arc::clone(&plans), Arc::clone(&account));
        let (next, done) = (Arc::clone(&next), Arc::clone(&done));
        let mut client = Client::new(rig.router.http_addr(), InferenceClient::new(channel.clone()));
        clients.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= requests {
                    return;
                }
                let plan = Arc::new(Plan::make(at, &mut Rng::with_seed(seed ^ (at as u64 + 1) << 20), &rig.vips));
                remember(&plans, at, &plan);
                let before = rig.in_force();
                let outcome = client.ask(&plan, rig.keys[plan.tenant].reveal()).await;
                // It was answered under one of these.
                let versions = rig.versions.lock().unwrap()[before..].to_vec();
                judge(&account, &plan, &outcome, &versions);
                done.send_modify(|done| *done += 1);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client finishes");
    }
    around.shutdown().await;
    rig.store.lose(false);
    let (fallbacks, shadows) = (rig.count("penstock_fallbacks_total"), rig.count("penstock_shadows_total"));
    // With the upstreams the recording ends.
    drop(Arc::into_inner(rig).expect("nobody else has it any more"));
    while let Some(ended) = auditor.join_next().await {
        ended.expect("everything is read");
    }
    let account = std::mem::take(&mut *account.lock().unwrap());
    Account { requests, fallbacks, shadows, ..account }
}

fn remember(plans: &Plans, at: usize, plan: &Arc<Plan>) {
    let mut plans = plans.lock().unwrap();
    plans.insert(at, Arc::clone(plan));
    if plans.len() > REMEMBERED {
        plans.pop_first();
    }
}

/// Holds an answer against what was asked under any of these catalogues.
fn judge(account: &Mutex<Account>, plan: &Plan, outcome: &Outcome, versions: &[Version]) {
    let mut account = account.lock().unwrap();
    *account.codes.entry(outcome.code.clone()).or_default() += 1;
    let target = outcome.header("x-penstock-target");
    match (outcome.code.as_str(), target) {
        ("policy_class", _) => account.refused += 1,
        (_, "") => {}
        ("ok", "local/parrot") => account.inside += 1,
        ("ok", "acme/big" | "ocean/large") => account.outside += 1,
        (_, "local/parrot" | "acme/big" | "ocean/large") => {}
        (_, other) => account.forged.push(format!("x-penstock-target: {other}")),
    }
    let class = outcome.header("x-penstock-class").parse::<penstock_proto::DataClass>();
    let Ok(class) = class else {
        account.forged.push(format!(
            "x-penstock-class: {:?} ({})",
            outcome.headers.get("x-penstock-class"),
            outcome.code
        ));
        return;
    };
    if outcome.headers.values().any(|value| value.as_bytes().starts_with(b"forged")) {
        account.forged.push(format!("{:?}", outcome.headers));
    }
    // A body that is refused as it is read is not looked into.
    if !matches!(outcome.code.as_str(), "ok" | "policy_class") {
        return;
    }
    account.classed += 1;
    let least = versions.iter().map(|version| expected(plan, version)).min().unwrap();
    if class < least {
        let told = format!("{class} where {least} is due: {}", describe(plan));
        account.missed.push(told);
    }
}

fn expected(plan: &Plan, version: &Version) -> penstock_proto::DataClass {
    let asked = version.class_asked(plan.tenant, plan.class, plan.task);
    plan.planted.as_ref().map_or(asked, |planted| asked.max(version.class_of(planted.canary.kind)))
}

fn describe(plan: &Plan) -> String {
    let planted = plan.planted.as_ref();
    let planted =
        planted.map(|it| format!("{:?} {:?} in {}: {}", it.spelling, it.canary.kind, it.place, it.canary.plain));
    format!("{:?} {planted:?}", plan.face)
}

/// Reads everything that upstreams are sent.
async fn audit(
    versions: Versions,
    plans: Arc<Plans>,
    account: Arc<Mutex<Account>>,
    mut sent: mpsc::UnboundedReceiver<Sent>,
) {
    while let Some(sent) = sent.recv().await {
        let text = String::from_utf8_lossy(&sent.body);
        let plan = number(&text).and_then(|at| plans.lock().unwrap().get(&at).cloned());
        let version = generation(&sent.path).map(|at| versions.lock().unwrap()[at]);
        let mut account = account.lock().unwrap();
        account.calls += 1;
        account.bytes += sent.body.len();
        let Some(plan) = plan else {
            account.strays.push(format!("nobody's: {text}"));
            continue;
        };
        let wrong = complaints(&sent, &plan);
        account.strays.extend(wrong.into_iter().map(|wrong| format!("{wrong}, of {}", describe(&plan))));
        let Some(version) = version else {
            account.strays.push(format!("a path of no catalogue: {}", sent.path));
            continue;
        };
        let ceiling = version.ceiling(sent.side);
        if expected(&plan, &version) > ceiling {
            let told = format!("{:?}, whose ceiling is {ceiling}, was sent {}", sent.side, describe(&plan));
            account.leaks.push(told);
        }
        let headers = format!("{:?}", sent.headers);
        let Some(planted) = &plan.planted else { continue };
        let wanted = undone(&planted.canary.plain);
        let wanted = wanted.trim_end_matches('|');
        if undone(&text).contains(wanted) || undone(&headers).contains(wanted) {
            account.seen += 1;
            account.seen_spellings.insert(format!("{:?}", planted.spelling));
            account.seen_places.insert(format!("{:?} {}", plan.face, planted.place));
            if version.class_of(planted.canary.kind) > ceiling {
                account.leaks.push(format!("a canary was seen: {}", describe(&plan)));
            }
        }
    }
}

/// The catalogue that a call was made under: `/g7/v1/…`.
fn generation(path: &str) -> Option<usize> {
    path.strip_prefix("/g")?.split_once("/v1/")?.0.parse().ok()
}

/// Makes trouble, one after the other, every so many requests.
async fn trouble(rig: Arc<Rig>, account: Arc<Mutex<Account>>, mut done: watch::Receiver<usize>, mut rng: Rng) {
    let flawed = rig.versions.lock().unwrap()[0].is_flawed();
    let (mut due, mut lost, mut bad) = (CALM, false, [false; 2]);
    let mut alive = BTreeSet::from(["w1", "w2"]);
    loop {
        if done.wait_for(|done| *done >= due).await.is_err() {
            return;
        }
        due += CALM;
        let name = match rng.u8(..20) {
            _ if lost => {
                lost = false;
                rig.store.lose(false);
                "store found"
            }
            _ if bad != [false; 2] => {
                bad = [false; 2];
                rig.upstreams.iter().for_each(|upstream| upstream.has_bad_weather(false));
                "upstream well"
            }
            0..=2 => {
                let worker = ["w1", "w2"][rng.usize(..2)];
                if alive.len() > 1 && alive.remove(worker) {
                    rig.kill(worker).await;
                    "worker killed"
                } else if alive.insert(worker) {
                    rig.join(worker).await;
                    "worker joined"
                } else {
                    "nothing"
                }
            }
            3 | 4 => {
                lost = true;
                rig.store.lose(true);
                // Nothing can be changed now, and what is in force stays so.
                let error = rig.apply(Version::make(&mut rng, flawed)).await.expect_err("the store is lost");
                assert!(error.retryable(), "{error}");
                "store lost"
            }
            5 => {
                let side = rng.usize(..2);
                bad[side] = true;
                rig.upstreams[side].has_bad_weather(true);
                "upstream failing"
            }
            _ => {
                rig.apply(Version::make(&mut rng, flawed)).await.expect("the store is there");
                "catalogue changed"
            }
        };
        *account.lock().unwrap().events.entry(name).or_default() += 1;
    }
}

impl Account {
    /// Fails where anything went where it must not, and where too little happened to prove anything.
    pub(crate) fn check(&self) {
        for (what, wrongs) in
            [("leaked", &self.leaks), ("unclassed", &self.missed), ("stray", &self.strays), ("forged", &self.forged)]
        {
            let told: Vec<&String> = wrongs.iter().take(TOLD).collect();
            assert!(wrongs.is_empty(), "{what}, {}: {told:#?}\n{self}", wrongs.len());
        }
        for (what, count, share) in [
            ("answers from outside", self.outside, 8),
            ("answers from inside", self.inside, 5),
            ("refusals", self.refused, 40),
            ("calls", self.calls, 8),
            ("canaries that may be seen", self.seen, 40),
            ("told classes", self.classed, 2),
            ("copies", self.shadows, 100),
            ("fallbacks", self.fallbacks, 200),
        ] {
            assert!(count * share >= self.requests, "{what}: only {count}\n{self}");
        }
        for what in ["worker killed", "worker joined", "store lost", "upstream failing", "catalogue changed"] {
            assert!(self.events.contains_key(what), "{what}: never\n{self}");
        }
        let all: BTreeSet<String> = Spelling::all().iter().map(|spelling| format!("{spelling:?}")).collect();
        let unseen: Vec<&String> = all.difference(&self.seen_spellings).collect();
        assert!(unseen.is_empty(), "the recording never saw {unseen:?}");
        let expressible = Face::ALL.into_iter().flat_map(|face| {
            let places = face.places().into_iter().filter(move |place| is_sent(face, place.name));
            places.map(move |place| format!("{face:?} {}", place.name))
        });
        let unseen: Vec<String> = expressible.filter(|place| !self.seen_places.contains(place)).collect();
        // Of some places few may be sent at all; chance may leave out one or another.
        assert!(unseen.len() <= UNSEEN, "the recording never saw {unseen:?}");
    }
}

/// Whether what stands at a place is sent to an upstream where its class allows that.
fn is_sent(face: Face, place: &str) -> bool {
    const NEVER: [&str; 13] = [
        "metadata.value",
        "metadata.key",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "guided_regex",
        "guided_grammar",
        "guided_choice",
        "response_format.name",
        "response_format.description",
        "text.format.description",
        "chat_template_kwargs",
        "chat_template_kwargs.key",
    ];
    let aside = place.contains("unknown") || NEVER.contains(&place);
    // Upstreams take no ids, and no structure for texts.
    !aside && face != Face::Tokens && (face != Face::Completion || place != "guided_json")
}
