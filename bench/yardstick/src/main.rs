//! A null file system behind `nfsserve`: `trivet-yardstick [ADDRESS:PORT]`, export `/`. As ours in
//! `nfs/examples/null-server.rs`: one regular file of fixed size that reads as zeros, where writes
//! are taken at once. What differs is the server.

use async_trait::async_trait;
use nfsserve::nfs::{
    fattr3, fileid3, filename3, ftype3, nfspath3, nfsstat3, nfstime3, sattr3, specdata3,
};
use nfsserve::tcp::{NFSTcp, NFSTcpListener};
use nfsserve::vfs::{NFSFileSystem, ReadDirResult, VFSCapabilities};

const ROOT: fileid3 = 1;
const FILE: fileid3 = 2;
const SIZE: u64 = 1 << 30;

struct Null;

fn attributes(id: fileid3) -> fattr3 {
    let time = || nfstime3 {
        seconds: 1,
        nseconds: 0,
    };
    fattr3 {
        ftype: match id {
            ROOT => ftype3::NF3DIR,
            _ => ftype3::NF3REG,
        },
        mode: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: SIZE,
        used: SIZE,
        rdev: specdata3::default(),
        fsid: 7,
        fileid: id,
        atime: time(),
        mtime: time(),
        ctime: time(),
    }
}

type Answer<T> = Result<T, nfsstat3>;

fn no<T>() -> Answer<T> {
    Err(nfsstat3::NFS3ERR_NOTSUPP)
}

#[async_trait]
impl NFSFileSystem for Null {
    fn capabilities(&self) -> VFSCapabilities {
        VFSCapabilities::ReadWrite
    }
    fn root_dir(&self) -> fileid3 {
        ROOT
    }
    async fn lookup(&self, _: fileid3, _: &filename3) -> Answer<fileid3> {
        Ok(FILE)
    }
    async fn getattr(&self, id: fileid3) -> Answer<fattr3> {
        Ok(attributes(id))
    }
    async fn setattr(&self, id: fileid3, _: sattr3) -> Answer<fattr3> {
        Ok(attributes(id))
    }
    async fn read(&self, _: fileid3, _: u64, count: u32) -> Answer<(Vec<u8>, bool)> {
        // Its interface wants a vector of its own for each answer.
        Ok((vec![0; count.min(1 << 20) as usize], false))
    }
    async fn write(&self, id: fileid3, _: u64, _: &[u8]) -> Answer<fattr3> {
        Ok(attributes(id))
    }
    async fn create(&self, _: fileid3, _: &filename3, _: sattr3) -> Answer<(fileid3, fattr3)> {
        Ok((FILE, attributes(FILE)))
    }
    async fn create_exclusive(&self, _: fileid3, _: &filename3) -> Answer<fileid3> {
        Ok(FILE)
    }
    async fn mkdir(&self, _: fileid3, _: &filename3) -> Answer<(fileid3, fattr3)> {
        no()
    }
    async fn remove(&self, _: fileid3, _: &filename3) -> Answer<()> {
        Ok(())
    }
    async fn rename(&self, _: fileid3, _: &filename3, _: fileid3, _: &filename3) -> Answer<()> {
        no()
    }
    async fn readdir(&self, _: fileid3, _: fileid3, _: usize) -> Answer<ReadDirResult> {
        no()
    }
    async fn symlink(
        &self,
        _: fileid3,
        _: &filename3,
        _: &nfspath3,
        _: &sattr3,
    ) -> Answer<(fileid3, fattr3)> {
        no()
    }
    async fn readlink(&self, _: fileid3) -> Answer<nfspath3> {
        no()
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listen = std::env::args().nth(1);
    let listen = listen.unwrap_or("127.0.0.1:20491".into());
    let server = NFSTcpListener::bind(&listen, Null).await?;
    println!("nfsserve at {listen}, export /");
    server.handle_forever().await
}
