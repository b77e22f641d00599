//! What several replicas say about one range at one place of the history, and what follows.
//!
//! Replicas in sync that have applied the same entries must hold the same blocks. The *checksums
//! kept* are what votes, not the content: a replica whose content is rotten still knows what it
//! should be. More than half of those that know is believed. So with three copies a write that
//! one disk lost is told from two that it kept; with two copies that differ, and both match what
//! is kept for them, nothing here can tell which is right, and nothing is guessed.

use trivet_protocol::Checksum;
use trivet_protocol::breaks::{self, Break};
use trivet_protocol::message::Bad;

use super::super::LinkId;

/// What one replica said.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub link: LinkId,
    pub sums: Vec<Checksum>,
    /// Ascending.
    pub bad: Vec<(u32, Bad)>,
}

/// What is the matter with a block, and whether it can be helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matter {
    /// A copy cannot be read or does not match its checksum; another one is good.
    Damaged,
    /// A copy matches its own checksum, and differs from what most replicas hold.
    Differs,
    /// Copies differ, and there is no majority for any of them.
    NoMajority,
    /// No replica that was looked at has a good copy.
    NoGoodCopy,
}

impl Matter {
    /// Whether the bad copies can be written anew from a good one.
    pub fn can_be_repaired(self) -> bool {
        matches!(self, Matter::Damaged | Matter::Differs)
    }
}

/// Neighbouring blocks with the same thing the matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Offset in the range.
    pub first: u32,
    pub count: u32,
    pub matter: Matter,
    /// The checksums that are right, where it can be repaired.
    pub right: Vec<Checksum>,
    /// Whose copies are not as they should be; of [`Matter::NoMajority`], everybody's.
    pub bad: Vec<LinkId>,
    /// Whose are.
    pub good: Vec<LinkId>,
}

/// Runs of blocks that are not alike and good everywhere, ascending. Each look has `count`
/// checksums. `silent` replicas in sync did not say: each might be against it.
pub(super) fn judge(looks: &[Look], count: u32, silent: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for i in 0..count {
        let Some(run) = judge_block(looks, i, silent) else {
            continue;
        };
        match runs.last_mut() {
            Some(last) if last.first + last.count == i && last.alike(&run) => {
                last.count += 1;
                last.right.extend(run.right);
            }
            _ => runs.push(run),
        }
    }
    runs
}

impl Run {
    /// Should read as unwritten; a run is so wholly or not at all.
    pub fn unwritten(&self) -> bool {
        self.right.first().is_some_and(Checksum::is_unwritten)
    }

    fn alike(&self, other: &Run) -> bool {
        self.matter == other.matter
            && self.unwritten() == other.unwritten()
            && self.bad == other.bad
            && self.good == other.good
    }
}

/// One replica's copy of one block: the checksum that is kept, if it is known, and whether the
/// content is that.
struct Copy {
    link: LinkId,
    kept: Option<Checksum>,
    content: bool,
}

