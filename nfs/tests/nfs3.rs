//! The procedures on a real file system: the corner cases that servers get wrong.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::real::Disk;
use common::{EXPORT, config, export, info, serve, serve_with, url};
use trivet_nfs::NfsServer;
use trivet_nfs::client::nfs::{
    Fattr, Fh, NfsClient, NfsClientError, NfsResult, get_fattr, get_post, get_wcc, put_sattr,
};
use trivet_nfs::client::rpc::{RpcClient, next_xid};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::rpc::message::{Credential, SysCredential, decode_reply, encode_call};
use trivet_nfs::xdr::{Dec, Enc};

struct World {
    disk: Disk,
    server: NfsServer,
}

fn world() -> World {
    let disk = Disk::new();
    let server = serve(disk.mount());
    World { disk, server }
}

impl World {
    fn client(&self) -> NfsClient {
        NfsClient::mount(&url(&self.server, EXPORT), false).unwrap()
    }

    fn as_user(&self, uid: u32) -> NfsClient {
        let mut c = self.client();
        c.rpc.credential = Credential::Sys(SysCredential {
            machine: b"t".to_vec(),
            uid,
            gid: uid,
            groups: vec![],
        });
        c
    }
}

fn status<T>(r: NfsResult<T>) -> u32 {
    match r {
        Ok(_) => 0,
        Err(NfsClientError::Status { status, .. }) => status,
        Err(e) => panic!("{e}"),
    }
}

/// CREATE with `how` encoded by the caller.
fn create(c: &mut NfsClient, dir: &[u8], name: &[u8], how: impl FnOnce(&mut Enc)) -> NfsResult<Fh> {
    let mut d = c.call(8, "CREATE", |e| {
        e.opaque(dir).opaque(name);
        how(e);
    })?;
    assert!(d.bool()?);
    Ok(d.opaque(64)?)
}

fn setattr(c: &mut NfsClient, fh: &[u8], size: Option<u64>, guard: Option<(u32, u32)>) -> u32 {
    status(c.call(2, "SETATTR", |e| {
        e.opaque(fh);
        put_sattr(e, None, size);
        e.bool(guard.is_some());
        if let Some((s, n)) = guard {
            e.u32(s).u32(n);
        }
    }))
}

#[test]
fn what_is_written_is_read_and_the_end_is_exact() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let fh = c.create(&root, b"f", None).unwrap();
    let data: Vec<u8> = (0..300_001u32).map(|n| (n * 7) as u8).collect();
    assert_eq!(c.write(&fh, 5, &data, 2).unwrap().1, 2);
    assert_eq!(c.getattr(&fh).unwrap().size, 300_006);
    let (got, eof) = c.read(&fh, 5, 1 << 20).unwrap();
    assert!(eof && got == data);
    let (got, eof) = c.read(&fh, 5, 300_000).unwrap();
    assert!(!eof && got.len() == 300_000);
    let (got, eof) = c.read(&fh, 5, 300_001).unwrap();
    assert!(eof && got.len() == 300_001);
    for past in [300_006, 300_007, 1 << 62] {
        let (got, eof) = c.read(&fh, past, 10).unwrap();
        assert!(eof && got.is_empty(), "at {past}");
    }
    // Zeros before the first byte.
    assert_eq!(&c.read(&fh, 0, 6).unwrap().0[..], &[0, 0, 0, 0, 0, data[0]]);
}

#[test]
fn the_verifier_is_the_same_everywhere_and_no_part_of_handles() {
    let disk = Disk::new();
    let fs = disk.mount();
    let exports = vec![export(
        EXPORT,
        "/",
        &["127.0.0.0/8(rw,no_root_squash,insecure)"],
    )];
    let first = NfsServer::start(config(exports.clone()), fs.clone(), Arc::new(|| info(1, 0)));
    let second = NfsServer::start(config(exports.clone()), fs.clone(), Arc::new(|| info(2, 0)));
    let third = NfsServer::start(config(exports), fs, Arc::new(|| info(1, 1)));
    let mut seen = Vec::new();
    let mut handle = None;
    for server in [first.unwrap(), second.unwrap(), third.unwrap()] {
        let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
        let root = c.root.clone();
        let fh = c.create(&root, b"f", None).unwrap();
        assert_eq!(*handle.get_or_insert(fh.clone()), fh);
        let v: Vec<[u8; 8]> = vec![
            c.write(&fh, 0, b"a", 0).unwrap().2,
            c.write(&fh, 0, b"a", 2).unwrap().2,
            c.write(&fh, 0, b"", 0).unwrap().2,
            c.commit(&fh).unwrap(),
        ];
        assert!(v.iter().all(|x| *x == v[0]), "one verifier in all replies");
        assert!(
            !seen.contains(&v[0]),
            "another reign or loss, another verifier"
        );
        seen.push(v[0]);
    }
}

