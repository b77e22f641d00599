//! The cache of checked metadata pages, bounded in bytes.
//!
//! Holds only pages as they are on the volume, or will be once the sealed transaction is
//! submitted; the open transaction's pages are kept by it. An entry is removed when its block is
//! freed. Sixteen shards, so that readers on several threads seldom meet.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::format::page::{PAGE_BYTES, Page};

const SHARDS: usize = 16;

/// See the module's head.
pub struct PageCache {
    shards: Vec<Mutex<LruCache<u64, Arc<Page>>>>,
}

impl PageCache {
    /// With room for this many bytes of pages (at least one page a shard).
    pub fn new(bytes: usize) -> PageCache {
        let each = NonZeroUsize::new(bytes / PAGE_BYTES / SHARDS).unwrap_or(NonZeroUsize::MIN);
        PageCache {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(LruCache::new(each)))
                .collect(),
        }
    }

    fn shard(&self, block: u64) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<Page>>> {
        // Neighbouring blocks fall into different shards. A panic cannot leave the map broken.
        self.shards[(block % SHARDS as u64) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A page, if it is here.
    pub fn get(&self, block: u64) -> Option<Arc<Page>> {
        self.shard(block).get(&block).cloned()
    }

    /// Keeps a page.
    pub fn put(&self, block: u64, page: Arc<Page>) {
        self.shard(block).put(block, page);
    }

    /// Forgets a page.
    pub fn remove(&self, block: u64) {
        self.shard(block).pop(&block);
    }
}
