//! A rule: one CEL expression over what is known of a request before it goes anywhere.
//!
//! The crate `cel` has no type checker, so this module has one, for the part of CEL that rules may use: a rule that is
//! read gives a bool, whatever the request. What only a run can tell (an overflow, a division by zero) fails that run.

mod check;

use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::types::{CelBool, CelInt, CelString};
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::{Context, Env, Program, Value};
use penstock_proto::DataClass;
use serde::{Deserialize, Serialize};

/// The longest rule, in bytes.
const RULE_LIMIT: usize = 4096;

/// The functions of CEL's standard library; built once, since a context is made for every run.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What a rule may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// `request.prompt_bytes`: bytes of all that the model is to read.
    pub prompt_bytes: u64,
    /// `request.messages`: how many.
    pub messages: u64,
    /// `request.task`: the client's word, empty where it gave none.
    pub task: &'a str,
    /// `request.stream`.
    pub stream: bool,
    /// `request.tools`: how many it may call.
    pub tools: u64,
    /// `tenant`: its name.
    pub tenant: &'a str,
    /// `class`: its word.
    pub class: DataClass,
    /// `load.wait_ms`: the least predicted wait among the route's own local targets; the highest number there is where
    /// none of them is served.
    pub wait_ms: u64,
    /// `load.served`: whether any of them is served.
    pub served: bool,
    /// `time.hour`: 0 to 23, UTC.
    pub hour: u8,
    /// `time.weekday`: 1, a Monday, to 7, UTC.
    pub weekday: u8,
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let int = |value: u64| Some(CowVal::owned(CelInt::from(i64::try_from(value).unwrap_or(i64::MAX))));
        match variable {
            "request.prompt_bytes" => int(self.prompt_bytes),
            "request.messages" => int(self.messages),
            "request.task" => Some(CowVal::owned(CelString::from(self.task))),
            "request.stream" => Some(CowVal::owned(CelBool::from(self.stream))),
            "request.tools" => int(self.tools),
            "tenant" => Some(CowVal::owned(CelString::from(self.tenant))),
            "class" => Some(CowVal::owned(CelString::from(self.class.as_str()))),
            "load.wait_ms" => int(self.wait_ms),
            "load.served" => Some(CowVal::owned(CelBool::from(self.served))),
            "time.hour" => int(u64::from(self.hour)),
            "time.weekday" => int(u64::from(self.weekday)),
            _ => None,
        }
    }
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// Over the limit.
    #[error("the rule is longer than 4096 bytes")]
    TooLong,
    /// No CEL.
    #[error("the rule is not CEL: {0}")]
    Syntax(String),
    /// It names what is not there.
    #[error("the rule asks for {name}, which it cannot know; it may ask for {}", check::known())]
    Unknown {
        /// What it names.
        name: String,
    },
    /// A part of CEL that rules may not use.
    #[error("{what} has no place in a rule")]
    NotAllowed {
        /// Which part.
        what: String,
    },
    /// An operator on what it does not take.
    #[error("{operator} does not take {}", found.join(" and "))]
    Types {
        /// The operator or function.
        operator: String,
        /// The types it was given.
        found: Vec<&'static str>,
    },
    /// It gives something else than yes or no.
    #[error("the rule gives {found}; it must give a bool")]
    NotBool {
        /// What it gives.
        found: &'static str,
    },
    /// Classes are words here, and words are ordered by their letters.
    #[error("class is a word, and has no order in a rule: use class == \"restricted\" or class in [\"public\", …]")]
    ClassOrder,
    /// It compares the class with a word that is none.
    #[error("{0:?} is no class: public, internal, confidential and restricted are")]
    ClassWord(String),
    /// It fails on an ordinary request.
    #[error("the rule fails on an ordinary request: {0}")]
    Fails(String),
}

/// What failed in one run of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rule failed: {0}")]
pub struct RuleFailed(String);

/// A rule that was read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    source: Arc<str>,
    program: Arc<Program>,
}

