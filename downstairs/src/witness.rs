//! A witness: a member that votes and keeps no data, in a small directory of its own.
//!
//! ```text
//! witness.toml     who it is; written last when one is made
//! state            openings and the member's state, in a double-slot file
//! ```
//!
//! The rules are a region's (design, section 5): its identity is minted once; without its state it
//! is lost and is never silently made anew; every opening is counted durably before it answers
//! anything, so that one restored from a backup shows fewer openings, or an older record, than the
//! others know of, and does not vote.
//!
//! A crash while one is made leaves a directory without `witness.toml`, which nothing takes for a
//! witness; a crash later leaves the state before or after the last change, never a mixture.
//! Bounded by a slot's size ([`crate::slots::MAX_BODY`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trivet_protocol::{MemberId, VolumeId};

use crate::disk::{Disk, DiskFile};
use crate::error::{Result, StoreError};
use crate::member::MemberState;
use crate::slots::SlotFile;

/// Name of the identity file.
pub const FILE: &str = "witness.toml";
/// Name of the state file.
const STATE: &str = "state";
/// Version of the format that this code writes and reads.
const FORMAT: u32 = 1;
/// Bytes of the identity file, at most.
const MAX_FILE: u64 = 4096;

/// Who a witness is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Format version.
    format: u32,
    /// The volume on which it votes.
    pub volume: VolumeId,
    /// Its identity among the members.
    pub member: MemberId,
}

/// What is in a slot, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    opens: u64,
    state: MemberState,
}

/// An open witness.
pub struct Witness {
    file: SlotFile,
    opens: u64,
    /// What keeps its directory locked.
    disk: Option<Arc<dyn Disk>>,
}

impl Identity {
    fn new(state: &MemberState) -> Identity {
        Identity {
            format: FORMAT,
            volume: state.record.volume,
            member: state.member,
        }
    }

    /// What the checksums of its state start from: another member's state does not verify.
    fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.member.bytes()), &self.volume.bytes())
    }

    /// Reads the identity of the witness in `disk`.
    ///
    /// # Errors
    /// There is none, it is not readable, or it is not for this program.
    pub fn load(disk: &dyn Disk) -> Result<Identity> {
        let io = |action| move |e| StoreError::io(action, FILE, e);
        let file = disk.open(FILE).map_err(io("open"))?;
        let size = file.size().map_err(io("read"))?;
        if size > MAX_FILE {
            let why = format!("it has {size} bytes; at most {MAX_FILE} are sensible");
            return Err(foreign(why));
        }
        let mut raw = vec![0; size as usize];
        file.read_at(&mut raw, 0).map_err(io("read"))?;
        let text = std::str::from_utf8(&raw).map_err(|e| foreign(e.to_string()))?;
        let identity: Identity = toml::from_str(text).map_err(|e| foreign(e.to_string()))?;
        if identity.format != FORMAT {
            let format = identity.format;
            return Err(foreign(format!(
                "its format is {format}, this program knows {FORMAT}"
            )));
        }
        Ok(identity)
    }

    fn save(&self, disk: &dyn Disk) -> Result<()> {
        let body = toml::to_string(self).map_err(|e| foreign(e.to_string()))?;
        let text = format!("# A witness of a Trivet volume. Written once; do not edit.\n{body}");
        let temporary = "witness.toml.new";
        let file = replace(disk, temporary)?;
        file.write_all_at(text.as_bytes(), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.rename(temporary, FILE))
            .and_then(|()| disk.sync_dir(""))
            .map_err(|e| StoreError::io("write", FILE, e))
    }
}

impl Witness {
    /// Makes a witness; one whose making was cut short is made again.
    ///
    /// # Errors
    /// There is a whole one already, or the disk fails.
    pub fn create(disk: &dyn Disk, state: &MemberState) -> Result<()> {
        if disk.open(FILE).is_ok() {
            return Err(foreign("there is a witness already".to_owned()));
        }
        let identity = Identity::new(state);
        match disk.remove(STATE) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", STATE, e));
            }
            _ => {}
        }
        SlotFile::create(disk, STATE, identity.seed(), &encode(0, state)?)?;
        disk.sync_dir("")
            .map_err(|e| StoreError::io("create", STATE, e))?;
        identity.save(disk)
    }

    /// Opens a witness and counts the opening.
    ///
    /// # Errors
    /// It is another one than `expected`, its state is lost or damaged, or the disk fails.
    pub fn open(
        disk: &dyn Disk,
        expected: Option<(VolumeId, MemberId)>,
    ) -> Result<(Witness, MemberState)> {
        let identity = Identity::load(disk)?;
        let found = (identity.volume, identity.member);
        if expected.is_some_and(|e| e != found) {
            let why = format!("it is {} of volume {}", identity.member, identity.volume);
            return Err(foreign(why));
        }
        let (mut file, raw) = SlotFile::open(disk, STATE, identity.seed())?;
        let kept = decode(&raw)?;
        if (kept.state.record.volume, kept.state.member) != found {
            return Err(StoreError::corrupt(STATE, "it is another member's"));
        }
        let opens = kept.opens.saturating_add(1);
        file.write(&encode(opens, &kept.state)?)?;
        let disk = None;
        Ok((Witness { file, opens, disk }, kept.state))
    }

    /// Keeps `disk`, and with it the lock on its directory, as long as the witness is open.
    pub fn holding(mut self, disk: Arc<dyn Disk>) -> Witness {
        self.disk = Some(disk);
        self
    }

    /// Reads the state without changing anything.
    ///
    /// # Errors
    /// As [`Witness::open`].
    pub fn peek(disk: &dyn Disk) -> Result<MemberState> {
        let identity = Identity::load(disk)?;
        let raw = SlotFile::peek(disk, STATE, identity.seed())?;
        Ok(decode(&raw)?.state)
    }

    /// How often it was opened, this time included.
    pub fn opens(&self) -> u64 {
        self.opens
    }

    /// Why it takes nothing more, if it does not.
    pub fn failed(&self) -> Option<&str> {
        self.file.failed()
    }

    /// Stores the member's state; durable when it returns.
    ///
    /// # Errors
    /// The disk fails; every later change is then refused.
    pub fn keep(&mut self, state: &MemberState) -> Result<()> {
        self.file.write(&encode(self.opens, state)?)
    }
}

