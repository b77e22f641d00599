//! Names that no object can have, at every procedure that takes one (RFC 1813, 3.2). Found by
//! comparing with another server (docs/nfs-differential.md): the empty name was NOENT or INVAL,
//! and REMOVE of ".." said NOTEMPTY; a RENAME that has nothing to do asked for permission.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::real::Disk;
use common::{EXPORT, serve, url};
use trivet_nfs::client::nfs::{NfsClient, NfsClientError, put_sattr};
use trivet_nfs::rpc::message::{Credential, SysCredential};
use trivet_nfs::xdr::Enc;

const ACCES: u32 = 13;
const ISDIR: u32 = 21;
const INVAL: u32 = 22;
const NOTEMPTY: u32 = 66;

fn status(c: &mut NfsClient, procedure: u32, args: impl FnOnce(&mut Enc)) -> u32 {
    match c.call(procedure, "it", args) {
        Ok(_) => 0,
        Err(NfsClientError::Status { status, .. }) => status,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn the_empty_name_is_refused_by_every_procedure() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let file = c.create(&root, b"file", None).unwrap();
    let attributes = |e: &mut Enc| put_sattr(e, Some(0o644), None);
    for procedure in [3, 8, 9, 10, 11, 12, 13] {
        let got = status(&mut c, procedure, |e| {
            e.opaque(&root).opaque(b"");
            match procedure {
                8 => attributes(e.u32(0)),
                9 => attributes(e),
                10 => {
                    attributes(e);
                    e.opaque(b"target");
                }
                11 => attributes(e.u32(7)),
                _ => {}
            }
        });
        assert_eq!(got, ACCES, "procedure {procedure}");
    }
    let rename = |c: &mut NfsClient, from: &[u8], to: &[u8]| {
        status(c, 14, |e| {
            e.opaque(&root).opaque(from).opaque(&root).opaque(to);
        })
    };
    assert_eq!(rename(&mut c, b"", b"x"), ACCES);
    assert_eq!(rename(&mut c, b"file", b""), ACCES);
    let link = status(&mut c, 15, |e| {
        e.opaque(&file).opaque(&root).opaque(b"");
    });
    assert_eq!(link, ACCES);
}

#[test]
fn a_directory_s_names_for_itself_and_its_parent_are_not_removed() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let dir = c.mkdir(&root, b"dir").unwrap();
    let mut remove = |procedure, name: &[u8]| {
        status(&mut c, procedure, |e| {
            e.opaque(&dir).opaque(name);
        })
    };
    // REMOVE is for what is no directory.
    assert_eq!(remove(12, b"."), ISDIR);
    assert_eq!(remove(12, b".."), ISDIR);
    assert_eq!(remove(13, b"."), INVAL);
    assert_eq!(remove(13, b".."), NOTEMPTY);
}

#[test]
fn a_rename_between_two_names_of_one_file_does_nothing_and_is_allowed() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let dir = c.mkdir(&root, b"dir").unwrap(); // root's, mode 0755
    let file = c.create(&dir, b"a", None).unwrap();
    c.call(15, "LINK", |e| {
        e.opaque(&file).opaque(&dir).opaque(b"b");
    })
    .unwrap();
    c.create(&dir, b"other", None).unwrap();
    c.rpc.credential = Credential::Sys(SysCredential {
        machine: b"t".to_vec(),
        uid: 1000,
        gid: 1000,
        groups: vec![],
    });
    let mut rename = |from: &[u8], to: &[u8]| {
        status(&mut c, 14, |e| {
            e.opaque(&dir).opaque(from).opaque(&dir).opaque(to);
        })
    };
    // RFC 1813, 3.3.14: no action, and success.
    assert_eq!(rename(b"a", b"b"), 0);
    assert_eq!(rename(b"a", b"a"), 0);
    assert_eq!(rename(b"a", b"other"), ACCES);
    assert_eq!(rename(b"a", b"new"), ACCES);
    assert_eq!(rename(b"none", b"new"), ACCES);
}
