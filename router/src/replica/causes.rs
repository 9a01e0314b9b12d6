//! An error with everything that caused it: the transport's own words are hardly ever the cause.

use std::error::Error;
use std::fmt;

/// Writes an error and its causes, each word once.
pub struct Causes<'a, E: ?Sized>(
    /// The error.
    pub &'a E,
);

impl<E: Error + ?Sized> fmt::Display for Causes<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        for cause in std::iter::successors(self.0.source(), |cause| (*cause).source()) {
            let cause = cause.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn every_cause_is_told_once() {
        let cause = Layer("wrong name", None);
        let error = Layer("transport error", Some(Box::new(Layer("transport error", Some(Box::new(cause))))));
        assert_eq!(Causes(&error).to_string(), "transport error: wrong name");
    }
}
