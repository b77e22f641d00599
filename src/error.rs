//! What a command reports when it cannot do what was asked: one message, one exit code.
//!
//! A message says what happened, to what, and what to do next. Library errors already say the
//! first two; a command adds the third with [`CliError::hint`].

use std::fmt;

/// Exit codes of every command; scripts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was tried and failed (I/O, network, no space).
    Failed = 1,
    /// The arguments make no sense; nothing was tried. The parser uses the same code.
    Usage = 2,
    /// No daemon of the cluster answers.
    Unreachable = 3,
    /// `trivet driver`: the configuration does not ask for that.
    NotConfigured = 6,
    /// `trivet driver monitor`: it is not active here.
    NotRunning = 7,
}

/// An error on its way to the person who typed the command.
#[derive(Debug)]
pub struct CliError {
    exit: Exit,
    what: String,
    hint: Option<String>,
    closed_output: bool,
    quiet: bool,
}

impl CliError {
    /// No daemon answers.
    pub fn unreachable(what: impl fmt::Display) -> CliError {
        CliError::new(Exit::Unreachable, what)
    }

    /// Everything was said already; only the exit code is left to tell.
    pub fn quiet(exit: Exit) -> CliError {
        CliError {
            quiet: true,
            ..CliError::new(exit, "")
        }
    }

    /// Something was tried and failed: `what` names the thing and the reason.
    pub fn failed(what: impl fmt::Display) -> CliError {
        CliError::new(Exit::Failed, what)
    }

    /// The arguments make no sense.
    pub fn usage(what: impl fmt::Display) -> CliError {
        CliError::new(Exit::Usage, what)
    }

    fn new(exit: Exit, what: impl fmt::Display) -> CliError {
        CliError {
            exit,
            what: what.to_string(),
            hint: None,
            closed_output: false,
            quiet: false,
        }
    }

    /// The same error with another exit code.
    #[must_use]
    pub fn with_exit(mut self, exit: Exit) -> CliError {
        self.exit = exit;
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, next: impl fmt::Display) -> CliError {
        self.hint = Some(next.to_string());
        self
    }

    /// Writing to standard output failed.
    pub fn output(e: &std::io::Error) -> CliError {
        CliError {
            closed_output: e.kind() == std::io::ErrorKind::BrokenPipe,
            ..CliError::failed(format_args!("cannot write to standard output: {e}"))
        }
    }

    /// Whether the only trouble is that the reader of our output went away.
    pub fn is_closed_output(&self) -> bool {
        self.closed_output
    }

    /// Whether nothing is left to say.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        match &self.hint {
            Some(next) => write!(f, "; {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_and_what_next_on_one_line() {
        let e = CliError::failed("cannot open pool /p: not mounted").hint("mount it");
        assert_eq!(
            e.to_string(),
            "error: cannot open pool /p: not mounted; mount it"
        );
        assert_eq!(e.exit(), Exit::Failed);
        assert_eq!(CliError::usage("x").exit() as u8, 2);
    }
}
