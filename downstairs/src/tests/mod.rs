//! Stories about a whole region on a simulated disk.

mod basics;
mod damage;
mod offline;
mod random;
mod resync;
mod scrub;
mod space;
