//! The same program as `mount.trivet`: what mount(8) starts for `mount -t trivet VOLUME DIR` and
//! for a line in fstab(5).
//!
//! Its arguments are put into those of `trivet mount`; its exit codes are those of mount(8): 1 for
//! arguments that make no sense, 32 for what was tried and failed. For unmounting there is no such
//! program: the kernel does that, and the daemon sees it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::error::{CliError, Exit};
use crate::logging;

/// As mount(8) starts it.
const MOUNT: &str = "mount.trivet";
/// mount(8): the arguments make no sense, or whoever asks may not.
const USAGE: u8 = 1;
/// mount(8): it failed.
const FAILED: u8 = 32;

/// Does what is asked for by that name; none if the program goes by another.
pub fn run() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let called = args.next()?;
    let called = Path::new(&called).file_name()?.to_str()?.to_owned();
    if called != MOUNT {
        return None;
    }
    let done = mount(args).and_then(|args| {
        let cli = crate::cmd::Cli::try_parse_from(args).map_err(CliError::usage)?;
        logging::init(&cli.logging)?;
        crate::cmd::run(cli.command, cli.output)
    });
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{called}: {e}");
            ExitCode::from(match e.exit() {
                Exit::Usage => USAGE,
                _ => FAILED,
            })
        }
    })
}

/// `mount.trivet SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`
fn mount(args: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, CliError> {
    let given = Given::read(args, "oNt", "sfnvrw")?;
    let [spec, dir] = <[OsString; 2]>::try_from(given.names).map_err(|_| {
        CliError::usage("a volume and a directory are needed")
            .hint("mount -t trivet VOLUME DIR, or trivet mount VOLUME DIR")
    })?;
    let mut out = vec!["trivet".into(), "mount".into()];
    let mut options = given.values.iter().filter(|v| v.0 == 'o');
    let mut list = options.next_back().map_or(OsString::new(), |o| o.1.clone());
    for flag in given.flags.chars() {
        match flag {
            'v' => out.push("-v".into()),
            'f' => out.push("--dry-run".into()),
            's' => out.push("--sloppy".into()),
            'r' => list.push(",ro"),
            // `n`: there is no mtab to leave alone.
            _ => {}
        }
    }
    if !given.flags.contains('v') {
        out.push("--silent".into());
    }
    out.push("--options".into());
    out.push(list);
    out.extend(["--".into(), spec, dir]);
    Ok(out)
}

/// Arguments sorted: those without a dash, flags, and flags with a value.
#[derive(Default)]
struct Given {
    names: Vec<OsString>,
    flags: String,
    values: Vec<(char, OsString)>,
}

impl Given {
    fn read(
        args: impl Iterator<Item = OsString>,
        with_value: &str,
        without: &str,
    ) -> Result<Given, CliError> {
        let mut given = Given::default();
        let mut args = args;
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy().into_owned();
            let Some(flags) = text.strip_prefix('-').filter(|f| !f.is_empty()) else {
                given.names.push(arg);
                continue;
            };
            let mut rest = flags.chars();
            while let Some(flag) = rest.next() {
                if without.contains(flag) {
                    given.flags.push(flag);
                } else if with_value.contains(flag) {
                    let joined = rest.as_str();
                    let value = match joined.is_empty() {
                        true => args.next().ok_or_else(|| {
                            CliError::usage(format_args!("-{flag} needs a value"))
                        })?,
                        false => joined.into(),
                    };
                    given.values.push((flag, value));
                    break;
                } else {
                    return Err(CliError::usage(format_args!("-{flag} is not known here"))
                        .hint("`trivet mount --help` says what there is"));
                }
            }
        }
        match given.values.iter().any(|v| v.0 == 'N') {
            // The daemon mounts, in its own.
            true => Err(CliError::usage(
                "-N: the volume is mounted in the daemon's mount namespace and in no other",
            )),
            false => Ok(given),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(args: &[&str]) -> std::vec::IntoIter<OsString> {
        args.iter().map(Into::into).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn what_mount_gives_becomes_what_trivet_takes() {
        let all = mount(os(&["vms", "/mnt", "-v", "-o", "rw,nosuid"])).unwrap();
        let expected = [
            "trivet",
            "mount",
            "-v",
            "--options",
            "rw,nosuid",
            "--",
            "vms",
            "/mnt",
        ];
        assert_eq!(all, expected.map(OsString::from));
        let all = mount(os(&["vms", "/mnt", "-sfn", "-orw", "-t", "trivet"])).unwrap();
        assert!(
            ["--dry-run", "--silent", "rw"]
                .iter()
                .all(|w| all.contains(&w.into()))
        );
        for wrong in [&["vms"][..], &["vms", "/mnt", "-x"], &["a", "/b", "-o"]] {
            mount(os(wrong)).unwrap_err();
        }
        let e = mount(os(&["vms", "/mnt", "-N", "/proc/1/ns/mnt"])).unwrap_err();
        assert!(e.to_string().contains("namespace"), "{e}");
    }
}
