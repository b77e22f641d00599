//! Activation (invariants 1, 2, 6 and 11): ask, claim, choose the longest history, make it
//! durable everywhere, record it, go.
//!
//! - *Ask* a majority, only to decide whether to try: a node that cannot serve must not depose
//!   one that does.
//! - *Claim* a number above every one heard. The records and positions that count are those in
//!   the answers to the claim, and only replicas that durably accepted it are heard.
//! - The highest record names the in-sync set; n-w+1 of it must be heard (one more if a heard log
//!   ends in something unreadable), and up to [`super::Limits::late_member`] is given to others.
//! - The longest history heard is made durable on all of the new set, then a record of this
//!   generation is settled on a majority. Only then is anything served.
//!
//! A crash in here leaves a claimed number (never used again) and perhaps a longer common
//! history on some replicas: both are harmless.

mod level;

use std::collections::{BTreeMap, BTreeSet};

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::frame::Frame;
use trivet_protocol::message::{DataState, Refusal, Request, Tail, Welcome};
use trivet_protocol::record::read_quorum;
use trivet_protocol::{
    Entry, Generation, MemberId, MemberKind, Millis, Now, Record, RecordVersion, Seq,
};

use super::{ActivateError, ActivateOptions, Ask, Effect, LinkId, Notice, Phase, Upstairs};
use crate::upstairs::history::History;
use crate::upstairs::membership::ROLLED_BACK;
use crate::upstairs::peer::Stream;

/// An activation under way.
#[derive(Debug)]
pub struct Activation {
    options: ActivateOptions,
    began: Now,
    attempt: u32,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Questions sent at or after `since` count.
    Asking { since: Now, last_ask: Now },
    /// Somebody's promise runs until about then.
    Waiting { until: Now },
    /// The claim was sent.
    Claiming { since: Now, enough_at: Option<Now> },
    /// Entries are fetched from `best` and brought to all of `set`.
    Leveling {
        since: Now,
        best: LinkId,
        set: BTreeSet<MemberId>,
        /// Up to where each of `set` shared the chosen history.
        commons: BTreeMap<MemberId, Seq>,
        fetched: bool,
    },
    /// The first record of the reign is being stored.
    Settling { since: Now },
}

/// Fetched per question when leveling.
const FETCH_BYTES: u32 = 4 << 20;
/// Asked again this often while answers are missing.
const ASK_AGAIN: Millis = Millis(100);
/// A member that has not accepted the claim of a serving upstairs is asked again this often.
const CLAIM_AGAIN: Millis = Millis(200);
/// Where data loss is accepted, replicas that may hold the data are still given this long.
const FORCE_AFTER: Millis = Millis(1000);
/// A claim, leveling or settling that does not get on is started over after this.
const STEP_PATIENCE: Millis = Millis(1500);

impl Activation {
    /// Whether members may have promised to our claim, so that it must be renewed.
    pub(super) fn holds_claim(&self) -> bool {
        matches!(self.step, Step::Leveling { .. } | Step::Settling { .. })
    }
}

impl Upstairs {
    /// Starts an activation; [`Effect::Activated`] tells how it ended.
    pub fn activate(&mut self, now: Now, options: ActivateOptions) {
        if !matches!(self.phase, Phase::Idle) {
            let error = ActivateError::WrongState(self.config.volume);
            self.out.push(Effect::Activated(Err(error)));
            return;
        }
        self.phase = Phase::Activating(Activation {
            options,
            began: now,
            attempt: 0,
            step: Step::Asking {
                since: now,
                last_ask: now,
            },
        });
        self.ask_everybody(now);
    }

    /// Claims the next number while serving: see [`super::reign`].
    pub(super) fn activate_again(&mut self, now: Now) {
        let options = ActivateOptions {
            claim: self.generation.claim.wrapping_add(1 << 32),
            wait_for_lease: true,
            patience: self.config.limits.lapse_patience,
            accept_data_loss: false,
        };
        for peer in &mut self.peers {
            peer.fenced = None;
        }
        let step = Step::Asking {
            since: now,
            last_ask: now,
        };
        self.phase = Phase::Activating(Activation {
            options,
            began: now,
            attempt: 0,
            step,
        });
        self.start_over(now);
    }

