//! Keeps what a machine can keep of how the code and the documents should read.
//!
//! Each rule is one test with its reason above it, and names every place that breaks it. To
//! change a rule, change it here, with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 700;
const MOST_COLUMNS: usize = 100;

/// Code that must be a function of (state, time, event): it runs in the simulation, and a seed
/// must give the same run. Files and folders; their tests are not meant.
const STATE_MACHINES: &[&str] = &[
    "replica/src/upstairs",
    "downstairs/src/store",
    "downstairs/src/log",
    "downstairs/src/extent",
    "downstairs/src/overlay.rs",
    "downstairs/src/checkpoint.rs",
    "downstairs/src/slots.rs",
    "downstairs/src/head.rs",
    "downstairs/src/member.rs",
    "downstairs/src/replica.rs",
];

/// What reaches past (state, time, event).
const WORLD: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "clock_gettime",
    "thread::spawn",
    "thread::Builder",
    "thread::sleep",
    "std::fs",
    "std::net",
    "TcpStream",
    "new_v4",
    "::random()",
    "RandomState",
    "tokio::",
];

/// The only files that may allow `unsafe`, each with its argument.
const UNSAFE: &[&str] = &[];

struct Text {
    /// From the root of the repository.
    name: String,
    text: String,
}

impl Text {
    /// The part before the tests.
    fn code(&self) -> &str {
        let end = self.text.find("\n#[cfg(test)]\nmod tests {");
        &self.text[..end.unwrap_or(self.text.len())]
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if ["target", ".git", "var"].contains(&name) {
            continue;
        }
        match path.symlink_metadata().unwrap().is_dir() {
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}

/// Every text file whose name ends so, except this one.
fn texts(endings: &[&str]) -> Vec<Text> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let wanted = |p: &&PathBuf| {
        let name = p.to_str().unwrap();
        endings.iter().any(|e| name.ends_with(e)) && !name.ends_with("tests/tidy.rs")
    };
    let texts = paths.iter().filter(wanted).map(|p| Text {
        name: p.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
        text: std::fs::read_to_string(p).unwrap_or_default(),
    });
    texts.collect()
}

/// Fails with every broken place, one per line.
fn none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// `name:line` and the line, for each line that `bad` picks.
fn lines_where(texts: &[Text], bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for t in texts {
        for (line, n) in t.code().lines().zip(1..) {
            if bad(line) {
                found.push(format!("{}:{n}: {}", t.name, line.trim()));
            }
        }
    }
    found
}

// A file is read in one sitting.
#[test]
fn files_are_short() {
    let long = |t: &Text| t.text.lines().count() > MOST_LINES;
    let broken = texts(&[".rs", "scripts/test", ".sh"])
        .iter()
        .filter(|t| long(t))
        .map(|t| format!("{} has {} lines", t.name, t.text.lines().count()))
        .collect();
    none("files have at most 700 lines: split them", broken);
}

// Two columns side by side fit a screen. Strings and links that cannot be broken may be longer.
#[test]
fn lines_are_short() {
    let long = |l: &str| {
        let unbreakable = l.contains("://") || l.contains('"');
        l.chars().count() > MOST_COLUMNS && !unbreakable
    };
    none(
        "lines have at most 100 columns",
        lines_where(&texts(&[".rs"]), long),
    );
}

// The head says what may and may not happen in a file.
#[test]
fn modules_have_heads() {
    let headless = |t: &&Text| {
        let first = t.text.lines().find(|l| !l.trim().is_empty());
        !first.is_some_and(|l| l.starts_with("//!") && l.len() > 12)
            || t.text.contains("Placeholder")
    };
    let sources = texts(&[".rs"]);
    let broken = sources.iter().filter(headless).map(|t| t.name.clone());
    none(
        "a file starts with //! and what it is for",
        broken.collect(),
    );
}

// What is not done is an issue, not a word in the code.
#[test]
fn nothing_is_left_open() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME", "XXX"];
    let open = |l: &str| words.iter().any(|w| l.contains(w));
    none(
        "do it, or open an issue",
        lines_where(&texts(&[".rs"]), open),
    );
}

