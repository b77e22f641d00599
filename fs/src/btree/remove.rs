//! Taking an item out of the tree, merging pages that have become small.

use super::PageWrite;
use crate::error::{FsError, FsResult};
use crate::format::key::Key;
use crate::format::page::CAPACITY;

/// A page with less in it is merged with a neighbour, if they fit into one with room to spare.
const SMALL: usize = CAPACITY / 3;
const MERGED: usize = CAPACITY * 3 / 4;

/// Takes an item out; false if there was none.
///
/// # Errors
/// An unreadable page; the transaction must then be rolled back.
pub fn remove<W: PageWrite + ?Sized>(w: &mut W, key: &Key) -> FsResult<bool> {
    let root = w.root();
    let level = w.page(root)?.level();
    let removed = remove_at(w, root, level, key)?;
    // A root with one child gives way to it.
    loop {
        let root = w.root();
        let page = w.page(root)?;
        if page.level() == 0 || page.count() != 1 {
            return Ok(removed);
        }
        w.set_root(page.child(0));
        w.free_page(root)?;
    }
}

fn remove_at<W: PageWrite + ?Sized>(w: &mut W, block: u64, level: u8, key: &Key) -> FsResult<bool> {
    let page = w.page(block)?;
    if level == 0 {
        return match page.find(key) {
            Ok(i) => {
                drop(page);
                w.page_mut(block)?.remove(i);
                Ok(true)
            }
            Err(_) => Ok(false),
        };
    }
    let i = page.child_for(key);
    let child = page.child(i);
    drop(page);
    if w.page(child)?.level() + 1 != level {
        return Err(FsError::Damaged {
            block: child,
            why: "its level does not fit its parent's",
        });
    }
    if !remove_at(w, child, level - 1, key)? {
        return Ok(false);
    }
    if w.page(child)?.used() < SMALL {
        merge(w, block, i)?;
    }
    Ok(true)
}

/// Merges child `i` of an inner page with a neighbour, or drops it if it is empty.
fn merge<W: PageWrite + ?Sized>(w: &mut W, parent: u64, i: usize) -> FsResult<()> {
    let page = w.page(parent)?;
    let (count, child) = (page.count(), page.child(i));
    if count == 1 {
        return Ok(());
    }
    let size = w.page(child)?.used();
    if w.page(child)?.count() == 0 {
        drop(page);
        w.free_page(child)?;
        return drop_child(w, parent, i);
    }
    for (left, right) in [(i.wrapping_sub(1), i), (i, i + 1)] {
        if left >= count || right >= count {
            continue;
        }
        let other = if left == i { right } else { left };
        if w.page(page.child(other))?.used() + size > MERGED {
            continue;
        }
        let (l, r) = (page.child(left), page.child(right));
        let separator = page.key(right);
        drop(page);
        let moved = w.page(r)?.cells();
        let to = w.page_mut(l)?;
        for (n, (k, v)) in moved.iter().enumerate() {
            // An inner page's first key counts as the least: its true bound is the separator.
            let k = if n == 0 && to.level() > 0 {
                &separator
            } else {
                k
            };
            to.insert(to.count(), k, v);
        }
        w.free_page(r)?;
        return drop_child(w, parent, right);
    }
    Ok(())
}

fn drop_child<W: PageWrite + ?Sized>(w: &mut W, parent: u64, i: usize) -> FsResult<()> {
    let page = w.page_mut(parent)?;
    page.remove(i);
    if i == 0 && page.count() > 0 {
        // What went to the dropped first child now goes to its right neighbour.
        page.set_key(0, &Key::MIN);
    }
    Ok(())
}