    fn ask_everybody(&mut self, now: Now) {
        for link in self.links() {
            if self.peer(link).up {
                self.hello(now, link);
            }
        }
    }

    fn step(&mut self) -> Option<&mut Step> {
        match &mut self.phase {
            Phase::Activating(a) => Some(&mut a.step),
            _ => None,
        }
    }

    fn start_over(&mut self, now: Now) {
        // Members that accepted this attempt need not be waited out by the next one.
        self.release_claims(now);
        self.end_resyncs();
        self.pause_scrub();
        self.pending = None;
        self.kept = self.record.take().or(self.kept.take());
        if let Some(step) = self.step() {
            *step = Step::Asking {
                since: now,
                last_ask: now,
            };
        }
        self.ask_everybody(now);
    }

    fn fail_activation(&mut self, now: Now, error: ActivateError) {
        self.release_claims(now);
        self.phase = Phase::Idle;
        self.record = None;
        self.pending = None;
        if self.renewing {
            // It served before: whoever waits must be told.
            self.stop(error.to_string());
        }
        self.out.push(Effect::Activated(Err(error)));
    }

    // ---- asking ----

    pub(super) fn on_welcome(&mut self, now: Now, link: LinkId, sent: Now, w: Welcome) {
        if w.record.volume != self.config.volume {
            return self.refuse_link(link, "its record is of another volume".into());
        }
        if let Some(problem) = w.problem() {
            return self.refuse_link(link, format!("its answer is not believed: {problem}"));
        }
        if !self.note_member(link, &w) {
            return;
        }
        let peer = self.peer_mut(link);
        peer.refused = None;
        peer.welcome = Some((sent, w));
        match &self.phase {
            Phase::Activating(Activation {
                step: Step::Asking { .. },
                ..
            }) => self.decide(now),
            // Late, but welcome: it is asked to accept the claim as the others did.
            Phase::Activating(a) if !matches!(a.step, Step::Waiting { .. }) => {
                self.claim_one(now, link);
            }
            Phase::Active => self.claim_one(now, link),
            _ => {}
        }
    }

    fn answered_since(&self, since: Now) -> Vec<(LinkId, &Welcome)> {
        self.links()
            .filter_map(|l| {
                let (sent, w) = self.peer(l).welcome.as_ref()?;
                (self.peer(l).up && *sent >= since).then_some((l, w))
            })
            .collect()
    }

    /// Whether what was heard is enough to try; only ever a reason to claim, never to serve.
    fn decide(&mut self, now: Now) {
        let Phase::Activating(Activation {
            options,
            step: Step::Asking { since, .. },
            ..
        }) = &self.phase
        else {
            return;
        };
        let (since, options) = (*since, *options);
        let heard = self.answered_since(since);
        let Some(record) = heard
            .iter()
            .map(|(_, w)| &w.record)
            .max_by_key(|r| r.version)
        else {
            return;
        };
        let ids = self.voters(record, heard.iter().map(|(_, w)| *w));
        let good: BTreeSet<_> = heard
            .iter()
            .filter(|(_, w)| self.countable(record, w))
            .map(|(_, w)| w.member)
            .collect();
        let enough = record.is_majority(&ids) && record.can_read_all(&good);
        let forced = options.accept_data_loss
            && record.is_majority(&ids)
            && !good.is_empty()
            && now.since(since) >= FORCE_AFTER.duration();
        if !enough && !forced {
            return;
        }
        let longest = heard
            .iter()
            .max_by_key(|(_, w)| w.lease_left)
            .map(|(_, w)| *w);
        if let Some(w) = longest.filter(|w| w.lease_left > Millis(0)) {
            let refusal = Refusal::Leased {
                holder: w.holder.clone(),
                held_for: w.held_for,
                left: w.lease_left,
            };
            let until = now + w.lease_left.duration();
            return self.wait_for_lease(now, until, refusal);
        }
        self.claim_all(now);
    }