#[test]
fn handles_outlive_rename_restart_and_the_last_name() {
    let mut w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let fh = c.create(&root, b"a", None).unwrap();
    c.write(&fh, 0, b"kept", 2).unwrap();
    let renamed = c.call(14, "RENAME", |e| {
        e.opaque(&root).opaque(b"a").opaque(&root).opaque(b"b");
    });
    assert_eq!(status(renamed), 0);
    assert_eq!(&c.read(&fh, 0, 9).unwrap().0[..], b"kept");
    drop(c);
    w.server.stop();
    w.server = serve(w.disk.mount());
    let mut c = w.client();
    assert_eq!(c.root, root);
    assert_eq!(&c.read(&fh, 0, 9).unwrap().0[..], b"kept");
    c.remove(&root, b"b").unwrap();
    assert_eq!(status(c.getattr(&fh)), 70, "ESTALE when it is gone");
}

#[test]
fn create_keeps_to_its_mode() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let with_mode = |kind: u32, mode: u32, size: Option<u64>| {
        move |e: &mut Enc| {
            e.u32(kind);
            put_sattr(e, Some(mode), size);
        }
    };
    let fh = create(&mut c, &root, b"f", with_mode(0, 0o640, None)).unwrap();
    c.write(&fh, 0, b"12345", 2).unwrap();
    // UNCHECKED on an existing file: of the attributes only the size counts.
    let again = create(&mut c, &root, b"f", with_mode(0, 0o777, None)).unwrap();
    assert_eq!(again, fh);
    let attr = c.getattr(&fh).unwrap();
    assert_eq!((attr.mode, attr.size), (0o640, 5));
    create(&mut c, &root, b"f", with_mode(0, 0o777, Some(2))).unwrap();
    let attr = c.getattr(&fh).unwrap();
    assert_eq!((attr.mode, attr.size), (0o640, 2));
    // GUARDED.
    assert_eq!(
        status(create(&mut c, &root, b"f", with_mode(1, 0o644, None))),
        17
    );
    // EXCLUSIVE: its own repetition (with another xid) finds it, another verifier does not.
    let exclusive = |v: [u8; 8]| {
        move |e: &mut Enc| {
            e.u32(2).fixed(&v);
        }
    };
    let x = create(&mut c, &root, b"x", exclusive([1; 8])).unwrap();
    assert_eq!(create(&mut c, &root, b"x", exclusive([1; 8])).unwrap(), x);
    assert_eq!(
        status(create(
            &mut c,
            &root,
            b"x",
            exclusive([1, 1, 1, 1, 1, 1, 1, 2])
        )),
        17
    );
    assert_eq!(status(create(&mut c, &root, b"f", exclusive([1; 8]))), 17);
    assert_eq!(status(create(&mut c, &fh, b"y", exclusive([1; 8]))), 20);
}

#[test]
fn names_are_checked() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    for (name, want) in [
        (&b""[..], &[22, 13, 2][..]),
        (b"a/b", &[22, 13, 2]),
        (b"a\0b", &[22, 13, 2]),
        (&[b'x'; 256], &[63]),
        (&[b'x'; 5000], &[63]),
    ] {
        let got = status(c.create(&root, name, None));
        assert!(want.contains(&got), "create {:?}: {got}", name.len());
        let got = status(c.lookup(&root, name));
        assert!(want.contains(&got), "lookup {:?}: {got}", name.len());
    }
    for name in [&b"."[..], b".."] {
        assert_ne!(status(c.create(&root, name, None)), 0);
        assert_ne!(status(c.mkdir(&root, name)), 0);
        assert_ne!(status(c.remove(&root, name)), 0);
    }
    // Any other bytes will do.
    let odd = b"\xff\xfe \n\t\x01";
    let fh = c.create(&root, odd, None).unwrap();
    assert_eq!(c.lookup(&root, odd).unwrap().0, fh);
    assert_eq!(status(c.lookup(&root, &[b'y'; 255])), 2);
    c.create(&root, &[b'y'; 255], None).unwrap();
}

