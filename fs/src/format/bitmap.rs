//! Free space: the volume is divided into groups, each starts with a bitmap of its blocks.
//!
//! A bitmap page has the common head, then from byte 64 one bit per block of the group, 1 = in
//! use. A group never touched has no page yet (the block reads as zeros): everything in it is
//! free but the bitmap's own block. Group 0's first block is the superblock; its bitmap is
//! block 1.

use super::page::{PAGE_BYTES, Page, PageKind};

const BITS_AT: usize = 64;
/// Blocks in a group (126 MiB).
pub const GROUP_BLOCKS: u64 = ((PAGE_BYTES - BITS_AT) * 8) as u64;

/// Number of groups of a file system of this size; a last group of a single block is not used.
pub fn groups(blocks: u64) -> u64 {
    let whole = blocks / GROUP_BLOCKS;
    whole + u64::from(blocks % GROUP_BLOCKS >= 2)
}

/// Blocks in a group.
pub fn group_len(group: u64, blocks: u64) -> u32 {
    (blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS) as u32
}

/// Block of a group's bitmap.
pub fn bitmap_block(group: u64) -> u64 {
    match group {
        0 => 1,
        g => g * GROUP_BLOCKS,
    }
}

/// Blocks of a group that are in use from the start: its bitmap; in group 0 also the superblock.
pub fn group_reserved(group: u64) -> u32 {
    if group == 0 { 2 } else { 1 }
}

/// A group's page where none was written yet.
pub fn fresh(group: u64, birth: u64) -> Page {
    let mut page = Page::new(bitmap_block(group), birth, PageKind::Bitmap, 0);
    set(&mut page, 0, group_reserved(group), true);
    page
}

/// Whether block `bit` of the group is in use.
pub fn is_set(page: &Page, bit: u32) -> bool {
    let bit = bit as usize;
    page.0[BITS_AT + bit / 8] >> (bit % 8) & 1 == 1
}

/// Marks `count` blocks from `bit` on as in use or free. Returns false (having changed some) if
/// one of them was so already: a block owned twice, or freed twice.
pub fn set(page: &mut Page, bit: u32, count: u32, used: bool) -> bool {
    let mut sane = true;
    for i in bit..bit + count {
        let (byte, mask) = (BITS_AT + i as usize / 8, 1u8 << (i % 8));
        sane &= (page.0[byte] & mask != 0) != used;
        match used {
            true => page.0[byte] |= mask,
            false => page.0[byte] &= !mask,
        }
    }
    sane
}

/// Blocks in use among the first `len`.
pub fn count_used(page: &Page, len: u32) -> u32 {
    let whole = len as usize / 8;
    let mut n: u32 = page.0[BITS_AT..BITS_AT + whole]
        .iter()
        .map(|b| b.count_ones())
        .sum();
    for bit in whole as u32 * 8..len {
        n += u32::from(is_set(page, bit));
    }
    n
}

/// The first free block in `from..to`, skipping whole bytes that are full.
pub fn first_free(page: &Page, from: u32, to: u32) -> Option<u32> {
    let mut i = from;
    while i < to {
        if i.is_multiple_of(8) && page.0[BITS_AT + i as usize / 8] == 255 {
            i += 8;
            continue;
        }
        if !is_set(page, i) {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// Where the free run that starts at `from` ends, at most `to`.
pub fn run_end(page: &Page, from: u32, to: u32) -> u32 {
    let mut i = from;
    while i < to {
        if i.is_multiple_of(8) && i + 8 <= to && page.0[BITS_AT + i as usize / 8] == 0 {
            i += 8;
            continue;
        }
        if is_set(page, i) {
            return i;
        }
        i += 1;
    }
    i
}

/// Free blocks of an empty file system of this size, all groups untouched.
pub fn total_free(blocks: u64) -> u64 {
    let n = groups(blocks);
    match n {
        0 => 0,
        n => {
            (n - 1) * GROUP_BLOCKS + u64::from(group_len(n - 1, blocks))
                - (n - 1) * u64::from(group_reserved(1))
                - u64::from(group_reserved(0))
        }
    }
}
