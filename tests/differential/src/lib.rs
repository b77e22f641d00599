//! The same random NFSv3 calls to two servers, their answers compared item by item.
//!
//! - `call`: one call as two servers get it (they differ in handles and nothing else), at random;
//! - `reply`: an answer as a list of named items; whatever does not decode to its last byte is
//!   malformed;
//! - `rules`: the differences that are allowed, each with its reason out of RFC 1813;
//! - `run`: calls, compares, and starts over in a new directory once the two trees differ.
//!
//! The same seed gives the same calls, as long as the answers are the same. Bounded by the number
//! of calls and the client's time-out for each.

pub mod call;
pub mod reply;
pub mod rules;
pub mod run;
