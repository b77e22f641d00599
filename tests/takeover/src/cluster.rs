//! The cluster in the lab: brought up as a person would, and asked how it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trivet_node::messages::{
    ActiveReport, Answer, Ask, ClusterReport, Move, Report, Standing, VolumeReport,
};
use trivet_node::{Config, client};
use trivet_protocol::MemberKind;
use trivet_transport::Security;

use crate::error::{LabError, Result};
use crate::lab::{Lab, VOLUME};
use crate::sys::{Stop, spawn_in};

/// How often each node is asked.
const EVERY: Duration = Duration::from_millis(150);
/// A node answers within this time, or is not there.
const ANSWER: Duration = Duration::from_secs(2);
/// An answer older than this says nothing about now.
const FRESH: Duration = Duration::from_secs(1);
/// A volume's size: small, because nothing here is about its size.
const SIZE: &str = "1G";

/// What one node said last, and when.
type Said = Option<(Instant, ClusterReport)>;

/// Asks the nodes all the time, from the client's place.
pub struct Watch {
    said: Vec<(String, Arc<Mutex<Said>>)>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

/// How the volume is.
#[derive(Clone, Debug)]
pub struct View {
    /// The node that is active.
    pub active: String,
    /// As its upstairs sees it.
    pub report: ActiveReport,
    /// The last move, as the active one tells it.
    pub last_move: Option<Move>,
    /// Whether nothing is missing anywhere.
    pub whole: bool,
    /// What is missing.
    pub missing: Vec<String>,
}

/// Brings it up: pools, daemons, the volume; then waits until it is served and redundant.
///
/// # Errors
/// A step fails.
pub fn bring_up(lab: &mut Lab, stop: &Stop) -> Result<Watch> {
    for h in &mut lab.hosts {
        h.trivet(&["pool", "create", crate::host::POOL])?;
        h.serve()?;
    }
    let config = Config::load(&lab.config())?;
    let watch = Watch::start(lab, &config)?;
    let create = ["volume", "create", VOLUME, "--size", SIZE];
    let (ok, _, said) = lab.at_client(&create)?;
    if !ok {
        return Err(LabError::Command {
            command: "trivet volume create".into(),
            said,
        });
    }
    watch.until(stop, "the volume is served, and redundant", 60, |w| {
        w.view().is_some_and(|v| v.whole)
    })?;
    Ok(watch)
}

impl Watch {
    fn start(lab: &Lab, config: &Config) -> Result<Watch> {
        let security = config.security(&lab.dir.join("cfg/n1.key"))?;
        let mut watch = Watch {
            said: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for n in &config.nodes {
            let said = Arc::new(Mutex::new(None));
            watch.said.push((n.name.clone(), said.clone()));
            let (name, config) = (n.name.clone(), config.clone());
            let (security, stop) = (security.clone(), watch.stop.clone());
            let asks = move || {
                while !stop.load(std::sync::atomic::Ordering::Acquire) {
                    ask(&config, &security, &name, &said);
                    // A rate, not a race.
                    std::thread::sleep(EVERY);
                }
            };
            let name = format!("watch-{}", n.name);
            watch
                .threads
                .push(spawn_in(&lab.netns_file("c1"), &name, asks)?);
        }
        Ok(watch)
    }

    /// What the nodes say of themselves, as far as they answer.
    pub fn reports(&self) -> Vec<Report> {
        let own = |(name, said): &(String, Arc<Mutex<Said>>)| {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, cluster) = said.as_ref()?;
            let of = cluster.nodes.iter().find(|n| n.node == *name)?;
            of.report.clone().filter(|_| at.elapsed() < FRESH)
        };
        self.said.iter().filter_map(own).collect()
    }

    /// How the volume is; none: nobody says that it is active.
    pub fn view(&self) -> Option<View> {
        let reports = self.reports();
        let of = |r: &Report| -> Option<VolumeReport> {
            r.volumes.iter().find(|v| v.name == VOLUME).cloned()
        };
        let mut actives = reports.iter().filter_map(|r| {
            let v = of(r).filter(|v| v.role.standing == Standing::Active)?;
            let a = v.active.clone()?;
            Some((a.generation, r.node.clone(), v, a))
        });
        // One that does not know yet that it was deposed is of an older generation.
        let mut newest = actives.next()?;
        let mut missing = Vec::new();
        for other in actives {
            missing.push(format!(
                "both {} and {} say that they are active",
                newest.1, other.1
            ));
            if other.0 > newest.0 {
                newest = other;
            }
        }
        let (_, active, volume, report) = newest;
        for (name, _) in &self.said {
            if !reports.iter().any(|r| r.node == *name) {
                missing.push(format!("{name} does not answer"));
            }
        }
        missing.extend(
            reports
                .iter()
                .filter(|r| r.drained)
                .map(|r| format!("{} is drained", r.node)),
        );
        for m in &report.members {
            match (&m.trouble, m.up, m.in_sync, m.resync) {
                (None, true, true, None) => {}
                (None, true, false, None) if m.kind == MemberKind::Witness => {}
                (trouble, up, in_sync, resync) => missing.push(format!(
                    "replica on {}: connected {up}, in sync {in_sync}, resync {resync:?}, {}",
                    m.node,
                    trouble.as_deref().unwrap_or("no trouble")
                )),
            }
        }
        if report.failures_tolerated == 0 {
            missing.push("no failure is tolerated".into());
        }
        Some(View {
            active,
            last_move: volume.role.last_move,
            report,
            whole: missing.is_empty(),
            missing,
        })
    }

    /// Waits until it is so.
    ///
    /// # Errors
    /// Ctrl-C, or it does not come about in this time.
    pub fn until(
        &self,
        stop: &Stop,
        what: &str,
        seconds: u64,
        mut is_so: impl FnMut(&Watch) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !is_so(self) {
            if Instant::now() > deadline {
                return Err(LabError::Late {
                    what: what.to_owned(),
                    seconds,
                    last: self.in_words(),
                });
            }
            stop.sleep(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// How it is, for an error.
    pub fn in_words(&self) -> String {
        match self.view() {
            Some(v) => format!("active on {}; {}", v.active, v.missing.join("; ")),
            None => {
                let reports = self.reports();
                let each = reports.iter().map(|r| {
                    let v = r.volumes.iter().find(|v| v.name == VOLUME);
                    let role = v.map(|v| (v.role.standing, v.role.trouble.clone()));
                    format!("{}: {role:?}", r.node)
                });
                format!("nobody is active; {}", each.collect::<Vec<_>>().join("; "))
            }
        }
    }
}

fn ask(config: &Config, security: &Security, node: &str, said: &Mutex<Said>) {
    let asked = Instant::now();
    // One that does not answer goes stale.
    if let Ok((Answer::Cluster(c), _)) = client::ask(config, security, node, &Ask::Cluster, ANSWER)
    {
        *said.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, c));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
    }
}
