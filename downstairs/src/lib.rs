//! One replica of a volume: a log, then extents; and the member that votes for it.

pub mod member;
