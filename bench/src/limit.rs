//! What a volume's figures are compared with: plain files on the same disk, and a bare ping-pong.
//!
//! The files live in a directory made for the purpose and removed at the end; a crash leaves
//! `trivet-bench-limit.PID` behind, which may be deleted.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trivet_replica::volume::BLOCK_BYTES;

use crate::BenchError;
use crate::rng::Rng;

/// Files written side by side, as three replicas on one disk are.
pub const FILES: usize = 3;
const MIB: usize = 1 << 20;
/// Bytes of a read request and of the head of its answer in the ping-pong.
const REQUEST: usize = 64;

/// When a writer of small blocks syncs.
#[derive(Clone, Copy, Debug)]
pub enum SyncEvery {
    /// After so many writes.
    Writes(u32),
    /// When so much time has passed since the last sync.
    Time(Duration),
}

/// The plain files.
#[derive(Debug)]
pub struct Limit {
    dir: PathBuf,
    files: Vec<File>,
    blocks: u64,
    pool: Vec<u8>,
}

impl Limit {
    /// Makes the files in `dir`, each with `blocks` written and synced blocks.
    ///
    /// # Errors
    /// The directory cannot be written, or is full.
    pub fn new(dir: &Path, blocks: u64, seed: u64) -> Result<Limit, BenchError> {
        let dir = dir.join(format!("trivet-bench-limit.{}", std::process::id()));
        std::fs::create_dir(&dir)
            .map_err(BenchError::io(format_args!("create {}", dir.display())))?;
        let mut limit = Limit {
            dir,
            files: Vec::new(),
            blocks,
            pool: Rng::new(seed).bytes(MIB + BLOCK_BYTES),
        };
        for i in 0..FILES {
            let path = limit.dir.join(i.to_string());
            let file = limit.filled(&path);
            let file = file.map_err(BenchError::io(format_args!("fill {}", path.display())))?;
            limit.files.push(file);
        }
        Ok(limit)
    }

    fn filled(&self, path: &Path) -> std::io::Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let whole = self.blocks * BLOCK_BYTES as u64;
        let mut at = 0;
        while at < whole {
            let len = (whole - at).min(MIB as u64) as usize;
            file.write_all_at(&self.pool[..len], at)?;
            at += len as u64;
        }
        file.sync_all()?;
        Ok(file)
    }

    /// The first of the files; a plain volume may be laid over it.
    pub fn path(&self) -> PathBuf {
        self.dir.join("0")
    }

    /// 4 KiB writes per second and file, at random places of all files at once, for `time` and
    /// until a last sync.
    ///
    /// # Errors
    /// A write or a sync failed, or `stop` was set.
    pub fn small_writes(
        &self,
        sync: SyncEvery,
        time: Duration,
        seed: u64,
        stop: &AtomicBool,
    ) -> Result<f64, BenchError> {
        let rates = std::thread::scope(|scope| {
            let writers: Vec<_> = self
                .files
                .iter()
                .zip(seed..)
                .map(|(file, seed)| {
                    scope.spawn(move || self.write_one(file, sync, time, Rng::new(seed), stop))
                })
                .collect();
            writers
                .into_iter()
                .map(|w| match w.join() {
                    Ok(rate) => rate.map_err(BenchError::io("write the limit's files")),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect::<Result<Vec<f64>, _>>()
        })?;
        match stop.load(Ordering::Relaxed) {
            true => Err(BenchError::Interrupted),
            false => Ok(rates.iter().sum::<f64>() / FILES as f64),
        }
    }

    fn write_one(
        &self,
        file: &File,
        sync: SyncEvery,
        time: Duration,
        mut rng: Rng,
        stop: &AtomicBool,
    ) -> std::io::Result<f64> {
        let start = Instant::now();
        let (mut writes, mut since, mut synced) = (0u64, 0u32, start);
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            let content = rng.below(MIB as u64) as usize;
            let at = rng.below(self.blocks) * BLOCK_BYTES as u64;
            file.write_all_at(&self.pool[content..content + BLOCK_BYTES], at)?;
            writes += 1;
            since += 1;
            let due = match sync {
                SyncEvery::Writes(n) => since >= n,
                SyncEvery::Time(t) => synced.elapsed() >= t,
            };
            if due {
                file.sync_data()?;
                (since, synced) = (0, Instant::now());
            }
        }
        file.sync_data()?;
        Ok(writes as f64 / start.elapsed().as_secs_f64())
    }

    /// Writes of 1 MiB per second to one new file of `bytes`, divided by the number of replicas
    /// that share the disk.
    ///
    /// # Errors
    /// The disk is full or failed, or `stop` was set.
    pub fn stream_write(&self, bytes: u64, stop: &AtomicBool) -> Result<f64, BenchError> {
        let path = self.dir.join("stream");
        let run = || -> std::io::Result<f64> {
            // Giving back the last run's space is no part of the time.
            let file = File::create(&path)?;
            file.sync_all()?;
            let start = Instant::now();
            let writes = bytes / MIB as u64;
            for i in 0..writes {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let from = (i as usize * 61) % BLOCK_BYTES;
                file.write_all_at(&self.pool[from..from + MIB], i * MIB as u64)?;
            }
            file.sync_data()?;
            Ok(writes as f64 / start.elapsed().as_secs_f64() / FILES as f64)
        };
        let rate = run().map_err(BenchError::io(format_args!("write {}", path.display())));
        match stop.load(Ordering::Relaxed) {
            true => Err(BenchError::Interrupted),
            false => rate,
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("warning: cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// Requests per second over one loopback TCP connection, one at a time: 64 bytes there, one block
/// and a head of 64 bytes back; two threads, unpinned.
///
/// # Errors
/// Loopback sockets cannot be had.
pub fn ping_pong(time: Duration) -> Result<f64, BenchError> {
    let run = || -> std::io::Result<f64> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        std::thread::scope(|scope| {
            // Ends when the client closes.
            scope.spawn(move || {
                let (mut request, answer) = ([0; REQUEST], [7; REQUEST + BLOCK_BYTES]);
                while server.read_exact(&mut request).is_ok() && server.write_all(&answer).is_ok() {
                }
            });
            let (request, mut answer) = ([1; REQUEST], [0; REQUEST + BLOCK_BYTES]);
            let (start, mut count) = (Instant::now(), 0u64);
            while start.elapsed() < time {
                client.write_all(&request)?;
                client.read_exact(&mut answer)?;
                count += 1;
            }
            let rate = count as f64 / start.elapsed().as_secs_f64();
            client.shutdown(std::net::Shutdown::Both)?;
            Ok(rate)
        })
    };
    run().map_err(BenchError::io("play ping-pong over loopback TCP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_measured_and_the_files_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let time = Duration::from_millis(30);
        let limit = Limit::new(dir.path(), 64, 1).unwrap();
        assert_eq!(
            limit.path().metadata().unwrap().len(),
            64 * BLOCK_BYTES as u64
        );
        for sync in [SyncEvery::Writes(1), SyncEvery::Time(time / 3)] {
            assert!(limit.small_writes(sync, time, 1, &stop).unwrap() > 0.0);
        }
        assert!(limit.stream_write(4 * MIB as u64, &stop).unwrap() > 0.0);
        assert!(ping_pong(time).unwrap() > 0.0);
        stop.store(true, Ordering::Relaxed);
        let stopped = limit.stream_write(4 * MIB as u64, &stop);
        assert!(matches!(stopped, Err(BenchError::Interrupted)));
        drop(limit);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
