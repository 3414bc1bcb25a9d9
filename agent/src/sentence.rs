//! An error as people read it: one sentence, its causes included.

use std::error::Error;

/// The error and its causes in one line, each once: many say their cause's words themselves.
pub(crate) fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::sentence;

    #[derive(Debug, thiserror::Error)]
    enum Trouble {
        #[error("cannot begin")]
        Silent(#[source] io::Error),
        #[error("cannot begin: {0}")]
        Wordy(#[source] io::Error),
    }

    #[test]
    fn each_cause_is_told_once() {
        let cause = || io::Error::other("no room");
        for error in [Trouble::Silent(cause()), Trouble::Wordy(cause())] {
            assert_eq!(sentence(&error), "cannot begin: no room");
        }
    }
}
