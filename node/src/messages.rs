//! What nodes and operators ask of a node, and what it answers: JSON, so that a node of the next
//! version can add fields, inside an authenticated connection of `trivet_transport::call`.
//!
//! Nothing here decides anything about data: promises, records and positions are the members'
//! business; a report only says how they were a moment ago.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trivet_cluster::Joining;
use trivet_protocol::{Generation, MemberId, MemberKind, Record, Seq, VolumeId};

use crate::config::Driver;

pub use crate::scrub::{ScrubAsk, ScrubFinding, ScrubReport};

/// To a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How it is; nodes ask each other all the time.
    Report,
    /// All that it has heard of all nodes, itself included.
    Cluster,
    /// Make this node (or the named one) the active one.
    Promote(Promote),
    /// Show a volume in a directory of this node, which becomes the active one for as long as it is
    /// mounted there. Only for whoever has this node's own key: it is about its directories.
    Mount(Mount),
    /// Make this volume active nowhere, wherever it is now.
    Demote(Demote),
    /// Cease to be active, because another node is about to take over: what the move costs clients
    /// is counted from here. Only for nodes.
    GiveUp {
        /// Of which volume.
        volume: String,
    },
    /// The daemon that held this is dead, says the supervisor that has reaped it: end the promise.
    /// Whoever knows the generation's random id is the holder, or its supervisor.
    HandBack {
        /// The volume.
        volume: VolumeId,
        /// The reign that is over.
        generation: Generation,
    },
    /// Keep a member of a new volume.
    MakeMember(MakeMember),
    /// Who uses the export of a volume.
    Clients {
        /// Name of the volume.
        volume: String,
    },
    /// Which locks are held on its files.
    Locks {
        /// Name of the volume.
        volume: String,
    },
    /// Drop the locks of a client that is gone for good.
    ClearLocks {
        /// Name of the volume.
        volume: String,
        /// The client's address, or the name that it calls itself.
        client: String,
    },
    /// What happened lately, as the node knows it.
    Events {
        /// After the event of this number.
        after: u64,
    },
    /// Change who keeps a volume. It goes to where the volume is active.
    Change(Change),
    /// Make a member ready to come into a volume that exists. Only for nodes.
    MakeReady {
        /// Which.
        joining: Joining,
        /// In which pool.
        pool: String,
    },
    /// Throw the member of a volume away that this node keeps: the volume is to go, for good.
    DeleteMember {
        /// Of which volume.
        volume: VolumeId,
        /// Only say whether it would be done.
        dry_run: bool,
    },
    /// Enlarge a volume and its file system.
    Resize {
        /// Name of the volume.
        volume: String,
        /// To so many bytes.
        bytes: u64,
    },
    /// Let resyncs of a volume copy so much, from now on until it is active elsewhere.
    ResyncRate {
        /// Name of the volume.
        volume: String,
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// Read and compare all copies of a volume, where it is active.
    Scrub {
        /// Name of the volume.
        volume: String,
        /// What.
        what: ScrubAsk,
    },
    /// Give a dead node up, or take it back.
    Evict {
        /// Which.
        node: String,
        /// Give it up.
        evicted: bool,
    },
    /// Take a node out of service, or back in.
    Drain {
        /// Which.
        node: String,
        /// Out of service.
        drained: bool,
    },
}

/// See [`Ask::Promote`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Promote {
    /// Name of the volume.
    pub volume: String,
    /// Where it shall be active.
    pub node: String,
    /// Take it from the node where it is active now, which gives it up in order.
    pub take: bool,
    /// Wait for the lease of a node that is dead, rather than refuse.
    pub wait: bool,
    /// For how long, in all, in milliseconds.
    pub timeout_ms: u64,
    /// Serve although replicas that may hold acknowledged data cannot be heard.
    #[serde(default)]
    pub accept_data_loss: bool,
}

