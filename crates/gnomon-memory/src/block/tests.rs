//! Blocks as the kernel makes them.

use std::os::{fd::AsRawFd, unix::fs::FileExt};

use rustix::fs::fcntl_get_seals;

use super::*;

const SIZE: Bytes = Bytes(4 << 20);

fn group() -> GroupName {
    GroupName::new("block-tests").expect("a name")
}

fn block(id: u64) -> Block {
    Block::create(&group(), BlockId(id), SIZE, PageKind::Small).expect("made")
}

fn whole(id: u64) -> Block {
    let block = block(id);
    assert_eq!(block.populate(None, POPULATE_STEP, &mut || true).expect("populated"), Populated::Whole);
    block
}

fn all_bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![1; SIZE.0 as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn a_new_block_is_sealed_and_not_allocated() {
    let block = block(1);
    assert_eq!((block.size(), block.allocated().expect("told")), (SIZE, Bytes(0)));
    assert!(!block.is_whole());
    assert!(fcntl_get_seals(&block).expect("told").contains(SEALS));
    assert_eq!(ftruncate(&block, 0), Err(Errno::PERM));
    assert_eq!(fcntl_add_seals(&block, SealFlags::WRITE), Err(Errno::PERM));
}

#[test]
fn sizes_that_no_block_has_are_refused() {
    for (size, pages) in [(0, PageKind::Small), (4097, PageKind::Small), (4096, PageKind::Huge), (0, PageKind::Huge)]
    {
        let error = Block::create(&group(), BlockId(1), Bytes(size), pages).expect_err("no size");
        assert!(matches!(error, BlockError::BadSize { .. }), "{error}");
    }
}

#[test]
fn a_populated_block_is_allocated_and_zero() {
    let block = whole(2);
    assert_eq!(block.allocated().expect("told"), SIZE);
    assert!(block.is_whole());
    assert!(all_bytes(&block.file).iter().all(|byte| *byte == 0));
}

#[test]
fn population_stops_between_two_steps() {
    let (block, mut steps) = (block(3), 0);
    let mut go_on = || {
        steps += 1;
        steps <= 3
    };
    let step = Bytes(256 << 10);
    assert_eq!(block.populate(None, step, &mut go_on).expect("populated"), Populated::GivenUp);
    assert_eq!(block.allocated().expect("told"), Bytes(3 * step.0));
    assert!(!block.is_whole());
}

#[test]
fn steps_of_any_size_populate_all_of_it() {
    for step in [0, 1, 4096, 5000, SIZE.0 - 1, u64::MAX] {
        let block = Block::create(&group(), BlockId(4), Bytes(64 << 10), PageKind::Small).expect("made");
        assert_eq!(block.populate(None, Bytes(step), &mut || true).expect("populated"), Populated::Whole);
        assert!(block.is_whole(), "{step}");
    }
}

#[test]
fn nothing_of_a_guest_reaches_the_next_block() {
    let old = whole(5);
    let kept = old.file.try_clone().expect("a descriptor that a QEMU might keep");
    old.file.write_all_at(&vec![0xa5; SIZE.0 as usize], 0).expect("a guest wrote");
    old.release().expect("punched");
    let old_inode = old.inode();
    drop(old);
    let new = whole(6);
    assert_ne!(new.inode(), old_inode);
    assert!(all_bytes(&new.file).iter().all(|byte| *byte == 0), "the new block");
    assert_eq!(kept.metadata().expect("still open").blocks(), 0, "the old memfd holds no memory");
    assert!(all_bytes(&kept).iter().all(|byte| *byte == 0), "and shows nothing of what was there");
    kept.write_all_at(&[0xa5; 4096], 0).expect("whoever kept it still writes");
    assert!(all_bytes(&new.file).iter().all(|byte| *byte == 0), "which the new block does not see");
}

#[test]
fn a_block_is_found_again_by_its_name() {
    let one = whole(7_001);
    let again = one.file.try_clone().expect("another descriptor of the same");
    let found = blocks_of(std::process::id() as i32).expect("looked");
    let found: Vec<&Block> = found.iter().filter(|block| block.inode() == one.inode()).collect();
    assert_eq!(found.len(), 1, "once, though it is open twice");
    assert_eq!((found[0].group(), found[0].id(), found[0].size()), (&group(), BlockId(7_001), SIZE));
    assert!(found[0].is_whole());
    drop(again);
}

#[test]
fn a_memfd_that_is_only_called_a_block_is_not_one() {
    let loose = memfd("gnomon-block:block-tests:8001", PageKind::Small).expect("made");
    ftruncate(&loose, SIZE.0).expect("sized");
    let path = std::path::PathBuf::from(format!("/proc/self/fd/{}", loose.as_raw_fd()));
    let error = open_fd(&path).expect_err("can change its size");
    assert!(matches!(error, BlockError::Strange { .. }), "{error}");
    let found = blocks_of(std::process::id() as i32).expect("looked");
    assert!(found.iter().all(|block| block.id() != BlockId(8001)));
}

#[test]
fn a_process_that_is_not_there_is_told() {
    let error = blocks_of(i32::MAX).expect_err("no such process");
    assert!(matches!(error, BlockError::Look { .. }), "{error}");
}

#[test]
fn a_host_without_enough_large_pages_refuses_and_says_how_to_reserve() {
    // More than any host that runs this test has free: 1 TiB.
    let block = Block::create(&group(), BlockId(9), LARGEST_BLOCK, PageKind::Huge);
    let error = block.and_then(|block| block.populate(None, POPULATE_STEP, &mut || false)).expect_err("too few");
    assert!(matches!(error, BlockError::NoHugePages { needed: 524_288, .. }), "{error}");
    assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
}
