//! Texts of constraints → grammars for the engine's sampler. Owns what is known of llguidance: its limits, its options,
//! its complaints. Compiling is beside the async threads and bounded in size, time and number.

mod recursion;
mod tokens;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, regex_to_lark};
use penstock_engine::batch::TokenId;
use penstock_engine::grammar::{self, Grammar};
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Bytes of a constraint's text.
pub const MAX_BYTES: usize = 64 << 10;

/// Constraints compiled at once. One that is given up goes on until its fuel is spent, and counts until then.
const AT_ONCE: usize = 2;
/// How long a constraint may wait and compile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Address space for the compiler's recursion, of which ordinary constraints touch next to nothing.
const STACK: usize = 64 << 20;

/// What may stand between two parts of a JSON text: a space, or a new line with its indentation. Without a bound, a
/// small model can go on with white space for ever.
const WHITESPACE: &str = r"\x20|\x0A[\x20\x09]{0,16}";

/// What an answer is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constraint {
    /// JSON that is valid by a JSON Schema.
    JsonSchema(String),
    /// A regular expression, matched whole.
    Regex(String),
    /// llguidance's dialect of Lark.
    Grammar(String),
}

/// Why a constraint is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its text has so many bytes.
    #[error("the constraint has {0} bytes; it may have {MAX_BYTES}")]
    TooLarge(usize),
    /// In the parser's words, with the place.
    #[error("the schema is not valid JSON: {0}")]
    NotJson(String),
    /// JSON of another kind.
    #[error("a schema must be an object or a boolean")]
    NotASchema,
    /// The reference at which it goes into itself.
    #[error("the schema goes into itself at {0:?} whatever is written: no text is valid by it")]
    Endless(String),
    /// Its language is empty.
    #[error("no text is in the {0}'s language")]
    Nothing(&'static str),
    /// In llguidance's words.
    #[error("the {kind} cannot be compiled: {reason}")]
    Invalid {
        /// What it is.
        kind: &'static str,
        /// Why, and where.
        reason: String,
    },
    /// It takes too long.
    #[error("compiling the constraint takes more than {} s", PATIENCE.as_secs())]
    TooSlow,
    /// Outputs that the constraint does not allow.
    #[error("output {position} to resume from is not in the constraint's language")]
    Resume {
        /// Of the first that is not.
        position: usize,
    },
    /// Others take all the time there is.
    #[error("too many constraints are being compiled")]
    Busy,
}

/// Why no constraint can be compiled for a model.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer does not do for constraints: {0}")]
pub struct UnfitTokenizer(String);

/// Compiles constraints for one model. Cheap to clone.
#[derive(Clone)]
pub struct Compiler {
    factory: Arc<ParserFactory>,
    permits: Arc<Semaphore>,
}