// A sleep in place of an event hides a race; where it is right, a comment says why.
#[test]
fn sleeps_give_their_reason() {
    let mut broken = Vec::new();
    for t in texts(&[".rs"]) {
        let lines: Vec<&str> = t.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let sleeps = line.contains("thread::sleep(") || line.contains("time::sleep(");
            let before = &lines[i.saturating_sub(3)..=i];
            if sleeps && !before.iter().any(|l| l.contains("//")) {
                broken.push(format!("{}:{}", t.name, i + 1));
            }
        }
    }
    none("a sleep has a comment that says why it is no race", broken);
}

// The repository works on any machine.
#[test]
fn no_path_of_one_machine() {
    let paths = ["work", "root", "home"].map(|top| format!("/{top}/"));
    let own = |l: &str| paths.iter().any(|p| l.contains(p.as_str()));
    let all = texts(&[
        ".rs",
        ".md",
        ".toml",
        ".sh",
        "Makefile",
        "scripts/test",
        ".ci/run",
    ]);
    none("no absolute paths of a machine", lines_where(&all, own));
}

// A seed replays exactly, and the code that ships is the code that was simulated.
#[test]
fn state_machines_do_not_touch_the_world() {
    let mut machines = texts(&[".rs"]);
    machines.retain(|t| {
        let in_tests = t.name.contains("/tests/") || t.name.ends_with("/tests.rs");
        !in_tests && STATE_MACHINES.iter().any(|m| t.name.starts_with(m))
    });
    let touches =
        |l: &str| !l.trim_start().starts_with("//") && WORLD.iter().any(|w| l.contains(w));
    none(
        "time, chance and I/O come in as events",
        lines_where(&machines, touches),
    );
}

// Memory safety is argued in few places.
#[test]
fn unsafe_has_few_homes() {
    let allows = |l: &str| l.contains("allow(unsafe_code");
    let mut all = texts(&[".rs"]);
    all.retain(|t| !UNSAFE.contains(&t.name.as_str()));
    none(
        "unsafe is allowed in no other file",
        lines_where(&all, allows),
    );
}

// Lints that a crate does not inherit do not hold there.
#[test]
fn every_crate_inherits_the_lints_and_the_licence() {
    let broken = texts(&["Cargo.toml"])
        .iter()
        .filter(|t| {
            let has = |s| t.text.contains(s);
            let licensed = has("license.workspace = true") && has("rust-version.workspace = true");
            !(has("[lints]\nworkspace = true") && licensed && has("description = "))
        })
        .map(|t| t.name.clone())
        // Outside the workspace: built with flags of its own; in no product.
        .filter(|name| !name.starts_with("fuzz/") && !name.starts_with("bench/yardstick/"))
        .collect();
    none(
        "a crate inherits lints, licence, rust-version and has a description",
        broken,
    );
}

// A document that points nowhere is not read twice.
#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for t in texts(&[".md"]) {
        let here = root().join(&t.name);
        for target in t
            .text
            .split("](")
            .skip(1)
            .filter_map(|s| s.split(')').next())
        {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => here.clone(),
                _ => here.parent().unwrap().join(path),
            };
            let there = file.exists();
            if !there || !anchor.is_empty() && !anchors(&file).contains(anchor) {
                broken.push(format!("{}: {target}", t.name));
            }
        }
    }
    none("links lead to a file, and anchors to a heading", broken);
}