/// See [`Ask::Mount`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Name of the volume.
    pub volume: String,
    /// Where: absolute, and there already.
    pub directory: PathBuf,
    /// What callers may not do there.
    #[serde(default)]
    pub without: Vec<MountWithout>,
    /// For how long the lease of a dead node is waited for, in milliseconds.
    pub timeout_ms: u64,
}

/// See [`Mount`]; as in mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountWithout {
    /// `ro`.
    Writing,
    /// `nosuid`.
    Suid,
    /// `nodev`.
    Dev,
    /// `noexec`.
    Exec,
}

/// See [`Ask::Demote`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demote {
    /// Name of the volume.
    pub volume: String,
    /// Let another node take over, rather than stop the service.
    #[serde(default)]
    pub elsewhere: bool,
}

/// See [`Ask::Change`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Name of the volume.
    pub volume: String,
    /// What to do.
    pub what: ChangeKind,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// See [`Change`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A member more.
    Add {
        /// On which node.
        node: String,
        /// In which of its pools; its only one, unless said.
        pool: Option<String>,
        /// One that votes and keeps no data.
        witness: bool,
    },
    /// A member less.
    Remove {
        /// On which node.
        node: String,
    },
    /// A member in the place of another one.
    Move {
        /// From which node; the one that is dead or out of date, unless said.
        from: Option<String>,
        /// To which node.
        node: String,
        /// In which of its pools; its only one, unless said.
        pool: Option<String>,
    },
}

/// See [`Ask::MakeMember`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeMember {
    /// The first record, which lists it.
    pub record: Record,
    /// Which of its members this node is to keep.
    pub member: MemberId,
    /// In which pool.
    pub pool: String,
}

/// From a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Report`].
    Report(Box<Report>),
    /// To [`Ask::Cluster`].
    Cluster(ClusterReport),
    /// It is active now.
    Promoted(Move),
    /// To [`Ask::Mount`].
    Mounted {
        /// It became active by that, and ceases to be when it is unmounted.
        by_use: bool,
    },
    /// It is active no longer. To [`Ask::GiveUp`]: with the clients that were connected.
    Demoted {
        /// Their addresses and ports.
        clients: Vec<SocketAddr>,
    },
    /// To [`Ask::Clients`].
    Clients(Vec<ClientReport>),
    /// To [`Ask::Locks`], at most [`MAX_LOCKS`] of them.
    Locks(Vec<LockReport>),
    /// The scrub that goes on, or that ended.
    Scrub(Box<ScrubReport>),
    /// To [`Ask::ClearLocks`]: so many were dropped, durably.
    Cleared(usize),
    /// To [`Ask::Events`].
    Events(Vec<Event>),
    /// To [`Ask::Change`].
    Changed(Changed),
    /// To [`Ask::Resize`]: so many bytes it has now.
    Resized(u64),
    /// Done.
    Done,
    /// Not done, and why.
    Refused(String),
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// For people.
    pub what: String,
    /// The member that came, or comes.
    pub new: Option<MemberId>,
    /// The member that went, or goes once the new one has everything.
    pub old: Option<MemberId>,
}

/// How a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub node: String,
    /// The program's version.
    pub version: String,
    /// The newest version of the protocol that it speaks; 0 from one that did not tell.
    #[serde(default)]
    pub protocol: u16,
    /// Since when it runs, in milliseconds.
    pub up_ms: u64,
    /// It is out of service.
    pub drained: bool,
    /// The volumes that it has to do with.
    pub volumes: Vec<VolumeReport>,
    /// What is wanted of each volume, as far as it knows.
    pub wishes: Vec<Wish>,
    /// What is wanted of nodes, as far as it knows.
    #[serde(default)]
    pub node_wishes: Vec<NodeWish>,
    /// Its pools.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// Regions that it could not open, and the like.
    pub problems: Vec<String>,
    /// Its host; none from a version that did not tell.
    #[serde(default)]
    pub host: Option<HostReport>,
}

