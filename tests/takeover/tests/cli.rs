//! The program's manners: what it says when it cannot run, and that it leaves nothing then. (That
//! this test is here also makes `cargo test` build the program, which `scripts/test` runs.)

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used)]

use std::process::Command;

fn takeover(args: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_trivet-takeover"))
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), said)
}

#[test]
fn without_the_program_under_test_nothing_is_made() {
    let (code, said) = takeover(&["takeovers", "--trivet", "/nowhere/trivet"]);
    // 77: no root here.
    match code {
        Some(77) => assert!(said.starts_with("not run: "), "{said}"),
        code => {
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("/nowhere/trivet"), "{said}");
        }
    }
}

#[test]
fn without_a_program_beside_it_nothing_is_made() {
    let args = [
        "takeovers",
        "--trivet",
        "/bin/true",
        "--beside",
        "/nowhere/guest",
    ];
    let (code, said) = takeover(&args);
    match code {
        Some(77) => assert!(said.starts_with("not run: "), "{said}"),
        code => {
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("/nowhere/guest"), "{said}");
        }
    }
}

#[test]
fn an_unknown_event_is_refused_with_those_that_are_known() {
    let (code, said) = takeover(&["takeovers", "--only", "flood"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("lose-node"), "{said}");
}
