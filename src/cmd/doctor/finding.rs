//! What a check says: how bad, what, and what to do about it in one line.

use serde::Serialize;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and will bite one day.
    Warn,
    /// It does not work, or data or service are in danger.
    Bad,
}

impl Level {
    /// As people see it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Bad => "BAD",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// Which check; stable, for programs.
    pub check: &'static str,
    /// What is so, and of what.
    pub what: String,
    /// What to do; nothing where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            level: Level::Ok,
            check,
            what: what.into(),
            remedy: None,
        }
    }

    /// It will bite one day.
    pub fn warn(
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding {
            level: Level::Warn,
            remedy: Some(remedy.into()),
            ..Finding::ok(check, what)
        }
    }

    /// It does not work.
    pub fn bad(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            level: Level::Bad,
            ..Finding::warn(check, what, remedy)
        }
    }
}
