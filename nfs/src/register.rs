//! Registration with the system's rpcbind, where that one has port 111.
//!
//! A program number that another server holds (the kernel's lockd, another NFS server) is an
//! error at start: clients find NLM by address alone, so half of their calls would go astray.
//! What an earlier run of our own left behind is told from that by asking at the port, at each
//! address that something has it at: nobody answers there. A thread looks from time to time
//! whether the entries are still there, because a restarted rpcbind has forgotten them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use crate::client::rpc::{ClientError, RpcClient, call_udp};
use crate::portmap::{Mapping, PORT, PROGRAM, Transport};
use crate::rpc::conn::lock;
use crate::xdr::Enc;

const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the entries are looked after.
const EVERY: Duration = Duration::from_secs(10);
/// Entries of rpcbind's that are looked at, at most.
const MAX_ENTRIES: usize = 4096;

/// Why the programs could not be registered.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// Somebody else serves it.
    #[error(
        "RPC program {program} version {version} ({name}) is served by another program of this \
         machine, at port {port}; stop that one (for nlockmgr: unmount NFS mounts that use locks), \
         or serve from an address or network namespace of its own"
    )]
    Taken {
        /// Program.
        program: u32,
        /// Version.
        version: u32,
        /// Its customary name.
        name: &'static str,
        /// Where it is.
        port: u16,
    },
    /// rpcbind said no.
    #[error(
        "rpcbind refuses to register program {0}; registering takes root, and a port below 1024"
    )]
    Refused(u32),
    /// rpcbind cannot be talked to.
    #[error("rpcbind at port 111: {0}")]
    Rpcbind(#[from] ClientError),
}

fn name_of(program: u32) -> &'static str {
    match program {
        100_003 => "nfs",
        100_005 => "mountd",
        100_021 => "nlockmgr",
        100_024 => "status",
        _ => "unknown",
    }
}

fn local() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

/// What rpcbind has registered.
///
/// # Errors
/// [`ClientError`].
pub fn dump(rpcbind: SocketAddr) -> Result<Vec<Mapping>, ClientError> {
    let mut client = RpcClient::connect(rpcbind, TIMEOUT, false)?;
    let mut d = client.call((PROGRAM, 2, 4), |_| ())?;
    let mut out = Vec::new();
    while d.bool()? && out.len() < MAX_ENTRIES {
        let (program, version, protocol, port) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let transport = match protocol {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            _ => continue,
        };
        out.push(Mapping {
            program,
            version,
            transport,
            port: port as u16,
        });
    }
    Ok(out)
}

fn change(m: &Mapping, procedure: u32) -> Result<bool, ClientError> {
    let mut client = RpcClient::connect(local(), TIMEOUT, true)?;
    let mut d = client.call((PROGRAM, 2, procedure), |e| {
        e.u32(m.program).u32(m.version);
        e.u32(m.transport as u32).u32(u32::from(m.port));
    })?;
    Ok(d.bool()?)
}

/// Addresses of this machine at which something has a port, as the kernel's tables (`proc(5)`,
/// `/proc/net/tcp` and its kin) list them; every address is the loopback one.
fn listeners(table: &str, transport: Transport, port: u16) -> Vec<IpAddr> {
    // TCP_LISTEN; of a datagram socket, that it has no peer.
    let state = match transport {
        Transport::Tcp => "0A",
        Transport::Udp => "07",
    };
    let listener = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (at, port_digits) = fields.next()?.split_once(':')?;
        let here = u16::from_str_radix(port_digits, 16) == Ok(port);
        if !here || fields.nth(1)? != state {
            return None;
        }
        // In words of four bytes, each as the machine has it in memory.
        let word = |i: usize| u32::from_str_radix(at.get(8 * i..8 * i + 8)?, 16).ok();
        let ip: IpAddr = match at.len() {
            8 => word(0)?.to_ne_bytes().into(),
            32 => {
                let mut bytes = [0; 16];
                for (i, out) in bytes.chunks_exact_mut(4).enumerate() {
                    out.copy_from_slice(&word(i)?.to_ne_bytes());
                }
                bytes.into()
            }
            _ => return None,
        };
        Some(match (ip.is_unspecified(), ip) {
            (true, _) => Ipv4Addr::LOCALHOST.into(),
            (false, ip) => ip,
        })
    };
    table.lines().filter_map(listener).collect()
}

/// Where on this machine something could answer for this mapping: rpcbind's version 2 keeps no
/// addresses, and a server may have one address alone.
fn places(m: &Mapping) -> BTreeSet<IpAddr> {
    let name = match m.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let tables = [name.to_owned(), format!("{name}6")];
    let read = |t: &String| std::fs::read_to_string(format!("/proc/net/{t}")).unwrap_or_default();
    let mut out: BTreeSet<IpAddr> = tables
        .iter()
        .flat_map(|t| listeners(&read(t), m.transport, m.port))
        .collect();
    // Where there are no such tables, the place that most servers have.
    out.insert(Ipv4Addr::LOCALHOST.into());
    out
}

