//! A small RPC and NFSv3 client: for registration with a system's rpcbind, NLM call-backs, the
//! load generator, and tests.
//!
//! Blocking, one connection each; every wait has a time-out, every reply a size limit.

pub mod nfs;
pub mod rpc;
