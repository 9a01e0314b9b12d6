//! The things that a catalogue is made of, as its YAML spells them. What a thing says of itself is checked here, as it
//! is read; what things say of each other is checked elsewhere.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Deref;
use std::path::PathBuf;

use penstock_proto::{DataClass, ModelName, Priority};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::moment::Moment;
use super::name::{Digest, Glob, Name, Span, Usd};
use super::pattern::Pattern;
use super::route::Route;

/// One YAML document: any of the kinds, in any number.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) tenants: Vec<Lined<Tenant>>,
    #[serde(default)]
    pub(super) keys: Vec<Lined<IssuedKey>>,
    #[serde(default)]
    pub(super) revoked: Vec<Lined<Revoked>>,
    #[serde(default)]
    pub(super) upstreams: Vec<Lined<Upstream>>,
    #[serde(default)]
    pub(super) operators: Vec<Lined<Operator>>,
    #[serde(default)]
    pub(super) issuers: Vec<Lined<Issuer>>,
    #[serde(default)]
    pub(super) models: Vec<Lined<Model>>,
    #[serde(default)]
    pub(super) adapters: Vec<Lined<Adapter>>,
    #[serde(default)]
    pub(super) routes: Vec<Lined<Route>>,
    #[serde(default)]
    pub(super) detectors: Vec<Lined<Detector>>,
}

/// A value with the line that it stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Lined<T> {
    /// Counted from 1.
    pub line: u64,
    /// The value.
    pub value: T,
}

impl<T> Deref for Lined<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lined<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<T: Serialize> Serialize for Lined<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// Who sends requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Its name.
    pub name: Name,
    /// Its keys; several while one replaces another.
    #[serde(default)]
    pub keys: Vec<Lined<Key>>,
    /// The least class of its requests.
    #[serde(default = "internal")]
    pub class: DataClass,
    /// The least class of its requests with a task: `{risk: restricted}`.
    #[serde(default)]
    pub tasks: BTreeMap<String, DataClass>,
    /// What it may ask for: routes, models, versions, adapters.
    pub models: Vec<Lined<Glob>>,
    /// How much it may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// What its external calls may cost.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Whether somebody waits for its answers, unless a request says.
    #[serde(default)]
    pub priority: Priority,
    /// The time its requests have, unless one says.
    #[serde(default)]
    pub deadline: Option<Span>,
}

/// A key, of which only the hash is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Tells it from the tenant's others.
    pub id: Name,
    /// Of the key's bytes.
    pub sha256: Digest,
    /// When it ends; None: with its place here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Moment>,
}

/// A tenant's key that stands apart from the tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedKey {
    /// Whose it is.
    pub tenant: Name,
    /// Tells it from the tenant's others.
    pub id: Name,
    /// Of the key's bytes.
    pub sha256: Digest,
    /// When it ends; None: with its place here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Moment>,
}

/// The end of a key, whoever has it and wherever it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Which key, for people.
    pub key: String,
    /// Of the key's bytes.
    pub sha256: Digest,
    /// From when on nobody is let in with it.
    pub at: Moment,
}

/// What a tenant may take; None: no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests that may start in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens, of prompts and answers, in a minute.
    pub tokens_per_minute: Option<NonZeroU64>,
    /// Requests at once.
    pub concurrent: Option<NonZeroU32>,
}

/// What a tenant's external calls may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// In one period.
    pub usd: Lined<Usd>,
    /// When it starts anew, UTC.
    pub period: Period,
    /// What happens once it is spent.
    pub when_spent: WhenSpent,
}

/// When a budget starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// At midnight, UTC.
    Day,
    /// On the first of the month, UTC.
    Month,
}

/// What happens once a budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenSpent {
    /// External targets are passed over.
    LocalOnly,
    /// Requests are refused.
    Refuse,
}

/// A model provider outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name.
    pub name: Name,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it is.
    pub url: Lined<String>,
    /// Where its key is found; the key itself never stands here.
    #[serde(default)]
    pub key: Option<KeySource>,
    /// The highest class that may reach it.
    pub ceiling: DataClass,
    /// The price of its models that have none of their own.
    #[serde(default)]
    pub price: Option<Price>,
    /// Those that may be asked for; empty: any.
    #[serde(default)]
    pub models: Vec<Lined<UpstreamModel>>,
    /// Further fields of a body that it may be sent.
    #[serde(default)]
    pub pass: Vec<String>,
    /// An HTTP proxy that it is called through; the environment's are never used.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Authorities that may vouch for it beside the system's, PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Calls it without TLS off this machine too.
    #[serde(default)]
    pub insecure: bool,
    /// The field by which an OpenAI protocol's chat completions know the most tokens of an answer.
    #[serde(default)]
    pub max_tokens_field: MaxTokensField,
    /// How long it may be silent.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// The field for the most tokens of a chat completion: OpenAI takes only the newer, many others only the older one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// `max_completion_tokens`.
    #[default]
    MaxCompletionTokens,
    /// `max_tokens`.
    MaxTokens,
}

