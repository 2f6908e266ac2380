//! What an error says, with its causes.

use std::error::Error;

/// An error and its causes in one line, as `{:#}` has those of `anyhow`, but without a cause that what stands before it
/// says already: many an error names the one it comes from.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !told.contains(&words) {
            told.push_str(": ");
            told.push_str(&words);
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot read {path}: {source}; try another")]
        Named {
            path: &'static str,
            source: std::io::Error,
        },
        #[error("cannot start")]
        Silent(#[source] Box<Failure>),
    }

    #[test]
    fn a_cause_is_told_once() {
        let source = std::io::Error::other("it is gone");
        let named = Failure::Named {
            path: "model",
            source,
        };
        assert_eq!(told(&named), "cannot read model: it is gone; try another");
        let silent = Failure::Silent(Box::new(named));
        assert_eq!(
            told(&silent),
            "cannot start: cannot read model: it is gone; try another"
        );
    }
}
