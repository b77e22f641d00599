//! The options of mount(8) and fstab(5), as far as they mean something here.

use trivet_node::messages::MountWithout;

use super::ClusterArgs;
use crate::error::CliError;

/// Options that change nothing: they are for mount(8) and systemd, or say what holds anyway (times
/// of access are not kept).
const PASSED_OVER: [&str; 22] = [
    "rw",
    "defaults",
    "async",
    "suid",
    "dev",
    "exec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "lazytime",
    "nolazytime",
    "auto",
    "noauto",
    "nouser",
    "nofail",
    "silent",
    "loud",
    "iversion",
    "_netdev",
];

/// What a list of options asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub without: Vec<MountWithout>,
    pub node: Option<String>,
    pub timeout: Option<u64>,
    config: Option<String>,
    key: Option<String>,
}

impl Options {
    /// Reads a comma-separated list.
    ///
    /// # Errors
    /// One is not known (unless `sloppy`), or its value makes no sense.
    pub fn parse(list: &str, sloppy: bool) -> Result<Options, CliError> {
        let mut options = Options::default();
        for option in list.split(',').filter(|o| !o.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match (name, value) {
                ("ro", "") => options.without.push(MountWithout::Writing),
                ("nosuid", "") => options.without.push(MountWithout::Suid),
                ("nodev", "") => options.without.push(MountWithout::Dev),
                ("noexec", "") => options.without.push(MountWithout::Exec),
                ("node", name) => options.node = Some(name.to_owned()),
                ("config", file) => options.config = Some(file.to_owned()),
                ("key", file) => options.key = Some(file.to_owned()),
                ("timeout", seconds) => {
                    let seconds = seconds.parse().map_err(|_| {
                        CliError::usage(format_args!("{option} is not a number of seconds"))
                    })?;
                    options.timeout = Some(seconds);
                }
                ("comment", _) => {}
                _ if PASSED_OVER.contains(&option) => {}
                _ if option.starts_with("x-") || option.starts_with("X-") => {}
                _ if sloppy => tracing::info!(option, "an option that is not known"),
                _ => {
                    return Err(CliError::usage(format_args!(
                        "{option} is no option of a Trivet mount"
                    ))
                    .hint("there are ro, nosuid, nodev, noexec, node=, config=, key=, timeout="));
                }
            }
        }
        Ok(options)
    }

    /// Where the cluster's files are, as the options or else the command say.
    pub fn cluster(&self, given: &ClusterArgs) -> ClusterArgs {
        let or = |own: &Option<String>, given: &std::path::Path| {
            own.as_ref().map_or(given.to_owned(), Into::into)
        };
        ClusterArgs {
            config: or(&self.config, &given.config),
            key: or(&self.key, &given.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_is_taken_and_the_rest_refused() {
        let o = "rw,noatime,nosuid,_netdev,x-systemd.automount,node=pve1,timeout=7";
        let o = Options::parse(o, false).unwrap();
        assert_eq!(o.without, [MountWithout::Suid]);
        assert_eq!((o.node.as_deref(), o.timeout), (Some("pve1"), Some(7)));
        let e = Options::parse("rw,acl", false).unwrap_err();
        assert!(e.to_string().contains("acl is no option"), "{e}");
        assert_eq!(Options::parse("acl,,", true).unwrap(), Options::default());
        Options::parse("timeout=soon", true).unwrap_err();
    }
}
