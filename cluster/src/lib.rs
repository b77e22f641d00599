//! Puts the block layer together: which regions make a volume, who serves them, who is active.
//!
//! - [`volume_file`]: `volume.toml`, which says whom a volume was made of, so that a region that is
//!   gone is known to be lost and is never silently made anew (design, section 5);
//! - [`create()`]: makes a volume's regions; a creation cut short is finished by the next one;
//! - [`make_ready()`]: makes a region or witness ready to come into a volume that exists;
//! - [`recover()`]: makes a new volume of one region of one whose majority is gone for ever;
//! - [`Host`]: opens the regions of some pools and serves them on one port;
//! - [`attach()`]: an upstairs to members anywhere, activated;
//! - [`Embedded`]: three hosts and the upstairs in this process. Nothing is a special path: the
//!   same servers, the same connections on loopback; only reads of the local replica need none;
//! - [`process`]: a `trivet downstairs run` as a child, for measurements and tests.
//!
//! Nothing here decides who counts: that is the record's and the state machines' business.

mod adopt;
mod attach;
mod create;
mod embedded;
mod error;
mod host;
mod join;
mod keys;
pub mod process;
mod recover;
pub mod volume_file;

pub use adopt::Adoptable;
pub use attach::{Attach, Local, Reach, attach};
pub use create::create;
pub use embedded::{Embedded, Options};
pub use error::{ClusterError, Problem, Result};
pub use host::Host;
pub use join::{Joining, make_ready};
pub use keys::KeyFiles;
pub use recover::recover;
pub use volume_file::{Place, VolumeFile};