#[test]
fn the_wrong_kind_of_object_gets_the_rfc_s_status() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let dir = c.mkdir(&root, b"d").unwrap();
    let file = c.create(&root, b"f", None).unwrap();
    assert_eq!(
        status(c.write(&dir, 0, b"x", 0)),
        22,
        "WRITE to a directory"
    );
    assert_eq!(
        status(c.write(&dir, 0, b"", 0)),
        22,
        "WRITE of nothing to a directory"
    );
    assert!(
        [21, 22].contains(&status(c.read(&dir, 0, 1))),
        "READ of a directory"
    );
    assert_eq!(status(c.commit(&dir)), 22, "COMMIT of a directory");
    assert!(
        [1, 21].contains(&status(c.remove(&root, b"d"))),
        "REMOVE of a directory"
    );
    let rmdir = |c: &mut NfsClient, name: &[u8]| {
        status(c.call(13, "RMDIR", |e| {
            e.opaque(&root).opaque(name);
        }))
    };
    assert_eq!(rmdir(&mut c, b"f"), 20);
    c.create(&dir, b"inside", None).unwrap();
    assert!([17, 66].contains(&rmdir(&mut c, b"d")));
    let link = c.call(15, "LINK", |e| {
        e.opaque(&dir).opaque(&root).opaque(b"l");
    });
    assert!([1, 21, 22].contains(&status(link)), "LINK of a directory");
    assert_eq!(status(c.lookup(&file, b"x")), 20);
    let readlink = c.call(5, "READLINK", |e| {
        e.opaque(&file);
    });
    assert_eq!(status(readlink), 22);
    let mknod = c.call(11, "MKNOD", |e| {
        e.opaque(&root).opaque(b"n").u32(1);
        put_sattr(e, None, None);
    });
    assert_eq!(status(mknod), 10_007, "MKNOD of a regular file");
}

#[test]
fn links_renames_and_their_attributes() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let file = c.create(&root, b"a", None).unwrap();
    let mut d = c
        .call(15, "LINK", |e| {
            e.opaque(&file).opaque(&root).opaque(b"b");
        })
        .unwrap();
    let attr = get_post(&mut d).unwrap().unwrap();
    assert_eq!(
        (attr.kind, attr.nlink),
        (1, 2),
        "LINK returns the file's attributes"
    );
    let (before, after) = get_wcc(&mut d).unwrap();
    assert!(d.is_empty());
    let (before, after) = (before.unwrap(), after.unwrap());
    assert!(after.times[2] > before.2, "ctime goes up with each change");
    assert_eq!(after.kind, 2);
    // Onto another name of the same file: nothing happens, successfully.
    let same = c.call(14, "RENAME", |e| {
        e.opaque(&root).opaque(b"a").opaque(&root).opaque(b"b");
    });
    assert_eq!(status(same), 0);
    assert_eq!(c.getattr(&file).unwrap().nlink, 2);
    let dir = c.mkdir(&root, b"d").unwrap();
    c.create(&dir, b"x", None).unwrap();
    c.mkdir(&root, b"e").unwrap();
    let over = c.call(14, "RENAME", |e| {
        e.opaque(&root).opaque(b"e").opaque(&root).opaque(b"d");
    });
    assert!(
        [17, 66].contains(&status(over)),
        "over a directory with entries"
    );
    let into_itself = c.call(14, "RENAME", |e| {
        e.opaque(&root).opaque(b"d").opaque(&dir).opaque(b"z");
    });
    assert_eq!(status(into_itself), 22);
}

#[test]
fn a_guard_that_does_not_match_stops_setattr() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let fh = c.create(&root, b"f", None).unwrap();
    let ctime = c.getattr(&fh).unwrap().times[2];
    assert_eq!(
        setattr(&mut c, &fh, Some(10), Some((ctime.0, ctime.1 ^ 1))),
        10_002
    );
    assert_eq!(c.getattr(&fh).unwrap().size, 0);
    assert_eq!(setattr(&mut c, &fh, Some(10), Some(ctime)), 0);
    assert_eq!(c.getattr(&fh).unwrap().size, 10);
    assert_eq!(setattr(&mut c, &fh, Some(20), Some(ctime)), 10_002);
    assert_ne!(setattr(&mut c, &fh, Some(u64::MAX), None), 0);
    let top = i64::MAX as u64;
    assert_eq!(setattr(&mut c, &fh, Some(top), None), 0, "sizes to 2^63-1");
    assert_eq!(c.getattr(&fh).unwrap().size, top);
}

