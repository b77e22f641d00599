//! What a power cut may take from one file: for each 512-byte sector that was changed since the
//! last sync, what it held then; and the length that it had then.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::rng::Rng;

/// The unit that a disk writes whole or not at all.
pub const SECTOR: u64 = 512;
/// Content remembered over all files, at most; beyond it a file's changes become durable early,
/// as write-back makes them.
pub const MOST_BYTES: u64 = 512 << 20;

/// What a sector held when it was last durable.
#[derive(Debug)]
struct Before {
    /// `None`: zeros, or beyond the end.
    content: Option<Box<[u8]>>,
    /// A sync that should have covered the change failed: only writing it again helps.
    doomed: bool,
}

/// What is unsynced of one file.
#[derive(Debug)]
pub struct Unsynced {
    file: Arc<File>,
    length: u64,
    sectors: BTreeMap<u64, Before>,
}

impl Unsynced {
    /// Of a file that is durable as it is now.
    ///
    /// # Errors
    /// Its length cannot be had.
    pub fn of(file: Arc<File>) -> std::io::Result<Unsynced> {
        Ok(Unsynced {
            length: file.metadata()?.len(),
            file,
            sectors: BTreeMap::new(),
        })
    }

    /// Bytes remembered.
    pub fn bytes(&self) -> u64 {
        self.sectors.len() as u64 * SECTOR
    }

    /// Whether no name leads to the file any more.
    pub fn is_removed(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().is_ok_and(|m| m.nlink() == 0)
    }

    /// Notes that `from..to` is about to change; call before changing it.
    ///
    /// # Errors
    /// The old content cannot be read.
    pub fn before_change(&mut self, from: u64, to: u64) -> std::io::Result<()> {
        // Beyond the durable length a cut restores nothing but the length.
        let to = to.min(self.length);
        let mut at = from - from % SECTOR;
        while at < to {
            match self.sectors.get_mut(&at) {
                // Written again: the next sync may save it.
                Some(before) => before.doomed = false,
                None => {
                    let content = read_sector(&self.file, at)?;
                    let doomed = false;
                    self.sectors.insert(at, Before { content, doomed });
                }
            }
            at += SECTOR;
        }
        Ok(())
    }

    /// A sync succeeded. Returns whether nothing is left to lose.
    ///
    /// # Errors
    /// The length cannot be had.
    pub fn synced(&mut self) -> std::io::Result<bool> {
        self.sectors.retain(|_, before| before.doomed);
        self.length = self.file.metadata()?.len();
        Ok(self.sectors.is_empty())
    }

    /// A sync failed: what it should have made durable never will be, unless written again.
    pub fn sync_failed(&mut self) {
        self.sectors.values_mut().for_each(|b| b.doomed = true);
    }

    /// Takes back each unsynced sector but for `keep` percent of them. Returns how many of how
    /// many were taken back.
    ///
    /// # Errors
    /// The backing file cannot be written.
    pub fn cut(self, keep: u8, rng: &mut Rng) -> std::io::Result<(u64, u64)> {
        let now = self.file.metadata()?.len();
        let length = match now == self.length || rng.percent(keep) {
            true => now,
            false => self.length,
        };
        let (mut lost, mut all) = (0, 0);
        // What was appended may have arrived in part, with zeros where it did not.
        let appended = (self.length.next_multiple_of(SECTOR)..length).step_by(SECTOR as usize);
        for at in appended {
            all += 1;
            if !rng.percent(keep) {
                self.restore(at, None, length)?;
                lost += 1;
            }
        }
        for (at, before) in &self.sectors {
            all += 1;
            if before.doomed || !rng.percent(keep) {
                self.restore(*at, before.content.as_deref(), u64::MAX)?;
                lost += 1;
            }
        }
        self.file.set_len(length)?;
        Ok((lost, all))
    }

    fn restore(&self, at: u64, content: Option<&[u8]>, end: u64) -> std::io::Result<()> {
        let zeros = [0; SECTOR as usize];
        let content = content.unwrap_or(&zeros);
        let len = (content.len() as u64).min(end.saturating_sub(at)) as usize;
        self.file.write_all_at(&content[..len], at)
    }
}

