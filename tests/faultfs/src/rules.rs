//! Which operations fail, and how.
//!
//! A rule is given as words: `fail read,sync EIO path=log after=3 count=1`. The first rule that
//! matches an operation decides. Rules end when their count is used up, or by `clear`.

use std::fmt;
use std::str::FromStr;

use rustix::io::Errno;

/// Rules at most; a test that needs more has lost count.
pub const MOST: usize = 64;

/// What a program asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reading a file's content.
    Read,
    /// Writing or truncating.
    Write,
    /// `fsync`, `fdatasync`, of files and directories.
    Sync,
    /// `fallocate` in all its modes.
    Alloc,
    /// Creating, removing, renaming.
    Name,
    /// Opening a file.
    Open,
}

impl FromStr for Op {
    type Err = String;

    fn from_str(s: &str) -> Result<Op, String> {
        Ok(match s {
            "read" => Op::Read,
            "write" => Op::Write,
            "sync" => Op::Sync,
            "alloc" => Op::Alloc,
            "name" => Op::Name,
            "open" => Op::Open,
            _ => {
                return Err(format!(
                    "no operation {s}: read, write, sync, alloc, name, open"
                ));
            }
        })
    }
}

/// What happens to an operation that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails with this error and has no effect, but for a sync (see the crate's head).
    Fail(Errno),
    /// It waits for `release`, then goes on.
    Hang,
    /// Of a write, only some of its 512-byte sectors arrive, and it fails with EIO.
    Tear,
    /// A sync reports success and has done nothing.
    Lie,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    ops: Vec<Op>,
    action: Action,
    /// Part of the path, from the mount point; empty matches all.
    path: String,
    after: u64,
    count: Option<u64>,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(line: &str) -> Result<Rule, String> {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let fixed = |ops: &[Op], action| (ops.to_vec(), action);
        let (ops, action) = match verb {
            "fail" => {
                let ops = parse_ops(words.next())?;
                (ops, Action::Fail(parse_errno(words.next())?))
            }
            "hang" => (parse_ops(words.next())?, Action::Hang),
            "tear" => fixed(&[Op::Write], Action::Tear),
            "lie" => fixed(&[Op::Sync], Action::Lie),
            _ => return Err(format!("no rule {verb}: fail, hang, tear, lie")),
        };
        let mut rule = Rule {
            ops,
            action,
            path: String::new(),
            after: 0,
            count: None,
        };
        for word in words {
            let number = |v: &str| v.parse().map_err(|_| format!("{word}: no number"));
            match word.split_once('=') {
                Some(("path", v)) => rule.path = v.to_owned(),
                Some(("after", v)) => rule.after = number(v)?,
                Some(("count", v)) => rule.count = Some(number(v)?),
                _ => return Err(format!("{word}: path=, after=, count= are possible")),
            }
        }
        Ok(rule)
    }
}

fn parse_ops(word: Option<&str>) -> Result<Vec<Op>, String> {
    let word = word.ok_or("which operations? for example read,write")?;
    word.split(',').map(str::parse).collect()
}

fn parse_errno(word: Option<&str>) -> Result<Errno, String> {
    match word {
        Some("EIO") => Ok(Errno::IO),
        Some("ENOSPC") => Ok(Errno::NOSPC),
        Some("EROFS") => Ok(Errno::ROFS),
        Some("EDQUOT") => Ok(Errno::DQUOT),
        other => Err(format!(
            "{}: EIO, ENOSPC, EROFS, EDQUOT are possible",
            other.unwrap_or("which error?")
        )),
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<(Rule, u64)>,
}

impl Rules {
    /// Adds one; it is asked after those before it.
    ///
    /// # Errors
    /// There are [`MOST`] already.
    pub fn add(&mut self, rule: Rule) -> Result<(), String> {
        if self.rules.len() >= MOST {
            return Err(format!("{MOST} rules already: clear some"));
        }
        self.rules.push((rule, 0));
        Ok(())
    }

    /// Forgets those that `drop` picks.
    pub fn remove(&mut self, drop: impl Fn(Action) -> bool) {
        self.rules.retain(|(r, _)| !drop(r.action));
    }

    /// What happens to this operation, if anything does.
    pub fn ask(&mut self, op: Op, path: &str) -> Option<Action> {
        for (rule, seen) in &mut self.rules {
            if !rule.ops.contains(&op) || !path.contains(rule.path.as_str()) {
                continue;
            }
            *seen += 1;
            let turn = seen.saturating_sub(rule.after);
            if turn > 0 && rule.count.is_none_or(|c| turn <= c) {
                return Some(rule.action);
            }
        }
        None
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rules={}", self.rules.len())?;
        for (rule, seen) in &self.rules {
            write!(f, " [{:?} {:?} seen={seen}]", rule.ops, rule.action)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_counts_and_looks_at_the_path() {
        let mut rules = Rules::default();
        rules
            .add(
                "fail read,write EIO path=log after=1 count=2"
                    .parse()
                    .unwrap(),
            )
            .unwrap();
        assert_eq!(rules.ask(Op::Write, "/extents"), None);
        assert_eq!(rules.ask(Op::Sync, "/log"), None);
        assert_eq!(
            rules.ask(Op::Write, "/log"),
            None,
            "the first is let through"
        );
        for op in [Op::Read, Op::Write] {
            assert_eq!(rules.ask(op, "/log"), Some(Action::Fail(Errno::IO)));
        }
        assert_eq!(rules.ask(Op::Write, "/log"), None, "used up");
        rules.add("hang write".parse().unwrap()).unwrap();
        assert_eq!(rules.ask(Op::Write, "/log"), Some(Action::Hang));
        rules.remove(|a| a == Action::Hang);
        assert_eq!(rules.ask(Op::Write, "/log"), None);
    }

    #[test]
    fn nonsense_is_refused_with_what_is_possible() {
        for bad in [
            "",
            "fail",
            "fail read",
            "fail read EFOO",
            "fail x EIO",
            "tear count=x",
            "lie y",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
