//! Tells the service manager (systemd) that the daemon is ready, that it stops, and that it runs.
//!
//! The protocol is a line in a datagram to the socket that `NOTIFY_SOCKET` names; without that
//! variable nothing is sent. It is the daemon that tells, not its supervisor: units have
//! `NotifyAccess=all`. A manager that does not listen holds nobody up.
//!
//! The watchdog's thread does nothing but tell: it notices a daemon that stands still as a whole
//! (stopped, starved of time), not one thread that hangs. A check that waited for a disk or for
//! `/etc/pve` would end a daemon that only has to be waited for.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::stop::Stop;

/// Tells it this often within the time after which the manager acts.
const PER_WATCHDOG: u32 = 3;

/// The manager's socket.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The one that started this process; none if there is none, or it cannot be reached.
    pub fn of_this_process() -> Option<Manager> {
        let named = std::env::var_os("NOTIFY_SOCKET")?;
        match Manager::at(&named) {
            Ok(manager) => Some(manager),
            Err(error) => {
                tracing::warn!(%error, ?named, "the service manager cannot be told anything");
                None
            }
        }
    }

    /// The one at a path, or, with `@` before it, at an abstract name.
    fn at(named: &OsString) -> std::io::Result<Manager> {
        let address = match named.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(named)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager whose queue is full is told next time.
        socket.set_nonblocking(true)?;
        Ok(Manager { socket })
    }

    /// It serves; `what` is what `systemctl status` shows.
    pub fn ready(&self, what: &str) {
        let what = what.replace('\n', " ");
        self.tell(&format!("READY=1\nSTATUS={what}"));
    }

    /// It was asked to end.
    fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Tells until the daemon is asked to stop that it runs, where the manager wants that. To be
    /// begun before anything that takes long: a daemon that starts again after its death is
    /// within the time of the one that died.
    ///
    /// # Errors
    /// There is no thread or no descriptor to be had.
    pub fn keep_telling(&self, stop: &Stop) -> std::io::Result<()> {
        let Some(every) = interval(std::env::var_os("WATCHDOG_USEC")) else {
            return Ok(());
        };
        let (stop, manager) = (stop.clone(), self.again()?);
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                loop {
                    manager.tell("WATCHDOG=1");
                    if stop.wait_for(every) {
                        // From now on the manager's time to stop counts.
                        return manager.stopping();
                    }
                }
            })
            .map(drop)
    }

    fn again(&self) -> std::io::Result<Manager> {
        let socket = self.socket.try_clone()?;
        Ok(Manager { socket })
    }

    fn tell(&self, what: &str) {
        if let Err(error) = self.socket.send(what.as_bytes()) {
            tracing::debug!(%error, what, "the service manager was not told");
        }
    }
}

/// How often a manager wants to hear, from its `WATCHDOG_USEC`.
fn interval(usec: Option<OsString>) -> Option<Duration> {
    let usec: u64 = usec?.to_str()?.parse().ok()?;
    let every = Duration::from_micros(usec) / PER_WATCHDOG;
    (!every.is_zero()).then_some(every)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut line = [0; 128];
        let n = socket.recv(&mut line).unwrap();
        String::from_utf8(line[..n].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_at_a_path_hears_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(&path.into_os_string()).unwrap();
        manager.ready("node a\nand more");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=node a and more");
        manager.stopping();
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn a_manager_at_an_abstract_name_hears_it() {
        let name = format!("trivet-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::at(&format!("@{name}").into()).unwrap();
        manager.stopping();
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn nobody_there_is_an_error_and_a_full_queue_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        assert!(Manager::at(&path.clone().into_os_string()).is_err());
        let _socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(&path.into_os_string()).unwrap();
        (0..10_000).for_each(|_| manager.stopping());
    }

    #[test]
    fn the_watchdog_is_told_three_times_within_its_time() {
        assert_eq!(interval(None), None);
        assert_eq!(interval(Some("0".into())), None);
        assert_eq!(interval(Some("soon".into())), None);
        assert_eq!(
            interval(Some("30000000".into())),
            Some(Duration::from_secs(10))
        );
    }
}
