//! What is seen from outside: `GET /metrics` for Prometheus and `GET /healthz` for whoever asks
//! whether this daemon does its part.
//!
//! - [`Figures`]: what the hot paths count, without a lock;
//! - [`mod@text`]: those and the node's own report in Prometheus' text format;
//! - [`Http`]: the server.
//!
//! Neither needs a key, and both only tell: the address is a setting, and nowhere unless set.

mod figures;
mod http;
pub mod text;

pub use figures::Figures;
pub use http::Http;
