//! `trivet serve` as a child, with what `trivet init` made in a directory.

use std::path::Path;
use std::process::{Child, Command};

/// An address of loopback that no other test of this machine has: each takes numbers of its own.
pub fn address(number: usize) -> String {
    let pid = std::process::id();
    format!("127.{number}.{}.{}", pid / 250 % 250, pid % 250 + 1)
}

/// The program, as node a's operator.
pub fn trivet(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trivet"));
    command
        .env("TRIVET_CONFIG", dir.join("trivet.toml"))
        .env("TRIVET_KEY", dir.join("a.key"))
        .env("TRIVET_LOG", "error");
    command
}

/// Runs a command that must do what it is told.
pub fn done(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
}

/// Ended when the test is over, however that is.
pub struct Served(pub Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
