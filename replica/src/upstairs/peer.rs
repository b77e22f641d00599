//! What the upstairs knows of one member, by the link that leads to it.

use trivet_protocol::message::{DataState, Welcome};
use trivet_protocol::{MemberId, Now, RecordVersion, Seq};

use super::resync::Resync;

/// One configured way to a member: an index into [`super::Config::links`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

impl LinkId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// From an index.
    pub fn from_index(i: usize) -> LinkId {
        LinkId(u32::try_from(i).unwrap_or(u32::MAX))
    }
}

/// Whether entries flow to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nothing flows.
    Off,
    /// It was told to cut its history back to this place; entries flow from there afterwards.
    Cutting(Seq),
    /// Everything after `sent` flows in order.
    On,
}

/// See the module's head.
#[derive(Debug)]
pub struct Peer {
    /// Name of its node.
    pub node: String,
    /// Who answered there; kept across connections, until somebody else answers.
    pub member: Option<MemberId>,
    /// Who is to answer there, where that was said when the link was made.
    pub expected: Option<MemberId>,
    /// The link was taken away; its place is free for another.
    pub retired: bool,
    /// The newest record that it stored, as it said.
    pub recorded: Option<RecordVersion>,
    /// The last refusal that people were told of: the same one is not told again.
    pub told: Option<String>,
    /// A connection stands.
    pub up: bool,
    /// It talked nonsense or refused its stream: nothing more is heard until it is connected anew.
    pub closing: bool,
    /// Since when `up` is as it is.
    pub since: Now,
    /// Its last full answer on this connection, and when its question was sent.
    pub welcome: Option<(Now, Welcome)>,
    /// Why it refused the handshake, for people.
    pub refused: Option<String>,
    /// It accepted our claim on this connection.
    pub granted: bool,
    /// When the newest accepted claim or renewal was sent: its promise counts from there.
    pub lease_from: Option<Now>,
    /// Whether entries flow.
    pub stream: Stream,
    /// Everything up to here was sent on this connection, or was there before.
    pub sent: Seq,
    /// A sync of everything up to here was asked for on this connection.
    pub sync_sent: Seq,
    /// Somebody waits for more than the sync under way covers.
    pub sync_wanted: bool,
    /// The commit position that it was last told.
    pub commit_told: Seq,
    /// What it said is durable, in our history. Never goes back: it is a promise.
    pub durable: Seq,
    /// When `durable` last went up, or it was seen connected with nothing outstanding.
    pub progress: Now,
    /// Bytes of new data sent on this connection, and how many may be sent.
    pub sent_bytes: u64,
    /// See [`trivet_protocol::message`].
    pub credit: u64,
    /// Its pool overwrites in place: that takes no new space.
    pub in_place: bool,
    /// As `credit`, but what it said last: less when others use up its pool. When that was.
    pub room: (u64, Now),
    /// Its data cannot be counted; why.
    pub unusable: Option<&'static str>,
    /// Its data is of several moments: between the begin and the end of a resync.
    pub mixed: bool,
    /// Since when it refuses our generation.
    pub fenced: Option<Now>,
    /// When it was last asked to accept our claim while we serve.
    pub claimed: Now,
    /// It let a read wait too long and has answered nothing since: others are asked first.
    pub slow: bool,
    /// It is being brought back.
    pub resync: Option<Resync>,
}

impl Peer {
    /// A peer that was not heard of yet.
    pub fn new(node: String) -> Peer {
        Peer {
            node,
            member: None,
            expected: None,
            retired: false,
            recorded: None,
            told: None,
            up: false,
            closing: false,
            since: Now::default(),
            welcome: None,
            refused: None,
            granted: false,
            lease_from: None,
            stream: Stream::Off,
            sent: Seq::ZERO,
            sync_sent: Seq::ZERO,
            sync_wanted: false,
            commit_told: Seq::ZERO,
            durable: Seq::ZERO,
            progress: Now::default(),
            sent_bytes: 0,
            credit: 0,
            in_place: false,
            room: (0, Now::default()),
            unusable: None,
            mixed: false,
            fenced: None,
            claimed: Now::default(),
            slow: false,
            resync: None,
        }
    }

    /// Somebody answered. What was known of another one who answered here before is forgotten:
    /// nothing that one made durable counts for this one.
    pub fn is_now(&mut self, member: MemberId) {
        if self.member != Some(member) {
            self.forget_member();
            self.member = Some(member);
        }
    }

    /// Whoever lived here is gone.
    pub fn forget_member(&mut self) {
        self.member = None;
        self.recorded = None;
        self.durable = Seq::ZERO;
        self.unusable = None;
        self.mixed = false;
        self.fenced = None;
        self.resync = None;
        self.stream = Stream::Off;
        self.granted = false;
        self.lease_from = None;
    }

    /// A new connection: nothing said on an earlier one counts, but for what is durable.
    pub fn connected(&mut self, now: Now) {
        self.forget_connection(now);
        self.up = true;
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, now: Now) {
        self.forget_connection(now);
    }

    fn forget_connection(&mut self, now: Now) {
        if self.up {
            self.since = now;
        }
        self.up = false;
        self.welcome = None;
        self.refused = None;
        self.granted = false;
        self.stream = Stream::Off;
        self.sent = Seq::ZERO;
        self.sync_sent = Seq::ZERO;
        self.sync_wanted = false;
        self.commit_told = Seq::ZERO;
        self.sent_bytes = 0;
        self.credit = 0;
        self.room = (0, Now::default());
        self.closing = false;
        self.slow = false;
    }

    /// Its answers count for durability and it can serve reads, as far as it itself goes:
    /// membership is for [`super::membership`] to say.
    pub fn flows(&self) -> bool {
        self.up && self.stream == Stream::On && !self.mixed && self.unusable.is_none()
    }

    /// State of its data, if it was heard.
    pub fn data(&self) -> Option<DataState> {
        self.welcome.as_ref().map(|(_, w)| w.data)
    }
}