impl Compiler {
    /// For the model whose `tokenizer.json` is given; `eos` are the ids that end an answer.
    pub fn new(tokenizer: &[u8], vocab_size: usize, eos: &[TokenId]) -> Result<Self, UnfitTokenizer> {
        let environment = tokens::environment(tokenizer, vocab_size, eos)?;
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| UnfitTokenizer(error.to_string()))?;
        *factory.quiet().limits_mut() = limits();
        Ok(Self { factory: Arc::new(factory), permits: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// The grammar of a constraint, after the outputs that there are already.
    pub async fn compile(&self, constraint: Constraint, resume: Vec<TokenId>) -> Result<Box<dyn Grammar>, Refusal> {
        let permit = timeout(PATIENCE, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.map_err(|_| Refusal::Busy)?.expect("nobody closes it");
        let factory = Arc::clone(&self.factory);
        let (done, result) = oneshot::channel();
        // A thread of its own, because hostile texts recurse deeper than a pool's stack.
        let thread = thread::Builder::new().name("constraint".into()).stack_size(STACK).spawn(move || {
            let _permit = permit;
            // Whoever asked may have gone.
            let _ = done.send(compile(&factory, &constraint, &resume));
        });
        thread.map_err(|_| Refusal::Busy)?;
        match timeout(PATIENCE, result).await {
            Ok(Ok(compiled)) => compiled.map(|grammar| -> Box<dyn Grammar> { Box::new(grammar) }),
            Ok(Err(_)) => Err(Refusal::Invalid { kind: "constraint", reason: "the compiler failed".to_owned() }),
            Err(_) => Err(Refusal::TooSlow),
        }
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

/// What a constraint may cost: a hostile one fails within seconds and some tens of megabytes.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

fn compile(factory: &ParserFactory, constraint: &Constraint, resume: &[TokenId]) -> Result<Compiled, Refusal> {
    let (kind, text) = match constraint {
        Constraint::JsonSchema(text) => ("schema", text),
        Constraint::Regex(text) => ("regular expression", text),
        Constraint::Grammar(text) => ("grammar", text),
    };
    if text.len() > MAX_BYTES {
        return Err(Refusal::TooLarge(text.len()));
    }
    let grammar = match constraint {
        Constraint::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema(text)?),
        Constraint::Regex(text) => TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(text, ""))),
        Constraint::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
    };
    let mut matcher = Matcher::new(factory.create_parser(grammar));
    if let Some(error) = matcher.get_error() {
        return Err(Refusal::Invalid { kind, reason: complaint(&error) });
    }
    if !resume.is_empty() {
        let taken = matcher.try_consume_tokens(resume);
        let taken = taken.map_err(|error| Refusal::Invalid { kind, reason: complaint(&error.to_string()) })?;
        return if taken == resume.len() {
            Ok(Compiled::new(matcher))
        } else {
            Err(Refusal::Resume { position: taken })
        };
    }
    // Also has what is costly in a first mask done here, not in the engine's thread.
    match matcher.compute_mask_or_eos() {
        Ok(_) => Ok(Compiled::new(matcher)),
        // The matcher keeps a failure's words alone.
        Err(error) if error.to_string().starts_with(&StopReason::NoExtensionBias.to_string()) => {
            Err(Refusal::Nothing(kind))
        }
        Err(error) => Err(Refusal::Invalid { kind, reason: complaint(&error.to_string()) }),
    }
}

/// A schema under the options of this house, whatever options it brings.
fn schema(text: &str) -> Result<Value, Refusal> {
    let mut schema: Value = serde_json::from_str(text).map_err(|error| Refusal::NotJson(error.to_string()))?;
    if schema == Value::Bool(true) {
        schema = Value::Object(serde_json::Map::new());
    }
    if let Some(reference) = recursion::endless(&schema) {
        return Err(Refusal::Endless(reference.to_owned()));
    }
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITESPACE.to_owned()), ..JsonCompileOptions::default() };
    match &mut schema {
        Value::Object(_) => options.apply_to(&mut schema),
        Value::Bool(_) => {}
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => return Err(Refusal::NotASchema),
    }
    Ok(schema)
}

/// What llguidance says, without what is for its makers: states, grammars, traces. Where it repeats a long text, the
/// place is at the beginning and the reason at the end.
fn complaint(error: &str) -> String {
    const HEAD: usize = 120;
    const TAIL: usize = 400;
    let end = ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"].iter().filter_map(|mark| error.find(mark)).min();
    let said: Vec<char> = error[..end.unwrap_or(error.len())].chars().collect();
    if said.len() <= HEAD + TAIL {
        return said.into_iter().collect();
    }
    said[..HEAD].iter().chain(&['…']).chain(&said[said.len() - TAIL..]).collect()
}

/// A constraint on its way.
struct Compiled {
    matcher: Matcher,
    mask: SimpleVob,
}

impl Compiled {
    fn new(matcher: Matcher) -> Self {
        Self { matcher, mask: SimpleVob::new() }
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

impl Grammar for Compiled {
    fn allowed(&mut self) -> Result<&[u32], grammar::Error> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(stuck)?;
        Ok(self.mask.as_slice())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), grammar::Error> {
        self.matcher.consume_token(token).map_err(stuck)
    }
}

fn stuck(error: impl fmt::Display) -> grammar::Error {
    grammar::Error(complaint(&error.to_string()))
}

#[cfg(test)]
mod tests;