fn judge_block(looks: &[Look], i: u32, silent: usize) -> Option<Run> {
    let copies: Vec<Copy> = looks
        .iter()
        .filter_map(|look| {
            let sum = look.sums.get(i as usize).copied()?;
            let bad = look
                .bad
                .iter()
                .find(|(at, _)| *at == i)
                .map(|(_, bad)| *bad);
            Some(Copy {
                link: look.link,
                kept: (bad != Some(Bad::Checksum)).then_some(sum),
                content: bad.is_none(),
            })
        })
        .collect();
    let sound = copies.iter().all(|c| c.content);
    let first = copies.first()?.kept;
    if sound && copies.iter().all(|c| c.kept == first) {
        return None;
    }
    let run = |matter, right: Option<Checksum>, bad, good| {
        Some(Run {
            first: i,
            count: 1,
            matter,
            right: right.into_iter().collect(),
            bad,
            good,
        })
    };
    let votes = || copies.iter().filter_map(|c| c.kept);
    let most = |sum: &Checksum| {
        votes().filter(|v| v == sum).count() * 2 > votes().count() + silent
            || breaks::on(Break::ScrubBelievesAnybody)
    };
    let Some(right) = votes().find(most) else {
        let all = copies.iter().map(|c| c.link).collect();
        let matter = match votes().next() {
            Some(_) => Matter::NoMajority,
            None => Matter::NoGoodCopy,
        };
        return run(matter, None, all, Vec::new());
    };
    let is_good = |c: &&Copy| c.content && c.kept == Some(right);
    let good: Vec<LinkId> = copies.iter().filter(is_good).map(|c| c.link).collect();
    let bad: Vec<&Copy> = copies.iter().filter(|c| !is_good(c)).collect();
    let matter = match () {
        () if good.is_empty() => Matter::NoGoodCopy,
        () if bad.iter().all(|c| c.content) => Matter::Differs,
        () => Matter::Damaged,
    };
    let bad = bad.into_iter().map(|c| c.link).collect();
    run(matter, Some(right), bad, good)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Checksum = Checksum([1; 16]);
    const B: Checksum = Checksum([2; 16]);
    const C: Checksum = Checksum([3; 16]);
    const U: Checksum = Checksum::UNWRITTEN;

    fn look(link: usize, sum: Checksum, bad: Option<Bad>) -> Look {
        Look {
            link: LinkId::from_index(link),
            sums: vec![sum],
            bad: bad.map(|b| (0, b)).into_iter().collect(),
        }
    }

    /// What is the matter, who is bad and who is good.
    fn of(looks: &[Look]) -> Option<(Matter, Vec<usize>, Vec<usize>)> {
        let index = |links: &[LinkId]| links.iter().map(|l| l.index()).collect();
        let runs = judge(looks, 1, 0);
        assert!(runs.len() <= 1);
        runs.first()
            .map(|r| (r.matter, index(&r.bad), index(&r.good)))
    }

    #[test]
    fn the_majority_of_what_is_kept_is_right_and_without_one_nothing_is_guessed() {
        use Bad::{Checksum as Sum, Content};
        use Matter::{Damaged, Differs, NoGoodCopy, NoMajority};
        let l = look;
        assert_eq!(of(&[l(0, A, None), l(1, A, None), l(2, A, None)]), None);
        assert_eq!(of(&[l(0, U, None), l(1, U, None)]), None);
        // One disk lost a write, or a whole file.
        let lost = [l(0, A, None), l(1, B, None), l(2, A, None)];
        assert_eq!(of(&lost), Some((Differs, vec![1], vec![0, 2])));
        let lost = [l(0, U, None), l(1, B, None), l(2, B, None)];
        assert_eq!(of(&lost), Some((Differs, vec![0], vec![1, 2])));
        // Rotten content votes for what it should be.
        let rotten = [l(0, A, Some(Content)), l(1, A, None)];
        assert_eq!(of(&rotten), Some((Damaged, vec![0], vec![1])));
        let rotten = [l(0, A, Some(Content)), l(1, B, None), l(2, A, None)];
        assert_eq!(of(&rotten), Some((Damaged, vec![0, 1], vec![2])));
        let stale = [
            l(0, B, None),
            l(1, A, Some(Content)),
            l(2, A, Some(Content)),
        ];
        assert_eq!(of(&stale), Some((NoGoodCopy, vec![0, 1, 2], vec![])));
        // A lost checksum does not vote.
        let two = [l(0, A, Some(Sum)), l(1, B, None)];
        assert_eq!(of(&two), Some((Damaged, vec![0], vec![1])));
        assert_eq!(
            of(&[l(0, A, Some(Sum))]),
            Some((NoGoodCopy, vec![0], vec![]))
        );
        // No majority.
        let two = [l(0, A, None), l(1, B, None)];
        assert_eq!(of(&two), Some((NoMajority, vec![0, 1], vec![])));
        let two = [l(0, A, Some(Content)), l(1, B, None)];
        assert_eq!(of(&two), Some((NoMajority, vec![0, 1], vec![])));
        let three = [l(0, A, None), l(1, B, None), l(2, C, None)];
        assert_eq!(of(&three), Some((NoMajority, vec![0, 1, 2], vec![])));
        // Who is silent might know better.
        let known = [l(0, A, Some(Sum)), l(1, B, None)];
        assert_eq!(judge(&known, 1, 1)[0].matter, NoMajority);
        let known = [l(0, A, Some(Content)), l(1, A, None)];
        assert_eq!(judge(&known, 1, 1)[0].matter, Damaged);
        // One alone.
        assert_eq!(of(&[l(0, A, None)]), None);
        let alone = [l(0, A, Some(Content))];
        assert_eq!(of(&alone), Some((NoGoodCopy, vec![0], vec![])));
    }

    #[test]
    fn neighbours_with_the_same_matter_are_one_run() {
        let look = |link, sums: &[Checksum], bad: &[u32]| Look {
            link: LinkId::from_index(link),
            sums: sums.to_vec(),
            bad: bad.iter().map(|at| (*at, Bad::Content)).collect(),
        };
        let looks = [
            look(0, &[A, A, B, B, U, A], &[5]),
            look(1, &[A, B, C, B, A, A], &[]),
            look(2, &[A, B, C, B, A, A], &[]),
        ];
        let runs = judge(&looks, 6, 0);
        let short: Vec<_> = runs.iter().map(|r| (r.first, r.count, r.matter)).collect();
        assert_eq!(
            short,
            vec![
                (1, 2, Matter::Differs),
                (4, 1, Matter::Differs),
                (5, 1, Matter::Damaged)
            ]
        );
    }
}
