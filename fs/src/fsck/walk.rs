//! Walking the tree: every page once, every item in order.

use super::{Check, Finding};
use crate::api::Ino;
use crate::format::key::Key;
use crate::format::page::{MAX_LEVEL, Page, PageKind};

impl Check<'_> {
    pub(super) fn walk_tree(&mut self) {
        let root = self.sb.root;
        self.walk(root, None, (Key::MIN, Key::MAX));
    }

    /// Walks a page whose keys must lie in `from..=to`; `level` is what its parent expects.
    fn walk(&mut self, block: u64, level: Option<u8>, (from, to): (Key, Key)) {
        let problems = self.report.problems;
        self.own(block, 1, Ino(0));
        if self.report.problems > problems {
            // Owned twice, or out of range: going on could go round in circles.
            return;
        }
        let page = match self.tree_page(block) {
            Ok(page) => page,
            Err(why) => return self.problem(Finding::Page { block, why }),
        };
        if level.is_some_and(|l| l != page.level()) || page.level() > MAX_LEVEL {
            let why = "its level does not fit its parent's".into();
            return self.problem(Finding::Page { block, why });
        }
        self.report.pages += 1;
        let n = page.count();
        let first = if page.level() > 0 { 1 } else { 0 };
        if (first..n).any(|i| page.key(i) < from || page.key(i) > to) {
            self.problem(Finding::Order { block });
        }
        if n == 0 && level.is_some() {
            let why = "an empty page that is not the root".into();
            self.problem(Finding::Page { block, why });
        }
        for i in 0..n {
            if page.level() == 0 {
                self.report.items += 1;
                self.item(&page.key(i), page.value(i));
                continue;
            }
            let low = if i == 0 { from } else { page.key(i) };
            let high = match i + 1 < n {
                true => before(&page.key(i + 1)),
                false => to,
            };
            self.walk(page.child(i), Some(page.level() - 1), (low, high));
        }
    }

    fn tree_page(&self, block: u64) -> Result<Page, String> {
        let page = self.read_raw(block)?;
        match page.check(block) {
            Ok(PageKind::Leaf | PageKind::Inner) => Ok(page),
            Ok(PageKind::Bitmap) => Err("a bitmap where a tree page belongs".into()),
            Err(why) => Err(why.into()),
        }
    }
}

/// The greatest key below this one.
fn before(key: &Key) -> Key {
    let mut k = *key;
    for b in k.0.iter_mut().rev() {
        let (v, borrow) = b.overflowing_sub(1);
        *b = v;
        if !borrow {
            break;
        }
    }
    k
}
