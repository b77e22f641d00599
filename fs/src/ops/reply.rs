//! Answers kept for retransmissions (invariant 9): stored with the effect they answer for.
//!
//! Item: client u64 | seconds u64 | key length u8 | key | answer. The index in memory is read
//! from the items when mounting. A client keeps at most [`PER_CLIENT`] answers and evicts only
//! its own; at most [`CLIENTS`] clients are kept, the one quiet for longest goes first.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::Fs;
use crate::api::Ino;
use crate::btree;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::key::{Key, Kind};
use crate::format::u64_at;

/// Answers of one client, at most.
pub const PER_CLIENT: usize = 512;
/// Clients with answers, at most.
pub const CLIENTS: usize = 256;
/// Bytes of a key.
const MAX_KEY: usize = 64;
/// Bytes of an answer.
pub(crate) const MAX_ANSWER: usize = 1000;
/// Old answers of one client removed with each new one, so that the items shrink to their limit.
const EVICT: usize = 2;
const HEAD: usize = 17;

#[derive(Default)]
struct Client {
    /// Stored answers, oldest first.
    order: VecDeque<u64>,
    by_key: HashMap<Vec<u8>, u64>,
    keys: HashMap<u64, Vec<u8>>,
    /// When it last stored one, in numbers of answers.
    last: u64,
    /// Answers to calls that changed nothing: memory only.
    failed: VecDeque<(Vec<u8>, Bytes)>,
}

/// The index.
#[derive(Default)]
pub struct Replies(HashMap<u64, Client>);

impl Replies {
    fn note(&mut self, client: u64, key: &[u8], n: u64) {
        let c = self.0.entry(client).or_default();
        c.order.push_back(n);
        c.by_key.insert(key.to_vec(), n);
        c.keys.insert(n, key.to_vec());
        c.last = c.last.max(n);
    }

    fn forget(&mut self, client: u64, n: u64) {
        if let Some(c) = self.0.get_mut(&client) {
            c.order.retain(|x| *x != n);
            if let Some(key) = c.keys.remove(&n)
                && c.by_key.get(&key) == Some(&n)
            {
                c.by_key.remove(&key);
            }
            if c.order.is_empty() && c.failed.is_empty() {
                self.0.remove(&client);
            }
        }
    }

    /// What must go before this client stores one more.
    fn victims(&self, client: u64) -> Vec<(u64, u64)> {
        if let Some(c) = self.0.get(&client) {
            let over = (c.order.len() + 1).saturating_sub(PER_CLIENT).min(EVICT);
            return c.order.iter().take(over).map(|n| (client, *n)).collect();
        }
        if self.0.len() < CLIENTS {
            return Vec::new();
        }
        // A new client takes the place of the one that has been quiet for longest, whose
        // answers go a few at a time.
        let oldest = self.0.iter().min_by_key(|(_, c)| c.last);
        let of = |(id, c): (&u64, &Client)| -> Vec<(u64, u64)> {
            c.order.iter().take(8).map(|n| (*id, *n)).collect()
        };
        oldest.map(of).unwrap_or_default()
    }
}

fn item_key(n: u64) -> Key {
    Key::new(Ino(0), Kind::Reply, n)
}

fn decode(item: &[u8]) -> FsResult<(u64, &[u8], &[u8])> {
    let key_len = item.get(16).map_or(0, |n| usize::from(*n));
    if item.len() < HEAD + key_len {
        return Err(FsError::Damaged {
            block: 0,
            why: "an impossible kept answer",
        });
    }
    let (key, answer) = item[HEAD..].split_at(key_len);
    Ok((u64_at(item, 0), key, answer))
}

impl Core {
    /// Stores an answer in the running operation; to be its last step.
    pub(crate) fn keep_answer(&mut self, client: u64, key: &[u8], answer: &[u8]) -> FsResult<()> {
        if key.is_empty() || key.len() > MAX_KEY || answer.len() > MAX_ANSWER {
            return Err(FsError::Invalid("a kept answer of impossible size"));
        }
        let victims = self.replies.victims(client);
        for (_, n) in &victims {
            btree::remove(self, &item_key(*n))?;
        }
        let n = self.sb.next_reply;
        let mut item = Vec::with_capacity(HEAD + key.len() + answer.len());
        item.extend_from_slice(&client.to_le_bytes());
        item.extend_from_slice(&(self.sb.last_time / 1_000_000_000).to_le_bytes());
        item.push(key.len() as u8);
        item.extend_from_slice(key);
        item.extend_from_slice(answer);
        btree::insert(self, &item_key(n), &item)?;
        self.sb.next_reply += 1;
        // Nothing can fail from here on.
        victims
            .into_iter()
            .for_each(|(client, n)| self.replies.forget(client, n));
        self.replies.note(client, key, n);
        Ok(())
    }

    /// Reads the index when mounting.
    pub(super) fn load_answers(&mut self) -> FsResult<()> {
        let mut replies = Replies::default();
        btree::scan(&*self, &item_key(0), &item_key(u64::MAX), &mut |k, v| {
            let (client, key, _) = decode(v)?;
            replies.note(client, key, k.off());
            Ok(true)
        })?;
        self.replies = replies;
        Ok(())
    }
}

impl Fs {
    pub(crate) fn do_replay(&self, client: u64, key: &[u8]) -> FsResult<Option<Bytes>> {
        let core = self.engine.core()?;
        let Some(c) = core.replies.0.get(&client) else {
            return Ok(None);
        };
        if let Some((_, answer)) = c.failed.iter().find(|f| f.0 == key) {
            return Ok(Some(answer.clone()));
        }
        let Some(&n) = c.by_key.get(key) else {
            return Ok(None);
        };
        btree::get(&*core, &item_key(n), |v| {
            decode(v).map(|(_, _, answer)| Bytes::copy_from_slice(answer))
        })
    }

    pub(crate) fn do_keep_reply(&self, client: u64, key: &[u8], answer: Bytes) {
        if key.is_empty() || key.len() > MAX_KEY || answer.len() > MAX_ANSWER {
            return;
        }
        let Ok(mut core) = self.engine.core_mut() else {
            return;
        };
        let room = core.replies.0.len() < CLIENTS;
        if room || core.replies.0.contains_key(&client) {
            let c = core.replies.0.entry(client).or_default();
            c.failed.push_back((key.to_vec(), answer));
            if c.failed.len() > PER_CLIENT / 8 {
                c.failed.pop_front();
            }
        }
    }
}
