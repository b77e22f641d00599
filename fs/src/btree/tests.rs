//! The tree beside a map of the standard library, through random changes.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::format::page::CAPACITY;

/// Pages in memory.
struct Mem {
    pages: HashMap<u64, Arc<Page>>,
    root: u64,
    next: u64,
}

impl Mem {
    fn new() -> Mem {
        let root = Arc::new(Page::new(1, 0, PageKind::Leaf, 0));
        Mem {
            pages: HashMap::from([(1, root)]),
            root: 1,
            next: 2,
        }
    }
}

impl PageRead for Mem {
    fn page(&self, block: u64) -> FsResult<Arc<Page>> {
        Ok(self.pages[&block].clone())
    }
    fn root(&self) -> u64 {
        self.root
    }
}

impl PageWrite for Mem {
    fn page_mut(&mut self, block: u64) -> FsResult<&mut Page> {
        Ok(Arc::make_mut(self.pages.get_mut(&block).unwrap()))
    }
    fn new_page(&mut self, _: u64, kind: PageKind, level: u8) -> FsResult<u64> {
        let block = self.next;
        self.next += 1;
        let page = Arc::new(Page::new(block, 0, kind, level));
        self.pages.insert(block, page);
        Ok(block)
    }
    fn free_page(&mut self, block: u64) -> FsResult<()> {
        assert!(self.pages.remove(&block).is_some(), "freed twice: {block}");
        Ok(())
    }
    fn set_root(&mut self, block: u64) {
        self.root = block;
    }
}

fn all(m: &Mem) -> Vec<(Key, Vec<u8>)> {
    let mut out = Vec::new();
    scan(m, &Key::MIN, &Key::MAX, &mut |k, v| {
        out.push((k, v.to_vec()));
        Ok(true)
    })
    .unwrap();
    out
}

fn check_all(m: &Mem) {
    let mut reached = 0;
    fn walk(m: &Mem, block: u64, reached: &mut usize) {
        let mut page = (*m.page(block).unwrap()).clone();
        page.seal();
        page.check(block).unwrap();
        *reached += 1;
        if page.level() > 0 {
            (0..page.count()).for_each(|i| walk(m, page.child(i), reached));
        }
    }
    walk(m, m.root, &mut reached);
    assert_eq!(reached, m.pages.len(), "every page is reached once");
}

/// Given random inserts, replacements and removals, the tree equals a sorted map.
#[test]
fn equals_a_sorted_map() {
    for seed in 1..=crate::testing::seeds(12) {
        let mut rng = crate::testing::Rng::new(seed);
        let (mut tree, mut model) = (Mem::new(), BTreeMap::new());
        let spread = [40, 400, 4000][(seed % 3) as usize];
        for step in 0..6000 {
            let key = Key::raw(rng.below(spread), rng.below(4) as u8, rng.below(4));
            // Phases of growth and of shrinking, so that merges and root collapse happen.
            let grow = (step / 1500) % 2 == 0;
            if rng.below(10) < if grow { 8 } else { 2 } {
                let len = match rng.below(8) {
                    0 => rng.below(1201),
                    _ => rng.below(60),
                };
                let value = vec![rng.below(256) as u8; len as usize];
                insert(&mut tree, &key, &value).unwrap();
                model.insert(key, value);
            } else {
                // Removing at random rarely hits: take the next present key instead.
                let hit = model.range(key..).next().map_or(key, |(k, _)| *k);
                let was = remove(&mut tree, &hit).unwrap();
                assert_eq!(was, model.remove(&hit).is_some(), "seed {seed}");
            }
            let at_or_before = model.range(..=key).next_back();
            let found = last(&tree, &Key::MIN, &key).unwrap();
            assert_eq!(
                found.as_ref().map(|f| (&f.0, &f.1)),
                at_or_before,
                "seed {seed}"
            );
            let got = get(&tree, &key, |v| Ok(v.to_vec())).unwrap();
            assert_eq!(got.as_ref(), model.get(&key), "seed {seed}");
        }
        assert_eq!(
            all(&tree),
            model.clone().into_iter().collect::<Vec<_>>(),
            "seed {seed}"
        );
        check_all(&tree);
        for key in model.keys() {
            assert!(remove(&mut tree, key).unwrap());
        }
        check_all(&tree);
        assert_eq!(tree.pages.len(), 1, "an empty tree is one leaf");
    }
}

/// Given keys in order, pages end up nearly full.
#[test]
fn appending_fills_pages() {
    let mut tree = Mem::new();
    for i in 0..10_000 {
        insert(&mut tree, &Key::raw(1, 5, i), &[7; 24]).unwrap();
    }
    let least = 10_000 * Page::cost(24) / CAPACITY;
    assert!(
        tree.pages.len() < least + least / 20 + 3,
        "{} pages",
        tree.pages.len()
    );
}

/// A page whose bytes were tampered with is refused, never believed.
#[test]
fn damaged_pages_are_refused() {
    let mut page = Page::new(9, 1, PageKind::Leaf, 0);
    for i in 0..20 {
        page.insert(i, &Key::raw(i as u64, 1, 0), &[i as u8; 30]);
    }
    page.seal();
    assert_eq!(page.check(9), Ok(PageKind::Leaf));
    assert!(page.check(8).is_err());
    let mut rng = crate::testing::Rng::new(5);
    for _ in 0..20_000 {
        let mut bad = page.clone();
        for _ in 0..=rng.below(4) {
            bad.0[8 + rng.below(80) as usize] = rng.below(256) as u8;
        }
        assert!(bad.check(9).is_err() || bad.0 == page.0);
        // Even with a right checksum nothing panics.
        bad.seal();
        if bad.check(9) == Ok(PageKind::Leaf) {
            let _ = (bad.cells(), bad.find(&Key::raw(3, 1, 0)));
        }
    }
}