    fn wait_for_lease(&mut self, now: Now, until: Now, refusal: Refusal) {
        let Phase::Activating(a) = &mut self.phase else {
            return;
        };
        if !a.options.wait_for_lease || until >= a.began + a.options.patience {
            let volume = self.config.volume;
            return self.fail_activation(now, ActivateError::Held { volume, refusal });
        }
        // Two that wait for the same lease should not claim at the same moment.
        let spread = Millis((a.options.claim.wrapping_add(u128::from(a.attempt)) % 40) as u64);
        a.step = Step::Waiting {
            until: until + spread.duration(),
        };
    }

    /// A replica of the record's in-sync set whose data can be counted.
    fn countable(&self, record: &Record, w: &Welcome) -> bool {
        record.in_sync.contains(&w.member)
            && matches!(w.data, DataState::Whole(_))
            && record
                .member(w.member)
                .is_some_and(|m| self.unusable(m, w).is_none())
    }

    /// Whose votes count: members that do not show less than the record knows of. One that does
    /// was rolled back, its promises and its record with it (design section 5).
    fn voters<'a>(
        &self,
        record: &Record,
        heard: impl Iterator<Item = &'a Welcome>,
    ) -> BTreeSet<MemberId> {
        let votes = |w: &&Welcome| {
            let info = record.member(w.member);
            info.is_some_and(|m| self.unusable(m, w) != Some(ROLLED_BACK))
        };
        heard.filter(votes).map(|w| w.member).collect()
    }

    // ---- claiming ----

    fn claim_all(&mut self, now: Now) {
        let highest = self
            .peers
            .iter()
            .filter_map(|p| p.welcome.as_ref())
            .map(|(_, w)| w.promise.number.max(w.record.version.generation))
            .max()
            .unwrap_or(0)
            .max(self.generation.number);
        let Phase::Activating(a) = &mut self.phase else {
            return;
        };
        a.attempt += 1;
        let claim = a.options.claim.wrapping_add(u128::from(a.attempt));
        a.step = Step::Claiming {
            since: now,
            enough_at: None,
        };
        self.generation = Generation {
            number: highest + 1,
            claim,
        };
        for link in self.links() {
            self.claim_one(now, link);
        }
    }

    fn claim_one(&mut self, now: Now, link: LinkId) {
        if self.peer(link).up && self.peer(link).member.is_some() && !self.peer(link).granted {
            let node = self.config.node.clone();
            self.ask(now, link, Ask::Claim, &Request::Claim { node });
        }
    }

    /// Members that are there and have not accepted our claim (an earlier holder's promise ran
    /// on there, say) are asked again.
    pub(super) fn claim_late_ones(&mut self, now: Now) {
        for link in self.links() {
            let peer = self.peer_mut(link);
            let late = peer.up && !peer.granted && peer.fenced.is_none();
            if late && now.since(peer.claimed) >= CLAIM_AGAIN.duration() {
                peer.claimed = now;
                self.claim_one(now, link);
            }
        }
    }

    pub(super) fn on_granted(&mut self, now: Now, link: LinkId, sent: Now, w: Welcome) {
        if w.problem().is_some() || w.record.volume != self.config.volume {
            return self.refuse_link(link, "its answer to a claim is not believed".into());
        }
        if w.promise != self.generation {
            // It answers an earlier attempt. Kept, that promise would be waited out like a
            // stranger's.
            return self.hand_back_promise(now, link, w.promise);
        }
        if matches!(self.phase, Phase::Idle | Phase::Stopped(_)) {
            // The claim was under way when all this ended.
            return self.hand_back_promise(now, link, w.promise);
        }
        if !self.note_member(link, &w) {
            return;
        }
        let peer = self.peer_mut(link);
        peer.lease_from = peer.lease_from.max(Some(sent));
        if peer.granted {
            // Asked twice; its stream runs already.
            return;
        }
        peer.granted = true;
        if !breaks::on(Break::PositionsFromAsk) || peer.welcome.is_none() {
            peer.welcome = Some((sent, w.clone()));
        }
        if self.record.is_some() && !self.is_active() {
            self.note_rolled_back();
        }
        match &self.phase {
            Phase::Active => self.integrate(now, link, &w),
            Phase::Activating(a) if matches!(a.step, Step::Settling { .. }) => {
                if self.votes(link) {
                    self.put_record(now, link);
                }
            }
            // The attempt was given up while this answer was under way. Kept, the promise would
            // be waited out like a stranger's.
            Phase::Activating(Activation {
                step: Step::Asking { .. } | Step::Waiting { .. },
                ..
            }) => self.hand_back_one(now, link),
            _ => self.elect(now),
        }
    }

    /// Whether the answers to the claim are enough, and if so, with which history to go on.
    fn elect(&mut self, now: Now) {
        let Phase::Activating(Activation {
            options,
            step: Step::Claiming { since, enough_at },
            ..
        }) = &self.phase
        else {
            return;
        };
        let (options, since, enough_at) = (*options, *since, *enough_at);
        let granted: Vec<(LinkId, Welcome)> = self
            .links()
            .filter(|l| self.peer(*l).granted)
            .filter_map(|l| Some((l, self.peer(l).welcome.as_ref()?.1.clone())))
            .collect();
        let Some(record) = granted
            .iter()
            .map(|(_, w)| &w.record)
            .max_by_key(|r| r.version)
        else {
            return;
        };
        let record = record.clone();
        let ids = self.voters(&record, granted.iter().map(|(_, w)| w));
        let good: Vec<_> = granted
            .iter()
            .filter(|(_, w)| self.countable(&record, w))
            .cloned()
            .collect();
        let n = record.in_sync.len();
        let unsure = good
            .iter()
            .any(|(_, w)| w.data == DataState::Whole(Tail::Unsure));
        let needed = (read_quorum(n) + usize::from(unsure)).min(n);
        let waited = now.since(since) >= FORCE_AFTER.duration();
        let enough = record.is_majority(&ids) && good.len() >= needed;
        let forced =
            options.accept_data_loss && record.is_majority(&ids) && !good.is_empty() && waited;
        if !enough && !forced {
            return;
        }
        let since_enough = now.since(enough_at.unwrap_or(now));
        if good.len() < n && since_enough < self.config.limits.late_member {
            if let Some(Step::Claiming { enough_at, .. }) = self.step() {
                enough_at.get_or_insert(now);
            }
            return;
        }
        if !enough {
            let heard: BTreeSet<_> = good.iter().map(|(_, w)| w.member).collect();
            let missing = record.in_sync.difference(&heard).copied().collect();
            self.notice(Notice::DataLossAccepted { missing });
        }
        self.level(now, record, good, !enough);
    }

    // ---- what goes wrong ----

    pub(super) fn activation_refused(
        &mut self,
        now: Now,
        link: LinkId,
        what: &Ask,
        refusal: Refusal,
    ) {
        match (what, refusal) {
            (Ask::Claim, refusal @ Refusal::Leased { .. }) => {
                let Refusal::Leased { left, .. } = &refusal else {
                    return;
                };
                let until = now + left.duration();
                // Others may have accepted, and enough of them.
                if let Some(Step::Claiming { .. }) = self.step() {
                    self.release_claims(now);
                    self.wait_for_lease(now, until, refusal);
                }
            }
            (Ask::Fetch, Refusal::NotInLog(_)) => self.level_without_laggards(now, link),
            (Ask::Hello, refusal) => self.peer_mut(link).refused = Some(refusal.to_string()),
            (_, Refusal::Fenced { promise, .. }) => {
                self.generation.number = self.generation.number.max(promise.number);
                if !matches!(
                    self.step(),
                    Some(Step::Asking { .. } | Step::Waiting { .. })
                ) {
                    self.start_over(now);
                }
            }
            (_, refusal) => self.refuse_link(link, refusal.to_string()),
        }
    }

    pub(super) fn release_claims(&mut self, now: Now) {
        for link in self.links() {
            if self.peer(link).granted {
                self.hand_back_one(now, link);
            }
        }
    }

    fn hand_back_one(&mut self, now: Now, link: LinkId) {
        self.hand_back_promise(now, link, self.generation);
        let peer = self.peer_mut(link);
        peer.granted = false;
        peer.lease_from = None;
        peer.stream = Stream::Off;
    }

    /// Ends the promise to one of our generations, not always the present one.
    fn hand_back_promise(&mut self, now: Now, link: LinkId, promise: Generation) {
        let present = std::mem::replace(&mut self.generation, promise);
        self.ask(now, link, Ask::HandBack, &Request::HandBack);
        self.generation = present;
    }

    pub(super) fn activation_saw_record(&mut self, now: Now, record: &Record) {
        let newer = self
            .record
            .as_ref()
            .is_some_and(|r| record.version > r.version);
        if newer && matches!(self.phase, Phase::Activating(_)) {
            self.start_over(now);
        }
    }

    pub(super) fn activation_link_lost(&mut self, now: Now, link: LinkId) {
        let member = self.peer(link).member;
        let lost = match self.step() {
            Some(Step::Leveling { set, best, .. }) => {
                *best == link || member.is_some_and(|m| set.contains(&m))
            }
            // While settling a majority is enough; who was lost is dropped or brought back later.
            _ => false,
        };
        if lost {
            self.start_over(now);
        }
    }

    pub(super) fn tick_activation(&mut self, now: Now) {
        let Phase::Activating(a) = &mut self.phase else {
            return;
        };
        if now.since(a.began) >= a.options.patience {
            let volume = self.config.volume;
            let needs = self.needs();
            return self.fail_activation(now, ActivateError::Unsafe { volume, needs });
        }
        match &mut a.step {
            Step::Asking { last_ask, .. } => {
                if now.since(*last_ask) >= ASK_AGAIN.duration() {
                    *last_ask = now;
                    self.asked.retain(|_, q| q.what != Ask::Hello);
                    self.ask_everybody(now);
                }
                self.decide(now);
            }
            Step::Waiting { until } if now >= *until => {
                a.step = Step::Asking {
                    since: now,
                    last_ask: now,
                };
                self.ask_everybody(now);
            }
            Step::Waiting { .. } => {}
            Step::Claiming { since, .. }
            | Step::Leveling { since, .. }
            | Step::Settling { since } => {
                if now.since(*since) >= STEP_PATIENCE.duration() {
                    self.start_over(now);
                } else {
                    self.elect(now);
                }
            }
        }
    }

    /// Whom an activation still needs, for people.
    fn needs(&self) -> String {
        let heard: Vec<_> = self
            .peers
            .iter()
            .filter_map(|p| p.welcome.as_ref())
            .collect();
        let Some(record) = heard
            .iter()
            .map(|(_, w)| &w.record)
            .max_by_key(|r| r.version)
        else {
            let tried: Vec<_> = self.peers.iter().map(|p| p.node.as_str()).collect();
            return format!("no member answers (tried {})", tried.join(", "));
        };
        let mut lines = Vec::new();
        for m in &record.members {
            let link = self.link_of(m.id);
            let state = match link.map(|l| self.peer(l)) {
                Some(p) if p.welcome.is_some() => match p.data() {
                    Some(DataState::Mixed(_)) => "is in the middle of a resync".to_owned(),
                    Some(DataState::Damaged) => "is damaged".to_owned(),
                    Some(DataState::Whole(Tail::Unsure)) => {
                        "answers, but its log ends in a torn record: one more replica in sync must \
                         be heard"
                            .to_owned()
                    }
                    _ => p.unusable.unwrap_or("answers").to_owned(),
                },
                Some(p) => p
                    .refused
                    .clone()
                    .unwrap_or_else(|| "cannot be reached".to_owned()),
                None => "cannot be reached".to_owned(),
            };
            let role = match (m.kind, record.in_sync.contains(&m.id)) {
                (MemberKind::Witness, _) => "witness",
                (_, true) => "in sync",
                (_, false) => "not in sync",
            };
            lines.push(format!("{} ({role}) {state}", m.node));
        }
        let n = record.in_sync.len();
        format!(
            "it needs {} of {} members and {} of the {n} replicas in sync: {}",
            record.members.len() / 2 + 1,
            record.members.len(),
            read_quorum(n),
            lines.join("; ")
        )
    }
}
