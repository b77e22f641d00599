//! Stories about a whole region on a simulated disk.

mod basics;