/// The host of a node, for comparison with the others. Nothing rests on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Milliseconds of the wall clock since 1970.
    pub wall_ms: u64,
    /// Milliseconds of CLOCK_BOOTTIME, by which leases are counted.
    pub boot_ms: u64,
    /// Bytes of a packet, at most, on the interface with the node's first address.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Bytes free.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// Whether a node was given up. The highest number wins, on every node that hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWish {
    /// The node.
    pub node: String,
    /// Grows with every command.
    pub number: u64,
    /// It was given up: it gets nothing, and others take its replicas.
    pub evicted: bool,
}

/// A volume, as one node has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: VolumeId,
    /// Who decides about it, in this node's configuration.
    #[serde(default)]
    pub driver: Option<Driver>,
    /// What the node does with it.
    pub role: RoleReport,
    /// The members that the node keeps.
    pub members: Vec<MemberReport>,
    /// Clients connected to its export, for whoever takes over; where it is not active: those that
    /// it remembers.
    pub clients: Vec<SocketAddr>,
    /// As its upstairs sees it, where it is active.
    pub active: Option<ActiveReport>,
}

/// What a node is for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not able to serve it.
    None,
    /// Ready to take over.
    Standby,
    /// On its way to be active.
    Promoting,
    /// Active.
    Active,
    /// On its way to cease.
    Demoting,
}

/// See [`Standing`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoleReport {
    /// What it is.
    pub standing: Standing,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Why the last attempt, or the last reign, came to an end.
    pub trouble: Option<String>,
    /// The last time that it became active.
    pub last_move: Option<Move>,
    /// The directory in which it is mounted through FUSE.
    #[serde(default)]
    pub mounted: Option<PathBuf>,
}

/// One move of the active role, with its timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// To which node.
    pub node: String,
    /// Why.
    pub why: MoveKind,
    /// When it was done, in seconds of the wall clock since 1970, for people.
    pub at: u64,
    /// Number of the generation.
    pub generation: u64,
    /// What was done by when: a label, and milliseconds since the beginning.
    pub timeline: Vec<(String, f64)>,
}

/// Why the active role moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveKind {
    /// By command, and the former holder gave it up.
    Planned,
    /// By command, with nobody active.
    Promoted,
    /// By itself, after the lease ran out.
    Takeover,
}

/// A member, as its node has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberReport {
    /// Identity.
    pub id: MemberId,
    /// Replica or witness.
    pub kind: MemberKind,
    /// Number of the generation that it has promised to. (Not its random id, which only the holder
    /// and its supervisor know: see [`Ask::HandBack`].)
    pub promise: u64,
    /// Name of that one's node.
    pub holder: String,
    /// How long the promise still runs, in milliseconds.
    pub lease_left_ms: u64,
    /// For how long it has been held.
    pub held_for_ms: u64,
    /// It was removed from the volume.
    pub removed: bool,
    /// Its record.
    pub record: Record,
    /// Durable up to here.
    pub durable: Seq,
    /// Why its data cannot be used, if that is so.
    pub unusable: Option<String>,
}

/// The volume, as its active upstairs sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActiveReport {
    /// Number of the generation.
    pub generation: u64,
    /// How long the lease still runs, in milliseconds.
    pub lease_left_ms: u64,
    /// Replicas that can be lost now without losing data or service.
    pub failures_tolerated: usize,
    /// Its node keeps no replica of it.
    pub diskless: bool,
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes free in the fullest pool beneath.
    pub free: u64,
    /// Connections of NFS clients.
    pub connections: usize,
    /// What its NFS export counts, if it has one.
    #[serde(default)]
    pub nfs: Option<NfsCounts>,
    /// Which member is being replaced by which.
    #[serde(default)]
    pub replacing: Option<(MemberId, MemberId)>,
    /// What people must know without asking: one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The scrub that goes on, or the last one since it became active here.
    #[serde(default)]
    pub scrub: Option<ScrubReport>,
    /// Members.
    pub members: Vec<ActiveMember>,
}