impl Rule {
    /// Reads and checks a rule.
    ///
    /// # Errors
    ///
    /// [`InvalidRule`].
    pub fn new(source: &str) -> Result<Self, InvalidRule> {
        if source.len() > RULE_LIMIT {
            return Err(InvalidRule::TooLong);
        }
        let program = ENV.compile(source).map_err(|errors| InvalidRule::Syntax(one_line(&errors.to_string())))?;
        check::rule(program.expression())?;
        let rule = Self { source: source.into(), program: Arc::new(program) };
        rule.holds(&SAMPLE).map_err(|failed| InvalidRule::Fails(failed.0))?;
        Ok(rule)
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it holds for a request.
    ///
    /// # Errors
    ///
    /// [`RuleFailed`] where a number overflows or is divided by zero.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, RuleFailed> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(facts);
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err(RuleFailed("it gives no bool".to_owned())),
            Err(error) => Err(RuleFailed(one_line(&error.to_string()))),
        }
    }
}

const SAMPLE: Facts<'static> = Facts {
    prompt_bytes: 1000,
    messages: 3,
    task: "summarise",
    stream: true,
    tools: 1,
    tenant: "default",
    class: DataClass::Internal,
    wait_ms: 100,
    served: true,
    hour: 12,
    weekday: 3,
};

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({:?})", self.source)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl TryFrom<String> for Rule {
    type Error = InvalidRule;
    fn try_from(source: String) -> Result<Self, InvalidRule> {
        Self::new(&source)
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.source.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_sees_every_fact() {
        for source in [
            "request.prompt_bytes == 1000 && request.messages == 3 && request.tools == 1",
            "request.task == 'summarise' && request.stream && tenant == 'default' && class == 'internal'",
            "load.wait_ms < 200 && load.served && time.hour >= 8 && time.weekday <= 5",
            "request.task in ['risk', 'summarise'] && !(class in ['restricted'])",
            "request.task.startsWith('sum') || tenant.size() > 3",
            "size(request.task) * 2 + 1 > 0 ? request.stream : false",
            "(request.prompt_bytes > 24000 || request.task == \"summarise\")",
        ] {
            let rule = Rule::new(source).unwrap_or_else(|error| panic!("{source}: {error}"));
            assert_eq!(rule.holds(&SAMPLE), Ok(true), "{source}");
        }
    }

    #[test]
    fn what_may_give_no_bool_is_no_rule() {
        for (source, complaint) in [
            ("request.stream || 3", "|| does not take bool and int"),
            ("request.prompt_bytes", "gives int; it must give a bool"),
            ("request.prompt == 1", "asks for request.prompt, which it cannot know"),
            ("user == 'a'", "asks for user,"),
            ("tenant.name == 'a'", "asks for tenant.name,"),
            ("request == 1", "asks for request,"),
            ("[1, 2].exists(x, x == request.tools)", "a macro has no place"),
            ("has(request.task)", "has no place"),
            ("request.task.matches('a+')", "the function matches has no place"),
            ("{'a': true}['a']", "has no place"),
            ("class > 'internal'", "has no order in a rule"),
            ("class == 'secret'", "\"secret\" is no class"),
            ("class in ['public', 'top']", "\"top\" is no class"),
            ("request.task == 1", "== does not take string and int"),
            ("request.tools in ['a']", "in does not take int and list of string"),
            ("request.tools / 0 == 1", "fails on an ordinary request"),
            ("request.stream ? true : 1", "?: does not take"),
            ("request.stream &&", "is not CEL"),
            ("", "is not CEL"),
        ] {
            let error = Rule::new(source).unwrap_err().to_string();
            assert!(error.contains(complaint), "{source}: {error}");
        }
        assert_eq!(Rule::new(&" ".repeat(5000)), Err(InvalidRule::TooLong));
    }

    #[test]
    fn an_overflow_fails_the_run_and_not_the_process() {
        let rule = Rule::new("request.prompt_bytes * request.prompt_bytes > 5").unwrap();
        assert!(rule.holds(&Facts { prompt_bytes: u64::MAX, ..SAMPLE }).is_err());
    }
}
