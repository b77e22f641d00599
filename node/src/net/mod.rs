//! The network of a service address: a namespace of its own on each node, with one interface in
//! the bridge, that holds the address only while this node serves.
//!
//! Why a namespace: on a Proxmox host, rpcbind and the kernel's lock manager own the ports that
//! clients look for, and an address in the host's own namespace becomes the source of the host's
//! own mounts, which are orphaned when it moves. Why the address comes last and goes first: a
//! client must never be answered by a node that is not ready; without the address there is no
//! route, so that not even a reset leaves.
//!
//! The namespace outlives the daemon. What a crash leaves behind is put right by the next
//! [`ServiceNet::prepare`], which always takes the address away.
//!
//! The commands are iproute2's, as a person would type them; each is bounded by [`PATIENCE`].

mod announce;
#[cfg(test)]
mod tests;
mod tickle;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use trivet_protocol::VolumeId;

use crate::child::end_within;
use crate::config::ServiceConfig;
use crate::error::{NodeError, Result};

/// One command of iproute2 takes at most this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times after the address came at which it is announced: switches and neighbours may miss one.
const ANNOUNCE: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(150),
    Duration::from_millis(600),
    Duration::from_millis(2000),
    Duration::from_millis(6000),
];

/// See the module's head.
#[derive(Clone, Debug)]
pub struct ServiceNet {
    config: ServiceConfig,
    /// Name of the namespace.
    name: String,
    /// The interface's ends: in the bridge, and inside.
    outside: String,
    inside: String,
    /// Whether the address is here, as far as this object put it here: what is announced.
    shown: Arc<AtomicBool>,
}

impl ServiceNet {
    /// Names it; nothing is made yet.
    pub fn new(volume: &str, id: VolumeId, config: &ServiceConfig) -> ServiceNet {
        let hex: String = id.to_string().chars().filter(|c| *c != '-').collect();
        let short = hex.get(..10).unwrap_or(&hex);
        ServiceNet {
            config: config.clone(),
            name: format!("trivet-{volume}"),
            outside: format!("tvo{short}"),
            inside: format!("tvi{short}"),
            shown: Arc::default(),
        }
    }

    /// The service address.
    pub fn address(&self) -> IpAddr {
        self.config.address.ip
    }

    /// Makes namespace and interface, without the address. What is there of an earlier reign goes:
    /// sockets whose last words found no address stay for minutes, and would answer a client that
    /// has the same port again in the place of a reset.
    ///
    /// # Errors
    /// iproute2 is not there, the bridge is not, or it takes more rights.
    pub fn prepare(&self) -> Result<()> {
        self.remove();
        ip(&["netns", "add", &self.name])?;
        self.plug()?;
        self.enter(|| {
            // Sockets are bound before the address is there.
            for (what, value) in [
                ("ipv4/ip_nonlocal_bind", "1"),
                ("ipv6/ip_nonlocal_bind", "1"),
                ("ipv6/conf/all/accept_dad", "0"),
            ] {
                let path = PathBuf::from("/proc/sys/net").join(what);
                match std::fs::write(&path, value) {
                    // A kernel without IPv6 has no such file.
                    Err(e) if !what.starts_with("ipv6") => {
                        return Err(failed(path.display(), e));
                    }
                    _ => {}
                }
            }
            Ok(())
        })?
    }

    /// Makes the interface, in the namespace and in the bridge.
    fn plug(&self) -> Result<()> {
        let (ns, inside, outside) = (&self.name, &self.inside, &self.outside);
        let in_ns = |args: &[&str]| ip(&[&["-n", ns.as_str()], args].concat());
        // One that is half made, or in no bridge.
        if self.has_interface() {
            ip(&["link", "del", outside])?;
        }
        // As libvirt and Proxmox have it: a bridge takes the lowest address of its ports for its
        // own, which must not be this one.
        let own = format!("fe:{}", self.address_of_port());
        let peer = ["peer", "name", inside, "netns", ns];
        let port = ["link", "add", outside, "address", &own, "type", "veth"];
        ip(&[&port, &peer[..]].concat())?;
        ip(&["link", "set", outside, "master", &self.config.bridge])?;
        ip(&["link", "set", outside, "up"])?;
        in_ns(&["link", "set", "lo", "up"])?;
        in_ns(&["link", "set", inside, "up"])?;
        Ok(())
    }

    /// The address comes back, without clients that would have to be told. `left` says for how long
    /// it may be here, and nothing if it may not; it is asked just before and just after. Whether
    /// it has come.
    ///
    /// What is missing is made anew: the interface, with which it may have gone
    /// ([`ServiceNet::hide_for_certain`]), and its place in the bridge, which may be another one.
    /// The sockets in the namespace are bound to the address, not to the interface, and go on.
    ///
    /// # Errors
    /// iproute2 fails.
    pub fn show_again(&self, left: &mut dyn FnMut() -> Option<Duration>) -> Result<bool> {
        if !self.is_there() {
            self.plug()?;
        }
        let Some(time) = left() else {
            return Ok(false);
        };
        let shown = self.put_address(PATIENCE.min(time));
        if shown.is_ok() && left().is_some() {
            self.announce_from_now_on(Vec::new(), 0)?;
            return Ok(true);
        }
        // Late, or half done.
        self.hide_for_certain()?;
        shown.map(|()| false)
    }

    /// Whether what [`ServiceNet::prepare`] made is still there; its interface is in the bridge
    /// then, also if the bridge is a new one.
    pub fn is_there(&self) -> bool {
        let port = ["link", "set", &self.outside, "master", &self.config.bridge];
        self.path().exists() && ip(&[&port[..], &["up"]].concat()).is_ok()
    }

