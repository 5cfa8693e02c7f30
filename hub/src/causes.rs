//! An error with its causes, as one line of text.

use std::error::Error;
use std::fmt::Write as _;

/// An error's message followed by those of its causes.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Transparent errors repeat their cause's message.
        if !text.ends_with(&message) {
            write!(text, ": {message}").expect("a string takes any text");
        }
        cause = error.source();
    }
    text
}