/// How long an upstream may be silent; None: as the router has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Option<Span>,
    /// From the request to the first byte of the answer.
    pub first_byte: Option<Span>,
    /// Between two pieces of the answer.
    pub idle: Option<Span>,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// OpenAI's.
    Openai,
    /// Anthropic's.
    Anthropic,
}

/// Where a secret is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// In a variable of the router's environment.
    Env(String),
    /// In a file.
    File(PathBuf),
}

/// USD for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of prompts.
    pub input: Usd,
    /// Of answers.
    pub output: Usd,
    /// Of prompts, where the provider had them cached; None: as others.
    #[serde(default)]
    pub cached_input: Option<Usd>,
}

/// A model of an upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamModel {
    /// The provider's name for it.
    pub name: ModelName,
    /// Tokens of prompt and answer together.
    #[serde(default)]
    pub context: Option<NonZeroU32>,
    /// Tokens of the longest answer.
    #[serde(default)]
    pub max_output: Option<NonZeroU32>,
    /// Its price, where it is not the upstream's.
    #[serde(default)]
    pub price: Option<Price>,
}

/// Who runs the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// Its name.
    pub name: Name,
    /// Of its key.
    pub sha256: Digest,
    /// What it may do.
    pub role: OperatorRole,
}

/// What an operator may do; each also what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Look.
    Viewer,
    /// Drain, promote, roll back.
    Operator,
    /// Everything.
    Admin,
}

/// Who issues signed tokens (JWT) that stand for tenants, as OpenID Connect has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Its name here.
    pub name: Name,
    /// What its tokens say in `iss`, to the letter.
    pub issuer: Lined<String>,
    /// What they say in `aud`: one of these, among others.
    pub audience: Lined<Vec<String>>,
    /// Where its public keys are, as a JSON Web Key Set.
    pub jwks: Lined<KeySet>,
    /// The claim that names the tenant.
    #[serde(default = "tenant")]
    pub claim: String,
    /// What that claim says, and which tenant it means; None: it says the tenant's name itself.
    #[serde(default)]
    pub tenants: Option<BTreeMap<String, Lined<Name>>>,
    /// What its tokens may be signed with.
    #[serde(default = "algorithms")]
    pub algorithms: Lined<Vec<Algorithm>>,
}

/// Where a JSON Web Key Set is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySet {
    /// At a URL, which the router asks now and then.
    Url(String),
    /// In a file, which it reads now and then.
    File(PathBuf),
}

/// What a token may be signed with: public keys only, so that whoever checks a token cannot make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// RSA of 2048 bits or more, PKCS #1 v1.5, SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256, SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// A model that the cluster's own workers serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name.
    pub name: Name,
    /// The highest class that may reach it.
    #[serde(default = "restricted")]
    pub ceiling: DataClass,
    /// A built-in model needs none.
    #[serde(default)]
    pub versions: Vec<Lined<Version>>,
    /// What it costs.
    #[serde(default)]
    pub cost: Option<Cost>,
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Tells it from the others.
    pub id: Name,
    /// Where its files are.
    pub source: String,
    /// Of its file.
    #[serde(default)]
    pub sha256: Option<Digest>,
}

/// What a model of one's own costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// An hour of one GPU.
    pub gpu_hour: Usd,
}

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Its name.
    pub name: Name,
    /// The model that it was trained on.
    pub base: Lined<Name>,
    /// Where its files are.
    pub source: String,
    /// Of its file.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// Who may use it; None: everybody who may use the base.
    #[serde(default)]
    pub tenants: Option<Vec<Lined<Name>>>,
}

/// What requests and answers are searched for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detector {
    /// A name of its own, or a built-in's, whose class is then given here.
    pub name: Name,
    /// Finds by a regular expression.
    #[serde(default)]
    pub pattern: Option<Pattern>,
    /// What a match of the pattern must pass.
    #[serde(default)]
    pub check: Check,
    /// Finds the lines of a file, in upper or lower case.
    #[serde(default)]
    pub dictionary: Option<PathBuf>,
    /// What a request is raised to where it finds something.
    pub class: DataClass,
}

/// What a match must pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Nothing.
    #[default]
    None,
    /// The checksum of cards, over its digits.
    Luhn,
    /// The checksum of IBANs, over its digits and letters.
    Mod97,
}

/// The detectors that are there without being named in a catalogue, and the class that each raises to.
pub const BUILT_IN_DETECTORS: [(&str, DataClass); 8] = [
    ("card", DataClass::Restricted),
    ("iban", DataClass::Restricted),
    ("cn_resident_id", DataClass::Restricted),
    ("us_ssn", DataClass::Restricted),
    ("secret", DataClass::Restricted),
    ("cn_mobile", DataClass::Confidential),
    ("email", DataClass::Confidential),
    ("phone", DataClass::Confidential),
];

fn internal() -> DataClass {
    DataClass::Internal
}

fn tenant() -> String {
    "tenant".to_owned()
}

fn algorithms() -> Lined<Vec<Algorithm>> {
    Lined { line: 0, value: vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] }
}

fn restricted() -> DataClass {
    DataClass::Restricted
}