    /// Five bytes of a hardware address.
    fn address_of_port(&self) -> String {
        let digits = self.outside.trim_start_matches("tvo").as_bytes();
        let bytes = digits.chunks(2).map(String::from_utf8_lossy);
        bytes.collect::<Vec<_>>().join(":")
    }

    /// Takes the address away for certain: if that fails, its interface goes, and with it
    /// everything.
    ///
    /// # Errors
    /// Neither can be done.
    pub fn hide_for_certain(&self) -> Result<()> {
        self.hide().or_else(|error| {
            if !self.has_interface() {
                // Without its interface there is no way to the address.
                return Ok(());
            }
            tracing::warn!(%error, "the service address is taken away with its interface");
            ip(&["link", "del", &self.outside])
        })
    }

    /// Whether the interface is there; if that cannot be told, it is.
    fn has_interface(&self) -> bool {
        let index = nix::net::if_::if_nametoindex(self.outside.as_str());
        index != Err(nix::errno::Errno::ENODEV)
    }

    /// Removes namespace and interface; what is not there is as good.
    pub fn remove(&self) {
        let _ = ip(&["link", "del", &self.outside]);
        let _ = ip(&["netns", "del", &self.name]);
    }

    /// The address comes: from now on clients reach this node. Announces it from a thread of its
    /// own, and makes `clients` notice at once that their old connections are gone.
    ///
    /// # Errors
    /// iproute2 fails.
    pub fn show(&self, clients: Vec<SocketAddr>, port: u16) -> Result<()> {
        self.put_address(PATIENCE)?;
        self.announce_from_now_on(clients, port)
    }

    fn put_address(&self, patience: Duration) -> Result<()> {
        let (ns, inside) = (self.name.as_str(), self.inside.as_str());
        let address = self.config.address.to_string();
        let mut add = vec!["-n", ns, "addr", "replace", &address, "dev", inside];
        if self.address().is_ipv6() {
            add.push("nodad");
        }
        ip_within(patience, &add)?;
        if let Some(gateway) = self.config.gateway.map(|g| g.to_string()) {
            let route = ["route", "replace", "default", "via", &gateway];
            ip_within(patience, &[&["-n", ns], &route[..]].concat())?;
        }
        Ok(())
    }

    fn announce_from_now_on(&self, clients: Vec<SocketAddr>, port: u16) -> Result<()> {
        self.shown.store(true, Ordering::Release);
        let net = self.clone();
        // Not waited for: it ends by itself after the last announcement.
        thread::Builder::new()
            .name("announce".into())
            .spawn(move || {
                let told = net.enter(|| net.announce(&clients, port));
                if let Err(e) = told {
                    tracing::warn!(error = %e, "the service address is not announced");
                }
            })
            .map_err(NodeError::Thread)?;
        Ok(())
    }

    fn announce(&self, clients: &[SocketAddr], port: u16) {
        let began = Instant::now();
        for at in ANNOUNCE {
            // The announcements' own times; nothing waits for this thread.
            thread::sleep(at.saturating_sub(began.elapsed()));
            // It may have moved on meanwhile, and neighbours must not be told otherwise.
            if !self.shown.load(Ordering::Acquire) {
                return;
            }
            if let Err(error) = announce::announce(&self.inside, self.address()) {
                tracing::warn!(%error, "the service address cannot be announced to neighbours");
            }
            let from = SocketAddr::new(self.address(), port);
            if let Err(error) = tickle::tickle(from, clients) {
                tracing::warn!(%error, "clients of the former active node cannot be told");
            }
        }
    }

    /// The address goes: nothing leaves any more, no reset either.
    ///
    /// # Errors
    /// iproute2 fails.
    pub fn hide(&self) -> Result<()> {
        self.shown.store(false, Ordering::Release);
        let flush = ["addr", "flush", "dev", &self.inside, "scope", "global"];
        ip(&[&["-n", self.name.as_str()], &flush[..]].concat())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `f` on a thread inside the namespace. Threads that it starts, and sockets that they
    /// make, are inside, too.
    ///
    /// # Errors
    /// There is no such namespace, or it takes more rights.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let ns =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| failed(path.display(), e))?;
        thread::scope(|s| {
            let run = move || {
                move_into_link_name_space(
                    rustix::fd::AsFd::as_fd(&ns),
                    Some(LinkNameSpaceType::Network),
                )
                .map_err(|e| failed("entering its namespace", e))?;
                Ok(f())
            };
            let thread = thread::Builder::new().name("service-net".into());
            let running = thread.spawn_scoped(s, run).map_err(NodeError::Thread)?;
            running
                .join()
                .unwrap_or_else(|_| Err(failed("a thread inside it", "it panicked")))
        })
    }
}

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> NodeError {
    NodeError::Network {
        what: what.to_string(),
        why: why.to_string(),
    }
}

/// Runs `ip` with these arguments.
fn ip(args: &[&str]) -> Result<()> {
    ip_within(PATIENCE, args)
}

fn ip_within(patience: Duration, args: &[&str]) -> Result<()> {
    let what = || format!("ip {}", args.join(" "));
    let mut child = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(what(), format_args!("{e}; is iproute2 installed?")))?;
    let status = end_within(&mut child, patience).map_err(|e| failed(what(), e))?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        use std::io::Read;
        // What cannot be read is not said.
        let _ = err.by_ref().take(1024).read_to_string(&mut said);
    }
    Err(failed(what(), said.trim()))
}
