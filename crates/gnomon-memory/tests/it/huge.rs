//! Pages of 2 MiB, on a host that has reserved a few for this test.

use std::{fs, os::unix::fs::FileExt};

use gnomon_memory::{
    Block, BlockError, BlockId, Gauge, GroupLimits, HostLimits, Opening, PageKind, ProcGauge, Request, Staging,
    blocks_of,
};
use gnomon_terms::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    host::{PATIENCE, TestHost, group_limits, web},
    staging::another_descriptor,
};

const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Pages that the test needs.
const PAGES: u64 = 4;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Pages that are reserved until this is dropped.
pub struct Reservation {
    before: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Reservation {
    /// Reserves so many more than are in use. `None` when that takes root, when the host has no room for them, and when
    /// some are free, which somebody else has reserved.
    pub fn of(pages: u64) -> Option<Reservation> {
        let alone = ALONE.lock();
        if !rustix::process::geteuid().is_root() || free() > 0 {
            return None;
        }
        let before: u64 = fs::read_to_string(RESERVED).expect("read").trim().parse().expect("a number");
        fs::write(RESERVED, (before + pages).to_string()).expect("root reserves pages");
        let reservation = Reservation { before, _alone: alone };
        (free() == pages).then_some(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Nothing can be done about it here.
        let _ = fs::write(RESERVED, self.before.to_string());
    }
}

fn free() -> u64 {
    ProcGauge.read().expect("read").huge_free.0 / PageKind::Huge.size().0
}

#[test]
fn large_pages_are_staged_as_far_as_they_are_reserved() {
    let Some(_reservation) = Reservation::of(PAGES) else {
        eprintln!(
            "not tested: this takes root, and a host with room for 8 MiB of large pages and none that are free"
        );
        return;
    };
    let mut host = TestHost::closed();
    let limits = GroupLimits { pages: PageKind::Huge, ..group_limits() };
    let opening = |host: &TestHost| {
        let limits = HostLimits { floor: Bytes(0), ..host.limits };
        Opening::new(host.command(), limits)
    };
    let staging = Staging::open(opening(&host).group(web(), limits)).expect("opened");
    let size = Bytes(4 << 20);
    staging.set_target(&web(), &[(size, 3)]).expect("a target");
    assert!(staging.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == 2));
    assert_eq!((free(), staging.accounts().host.created.blocks), (0, 2), "the third is not begun");
    let full = Block::create(&web(), BlockId(1), size, PageKind::Huge).expect("made");
    let error = full.populate(None, size, &mut || true).expect_err("all are in use");
    assert!(matches!(error, BlockError::NoHugePages { needed: 2, free: 0 }), "{error}");
    drop(full);

    let holder = staging.holder_pid().expect("there is one");
    host.kill_later(holder);
    assert!(
        blocks_of(holder).expect("looked").iter().all(|block| block.pages() == PageKind::Huge && block.is_whole())
    );
    drop(staging);
    let staging = Staging::open(opening(&host).group(web(), limits)).expect("opened");
    assert_eq!(staging.accounts().host.staged.blocks, 2, "found again");

    let request = Request { bytes: size, whole: true, slots: 1, step: Bytes(1) };
    let block = staging.take(&web(), request).expect("decided").reserved.assign("vm").expect("assigned").remove(0);
    let mut bytes = vec![1; size.0 as usize];
    another_descriptor(&block).read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 0));
    staging.returned(block.id()).expect("returned");
    staging.remove_group(&web()).expect("removed");
    assert_eq!(free(), PAGES, "all are back");
    staging.check().expect("balanced");
}