/// Whether anybody answers for this mapping on this machine.
fn answers(m: &Mapping) -> bool {
    let what = (m.program, m.version, 0);
    places(m).into_iter().any(|ip| {
        let at = SocketAddr::new(ip, m.port);
        let answer = match m.transport {
            Transport::Tcp => {
                let client = RpcClient::connect(at, TIMEOUT, false);
                client.and_then(|mut c| c.call(what, |_: &mut Enc| ()))
            }
            Transport::Udp => call_udp(at, Duration::from_millis(700), what, |_| ()),
        };
        // A refusal is an answer too.
        matches!(answer, Ok(_) | Err(ClientError::Refused(_)))
    })
}

/// Our entries in the system's rpcbind; taken back when dropped.
pub struct Registration {
    mappings: Vec<Mapping>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Registration {
    /// Registers these mappings and keeps them registered.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is left registered then.
    pub fn new(mappings: Vec<Mapping>) -> Result<Registration, RegisterError> {
        refuse_taken(&mappings)?;
        let mut r = Registration {
            mappings: Vec::new(),
            stop: Arc::default(),
            thread: None,
        };
        // Whatever an earlier run left; the answer does not matter. All of it before the first SET,
        // because UNSET takes a version away on every transport.
        for m in &mappings {
            let _ = change(m, 2);
        }
        for m in mappings {
            if !change(&m, 1)? {
                return Err(RegisterError::Refused(m.program));
            }
            r.mappings.push(m);
        }
        let (stop, keep) = (Arc::clone(&r.stop), r.mappings.clone());
        let spawned = std::thread::Builder::new()
            .name("nfs-rpcbind".into())
            .spawn(move || keep_registered(&stop, &keep));
        r.thread = Some(spawned.map_err(ClientError::Io)?);
        Ok(r)
    }
}

/// Refuses if another server that is alive holds one of these program numbers.
fn refuse_taken(mappings: &[Mapping]) -> Result<(), RegisterError> {
    let present = dump(local())?;
    for m in mappings {
        let other = present.iter().find(|p| {
            (p.program, p.version, p.transport) == (m.program, m.version, m.transport)
                && p.port != m.port
        });
        if let Some(other) = other
            && answers(other)
        {
            return Err(RegisterError::Taken {
                program: other.program,
                version: other.version,
                name: name_of(other.program),
                port: other.port,
            });
        }
    }
    Ok(())
}

fn keep_registered(stop: &(Mutex<bool>, Condvar), mappings: &[Mapping]) {
    let mut lost = false;
    loop {
        let guard = lock(&stop.0);
        let waited = stop.1.wait_timeout_while(guard, EVERY, |stop| !*stop);
        if waited.map_or(true, |(stop, _)| *stop) {
            return;
        }
        let present = dump(local()).unwrap_or_default();
        let missing: Vec<_> = mappings.iter().filter(|m| !present.contains(m)).collect();
        let back = missing.iter().all(|m| change(m, 1).unwrap_or(false));
        match (missing.is_empty(), back) {
            (false, true) => {
                tracing::warn!("rpcbind had forgotten the NFS programs; registered again");
                lost = false;
            }
            (false, false) if !lost => {
                tracing::error!(
                    "rpcbind does not list the NFS programs and refuses them; clients cannot mount"
                );
                lost = true;
            }
            _ => {}
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
        for m in &self.mappings {
            // rpcbind may be gone; then so are the entries.
            let _ = change(m, 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_at_its_own_address() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n   \
             0: 0100004D:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
             1: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
             2: 0200004D:0801 0300004D:03E0 01 00000000:00000000 00:00000000 00000000\n   \
             3: 0400004D:006F 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
             4: 04:0801 00000000:0000 0A\n   5: :0801\n   6:\n";
        let found = listeners(tcp, Transport::Tcp, 2049);
        let first: IpAddr = u32::to_ne_bytes(0x0100_004d).into();
        assert_eq!(found, [first, Ipv4Addr::LOCALHOST.into()]);
        assert!(listeners(tcp, Transport::Udp, 2049).is_empty());
        let udp6 =
            "  7: 00000000000000000000000001000000:0801 00000000000000000000000000000000:0000 07";
        let found = listeners(udp6, Transport::Udp, 2049);
        let words = [0, 0, 0, 0x0100_0000_u32].map(u32::to_ne_bytes).concat();
        let ip: [u8; 16] = words.try_into().unwrap_or_default();
        assert_eq!(found, [IpAddr::from(ip)]);
        #[cfg(target_endian = "little")]
        assert_eq!(found, [IpAddr::from(std::net::Ipv6Addr::LOCALHOST)]);
    }

    #[test]
    fn a_server_that_has_one_address_alone_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.77:0").expect("a socket");
        let port = socket.local_addr().expect("its address").port();
        let m = Mapping {
            program: 100_003,
            version: 3,
            transport: Transport::Tcp,
            port,
        };
        assert!(places(&m).contains(&IpAddr::from([127, 0, 0, 77])));
    }
}
