//! The one ordered map: a B+tree of 4 KiB pages, changed in place within a transaction.
//!
//! Invariants: keys strictly increase through the leaves; every item of a child is at or above
//! the child's key in its parent and below the next one's; a page's level is one less than its
//! parent's; no page but the root is empty. What a crash leaves behind is decided above: pages
//! change only inside an atomic batch. Depth is bounded by [`MAX_LEVEL`], so recursion is.

mod insert;
mod remove;

use std::sync::Arc;

pub use insert::insert;
pub use remove::remove;

use crate::error::{FsError, FsResult};
use crate::format::key::Key;
use crate::format::page::{MAX_LEVEL, Page, PageKind};

/// Where pages come from.
pub trait PageRead {
    /// A tree page, checked.
    fn page(&self, block: u64) -> FsResult<Arc<Page>>;
    /// The tree's root.
    fn root(&self) -> u64;
}

/// Where changed pages go.
pub trait PageWrite: PageRead {
    /// A tree page to be changed in this transaction.
    fn page_mut(&mut self, block: u64) -> FsResult<&mut Page>;
    /// A new page of this kind and level; near `near`.
    fn new_page(&mut self, near: u64, kind: PageKind, level: u8) -> FsResult<u64>;
    /// Gives a page back.
    fn free_page(&mut self, block: u64) -> FsResult<()>;
    /// Changes the root.
    fn set_root(&mut self, block: u64);
}

/// Fails unless a child is where its level says: a damaged pointer must not make a cycle.
fn child_page<R: PageRead + ?Sized>(r: &R, parent: &Page, i: usize) -> FsResult<Arc<Page>> {
    let block = parent.child(i);
    let page = r.page(block)?;
    match page.level() + 1 == parent.level() {
        true => Ok(page),
        false => Err(FsError::Damaged {
            block,
            why: "its level does not fit its parent's",
        }),
    }
}

fn root_page<R: PageRead + ?Sized>(r: &R) -> FsResult<Arc<Page>> {
    let page = r.page(r.root())?;
    match page.level() <= MAX_LEVEL {
        true => Ok(page),
        false => Err(FsError::Damaged {
            block: r.root(),
            why: "impossible level",
        }),
    }
}

/// The item of a key, passed to `f`.
pub fn get<R: PageRead + ?Sized, T>(
    r: &R,
    key: &Key,
    f: impl FnOnce(&[u8]) -> FsResult<T>,
) -> FsResult<Option<T>> {
    let mut page = root_page(r)?;
    while page.level() > 0 {
        page = child_page(r, &page, page.child_for(key))?;
    }
    match page.find(key) {
        Ok(i) => f(page.value(i)).map(Some),
        Err(_) => Ok(None),
    }
}

/// Calls `f` with every item from `from` to `to` (inclusive), in order, until it returns false.
pub fn scan<R: PageRead + ?Sized>(
    r: &R,
    from: &Key,
    to: &Key,
    f: &mut dyn FnMut(Key, &[u8]) -> FsResult<bool>,
) -> FsResult<()> {
    let root = root_page(r)?;
    scan_page(r, &root, from, to, f).map(|_| ())
}

fn scan_page<R: PageRead + ?Sized>(
    r: &R,
    page: &Page,
    from: &Key,
    to: &Key,
    f: &mut dyn FnMut(Key, &[u8]) -> FsResult<bool>,
) -> FsResult<bool> {
    if page.level() == 0 {
        let start = page.find(from).unwrap_or_else(|i| i);
        for i in start..page.count() {
            let key = page.key(i);
            if key > *to || !f(key, page.value(i))? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    for i in page.child_for(from)..page.count() {
        if i > 0 && page.key(i) > *to {
            return Ok(false);
        }
        let child = child_page(r, page, i)?;
        if !scan_page(r, &child, from, to, f)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first item at or after `from`, if it is at or before `to`.
pub fn first<R: PageRead + ?Sized>(
    r: &R,
    from: &Key,
    to: &Key,
) -> FsResult<Option<(Key, Vec<u8>)>> {
    let mut found = None;
    scan(r, from, to, &mut |k, v| {
        found = Some((k, v.to_vec()));
        Ok(false)
    })?;
    Ok(found)
}

/// The last item at or before `to`, if it is at or after `from`.
pub fn last<R: PageRead + ?Sized>(r: &R, from: &Key, to: &Key) -> FsResult<Option<(Key, Vec<u8>)>> {
    let root = root_page(r)?;
    Ok(last_in(r, &root, to)?.filter(|(k, _)| k >= from))
}

fn last_in<R: PageRead + ?Sized>(r: &R, page: &Page, to: &Key) -> FsResult<Option<(Key, Vec<u8>)>> {
    if page.level() == 0 {
        let end = match page.find(to) {
            Ok(i) => i + 1,
            Err(i) => i,
        };
        return Ok((end > 0).then(|| (page.key(end - 1), page.value(end - 1).to_vec())));
    }
    for i in (0..=page.child_for(to)).rev() {
        let child = child_page(r, page, i)?;
        // A child may hold only later keys where its first ones were removed: look left then.
        if let Some(found) = last_in(r, &child, to)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