/// What an NFS export counts, since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsCounts {
    /// Calls received.
    pub calls: u64,
    /// Connections refused because of a limit.
    pub refused: u64,
    /// Connections ended because of what the client sent.
    pub ended_bad: u64,
    /// Times that a connection had to wait because too much was in flight.
    pub stalls: u64,
    /// Replies held back because the lease had lapsed.
    pub silent: u64,
}

/// A member, as the active upstairs sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActiveMember {
    /// Identity.
    pub id: MemberId,
    /// Its node.
    pub node: String,
    /// Replica or witness.
    pub kind: MemberKind,
    /// Connected.
    pub up: bool,
    /// In the in-sync set.
    pub in_sync: bool,
    /// Why it is not used.
    pub trouble: Option<String>,
    /// Bytes that its resync has compared, and has found to compare so far; if one runs.
    pub resync: Option<(u64, u64)>,
    /// Milliseconds that it runs.
    #[serde(default)]
    pub resync_ms: u64,
    /// The version of the protocol that is spoken with it; 0 while none is agreed on, and from a
    /// node that did not tell.
    #[serde(default)]
    pub protocol: u16,
}

/// What is wanted of a volume. The highest number wins, on every node that hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The volume.
    pub volume: VolumeId,
    /// Grows with every command.
    pub number: u64,
    /// What.
    pub want: Want,
}

/// See [`Wish`]. Of two with the same number the later in this order wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// It is active somewhere.
    Served,
    /// It is active nowhere, by command.
    Stopped,
}

/// All that a node has heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// The answering node.
    pub by: String,
    /// Reports, in the order of the configuration.
    pub nodes: Vec<Heard>,
}

/// One node, as another one has heard it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heard {
    /// Its name.
    pub node: String,
    /// The address in use.
    pub address: Option<SocketAddr>,
    /// Age of the report, in milliseconds.
    pub age_ms: u64,
    /// The report; none: never heard.
    pub report: Option<Report>,
    /// Why it cannot be reached, if that is so.
    pub trouble: Option<String>,
}

/// Locks in one answer, at most.
pub const MAX_LOCKS: usize = 10_000;

/// A client of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its address.
    pub address: IpAddr,
    /// Connections.
    pub connections: usize,
    /// Milliseconds since its last call.
    pub idle_ms: u64,
    /// What it said that it mounted.
    pub mounts: Vec<String>,
    /// Locks that it holds.
    pub locks: usize,
    /// Files that it has locked.
    pub files: usize,
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReport {
    /// Number of the file.
    pub ino: u64,
    /// The client's address; none for programs on the active node.
    pub address: Option<IpAddr>,
    /// What the client calls itself.
    pub client: String,
    /// Others may hold one, too.
    pub shared: bool,
    /// First byte.
    pub start: u64,
    /// First byte after; the greatest number: to the end, wherever that is.
    pub end: u64,
}

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up on each node.
    pub number: u64,
    /// When, in seconds of the wall clock since 1970.
    pub at: u64,
    /// The node that tells.
    pub node: String,
    /// Name of the volume, if it is about one.
    pub volume: Option<String>,
    /// Of what kind; stable, for programs.
    pub kind: EventKind,
    /// For people.
    pub text: String,
}

/// See [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A volume is active here.
    Active,
    /// It is active here no longer, in order.
    GivenUp,
    /// It is active here no longer: another one has it, or the members are gone.
    Lost,
    /// An attempt to become active failed.
    Failed,
    /// No replica can be lost any more.
    Degraded,
    /// One can be lost again.
    Redundant,
    /// A node is not heard.
    NodeGone,
    /// It is heard again.
    NodeBack,
    /// The configuration was read again.
    Reloaded,
    /// A member came, went, or is on its way.
    Members,
    /// A volume was enlarged.
    Resized,
    /// A node was given up, or taken back.
    Evicted,
    /// A scrub began, ended, or found what it cannot repair.
    Scrub,
}
