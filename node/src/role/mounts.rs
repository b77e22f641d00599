//! Active by use: `trivet mount` makes a node active for as long as the volume is mounted there.
//!
//! Only where people decide (`driver = "manual"`): a node that becomes active because somebody
//! mounts something would be one that decides too many. Where it is active already, mounting adds
//! a directory, and unmounting takes it away, and nothing else.
//!
//! A crash leaves a dead mount point, which the next mount on it clears away.

use trivet_fs::fuse::dead;

use super::Worker;
use crate::config::{Driver, VolumeConfig};
use crate::error::{NodeError, Result};
use crate::messages::{Mount, Promote, Want};
use crate::node::Node;

impl Worker {
    /// See [`super::Role::mount`].
    pub(super) fn mount(&mut self, m: &Mount) -> Result<bool> {
        let Some((node, config)) = self.config() else {
            return Err(NodeError::NoSuchVolume(self.name.clone()));
        };
        let refused = |why: String| NodeError::Refused {
            volume: config.name.clone(),
            why,
        };
        if let Some(dir) = &config.mount {
            return Err(refused(format!(
                "the configuration mounts it on {} wherever it is active; take `mount` out of it \
                 first",
                dir.display()
            )));
        }
        // Before a reign that would be for nothing.
        let usable = m.directory.is_absolute() && (m.directory.is_dir() || dead(&m.directory));
        if !usable {
            return Err(refused(format!(
                "{} is no directory on {}, as an absolute path; make it first",
                m.directory.display(),
                node.name()
            )));
        }
        let begins = self.stack.is_none();
        if begins {
            may_begin(&node, &config).map_err(refused)?;
            let p = Promote {
                volume: config.name.clone(),
                node: node.name().to_owned(),
                take: false,
                wait: true,
                timeout_ms: m.timeout_ms,
                accept_data_loss: false,
            };
            self.promote(&p, None)?;
        }
        let mounted = match &mut self.stack {
            Some(stack) => stack.mount(&config.name, &m.directory, &m.without),
            None => Err(refused("it was lost at once; look at its status".into())),
        };
        match mounted {
            Ok(()) => {
                self.by_use |= begins;
                self.view(|v| v.mounted = Some(m.directory.clone()));
                Ok(begins)
            }
            Err(e) => {
                if begins {
                    self.end_use();
                }
                Err(e)
            }
        }
    }

    /// Whoever asked for the mount was told that it failed, for he has waited for too long.
    pub(super) fn unmount_unasked(&mut self) {
        if let Some(stack) = &mut self.stack {
            tracing::warn!(volume = self.name, "mounted too late; unmounting again");
            stack.unmount();
        }
    }

    /// Ends a reign that was for a mount which is gone. True if there was one.
    pub(super) fn use_is_over(&mut self) -> bool {
        let gone = |s: &crate::stack::Stack| s.mounted().is_none() && s.lost().is_none();
        let over = self.by_use && self.stack.as_ref().is_some_and(gone);
        if over {
            self.end_use();
        }
        over
    }

    fn end_use(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.set_wish(self.id, Want::Stopped);
        }
        if let Err(error) = self.give_up() {
            tracing::error!(volume = self.name, %error, "unmounted, not in order");
        }
    }
}

/// Whether a mount may make this node active.
fn may_begin(node: &Node, config: &VolumeConfig) -> Result<(), String> {
    let who = match config.driver {
        Driver::Manual => return Ok(()),
        Driver::External => "a cluster manager decides",
        Driver::Automatic => "the nodes decide by themselves",
    };
    let at = node.holder(config.id);
    let at = at.map_or("nowhere now".to_owned(), |n| format!("on {n}"));
    Err(format!(
        "{who} where it is active (driver = \"{}\"), and it is {at}; mount it there, or its NFS \
         export anywhere",
        config.driver
    ))
}
