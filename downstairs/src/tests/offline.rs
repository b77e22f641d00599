//! Files become regions and files again, on a real directory.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::disk::sim::Rng;
use crate::error::StoreError;
use crate::offline::{ExportOptions, ImportOptions, Problem, dump, export, import, verify};

const MIB: u64 = 1 << 20;

/// 70 MiB and 123 bytes, with data here and there: long runs, single blocks, the odd end.
fn sparse_file(path: &Path) -> u64 {
    let file = File::create(path).unwrap();
    let bytes = 70 * MIB + 123;
    file.set_len(bytes).unwrap();
    let mut rng = Rng(5);
    let mut put = |at: u64, n: usize| {
        let data: Vec<u8> = (0..n).map(|_| rng.draw() as u8).collect();
        file.write_all_at(&data, at).unwrap();
    };
    put(0, 3000);
    put(3 * MIB, 2 * MIB as usize + 17);
    put(63 * MIB, 3 * MIB as usize);
    put(bytes - 200, 200);
    // Written zeros are not holes to the file system, but unwritten blocks to us.
    file.write_all_at(&vec![0; MIB as usize], 40 * MIB).unwrap();
    bytes
}

fn options() -> ImportOptions {
    ImportOptions {
        log_bytes: Some(8 * MIB),
        ..ImportOptions::default()
    }
}

#[test]
fn what_goes_in_comes_out_to_the_byte_and_holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region, target) = (
        dir.path().join("in"),
        dir.path().join("region"),
        dir.path().join("out"),
    );
    let bytes = sparse_file(&source);
    let mut last = (0, 0);
    let mut progress = |done, all| {
        assert!(done >= last.0 && done <= all);
        last = (done, all);
    };
    let imported = import(&source, &region, &options(), &mut progress).unwrap();
    assert_eq!(last, (bytes, bytes));
    assert_eq!(imported.region.blocks, bytes.div_ceil(4096));
    assert_eq!(imported.written_blocks, 1 + 513 + 768 + 2);
    assert!(
        import(&source, &region, &options(), &mut |_, _| {}).is_err(),
        "never over another"
    );

    let done = export(&region, &target, ExportOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(
        (done.bytes, done.written_blocks),
        (bytes, imported.written_blocks)
    );
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    let allocated = std::fs::metadata(&target).unwrap().blocks() * 512;
    assert!(allocated < 8 * MIB, "{allocated} bytes for 5 MiB of data");

    let found = verify(&region, &mut |_, _| {}).unwrap();
    assert!(found.is_sound(), "{found:?}");
    assert_eq!(found.written_blocks, imported.written_blocks);
    let mut text = Vec::new();
    dump(&region, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("e/00000001") && text.contains("opens 1"),
        "{text}"
    );
}

#[test]
fn verify_names_a_rotten_block_and_export_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region, target) = (
        dir.path().join("in"),
        dir.path().join("region"),
        dir.path().join("out"),
    );
    sparse_file(&source);
    import(&source, &region, &options(), &mut |_, _| {}).unwrap();
    let extent = region.join("e/00000000");
    let file = File::options().read(true).write(true).open(extent).unwrap();
    let at = 282_624 + 3 * MIB + 4096 * 7 + 9;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let found = verify(&region, &mut |_, _| {}).unwrap();
    assert_eq!(found.problems, [Problem::Content(3 * MIB / 4096 + 7)]);
    let e = export(&region, &target, ExportOptions::default(), &mut |_, _| {}).unwrap_err();
    assert!(
        matches!(e, StoreError::CorruptBlocks { first: 775, .. }),
        "{e}"
    );
    std::fs::remove_file(&target).unwrap();
    let forensic = ExportOptions { forensic: true };
    let done = export(&region, &target, forensic, &mut |_, _| {}).unwrap();
    assert_eq!(done.bad_blocks, 1);
}
