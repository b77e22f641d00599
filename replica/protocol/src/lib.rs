//! The vocabulary that every part of Trivet shares: ids and units, operations, the membership
//! record, wire frames, limits and the recorder trait.
//!
//! Nothing in this crate opens a file, a socket or a clock. What is here may be depended on by
//! everybody; it depends on nobody.

pub mod breaks;
pub mod checksum;
pub mod entry;
pub mod frame;
pub mod ids;
pub mod io;
pub mod limits;
pub mod message;
pub mod record;
pub mod recorder;
pub mod time;

pub use checksum::Checksum;
pub use entry::{Batch, Entry, EntryError, Op};
pub use ids::{
    BLOCK_BYTES, Block, Generation, GenerationTable, MemberId, Millis, Position, Seq, VolumeId,
};
pub use record::{MemberInfo, MemberKind, Record, RecordVersion};
pub use recorder::{NullRecorder, Recorder};
pub use time::Now;
