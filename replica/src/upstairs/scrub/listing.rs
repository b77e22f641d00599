//! What is to be looked at: what any replica in sync has.

use trivet_protocol::message::Request;
use trivet_protocol::{Now, Seq};

use super::super::{Ask, LinkId, Upstairs};
use super::{PAGE, Range, TRIES};

/// Blocks looked at where no listing can be had, before the next one is tried: 64 MiB.
const UNLISTED: u64 = 16_384;

/// A page of what is written, as all replicas know it.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) asked: Now,
    pub(super) waits: Vec<LinkId>,
    /// Everybody told of everything below.
    pub(super) upto: u64,
    /// First block and end.
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) heard: bool,
}

impl Upstairs {
    pub(super) fn list_for_scrub(&mut self, now: Now, blocks: u64) -> bool {
        let Some(links) = self.to_be_scrubbed() else {
            return false;
        };
        let Some(s) = self.running_scrub() else {
            return false;
        };
        let cursor = s.listed;
        s.listing = Some(Listing {
            asked: now,
            waits: links.clone(),
            upto: blocks,
            ranges: Vec::new(),
            heard: false,
        });
        let request = Request::Changed {
            since: Seq::ZERO,
            cursor,
            max: PAGE,
        };
        for link in links {
            self.ask(now, link, Ask::ScrubList, &request);
        }
        true
    }

    pub(in super::super) fn on_scrub_list(
        &mut self,
        now: Now,
        link: LinkId,
        ranges: &[(u64, u32)],
        next: Option<u64>,
    ) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        let cursor = s.listed;
        let Some(listing) = s.listing.as_mut().filter(|l| l.waits.contains(&link)) else {
            return;
        };
        let end = |(b, n): &(u64, u32)| b.saturating_add(u64::from(*n));
        // One that does not go forward would never end. (What lies beyond the volume is left out:
        // a replica may have grown a moment before.)
        if next.is_some_and(|n| n <= cursor) {
            return self.refuse_link(link, "a listing of what is written makes no sense".into());
        }
        listing.heard = true;
        listing.upto = listing.upto.min(next.unwrap_or(u64::MAX));
        listing.ranges.extend(ranges.iter().map(|r| (r.0, end(r))));
        self.list_waits_for(now, |l| l != link);
    }

    /// The listing waits for those only; it is complete if that is nobody.
    pub(super) fn list_waits_for(&mut self, now: Now, who: impl Fn(LinkId) -> bool) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        let Some(listing) = &mut s.listing else {
            return;
        };
        listing.waits.retain(|l| who(*l));
        if !listing.waits.is_empty() {
            return;
        }
        let Some(mut listing) = s.listing.take() else {
            return;
        };
        if !listing.heard {
            s.list_tries += 1;
            if s.list_tries < TRIES {
                return;
            }
            // Nobody can tell what is there: it is looked at, written or not.
            listing.upto = listing.upto.min(s.listed + UNLISTED);
            listing.ranges = vec![(s.listed, listing.upto)];
        }
        s.list_tries = 0;
        let from = s.listed;
        s.listed = listing.upto;
        for (block, end) in united(listing.ranges, from, listing.upto) {
            let mut at = block;
            while at < end {
                let count = u32::try_from(end - at).unwrap_or(u32::MAX);
                s.ranges.push_back(Range {
                    block: at,
                    count,
                    held: false,
                    tries: 0,
                    mended: Vec::new(),
                });
                at += u64::from(count);
            }
        }
        self.drive_scrub(now);
    }
}

/// The ranges (first block, end) as few as can be, ascending, as far as they lie in `from..upto`.
fn united(mut ranges: Vec<(u64, u64)>, from: u64, upto: u64) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (block, end) in ranges {
        let (block, end) = (block.max(from), end.min(upto));
        match out.last_mut() {
            Some((_, last)) if block <= *last => *last = end.max(*last),
            _ if block < end => out.push((block, end)),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_several_replicas_become_one_list() {
        let ranges = vec![(50, 60), (0, 10), (5, 20), (20, 30), (55, 58), (90, 200)];
        assert_eq!(united(ranges, 8, 100), vec![(8, 30), (50, 60), (90, 100)]);
        assert_eq!(united(vec![(0, 5), (100, 110)], 5, 100), vec![]);
    }
}