// Who meets a message looks for it.
#[test]
fn each_message_of_a_node_leads_to_a_section() {
    let page = std::fs::read_to_string(root().join("docs/guides/what-to-do-when.md")).unwrap();
    let text = std::fs::read_to_string(root().join("node/src/error.rs")).unwrap();
    let mut broken = Vec::new();
    let mut found = 0;
    for message in text.split("#[error(").skip(1) {
        let message = message.split('"').nth(1).unwrap_or_default();
        // Lines that go on, as the compiler joins them.
        let parts: Vec<&str> = message.split("\\\n").map(str::trim_start).collect();
        let message = parts.concat();
        let mut literal = message
            .split('{')
            .map(|s| s.split_once('}').map_or(s, |(_, l)| l))
            .filter_map(|s| s.trim_start_matches([':', ' ']).split([';', ':']).next())
            .map(str::trim);
        // Shorter ones carry another error's message, which is the one that matters.
        if let Some(says) = literal.find(|l| l.len() > 9) {
            found += 1;
            if !page.contains(says) {
                broken.push(says.to_owned());
            }
        }
    }
    assert!(found > 10, "the messages are written in another way now");
    none("say in docs/guides/what-to-do-when.md what to do", broken);
}

fn anchors(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let heading = |l: &str| {
        let title = l.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    text.lines()
        .filter(|l| l.starts_with('#'))
        .map(heading)
        .collect()
}

fn toml_of(path: &str) -> toml::Table {
    let text = std::fs::read_to_string(root().join(path)).unwrap();
    text.parse().unwrap()
}

// Dependencies are few, and each has a reason that can be read.
#[test]
fn every_dependency_has_a_reason() {
    let reasons: String = texts(&[".md"])
        .into_iter()
        .filter(|t| t.name.starts_with("docs/decisions/"))
        .map(|t| t.text)
        .collect();
    let manifest = toml_of("Cargo.toml");
    let dependencies = manifest["workspace"]["dependencies"].as_table().unwrap();
    let broken = dependencies
        .iter()
        .filter(|(_, d)| d.get("path").is_none())
        .filter(|(name, _)| !reasons.contains(&format!("`{name}`")))
        .map(|(name, _)| name.clone())
        .collect();
    none("name it, in backquotes, in docs/decisions", broken);
}

// What we ship can be shipped under our licence, and comes from the registry. The same policy as
// cargo-deny's, from the same file, but without the network.
#[test]
fn licences_and_sources_follow_the_policy() {
    let policy = toml_of("deny.toml");
    let allowed: BTreeSet<&str> = policy["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    let metadata = std::process::Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .unwrap();
    assert!(
        metadata.status.success(),
        "{}",
        String::from_utf8_lossy(&metadata.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let resolved = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = resolved.iter().map(|n| n["id"].as_str().unwrap()).collect();
    let mut broken = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        if !used.contains(package["id"].as_str().unwrap()) {
            continue;
        }
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none stated");
        if !permits(licence, &allowed) {
            broken.push(format!("{name}: licence {licence}"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|s| !s.starts_with("registry+")) {
            broken.push(format!("{name}: from {}", source.unwrap()));
        }
    }
    none("see deny.toml", broken);
}

/// Whether a licence expression can be satisfied: AND binds closer than OR, brackets closer yet.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut ok = all_of(rest, allowed);
    while take(rest, "OR") {
        ok |= all_of(rest, allowed);
    }
    ok
}

fn all_of(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut ok = one(rest, allowed);
    while take(rest, "AND") {
        ok &= one(rest, allowed);
    }
    ok
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    if take(rest, "(") {
        let ok = any_of(rest, allowed);
        return take(rest, ")") && ok;
    }
    let Some((name, after)) = rest.split_first() else {
        return false;
    };
    *rest = after;
    if take(rest, "WITH")
        && let Some((exception, after)) = rest.split_first()
    {
        *rest = after;
        return allowed.contains(format!("{name} WITH {exception}").as_str());
    }
    allowed.contains(name)
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    let found = rest.first() == Some(&word);
    if found {
        *rest = &rest[1..];
    }
    found
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = BTreeSet::from(["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "(GPL-3.0 OR Zlib) AND MIT",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(permits(good, &allowed), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT",
        "Apache-2.0",
        "MIT MIT",
        "(MIT OR Zlib) AND GPL-3.0",
    ] {
        assert!(!permits(bad, &allowed), "{bad}");
    }
}
