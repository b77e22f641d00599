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
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Serves `socket`.
    ///
    /// # Errors
    /// What the system says when a thread or the socket's option cannot be had.
    pub fn start(socket: UdpSocket, messages: Arc<dyn Messages>) -> io::Result<UdpServer> {
        // So that the thread notices the end.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let local = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let socket = Arc::new(socket);
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
            thread: Some(thread),
        })
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}
