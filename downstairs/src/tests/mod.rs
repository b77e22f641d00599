//! Stories about a whole region on a simulated disk.

mod basics;
mod damage;
mod model;
mod offline;
mod random;
mod resync;
mod space;
