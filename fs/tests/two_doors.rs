//! One file system, two doors: a program on the FUSE mount and a caller of the library. What one
//! changes, the other sees at once, whatever the kernel had cached. Needs /dev/fuse and root;
//! says so and passes where they are missing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use common::MemVolume;
use trivet_fs::fuse::{FuseOptions, mount};
use trivet_fs::*;

#[test]
fn each_door_sees_the_others_changes_at_once() {
    let volume = Arc::new(MemVolume::new(40_000));
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let lib = Fs::mount(volume.clone(), Settings::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mounted = match mount(lib.clone(), dir.path(), &FuseOptions::default()) {
        Ok(mounted) => mounted,
        Err(e) => return eprintln!("skipped: cannot mount here: {e}"),
    };
    let (root, path) = (Creds::root(), |name: &str| dir.path().join(name));

    // From FUSE to the library.
    fs::write(path("a"), [1; 10_000]).unwrap();
    let a = lib.lookup(&root, lib.root(), b"a").unwrap().0;
    let out = lib.read(&root, a.id, 0, 20_000).unwrap();
    assert_eq!(out.concat()[..], [1; 10_000]);

    // Content that the kernel has cached.
    let mut file = File::open(path("a")).unwrap();
    let mut buf = Vec::new();
    file.read_to_end(&mut buf).unwrap();
    let data = Bytes::from_static(b"other door");
    lib.write(Ctx::new(&root), a.id, 5000, data).unwrap();
    buf.clear();
    file.seek(SeekFrom::Start(5000)).unwrap();
    file.read_to_end(&mut buf).unwrap();
    assert_eq!(&buf[..10], b"other door");

    // Attributes, a size.
    let set = SetAttr {
        size: Some(7),
        mode: Some(0o600),
        ..SetAttr::default()
    };
    lib.setattr(Ctx::new(&root), a.id, set).unwrap();
    let meta = fs::metadata(path("a")).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (7, 0o600));
    assert_eq!(fs::read(path("a")).unwrap(), [1; 7]);

    // A name that was looked for in vain, then one that is gone.
    assert!(fs::metadata(path("b")).is_err());
    let how = CreateHow::Guarded;
    lib.create(Ctx::new(&root), lib.root(), b"b", how, NewAttr::default())
        .unwrap();
    assert!(fs::metadata(path("b")).is_ok());
    lib.unlink(Ctx::new(&root), lib.root(), b"b").unwrap();
    assert!(fs::metadata(path("b")).is_err());
    lib.rename(
        Ctx::new(&root),
        (lib.root(), b"a"),
        (lib.root(), b"c"),
        RenameHow::Replace,
    )
    .unwrap();
    assert!(fs::metadata(path("a")).is_err() && fs::metadata(path("c")).is_ok());

    // An open file whose name another door takes away lives on.
    lib.unlink(Ctx::new(&root), lib.root(), b"c").unwrap();
    file.read_at(&mut buf[..1], 3).unwrap();
    assert_eq!((buf[0], file.metadata().unwrap().nlink()), (1, 0));
    drop(file);
    assert!(mounted.unmount().unwrap());
    lib.close().unwrap();
    let report = fsck(&*volume).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.files, 0, "what was open is freed with the mount");
}
