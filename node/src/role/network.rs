//! The service network of a volume on this node, made anew for each reign.
//!
//! It is made when the former reign is over, or the daemon starts: it takes longer than the rest of
//! a planned move, and a client waits then.

use std::time::{Duration, Instant};

use crate::config::{ServiceConfig, VolumeConfig};
use crate::error::Result;
use crate::net::ServiceNet;

/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Network {
    /// What is made: a network like this, or none. Nothing: not known.
    made: Option<Option<ServiceConfig>>,
    /// No attempt before this.
    not_before: Option<Instant>,
    /// What it said last: each thing once.
    said: Option<String>,
}

/// The service address that there shall be where the volume is active: an export's.
pub(super) fn wanted(config: &VolumeConfig) -> Option<&ServiceConfig> {
    config
        .service
        .as_ref()
        .filter(|_| !config.exports.is_empty())
}

fn of(config: &VolumeConfig, service: &ServiceConfig) -> ServiceNet {
    ServiceNet::new(&config.name, config.id, service)
}

impl Network {
    /// To be called while the volume is not active here: what an earlier reign left behind, or a
    /// daemon that died, goes; on an `exporter` there is a new one then.
    pub fn prepare(&mut self, config: &VolumeConfig, exporter: bool) {
        let wanted = wanted(config).filter(|_| exporter);
        if self
            .made
            .as_ref()
            .is_some_and(|made| made.as_ref() == wanted)
            || self.not_before.is_some_and(|at| Instant::now() < at)
        {
            return;
        }
        let done = match (wanted, &config.service) {
            (Some(service), _) => of(config, service).prepare(),
            (None, Some(service)) => {
                of(config, service).remove();
                Ok(())
            }
            (None, None) => Ok(()),
        };
        match done {
            Ok(()) => {
                self.made = Some(wanted.cloned());
                self.not_before = None;
                self.said = None;
            }
            Err(error) => {
                self.not_before = Some(Instant::now() + AGAIN);
                let why = error.to_string();
                if self.said.as_ref() != Some(&why) {
                    let volume = &config.name;
                    tracing::error!(volume, why, "no service address can be had here");
                    self.said = Some(why);
                }
            }
        }
    }

    /// There is one for a reign that begins now; it serves for no other.
    ///
    /// # Errors
    /// Those of [`ServiceNet::prepare`].
    pub fn take(&mut self, config: &VolumeConfig) -> Result<()> {
        let made = self.made.take().flatten();
        let Some(service) = wanted(config) else {
            return Ok(());
        };
        let net = of(config, service);
        if made.as_ref() == Some(service) && net.is_there() {
            return Ok(());
        }
        net.prepare()
    }
}
