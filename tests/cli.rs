//! The binary as a person or a script meets it: exit codes, one error line, JSON, closed pipes,
//! signals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TRIVET: &str = env!("CARGO_BIN_EXE_trivet");

fn trivet(args: &[&str]) -> Output {
    Command::new(TRIVET).args(args).output().unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

#[test]
fn json_is_all_there_is_on_standard_output() {
    for args in [
        vec!["limits", "-o", "json"],
        vec!["-o", "json", "-vvv", "limits"],
    ] {
        let out = trivet(&args);
        assert!(out.status.success());
        let parsed: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(parsed["limits"][0]["value"], 4096);
    }
}

#[test]
fn errors_are_one_line_and_have_their_codes() {
    let wrong_filter = Command::new(TRIVET)
        .arg("limits")
        .env("TRIVET_LOG", "a=b=c")
        .output()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("disk.img");
    std::fs::write(&taken, "somebody's").unwrap();
    let refused = trivet(&["bench", "volume", "--plain", taken.to_str().unwrap()]);
    for (out, code) in [(wrong_filter, 2), (refused, 1)] {
        let text = stderr(&out);
        assert_eq!(out.status.code(), Some(code), "{text}");
        assert!(
            text.starts_with("error: ") && text.lines().count() == 1,
            "{text}"
        );
        assert!(text.contains("; "), "says what to do next: {text}");
        assert!(out.stdout.is_empty());
    }
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "somebody's");
    assert_eq!(trivet(&["no-such-command"]).status.code(), Some(2));
}

fn said(args: &[&str]) -> String {
    let out = trivet(args);
    assert!(out.status.success(), "{args:?}: {}", stderr(&out));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// The error of a command that must not work.
fn refused(args: &[&str]) -> String {
    let out = trivet(args);
    let text = stderr(&out);
    assert!(
        !out.status.success() && text.starts_with("error: "),
        "{args:?}: {text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_person_makes_keys_and_starts_nodes_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, list, pool) = (path("keys/a.key"), path("peers.toml"), path("a"));
    let public = said(&["key", "new", "--out", &key]);
    assert!(
        public.starts_with("trivet1:") && public.len() == 52,
        "{public}"
    );
    assert_eq!(said(&["key", "show", &key]), public);
    let json = said(&["-o", "json", "key", "show", &key]);
    assert!(json.contains(&public), "{json}");
    let told = refused(&["key", "new", "--out", &key]);
    assert!(told.contains("not overwritten"), "{told}");
    assert_eq!(said(&["key", "show", &key]), public);

    let volume = path("v.toml");
    let pools = [path("b"), path("c")];
    let mut create = vec!["volume", "create", &volume, "--size", "1M", "--pool", &pool];
    create.extend(["--pool", &pools[0], "--pool", &pools[1]]);
    said(&create);
    let run = [
        "downstairs",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--pool",
        &pool,
    ];
    let with_keys = [&run[..], &["--key", &key, "--peers", &list]].concat();
    let entry = |name: &str, role: &str, public: &str| {
        format!("[[peer]]\nname = {name:?}\nrole = {role:?}\nkey = {public:?}\n")
    };
    // Nobody is reached without keys from elsewhere, and the way out is named.
    let anywhere = [
        "downstairs",
        "run",
        "--listen",
        "0.0.0.0:0",
        "--pool",
        &pool,
    ];
    let told = refused(&anywhere);
    assert!(told.contains("trivet key new"), "{told}");
    // A list that is missing, makes no sense, does not have this node, or has it as no node.
    assert!(refused(&with_keys).contains("peers.toml"));
    let lists = [
        ("[[peer]]\nname = 3".to_owned(), "line 2"),
        (String::new(), "not in the list"),
        (entry("a", "exporter", &public), "a, an exporter"),
    ];
    for (text, why) in lists {
        std::fs::write(&list, text).unwrap();
        let told = refused(&with_keys);
        assert!(told.contains(why), "{told}");
    }
    // And then it serves.
    std::fs::write(&list, entry("a", "node", &public)).unwrap();
    let mut child = Command::new(TRIVET)
        .args(&with_keys)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut ready).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready.starts_with("ready: "), "{ready}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(TRIVET)
        .arg("limits")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(
        out.status.success() && out.stderr.is_empty(),
        "{}",
        stderr(&out)
    );
}

#[test]
fn a_short_bench_gives_every_field_that_scripts_rely_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v");
    let out = trivet(&[
        "bench",
        "volume",
        "--quick",
        "-o",
        "json",
        "--seed",
        "7",
        "--working-set",
        "2",
        "--stream",
        "2",
        "--only",
        "write-flush-4k-qd1",
        "--only",
        "read-1m-seq",
        "--plain",
        file.to_str().unwrap(),
    ]);
    assert!(out.status.success(), "{}", stderr(&out));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let rows = report["results"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["workload"], "write-flush-4k-qd1");
    for row in rows {
        for field in [
            "per_second",
            "mib_per_second",
            "limit",
            "ratio",
            "p50_us",
            "p99_us",
            "cpu_us_per_op",
        ] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} of {row}");
        }
        assert!(row.get("bytes_written_ratio").is_some());
    }
    assert_eq!(report["setup"]["seed"], 7);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

fn wait_until(what: &str, child: &mut Child, mut holds: impl FnMut(&mut Child) -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds(child) {
        assert!(Instant::now() < until, "{what} within 60 s");
        std::thread::yield_now();
    }
}

#[test]
fn sigterm_ends_a_bench_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let made = |suffix: &str| Path::new(dir.path()).join(suffix).exists();
    let mut child = Command::new(TRIVET)
        .args([
            "bench",
            "volume",
            "--working-set",
            "2",
            "--stream",
            "2",
            "--plain",
        ])
        .arg(dir.path().join("v"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let limit = format!("trivet-bench-limit.{}/2", child.id());
    wait_until("the bench runs", &mut child, |_| made(&limit));
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    wait_until("it ends", &mut child, |c| c.try_wait().unwrap().is_some());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(stderr(&out), "error: bench: interrupted\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