#[test]
fn permissions_are_the_caller_s_and_owners_may_go_on() {
    let w = world();
    let mut root_client = w.client();
    let root = root_client.root.clone();
    let dir = create_dir_for_all(&mut root_client, &root);
    let mut one = w.as_user(1000);
    let mut two = w.as_user(1001);
    let fh = create(&mut one, &dir, b"f", |e| {
        e.u32(0);
        put_sattr(e, Some(0o600), None);
    })
    .unwrap();
    assert_eq!(one.getattr(&fh).unwrap().uid, 1000);
    assert_eq!(status(two.write(&fh, 0, b"x", 2)), 13);
    assert_eq!(status(two.read(&fh, 0, 1)), 13);
    // Zero bytes ask for permission all the same.
    assert_eq!(status(two.write(&fh, 0, b"", 2)), 13);
    let mode = |c: &mut NfsClient, mode| {
        status(c.call(2, "SETATTR", |e| {
            e.opaque(&fh);
            put_sattr(e, Some(mode), None);
            e.bool(false);
        }))
    };
    assert_eq!(mode(&mut two, 0o777), 1);
    // The owner who opened the file and then took his own rights goes on writing.
    assert_eq!(mode(&mut one, 0), 0);
    assert_eq!(status(one.write(&fh, 0, b"x", 2)), 0);
    assert_eq!(status(one.read(&fh, 0, 1)), 0);
    // ACCESS, which is asked at open, says what the mode says.
    let access = |c: &mut NfsClient| {
        let mut d = c
            .call(4, "ACCESS", |e| {
                e.opaque(&fh).u32(0x3f);
            })
            .unwrap();
        get_post(&mut d).unwrap();
        d.u32().unwrap()
    };
    assert_eq!(access(&mut one), 0);
    assert_eq!(
        access(&mut root_client) & 0x2d,
        0x0d,
        "root reads and writes, and executes nothing"
    );
    // Set-id bits go with a write of an unprivileged caller.
    assert_eq!(mode(&mut one, 0o6755), 0);
    assert_eq!(status(one.write(&fh, 0, b"y", 2)), 0);
    assert_eq!(one.getattr(&fh).unwrap().mode & 0o6000, 0);
    // Execute permission suffices to read: the client runs the program.
    assert_eq!(mode(&mut one, 0o711), 0);
    assert_eq!(status(two.read(&fh, 0, 1)), 0);
}

fn create_dir_for_all(c: &mut NfsClient, root: &[u8]) -> Fh {
    let mut d = c
        .call(9, "MKDIR", |e| {
            e.opaque(root).opaque(b"all");
            put_sattr(e, Some(0o777), None);
        })
        .unwrap();
    d.bool().unwrap();
    d.opaque(64).unwrap()
}

struct Listed {
    names: Vec<Vec<u8>>,
    cookie: u64,
    eof: bool,
}

fn readdirplus(
    c: &mut NfsClient,
    dir: &[u8],
    cookie: u64,
    dircount: u32,
    max: u32,
) -> NfsResult<Listed> {
    let mut d = c.call(17, "READDIRPLUS", |e| {
        e.opaque(dir)
            .u64(cookie)
            .fixed(&[0; 8])
            .u32(dircount)
            .u32(max);
    })?;
    assert!(
        d.rest().len() + 4 <= max as usize,
        "the whole result is counted"
    );
    get_post(&mut d)?;
    assert_eq!(d.fixed::<8>()?, [0; 8]);
    let mut out = Listed {
        names: Vec::new(),
        cookie,
        eof: false,
    };
    while d.bool()? {
        let id = d.u64()?;
        out.names.push(d.opaque(255)?);
        out.cookie = d.u64()?;
        assert!(out.cookie < 1 << 63);
        let attr = get_post(&mut d)?.unwrap();
        assert_eq!(attr.fileid, id);
        assert!(d.bool()?);
        d.opaque(64)?;
    }
    out.eof = d.bool()?;
    assert!(d.is_empty());
    Ok(out)
}

