//! The node daemon: which node is active for which volume, and how that moves.
//!
//! - [`config`]: `trivet.toml`, the same on all nodes;
//! - [`node`]: what this node keeps, is, and has heard of the others;
//! - [`role`]: one volume on this node: standby, active, or between the two;
//! - [`members`]: who keeps a volume, changed by command while it is served;
//! - [`agent`]: whose turn it is to take over, as a pure function;
//! - [`stack`]: what runs on the active node, and in which order it starts and ends;
//! - [`net`]: the network namespace with the service address;
//! - [`supervisor`], [`guard`]: the parent that puts right what a dead daemon leaves behind;
//! - [`metrics`]: what is seen from outside, over HTTP;
//! - [`child`]: commands that are run, each within its time;
//! - [`host`]: its clocks and interfaces, for `trivet doctor`;
//! - [`messages`], [`control`], [`client`]: what nodes and operators ask.
//!
//! Safety lies beneath, in the members' promises (invariants 1 and 2): whatever is decided here,
//! two nodes cannot both be acknowledged. What lies here is that service goes on, soon.

mod addresses;
pub mod agent;
pub mod child;
pub mod client;
mod clients;
pub mod config;
pub mod control;
mod error;
pub mod events;
pub mod guard;
pub mod host;
mod known;
pub mod members;
pub mod messages;
pub mod metrics;
pub mod net;
pub mod node;
pub mod role;
pub mod scrub;
pub mod stack;
pub mod state;
pub mod supervisor;
mod timeline;

pub use config::Config;
pub use error::{NodeError, Result};
pub use node::Node;
pub use stack::open_fs;
pub use state::State;
