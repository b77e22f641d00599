//! Stories about a whole region on a simulated disk.

mod basics;
mod damage;
mod model;
mod random;