#[test]
fn listings_are_complete_bounded_and_survive_deletion() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let dir = c.mkdir(&root, b"d").unwrap();
    for n in 0..300 {
        c.create(&dir, format!("file-{n}").as_bytes(), None)
            .unwrap();
    }
    // Delete while listing, as rm -r does.
    let (mut cookie, mut seen, mut rounds) = (0, Vec::new(), 0);
    loop {
        let list = readdirplus(&mut c, &dir, cookie, 512, 4096).unwrap();
        rounds += 1;
        for name in &list.names {
            if name != b"." && name != b".." {
                c.remove(&dir, name).unwrap();
            }
        }
        seen.extend(list.names);
        cookie = list.cookie;
        if list.eof {
            break;
        }
    }
    seen.sort();
    let total = seen.len();
    seen.dedup();
    assert_eq!((seen.len(), total), (302, 302), "each entry once");
    assert!(rounds > 15, "dircount counts");
    // Room for nothing is TOOSMALL, never an empty listing that goes on.
    assert_eq!(status(readdirplus(&mut c, &dir, 0, 512, 100)), 10_005);
    let readdir = c.call(16, "READDIR", |e| {
        e.opaque(&dir).u64(0).fixed(&[0; 8]).u32(16);
    });
    assert_eq!(status(readdir), 10_005);
}

#[test]
fn the_root_of_an_export_is_its_own_parent() {
    let disk = Disk::new();
    let fs = disk.mount();
    let whole = serve(fs.clone());
    let mut c = NfsClient::mount(&url(&whole, EXPORT), false).unwrap();
    let root = c.root.clone();
    let sub = c.mkdir(&root, b"sub").unwrap();
    c.mkdir(&sub, b"below").unwrap();
    let exports = vec![export(
        "/sub",
        "/sub",
        &["127.0.0.1(rw,no_root_squash,insecure)"],
    )];
    let server = serve_with(config(exports), fs);
    let mut c = NfsClient::mount(&url(&server, "/sub"), false).unwrap();
    let top = c.root.clone();
    assert_eq!(c.lookup(&top, b"..").unwrap().0, top);
    let list = readdirplus(&mut c, &top, 0, 4096, 4096).unwrap();
    assert!(list.names.contains(&b"..".to_vec()));
    let (below, _) = c.lookup(&top, b"below").unwrap();
    assert_eq!(c.lookup(&below, b"..").unwrap().0, top);
    // A directory below an export can be mounted, its handles belong to the export.
    let c2 = NfsClient::mount(&url(&server, "/sub/below"), false).unwrap();
    assert_eq!(c2.root, below);
    // Between exports neither links nor renames.
    assert_eq!(status(NfsClient::mount(&url(&server, "/vm"), false)), 2);
}

#[test]
fn the_limits_are_told_truly_for_any_object() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let file = c.create(&root, b"f", None).unwrap();
    let mut fsinfo = c
        .call(19, "FSINFO", |e| {
            e.opaque(&file);
        })
        .unwrap();
    get_post(&mut fsinfo).unwrap().unwrap();
    let words: Vec<u32> = (0..7).map(|_| fsinfo.u32().unwrap()).collect();
    assert_eq!(words[..2], [1 << 20, 1 << 20]);
    assert_eq!(words[3..5], [1 << 20, 1 << 20]);
    assert_eq!(fsinfo.u64().unwrap(), i64::MAX as u64, "files to 2^63-1");
    assert_eq!((fsinfo.u32().unwrap(), fsinfo.u32().unwrap()), (0, 1));
    assert_eq!(fsinfo.u32().unwrap(), 0x1b);
    let mut pathconf = c
        .call(20, "PATHCONF", |e| {
            e.opaque(&file);
        })
        .unwrap();
    get_post(&mut pathconf).unwrap().unwrap();
    pathconf.u32().unwrap();
    assert_eq!(pathconf.u32().unwrap(), 255);
    let flags: Vec<u32> = (0..4).map(|_| pathconf.u32().unwrap()).collect();
    assert_eq!(flags, [1, 1, 0, 1]);
    let fsstat = |c: &mut NfsClient| {
        let mut d = c
            .call(18, "FSSTAT", |e| {
                e.opaque(&file);
            })
            .unwrap();
        get_post(&mut d).unwrap().unwrap();
        (d.u64().unwrap(), d.u64().unwrap())
    };
    let (total, free) = fsstat(&mut c);
    assert!(total <= 512 << 20 && free > 400 << 20);
    let full: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8 | 1).collect();
    for n in 0..20 {
        c.write(&file, n << 20, &full, 0).unwrap();
    }
    c.commit(&file).unwrap();
    let (_, after) = fsstat(&mut c);
    assert!(
        free - after >= 20 << 20,
        "what is written is no longer free"
    );
    assert!(c.getattr(&file).unwrap().used >= 20 << 20);
}

