//! Placeholder head; filled by the crate.
