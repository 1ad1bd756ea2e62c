//! The errors that end the program.

use std::error::Error;

/// Why the program ends.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or the settings are wrong: exit code 2, as clap does.
    Usage(String),
    /// The program could not do what it was asked: exit code 1.
    Run(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Usage(text) | Self::Run(text)) = self;
        f.write_str(text)
    }
}

impl Failure {
    pub(crate) fn run(what: impl std::fmt::Display, error: impl Error) -> Self {
        Self::Run(format!("{what}: {}", with_causes(&error)))
    }
}

/// The text of an error and of all its causes, on one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