/// A call as bytes, so that it can be repeated as a client repeats it.
fn encoded(xid: u32, procedure: u32, args: impl FnOnce(&mut Enc)) -> Vec<u8> {
    let mut e = Enc::new();
    e.u32(0);
    let root = Credential::Sys(SysCredential::default());
    encode_call(&mut e, xid, (PROGRAM, 3, procedure), &root);
    args(&mut e);
    let len = e.len() - 4;
    e.patch_u32(0, trivet_nfs::rpc::record::mark(len));
    e.into_vec()
}

fn reply_to(server: &NfsServer, bytes: &[u8]) -> Vec<u8> {
    let timeout = std::time::Duration::from_secs(10);
    let mut c = RpcClient::connect(server.address(), timeout, false).unwrap();
    c.send_raw(bytes).unwrap();
    let mut d: Dec = c.receive().unwrap();
    decode_reply(&mut d).unwrap().1.unwrap();
    d.rest().to_vec()
}

/// Invariant 9: a repetition gets the first answer, from any connection, also after a restart;
/// the same xid with other arguments is another call.
#[test]
fn a_repeated_call_has_its_effect_once() {
    let mut w = world();
    let mut c = w.client();
    let root = c.root.clone();
    c.create(&root, b"a", None).unwrap();
    let remove = |xid, name: &[u8]| {
        encoded(xid, 12, |e| {
            e.opaque(&root).opaque(name);
        })
    };
    let mkdir = |xid, name: &[u8]| {
        encoded(xid, 9, |e| {
            e.opaque(&root).opaque(name);
            put_sattr(e, Some(0o755), None);
        })
    };
    let xid = next_xid();
    let first = reply_to(&w.server, &remove(xid, b"a"));
    assert_eq!(first[..4], [0, 0, 0, 0]);
    assert_eq!(reply_to(&w.server, &remove(xid, b"a")), first);
    assert_eq!(
        reply_to(&w.server, &remove(xid + 1, b"a"))[..4],
        [0, 0, 0, 2]
    );
    let made = reply_to(&w.server, &mkdir(xid, b"d"));
    assert_eq!(made[..4], [0, 0, 0, 0], "same xid, another procedure");
    assert_eq!(reply_to(&w.server, &mkdir(xid, b"e"))[..4], [0, 0, 0, 0]);
    drop(c);
    w.server.stop();
    w.server = serve(w.disk.mount());
    assert_eq!(
        reply_to(&w.server, &remove(xid, b"a")),
        first,
        "after a restart"
    );
    assert_eq!(
        reply_to(&w.server, &mkdir(xid, b"d")),
        made,
        "after a restart"
    );
    assert_eq!(
        w.server
            .nfs()
            .replays()
            .answered
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

#[test]
fn symlinks_and_special_files() {
    let w = world();
    let mut c = w.client();
    let root = c.root.clone();
    let target = b"../any bytes\xff, not resolved here";
    let mut d = c
        .call(10, "SYMLINK", |e| {
            e.opaque(&root).opaque(b"s");
            put_sattr(e, None, None);
            e.opaque(target);
        })
        .unwrap();
    d.bool().unwrap();
    let link = d.opaque(64).unwrap();
    let mut d = c
        .call(5, "READLINK", |e| {
            e.opaque(&link);
        })
        .unwrap();
    assert_eq!(get_post(&mut d).unwrap().unwrap().kind, 5);
    assert_eq!(d.opaque(4096).unwrap(), target);
    for (kind, name) in [(4u32, b"c"), (3, b"b"), (6, b"k"), (7, b"p")] {
        let mut d = c
            .call(11, "MKNOD", |e| {
                e.opaque(&root).opaque(name).u32(kind);
                put_sattr(e, Some(0o600), None);
                if kind <= 4 {
                    e.u32(8).u32(300);
                }
            })
            .unwrap();
        d.bool().unwrap();
        d.opaque(64).unwrap();
        d.bool().unwrap();
        let rest = d.clone();
        let attr: Fattr = get_fattr(&mut d).unwrap();
        assert_eq!(attr.kind, kind);
        if kind <= 4 {
            assert_eq!(rest.rest()[36..44], [0, 0, 0, 8, 0, 0, 1, 44], "rdev");
        }
    }
}
