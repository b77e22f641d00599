//! What the volume refuses is not lost, and does not stand in the way: a pool that is full, a
//! lease that is lapsed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use common::{MemVolume, Rng, seeds};
use trivet_fs::*;
use trivet_replica::volume::VolumeError;

fn new_fs(blocks: u64) -> (Arc<MemVolume>, Arc<Fs>) {
    let volume = Arc::new(MemVolume::new(blocks));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let settings = Settings {
        // Only the test hands anything over.
        commit_interval: std::time::Duration::from_secs(3600),
        ..Settings::default()
    };
    (volume.clone(), Fs::mount(volume, settings).unwrap())
}

fn file(fs: &Fs, name: &str) -> InodeId {
    let (root, attr) = (Creds::root(), NewAttr::default());
    fs.create(
        Ctx::new(&root),
        fs.root(),
        name.as_bytes(),
        CreateHow::Guarded,
        attr,
    )
    .unwrap()
    .value
    .attr
    .id
}

fn write(fs: &Fs, id: InodeId, offset: u64, data: Vec<u8>) -> FsResult<()> {
    let root = Creds::root();
    fs.write(Ctx::new(&root), id, offset, Bytes::from(data))
        .map(|_| ())
}

fn content(fs: &Fs, id: InodeId) -> Vec<u8> {
    let out = fs.read(&Creds::root(), id, 0, MAX_IO as u32).unwrap();
    out.concat().to_vec()
}

fn unlink(fs: &Fs, name: &str) {
    let root = Creds::root();
    fs.unlink(Ctx::new(&root), fs.root(), name.as_bytes())
        .unwrap();
}

fn clean(volume: &MemVolume) {
    let report = fsck(volume).unwrap();
    assert!(report.is_clean(), "{report}");
}

fn flush(fs: &Fs) -> FsResult<()> {
    fs.flush(fs.last_mark())
}

/// It used to stick: the refused batch was offered first for ever, and every deletion queued
/// behind it.
#[test]
fn a_deletion_makes_room_for_what_was_refused() {
    let (volume, fs) = new_fs(40_000);
    let old = file(&fs, "old");
    write(&fs, old, 0, vec![1; 1 << 20]).unwrap();
    flush(&fs).unwrap();
    volume.full.store(true, Ordering::Relaxed);
    let new = file(&fs, "new");
    write(&fs, new, 0, vec![2; 1 << 19]).unwrap();
    assert!(matches!(flush(&fs), Err(FsError::NoSpace(_))));
    // Not lost, only not durable.
    assert_eq!(content(&fs, new), vec![2; 1 << 19]);
    clean(&volume.fork());
    unlink(&fs, "old");
    flush(&fs).unwrap();
    assert_eq!(content(&fs, new), vec![2; 1 << 19]);
    clean(&volume.fork());
    fs.close().unwrap();
    let fs = Fs::mount(volume, Settings::default()).unwrap();
    let id = fs.lookup(&Creds::root(), fs.root(), b"new").unwrap().0.id;
    assert_eq!(content(&fs, id), vec![2; 1 << 19]);
}

#[test]
fn what_was_refused_may_itself_be_deleted() {
    let (volume, fs) = new_fs(40_000);
    file(&fs, "first");
    flush(&fs).unwrap();
    volume.full.store(true, Ordering::Relaxed);
    let new = file(&fs, "new");
    write(&fs, new, 0, vec![2; 1 << 19]).unwrap();
    assert!(matches!(flush(&fs), Err(FsError::NoSpace(_))));
    unlink(&fs, "new");
    flush(&fs).unwrap();
    fs.close().unwrap();
    clean(&volume);
}

