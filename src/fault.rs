//! A command's failure: a message for a person and the exit code that scripts read.

use std::fmt;
use std::process::ExitCode;

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(crate) struct Fault {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Failed = 1,
    BadInput = 2,
    NotReachable = 3,
}

impl Fault {
    /// Something went wrong on our side: exit code 1.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Failed, message: message.to_string() }
    }

    /// What was given is wrong: exit code 2.
    pub(crate) fn bad_input(message: impl fmt::Display) -> Self {
        Self { kind: Kind::BadInput, message: message.to_string() }
    }

    /// What is amiss stands on standard output already: exit code 1.
    pub(crate) fn told() -> Self {
        Self::failed("")
    }

    /// Whether nothing is left to say.
    pub(crate) fn is_told(&self) -> bool {
        self.message.is_empty()
    }

    /// Nobody answers: exit code 3.
    pub(crate) fn not_reachable(message: impl fmt::Display) -> Self {
        Self { kind: Kind::NotReachable, message: message.to_string() }
    }

    /// The code that the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
