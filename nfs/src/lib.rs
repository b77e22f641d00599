//! The NFSv3 export: RPC, portmap, MOUNT, NFS, NLM and NSM over the file system's calls.
//!
//! `xdr` and `rpc` know messages and threads and nothing of files; `export` who may do what;
//! `handle` what clients hold; `portmap`, `mount`, `nfs3`, `nlm` one program each; `commit` and
//! `replay` what makes an answer durable and given once; `register` the system's rpcbind;
//! `client` the other side; `server` wires them. [`NfsServer::start`] is the way in.

pub mod client;
pub mod commit;
pub mod export;
pub mod handle;
pub mod mount;
pub mod nfs3;
pub mod nlm;
pub mod nsm;
pub mod portmap;
mod reaper;
pub mod register;
pub mod replay;
pub mod rpc;
mod server;
pub mod xdr;

pub use server::{Discovery, Found, NfsConfig, NfsError, NfsServer, Watch};