/// A lapse that lasts longer than the volume's own patience is an error to who waits for
/// durability, and nothing more: it used to stop the file system until it was mounted again.
#[test]
fn a_lapsed_lease_refuses_and_goes_on() {
    let (volume, fs) = new_fs(40_000);
    let id = file(&fs, "f");
    write(&fs, id, 0, vec![1; 4096]).unwrap();
    flush(&fs).unwrap();
    volume.held.store(false, Ordering::Release);
    write(&fs, id, 0, vec![2; 4096]).unwrap();
    for _ in 0..3 {
        let refused = flush(&fs);
        let lapsed = matches!(refused, Err(FsError::Volume(VolumeError::NotActive(_))));
        assert!(lapsed, "{refused:?}");
    }
    volume.held.store(true, Ordering::Release);
    write(&fs, id, 4096, vec![3; 4096]).unwrap();
    flush(&fs).unwrap();
    let fork = volume.fork();
    clean(&fork);
    let again = Fs::mount(Arc::new(fork), Settings::default()).unwrap();
    let want = [[2; 4096], [3; 4096]].concat();
    assert_eq!(content(&again, id), want);
    fs.close().unwrap();
}

/// Random calls while the pool fills up and empties: readers never see a difference, what is on
/// the volume is whole at every moment, and when there is room again all of it becomes durable.
#[test]
fn random_calls_on_a_pool_that_is_full_at_times() {
    for seed in seeds(40) {
        println!("TRIVET_SEED={seed}");
        let mut rng = Rng::new(seed);
        let (volume, fs) = new_fs(40_000);
        let mut model: HashMap<String, (InodeId, Vec<u8>)> = HashMap::new();
        for _ in 0..120 {
            let name = format!("f{}", rng.below(6));
            let known = model.get(&name).map(|m| m.0);
            match (rng.below(12), known) {
                (0, _) => volume.full.store(rng.below(2) == 0, Ordering::Relaxed),
                (1 | 2, _) => match flush(&fs) {
                    Ok(()) | Err(FsError::NoSpace(_)) => clean(&volume.fork()),
                    Err(e) => panic!("{e}"),
                },
                (3, Some(_)) => {
                    unlink_if_room(&fs, &name, &mut model);
                }
                (4 | 5, Some(id)) => {
                    let at = rng.below(60) * 4096 + rng.below(3) * 100;
                    let root = Creds::root();
                    let set = SetAttr {
                        size: Some(at),
                        ..SetAttr::default()
                    };
                    if fs.setattr(Ctx::new(&root), id, set).is_ok() {
                        model.get_mut(&name).unwrap().1.resize(at as usize, 0);
                    }
                }
                (_, Some(id)) => {
                    let at = rng.below(60) * 4096 + rng.below(3) * 100;
                    let data = vec![1 + rng.below(255) as u8; 1 + rng.below(100_000) as usize];
                    if write(&fs, id, at, data.clone()).is_ok() {
                        let (at, end) = (at as usize, at as usize + data.len());
                        let file = &mut model.get_mut(&name).unwrap().1;
                        file.resize(file.len().max(end), 0);
                        file[at..end].copy_from_slice(&data);
                    }
                }
                (_, None) => {
                    let root = Creds::root();
                    let (how, attr) = (CreateHow::Guarded, NewAttr::default());
                    let made = fs.create(Ctx::new(&root), fs.root(), name.as_bytes(), how, attr);
                    if let Ok(made) = made {
                        model.insert(name.clone(), (made.value.attr.id, Vec::new()));
                    }
                }
            }
            if let Some((id, want)) = model.get(&name) {
                assert!(content(&fs, *id) == *want, "seed {seed}: {name}");
            }
        }
        volume.full.store(false, Ordering::Relaxed);
        flush(&fs).unwrap();
        let fork = volume.fork();
        clean(&fork);
        let again = Fs::mount(Arc::new(fork), Settings::default()).unwrap();
        for (name, (id, want)) in &model {
            assert!(content(&again, *id) == *want, "seed {seed}: {name} again");
        }
    }
}

fn unlink_if_room(fs: &Fs, name: &str, model: &mut HashMap<String, (InodeId, Vec<u8>)>) {
    let root = Creds::root();
    match fs.unlink(Ctx::new(&root), fs.root(), name.as_bytes()) {
        Ok(_) => drop(model.remove(name)),
        Err(FsError::NoSpace(_)) => {}
        Err(e) => panic!("{e}"),
    }
}
