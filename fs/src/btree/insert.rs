//! Putting an item into the tree, splitting pages on the way back up.

use super::PageWrite;
use crate::error::{FsError, FsResult};
use crate::format::key::Key;
use crate::format::page::{CAPACITY, MAX_LEVEL, MAX_VALUE, Page, PageKind};

/// A page that was split off to the right.
struct Split {
    key: Key,
    block: u64,
}

/// Puts an item in, replacing the one of the same key.
///
/// # Errors
/// No space for a page, or an unreadable one; the transaction must then be rolled back.
pub fn insert<W: PageWrite + ?Sized>(w: &mut W, key: &Key, value: &[u8]) -> FsResult<()> {
    if value.len() > MAX_VALUE {
        return Err(FsError::Invalid("an item larger than a page takes"));
    }
    let root = w.root();
    let level = w.page(root)?.level();
    if let Some(split) = insert_at(w, root, level, key, value)? {
        if level == MAX_LEVEL {
            return Err(FsError::NoSpace("the tree has its greatest depth"));
        }
        let top = w.new_page(root, PageKind::Inner, level + 1)?;
        let page = w.page_mut(top)?;
        page.insert(0, &Key::MIN, &root.to_le_bytes());
        page.insert(1, &split.key, &split.block.to_le_bytes());
        w.set_root(top);
    }
    Ok(())
}

fn insert_at<W: PageWrite + ?Sized>(
    w: &mut W,
    block: u64,
    level: u8,
    key: &Key,
    value: &[u8],
) -> FsResult<Option<Split>> {
    if level == 0 {
        let page = w.page_mut(block)?;
        let at = match page.find(key) {
            Ok(i) if page.overwrite(i, value) => return Ok(None),
            Ok(i) => {
                page.remove(i);
                i
            }
            Err(i) => i,
        };
        return match page.insert(at, key, value) {
            true => Ok(None),
            false => split(w, block, at, key, value).map(Some),
        };
    }
    let page = w.page(block)?;
    let i = page.child_for(key);
    let child = page.child(i);
    if w.page(child)?.level() + 1 != level {
        return Err(FsError::Damaged {
            block: child,
            why: "its level does not fit its parent's",
        });
    }
    let Some(split_off) = insert_at(w, child, level - 1, key, value)? else {
        return Ok(None);
    };
    let pointer = split_off.block.to_le_bytes();
    match w.page_mut(block)?.insert(i + 1, &split_off.key, &pointer) {
        true => Ok(None),
        false => split(w, block, i + 1, &split_off.key, &pointer).map(Some),
    }
}

/// Splits a full page in two with one more cell at `at`.
fn split<W: PageWrite + ?Sized>(
    w: &mut W,
    block: u64,
    at: usize,
    key: &Key,
    value: &[u8],
) -> FsResult<Split> {
    let page = w.page_mut(block)?;
    let level = page.level();
    let kind = match level {
        0 => PageKind::Leaf,
        _ => PageKind::Inner,
    };
    let appending = at == page.count();
    let mut cells = page.cells();
    cells.insert(at, (*key, value.to_vec()));
    let middle = split_point(&cells, appending);
    let right = w.new_page(block, kind, level)?;
    w.page_mut(block)?
        .set_cells(cells[..middle].iter().map(|(k, v)| (k, v.as_slice())));
    w.page_mut(right)?
        .set_cells(cells[middle..].iter().map(|(k, v)| (k, v.as_slice())));
    Ok(Split {
        key: cells[middle].0,
        block: right,
    })
}

/// Index of the first cell that goes right: halves by bytes, or, where keys are being appended,
/// nearly everything stays left, so that pages filled in order end up full.
fn split_point(cells: &[(Key, Vec<u8>)], appending: bool) -> usize {
    let cost = |c: &(Key, Vec<u8>)| Page::cost(c.1.len());
    let total: usize = cells.iter().map(cost).sum();
    if appending && total - cost(&cells[cells.len() - 1]) <= CAPACITY {
        return cells.len() - 1;
    }
    let (mut left, mut best, mut best_max) = (0, 1, usize::MAX);
    for (i, c) in cells.iter().enumerate().take(cells.len() - 1) {
        left += cost(c);
        let larger = left.max(total - left);
        if larger < best_max {
            (best, best_max) = (i + 1, larger);
        }
    }
    best
}