fn replace(disk: &dyn Disk, name: &str) -> Result<Arc<dyn DiskFile>> {
    // Left by a making that was cut short.
    let _ = disk.remove(name);
    disk.create(name)
        .map_err(|e| StoreError::io("create", name, e))
}

fn encode(opens: u64, state: &MemberState) -> Result<Vec<u8>> {
    let kept = Kept {
        opens,
        state: state.clone(),
    };
    serde_json::to_vec(&kept).map_err(|e| StoreError::corrupt(STATE, e.to_string()))
}

fn decode(raw: &[u8]) -> Result<Kept> {
    let kept: Kept =
        serde_json::from_slice(raw).map_err(|e| StoreError::corrupt(STATE, e.to_string()))?;
    match kept.state.record.problem() {
        Some(problem) => Err(StoreError::corrupt(STATE, problem)),
        None => Ok(kept),
    }
}

fn foreign(why: String) -> StoreError {
    StoreError::Foreign {
        what: FILE.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;
    use trivet_protocol::{
        Generation, MemberInfo, MemberKind, Millis, Position, Record, RecordVersion,
    };

    fn state() -> MemberState {
        let info = |i: u8, kind| MemberInfo {
            id: MemberId::from_bytes([i; 16]),
            node: format!("n{i}"),
            kind,
            opens: 0,
            durable: Position::default(),
        };
        let record = Record {
            version: RecordVersion::default(),
            volume: VolumeId::from_bytes([9; 16]),
            blocks: 8,
            members: vec![info(1, MemberKind::Replica), info(2, MemberKind::Witness)],
            in_sync: [MemberId::from_bytes([1; 16])].into(),
            min_copies: 1,
            lease: Millis(2000),
            losses: 0,
        };
        MemberState::new(MemberId::from_bytes([2; 16]), record)
    }

    #[test]
    fn what_is_kept_survives_a_power_cut_and_openings_are_counted() {
        let disk = SimDisk::new();
        Witness::create(&disk.dir(), &state()).unwrap();
        let (mut w, mut kept) = Witness::open(&disk.dir(), None).unwrap();
        assert_eq!((w.opens(), &kept), (1, &state()));
        kept.promise = Generation {
            number: 4,
            claim: 44,
        };
        w.keep(&kept).unwrap();
        for seed in 0..8 {
            disk.crash(seed);
            let (w, again) = Witness::open(&disk.dir(), None).unwrap();
            assert_eq!((w.opens(), &again), (seed + 2, &kept), "seed {seed}");
        }
        assert!(
            Witness::create(&disk.dir(), &state()).is_err(),
            "made twice"
        );
        let other = Some((state().record.volume, MemberId::from_bytes([3; 16])));
        assert!(Witness::open(&disk.dir(), other).is_err());
    }

    #[test]
    fn a_witness_whose_state_is_gone_is_lost_and_stays_so() {
        let disk = SimDisk::new();
        Witness::create(&disk.dir(), &state()).unwrap();
        disk.dir().remove(STATE).unwrap();
        assert!(Witness::open(&disk.dir(), None).is_err());
        assert!(Witness::create(&disk.dir(), &state()).is_err());
        assert!(Witness::open(&disk.dir(), None).is_err(), "still lost");
    }

    #[test]
    fn a_making_that_was_cut_short_is_no_witness_and_can_be_made_again() {
        let disk = SimDisk::new();
        SlotFile::create(&disk.dir(), STATE, 1, b"half").unwrap();
        assert!(Witness::open(&disk.dir(), None).is_err());
        Witness::create(&disk.dir(), &state()).unwrap();
        assert!(Witness::open(&disk.dir(), None).is_ok());
    }
}
