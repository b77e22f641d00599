//! Single calls and corners: permissions, exclusive create, guards, kept answers, locks, open
//! files without names, full volumes, growth, damage.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use common::MemVolume;
use trivet_fs::lock::*;
use trivet_fs::*;

fn new_fs(blocks: u64) -> (Arc<MemVolume>, Arc<Fs>) {
    let volume = Arc::new(MemVolume::new(blocks));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
    (volume, fs)
}

fn file(fs: &Fs, name: &[u8]) -> InodeId {
    let root = Creds::root();
    let attr = NewAttr {
        mode: 0o644,
        ..NewAttr::default()
    };
    let how = CreateHow::Unchecked;
    let made = fs.create(Ctx::new(&root), fs.root(), name, how, attr);
    made.unwrap().value.attr.id
}

fn write(fs: &Fs, id: InodeId, at: u64, data: Vec<u8>) -> FsResult<Done<Change>> {
    fs.write(Ctx::new(&Creds::root()), id, at, Bytes::from(data))
}

fn clean(volume: &MemVolume) {
    let report = fsck(volume).unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn exclusive_create_is_repeatable_and_durable() {
    let (volume, fs) = new_fs(4096);
    let root = Creds::root();
    let create = |fs: &Fs, v: u8| {
        let how = CreateHow::Exclusive([v; 8]);
        fs.create(Ctx::new(&root), fs.root(), b"x", how, NewAttr::default())
    };
    let first = create(&fs, 1).unwrap();
    fs.flush(first.mark).unwrap();
    assert!(first.value.created);
    assert_eq!(create(&fs, 2).unwrap_err(), FsError::Exists);
    // After a crash the same call, sent again, still finds its own work.
    let fs = Fs::mount(Arc::new(volume.fork()), Settings::default()).unwrap();
    let again = create(&fs, 1).unwrap();
    assert!(!again.value.created);
    assert_eq!(again.value.attr.id, first.value.attr.id);
    // The first setattr ends that.
    let id = again.value.attr.id;
    fs.setattr(Ctx::new(&root), id, SetAttr::default()).unwrap();
    assert_eq!(create(&fs, 1).unwrap_err(), FsError::Exists);
}

#[test]
fn a_guard_that_does_not_match_changes_nothing() {
    let (_, fs) = new_fs(4096);
    let (id, root) = (file(&fs, b"f"), Creds::root());
    let before = fs.getattr(id).unwrap();
    let set = |guard| SetAttr {
        mode: Some(0o600),
        guard: Some(guard),
        ..SetAttr::default()
    };
    let wrong = fs.setattr(Ctx::new(&root), id, set(Time::default()));
    assert_eq!(wrong.unwrap_err(), FsError::NotSync);
    assert_eq!(fs.getattr(id).unwrap(), before);
    let done = fs.setattr(Ctx::new(&root), id, set(before.ctime)).unwrap();
    assert_eq!(done.value.before, before);
    assert!(done.value.after.ctime > before.ctime);
}

#[test]
fn every_change_makes_the_ctime_later() {
    let (_, fs) = new_fs(4096);
    let id = file(&fs, b"f");
    let mut last = fs.getattr(id).unwrap().ctime;
    for i in 0..1000 {
        let done = write(&fs, id, (i % 7) * 512, vec![i as u8; 100]).unwrap();
        assert!(done.value.after.ctime > last);
        assert_eq!(fs.getattr(id).unwrap().ctime, done.value.after.ctime);
        last = done.value.after.ctime;
    }
}

/// Given a plain overwrite whose times had not reached the inode's item, when the machine
/// crashes, then the mounted file has a ctime that no one has seen, so that no cache is trusted.
#[test]
fn after_a_crash_overwritten_files_look_changed() {
    let (volume, fs) = new_fs(4096);
    let id = file(&fs, b"f");
    write(&fs, id, 0, vec![1; 4096]).unwrap();
    fs.flush(fs.last_mark()).unwrap();
    let known = fs.getattr(id).unwrap().ctime;
    let done = write(&fs, id, 0, vec![2; 4096]).unwrap();
    fs.flush(done.mark).unwrap();
    let second = write(&fs, id, 0, vec![3; 4096]).unwrap();
    let batches = volume.batches();
    fs.flush(second.mark).unwrap();
    // The second overwrite cost one batch of one block.
    assert_eq!(volume.batches(), batches + 1);
    assert_eq!(volume.batch(batches).data_blocks(), 1);
    let again = Fs::mount(Arc::new(volume.fork()), Settings::default()).unwrap();
    assert!(again.getattr(id).unwrap().ctime > known);
    let out = again.read(&Creds::root(), id, 0, 4096).unwrap();
    assert!(out.concat().iter().all(|b| *b == 3));
}

#[test]
fn an_open_file_without_a_name_lives_until_it_is_closed() {
    let (volume, fs) = new_fs(4096);
    let (id, root) = (file(&fs, b"f"), Creds::root());
    write(&fs, id, 0, vec![5; 100_000]).unwrap();
    let free = fs.statfs().unwrap().free_bytes;
    fs.open_ref(id).unwrap();
    fs.unlink(Ctx::new(&root), fs.root(), b"f").unwrap();
    assert_eq!(fs.getattr(id).unwrap().nlink, 0);
    assert_eq!(fs.read(&root, id, 99_999, 10).unwrap().len(), 1);
    fs.flush(fs.last_mark()).unwrap();
    // A crash meanwhile frees it; fsck is content before and after.
    let crashed = Arc::new(volume.fork());
    clean(&crashed);
    let again = Fs::mount(crashed.clone(), Settings::default()).unwrap();
    again.close().unwrap();
    clean(&crashed);
    fs.close_ref(id);
    assert_eq!(fs.getattr(id).unwrap_err(), FsError::Stale(id.ino));
    assert!(fs.statfs().unwrap().free_bytes > free);
}

#[test]
fn permissions_are_those_of_posix() {
    let (_, fs) = new_fs(4096);
    let (id, root) = (file(&fs, b"f"), Creds::root());
    let (owner, other) = (Creds::user(10, 20, &[30]), Creds::user(11, 21, &[]));
    let set = |creds: &Creds, set| fs.setattr(Ctx::new(creds), id, set).map(|d| d.value.after);
    let chown = SetAttr {
        uid: Some(10),
        gid: Some(20),
        ..SetAttr::default()
    };
    set(&root, chown).unwrap();
    let chmod = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    assert_eq!(
        set(&other, chmod(0o777)).unwrap_err(),
        FsError::NotPermitted
    );
    assert_eq!(set(&owner, chmod(0o6755)).unwrap().mode, 0o6755);
    let group = |gid| SetAttr {
        gid: Some(gid),
        ..SetAttr::default()
    };
    assert_eq!(set(&owner, group(40)).unwrap_err(), FsError::NotPermitted);
    // A group of one's own is fine, and clears the set-id bits.
    assert_eq!(set(&owner, group(30)).unwrap().mode, 0o755);
    let data = Bytes::from_static(b"x");
    let denied = fs.write(Ctx::new(&other), id, 0, data.clone());
    assert_eq!(denied.unwrap_err(), FsError::Access);
    set(&owner, chmod(0o6777)).unwrap();
    let done = fs.write(Ctx::new(&other), id, 0, data.clone()).unwrap();
    assert_eq!(done.value.after.mode, 0o777);
    // Without an open call the owner may always write, and execute permission reads.
    set(&owner, chmod(0o111)).unwrap();
    let stateless = |c: &Creds| Creds {
        stateless: true,
        ..c.clone()
    };
    assert!(fs.write(Ctx::new(&owner), id, 0, data.clone()).is_err());
    assert!(fs.write(Ctx::new(&stateless(&owner)), id, 0, data).is_ok());
    assert!(fs.read(&other, id, 0, 1).is_err());
    assert!(fs.read(&stateless(&other), id, 0, 1).is_ok());
    // In a sticky directory only owners take entries away.
    let sticky = SetAttr {
        mode: Some(0o1777),
        ..SetAttr::default()
    };
    fs.setattr(Ctx::new(&root), fs.root(), sticky).unwrap();
    let r = fs.unlink(Ctx::new(&other), fs.root(), b"f");
    assert_eq!(r.unwrap_err(), FsError::NotPermitted);
    fs.unlink(Ctx::new(&owner), fs.root(), b"f").unwrap();
}

#[test]
fn kept_answers_survive_a_crash_with_their_effect() {
    let (volume, fs) = new_fs(4096);
    let root = Creds::root();
    let encode = |made: &Made| made.attr.id.ino.0.to_le_bytes().to_vec();
    let mkdir = |fs: &Fs, n: u32| {
        let key = n.to_le_bytes();
        let ctx = Ctx {
            replay: Some(Replay {
                client: 9,
                key: &key,
                encode: &encode,
            }),
            ..Ctx::new(&root)
        };
        let name = format!("d{n}");
        fs.mkdir(ctx, fs.root(), name.as_bytes(), NewAttr::default())
    };
    let done = mkdir(&fs, 1).unwrap();
    let batches = volume.batches();
    fs.flush(done.mark).unwrap();
    assert_eq!(
        volume.batches(),
        batches + 1,
        "effect and answer are one batch"
    );
    let again = Fs::mount(Arc::new(volume.fork()), Settings::default()).unwrap();
    let answer = again.replay(9, &1u32.to_le_bytes()).unwrap().unwrap();
    assert_eq!(&answer[..], encode(&done.value));
    assert_eq!(again.replay(8, &1u32.to_le_bytes()).unwrap(), None);
    // A client evicts only its own, oldest first.
    for n in 2..700 {
        mkdir(&again, n).unwrap();
    }
    assert_eq!(again.replay(9, &1u32.to_le_bytes()).unwrap(), None);
    assert!(again.replay(9, &699u32.to_le_bytes()).unwrap().is_some());
}

fn nlm(host: &str, svid: u32) -> LockOwner {
    LockOwner::Nlm {
        host: host.into(),
        handle: vec![1],
        svid,
    }
}

fn call(owner: LockOwner, kind: LockKind, start: u64, len: u64) -> LockCall {
    LockCall {
        family: LockFamily::Range,
        owner,
        kind,
        range: LockRange::from_len(start, len),
    }
}

#[test]
fn locks_of_clients_survive_restart_and_waiters_are_served() {
    let (volume, fs) = new_fs(4096);
    let id = file(&fs, b"f");
    let exclusive = |host, svid| call(nlm(host, svid), LockKind::Exclusive, 0, 100);
    let done = fs.lock(id, &exclusive("a", 1), None).unwrap();
    fs.flush(done.mark).unwrap();
    let local = LockOwner::Local { owner: 5, pid: 6 };
    fs.lock(id, &call(local, LockKind::Exclusive, 200, 0), None)
        .unwrap();
    let again = Fs::mount(Arc::new(volume.fork()), Settings::default()).unwrap();
    assert_eq!(
        again.lock_list(10).len(),
        1,
        "the local mount's lock is gone"
    );
    let held = again.lock_test(id, &exclusive("b", 1)).unwrap().unwrap();
    assert_eq!(held.owner, nlm("a", 1));
    assert_eq!(
        again.lock(id, &exclusive("b", 1), None).unwrap_err(),
        FsError::Locked
    );
    let (tx, rx) = mpsc::channel();
    let wait: LockWait = Box::new(move |r| tx.send(r).unwrap());
    assert!(
        !again
            .lock(id, &exclusive("b", 1), Some(wait))
            .unwrap()
            .value
    );
    assert!(rx.try_recv().is_err());
    // The client dies: its locks go, the waiter is let in, and told.
    let dead = |o: &LockOwner| matches!(o, LockOwner::Nlm { host, .. } if host == b"a");
    assert_eq!(again.lock_release(None, &dead).unwrap().value, 1);
    assert!(rx.recv().unwrap().is_ok());
    assert_eq!(again.lock_list(10)[0].1.owner, nlm("b", 1));
    again.close().unwrap();
}

/// A symlink's mode is 0777 and stays so, as on Linux: nothing asks it, and nothing may show one.
#[test]
fn the_mode_of_a_symlink_is_not_set() {
    let (_, fs) = new_fs(4096);
    let root = Creds::root();
    let made = fs.symlink(Ctx::new(&root), fs.root(), b"l", b"to", NewAttr::default());
    let id = made.unwrap().value.attr.id;
    let set = SetAttr {
        mode: Some(0o600),
        uid: Some(7),
        ..SetAttr::default()
    };
    let after = fs.setattr(Ctx::new(&root), id, set).unwrap().value.after;
    assert_eq!((after.mode, after.uid), (0o777, 7));
}

/// A repeated lock call is answered when the first one is durable, not before: else a crash takes
/// back what the client was told.
#[test]
fn a_repeated_lock_call_waits_for_the_first() {
    let (_, fs) = new_fs(4096);
    let id = file(&fs, b"f");
    for kind in [LockKind::Exclusive, LockKind::Unlock] {
        let ask = call(nlm("a", 1), kind, 0, 100);
        let first = fs.lock(id, &ask, None).unwrap().mark;
        let again = fs.lock(id, &ask, None).unwrap().mark;
        assert!(again >= first, "{kind:?}: {again:?} for {first:?}");
        fs.flush(again).unwrap();
    }
    let local = call(
        LockOwner::Local { owner: 5, pid: 6 },
        LockKind::Unlock,
        0,
        9,
    );
    assert_eq!(fs.lock(id, &local, None).unwrap().mark, Mark(0));
}

#[test]
fn a_full_file_system_says_so_and_recovers() {
    let (volume, fs) = new_fs(2048);
    let root = Creds::root();
    let mut files = 0;
    loop {
        let name = format!("f{files}");
        let how = CreateHow::Guarded;
        let made = fs.create(
            Ctx::new(&root),
            fs.root(),
            name.as_bytes(),
            how,
            NewAttr::default(),
        );
        let Ok(made) = made else { break };
        files += 1;
        match write(&fs, made.value.attr.id, 0, vec![7; 50_000]) {
            Ok(_) => {}
            Err(FsError::NoSpace(_)) => break,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(files > 100);
    assert!(fs.statfs().unwrap().free_bytes < 60_000);
    fs.flush(fs.last_mark()).unwrap();
    clean(&volume.fork());
    for i in 0..files {
        let name = format!("f{i}");
        fs.unlink(Ctx::new(&root), fs.root(), name.as_bytes())
            .unwrap();
    }
    assert!(fs.statfs().unwrap().free_bytes > 7_000_000);
    let id = file(&fs, b"again");
    write(&fs, id, 0, vec![1; 1 << 20]).unwrap();
    fs.close().unwrap();
    clean(&volume);
}

#[test]
fn a_full_pool_beneath_refuses_new_blocks_but_not_overwrites() {
    let (volume, fs) = new_fs(40_960);
    let id = file(&fs, b"f");
    write(&fs, id, 0, vec![1; 1 << 20]).unwrap();
    volume.room.store(4096, Ordering::Relaxed);
    let denied = write(&fs, id, 1 << 20, vec![1; 4096]);
    assert!(matches!(denied, Err(FsError::NoSpace(_))));
    write(&fs, id, 0, vec![2; 1 << 20]).unwrap();
    assert_eq!(fs.statfs().unwrap().free_bytes, 4096);
}

#[test]
fn grows_while_mounted() {
    let (volume, fs) = new_fs(2048);
    let before = fs.statfs().unwrap();
    assert_eq!(fs.grow(100_000 * 4096 - 1).unwrap(), 100_000 * 4096);
    assert_eq!(fs.grow(4096).unwrap(), 100_000 * 4096, "nothing shrinks");
    let after = fs.statfs().unwrap();
    assert_eq!(after.total_bytes, 100_000 * 4096);
    assert!(after.free_bytes > before.free_bytes + 90_000 * 4096);
    let id = file(&fs, b"f");
    for i in 0..100u64 {
        write(&fs, id, i << 20, vec![i as u8 | 1; 1 << 20]).unwrap();
    }
    fs.close().unwrap();
    clean(&volume);
    let again = Fs::mount(volume, Settings::default()).unwrap();
    for i in 0..100u64 {
        let out = again.read(&Creds::root(), id, (i << 20) + 77, 1).unwrap();
        assert_eq!(out.concat()[0], i as u8 | 1);
    }
}

#[test]
fn sizes_and_offsets_at_their_limits() {
    let (volume, fs) = new_fs(4096);
    let (id, root) = (file(&fs, b"huge"), Creds::root());
    let end = i64::MAX as u64;
    write(&fs, id, end - 3, vec![9; 3]).unwrap();
    assert_eq!(
        write(&fs, id, end - 2, vec![9; 3]).unwrap_err(),
        FsError::TooBig
    );
    assert_eq!(fs.getattr(id).unwrap().size, end);
    assert_eq!(
        fs.read(&root, id, end - 3, 100).unwrap().concat()[..],
        [9; 3]
    );
    assert_eq!(fs.seek(id, 0, Seek::Data).unwrap(), end / 4096 * 4096);
    assert_eq!(fs.seek(id, 0, Seek::Hole).unwrap(), 0);
    assert_eq!(fs.read(&root, id, u64::MAX, 10).unwrap().len(), 0);
    let punch = fs.fallocate(Ctx::new(&root), id, 0, end, Fallocate::PunchHole);
    punch.unwrap();
    assert_eq!(fs.getattr(id).unwrap().used, 4096);
    fs.close().unwrap();
    clean(&volume);
}

#[test]
fn a_large_directory_keeps_its_cookies_while_entries_go() {
    let (volume, fs) = new_fs(100_000);
    let root = Creds::root();
    let n = 20_000;
    for i in 0..n {
        let name = format!("entry-number-{i}");
        let (how, attr) = (CreateHow::Guarded, NewAttr::default());
        fs.create(Ctx::new(&root), fs.root(), name.as_bytes(), how, attr)
            .unwrap();
    }
    // rm -rf: listing and removing at once must meet every entry exactly once.
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let page = fs.readdir(&root, fs.root(), cookie, 100, false).unwrap();
        for e in &page.entries {
            cookie = e.cookie;
            if e.kind == FileKind::File {
                fs.unlink(Ctx::new(&root), fs.root(), &e.name).unwrap();
                seen += 1;
            }
        }
        if page.eof {
            break;
        }
    }
    assert_eq!(seen, n);
    assert_eq!(fs.statfs().unwrap().inodes, 1);
    fs.close().unwrap();
    let report = fsck(&*volume).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.pages, 1, "an emptied tree is small again");
}

/// Given a metadata block that is damaged everywhere, then what it held is EIO and named by fsck,
/// and the rest works.
#[test]
fn damage_is_contained_and_named() {
    let (volume, fs) = new_fs(40_000);
    for i in 0..2000 {
        let id = file(&fs, format!("f{i}").as_bytes());
        write(&fs, id, 0, vec![1; 10]).unwrap();
    }
    fs.close().unwrap();
    let report = fsck(&*volume).unwrap();
    assert!(report.is_clean() && report.pages > 20);
    let mut named = 0;
    for block in 5..40 {
        let bad = Arc::new(volume.fork());
        bad.corrupt(block, 2000);
        let report = fsck(&*bad).unwrap();
        named += u64::from(!report.is_clean());
        // Nothing panics, whatever is asked.
        let Ok(fs) = Fs::mount(bad, Settings::default()) else {
            continue;
        };
        let root = Creds::root();
        let good = (0..2000).filter(|i| {
            fs.lookup(&root, fs.root(), format!("f{i}").as_bytes())
                .is_ok()
        });
        let _ = good.count();
        let _ = fs.readdir(&root, fs.root(), 0, 4096, true);
        let _ = fs.mkdir(Ctx::new(&root), fs.root(), b"new", NewAttr::default());
    }
    assert!(named > 20, "{named} damaged blocks named");
}

#[test]
fn what_is_no_file_system_is_refused_with_a_reason() {
    let volume = Arc::new(MemVolume::new(1000));
    let why = |v: &Arc<MemVolume>| match Fs::mount(v.clone(), Settings::default()) {
        Err(FsError::Mount(why)) => why,
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("mounted"),
    };
    assert!(why(&volume).contains("no file system"));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    assert!(
        mkfs(&*volume, &MkfsOptions::default()).is_err(),
        "not over another"
    );
    for (at, word) in [(0, "something else"), (12, "version"), (100, "checksum")] {
        let other = Arc::new(volume.fork());
        other.corrupt(0, at);
        assert!(why(&other).contains(word), "{}", why(&other));
    }
}

#[test]
fn acls_are_inherited_and_enforced() {
    let (_, fs) = new_fs(4096);
    let root = Creds::root();
    let mut acl = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in [
        (1u16, 7u16, none),
        (2, 6, 50),
        (4, 5, none),
        (16, 7, none),
        (32, 0, none),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let name = b"system.posix_acl_default";
    fs.set_xattr(Ctx::new(&root), fs.root(), name, &acl, XattrHow::Set)
        .unwrap();
    let attr = NewAttr {
        mode: 0o666,
        umask: 0o077,
        ..NewAttr::default()
    };
    let made = fs
        .create(Ctx::new(&root), fs.root(), b"f", CreateHow::Guarded, attr)
        .unwrap();
    let id = made.value.attr.id;
    assert_eq!(made.value.attr.mode, 0o660, "the ACL counts, not the umask");
    let data = Bytes::from_static(b"x");
    fs.write(Ctx::new(&Creds::user(50, 1, &[])), id, 0, data.clone())
        .unwrap();
    assert!(
        fs.write(Ctx::new(&Creds::user(51, 1, &[])), id, 0, data.clone())
            .is_err()
    );
    // chmod takes rights from the mask.
    let set = SetAttr {
        mode: Some(0o640),
        ..SetAttr::default()
    };
    fs.setattr(Ctx::new(&root), id, set).unwrap();
    assert!(
        fs.write(Ctx::new(&Creds::user(50, 1, &[])), id, 0, data)
            .is_err()
    );
    assert!(fs.read(&Creds::user(50, 1, &[]), id, 0, 1).is_ok());
}

/// xfstests generic/375: it stayed, where the kernel had checked the caller.
#[test]
fn an_acl_by_one_outside_the_group_takes_the_set_group_bit() {
    let (_, fs) = new_fs(4096);
    let root = Creds::root();
    let attr = NewAttr::default();
    let made = fs.create(Ctx::new(&root), fs.root(), b"f", CreateHow::Guarded, attr);
    let id = made.unwrap().value.attr.id;
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [(1u16, 7u16), (4, 7), (32, 5)] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    for (groups, mode) in [(&[9][..], 0o2775), (&[8], 0o775)] {
        let set = SetAttr {
            mode: Some(0o2777),
            uid: Some(50),
            gid: Some(9),
            ..SetAttr::default()
        };
        fs.setattr(Ctx::new(&root), id, set).unwrap();
        let owner = Creds {
            checked: true,
            ..Creds::user(50, 1, groups)
        };
        let name = b"system.posix_acl_access";
        fs.set_xattr(Ctx::new(&owner), id, name, &acl, XattrHow::Set)
            .unwrap();
        assert_eq!(fs.getattr(id).unwrap().mode, mode);
    }
}
