//! RPC over UDP, for what clients' tools use it for: portmap, NLM and NSM. NFS itself is not
//! served over UDP.
//!
//! Bounds: one datagram at a time, of at most [`MAX_CALL`] bytes. What a crash leaves: nothing.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::pool::Messages;
use super::{Origin, Replier};

/// Bytes of a call in a datagram, at most; longer ones are cut and so become garbage.
const MAX_CALL: usize = 9 << 10;

/// A thread that serves one socket; dropping it ends the thread.
pub struct UdpServer {
    stop: Arc<AtomicBool>,
    socket: Arc<UdpSocket>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Serves `socket`.
    ///
    /// # Errors
    /// What the system says when a thread or the socket's option cannot be had.
    pub fn start(socket: UdpSocket, messages: Arc<dyn Messages>) -> io::Result<UdpServer> {
        // Should the end not wake the thread, it notices by itself.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let local = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let socket = Arc::new(socket);
        let own = Arc::clone(&socket);
        let thread = std::thread::Builder::new()
            .name("rpc-udp".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut buf = vec![0; MAX_CALL];
                while !stopped.load(Ordering::Acquire) {
                    // Time-outs, and errors of earlier sends that the kernel reports here.
                    let Ok((n, peer)) = socket.recv_from(&mut buf) else {
                        continue;
                    };
                    let message = Bytes::copy_from_slice(&buf[..n]);
                    let origin = Origin::Udp(Arc::clone(&socket), peer, local);
                    messages.message(message, Replier::new(origin, n));
                }
            })?;
        Ok(UdpServer {
            stop,
            socket: own,
            thread: Some(thread),
        })
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes a thread that waits (the kernel says that it is not connected, and does it). A
        // planned move waits for this, and clients for the move.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    struct Nobody;

    impl Messages for Nobody {
        fn message(&self, _: Bytes, _: Replier) {}
        fn expected(&self, _: std::net::SocketAddr) -> bool {
            false
        }
        fn turn_ended(&self) {}
        fn ended(&self, _: &super::super::conn::Conn) {}
    }

    #[test]
    fn a_server_that_waits_ends_at_once() {
        // The best of ten: each would take its time-out, 200 ms, if it were not woken.
        let took = (0..10).map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let server = UdpServer::start(socket, Arc::new(Nobody)).unwrap();
            // Until it waits, most likely; if not, the end is quick in any case.
            std::thread::sleep(Duration::from_millis(20));
            let began = Instant::now();
            drop(server);
            began.elapsed()
        });
        let best = took.min().unwrap();
        assert!(best < Duration::from_millis(150), "{best:?}");
    }
}