fn read_sector(file: &File, at: u64) -> std::io::Result<Option<Box<[u8]>>> {
    let mut content = [0; SECTOR as usize];
    let mut have = 0;
    while have < content.len() {
        match file.read_at(&mut content[have..], at + have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    let zeros = content.iter().all(|b| *b == 0);
    Ok((!zeros).then(|| Box::from(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize) -> Arc<File> {
        let f = tempfile::tempfile().unwrap();
        f.write_all_at(&vec![1; len], 0).unwrap();
        Arc::new(f)
    }

    fn change(u: &mut Unsynced, at: u64, len: usize, with: u8) {
        u.before_change(at, at + len as u64).unwrap();
        u.file.write_all_at(&vec![with; len], at).unwrap();
    }

    fn content(f: &File) -> Vec<u8> {
        let mut out = vec![0; f.metadata().unwrap().len() as usize];
        f.read_exact_at(&mut out, 0).unwrap();
        out
    }

    #[test]
    fn nothing_kept_gives_back_the_synced_file_to_the_byte() {
        let f = file(3000);
        let mut u = Unsynced::of(Arc::clone(&f)).unwrap();
        change(&mut u, 100, 700, 2);
        change(&mut u, 2900, 1000, 3);
        // A truncation changes what it cuts off.
        u.before_change(200, 3900).unwrap();
        f.set_len(200).unwrap();
        f.set_len(5000).unwrap();
        change(&mut u, 1000, 100, 4);
        let lost = u.cut(0, &mut Rng::new(1)).unwrap();
        assert!(lost.0 == lost.1 && lost.0 > 0);
        assert_eq!(content(&f), vec![1; 3000]);
    }

    #[test]
    fn half_kept_tears_at_sectors_and_replays_from_its_seed() {
        let run = |seed| {
            let f = file(64 * 512);
            let mut u = Unsynced::of(Arc::clone(&f)).unwrap();
            change(&mut u, 0, 64 * 512, 9);
            u.cut(50, &mut Rng::new(seed)).unwrap();
            content(&f)
        };
        let torn = run(3);
        assert_eq!(torn, run(3));
        let whole = |s: &[u8]| s.iter().all(|b| *b == s[0]);
        assert!(torn.chunks(512).all(whole), "sectors are whole");
        assert!(
            torn.contains(&1) && torn.contains(&9),
            "some arrived, some did not"
        );
    }

    #[test]
    fn what_is_synced_stays_and_what_a_failed_sync_covered_is_lost_later() {
        let f = file(1024);
        let mut u = Unsynced::of(Arc::clone(&f)).unwrap();
        change(&mut u, 0, 512, 2);
        assert!(u.synced().unwrap());
        change(&mut u, 0, 1024, 3);
        u.sync_failed();
        change(&mut u, 512, 512, 4);
        assert!(
            !u.synced().unwrap(),
            "a later success does not save the first sector"
        );
        u.cut(100, &mut Rng::new(1)).unwrap();
        let got = content(&f);
        assert!(
            got[..512].iter().all(|b| *b == 2),
            "back to the last good sync"
        );
        assert!(
            got[512..].iter().all(|b| *b == 4),
            "written again, then synced"
        );
    }

    #[test]
    fn an_append_that_is_kept_may_have_holes_of_zeros() {
        let f = file(512);
        let mut u = Unsynced::of(Arc::clone(&f)).unwrap();
        change(&mut u, 512, 512 * 40, 5);
        let seed = (0..100).find(|s| Rng::new(*s).percent(50)).unwrap();
        u.cut(50, &mut Rng::new(seed)).unwrap();
        let got = content(&f);
        assert_eq!(got.len(), 512 * 41);
        assert!(got[512..].contains(&0) && got[512..].contains(&5));
        assert!(got[..512].iter().all(|b| *b == 1));
    }
}
