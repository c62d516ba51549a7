//! Both engines with a simulated guest: whatever it writes, wherever the link is cut, the shadow is a moment of it.

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use gnomon_machine::{
    page::ZERO_PAGE,
    primary::{Pace, Replicator, Resume, Setup},
    shadow::{FailoverError, Limits, Shadow},
};
use gnomon_proto::frame::{Message, Stream};
use gnomon_qemu::TrackerTier;
use gnomon_terms::{Bytes, BytesPerSecond, Epoch, PageCount};
use proptest::prelude::*;

use crate::{
    link::Link,
    sim_guest::{Shared, SharedWorld, SimHypervisor, SimRam, SimSuccessor, SimTracker, world},
};

/// More than the engine leaves for the standing guest, so that it sends some beside the running one.
const PAGES: usize = 700;

const STREAM: Stream = Stream(3);
const EPOCH: Epoch = Epoch(5);

struct Pair {
    world: Shared,
    ram: Arc<SimRam>,
    shadow: Arc<Mutex<Shadow<SimSuccessor>>>,
    primary: Replicator,
    tier: TrackerTier,
}

fn pair(tier: TrackerTier, limits: Limits, link: Option<BytesPerSecond>) -> Pair {
    let world = world(PAGES);
    let ram = Arc::new(SimRam(Mutex::new(vec![ZERO_PAGE; PAGES])));
    let shadow = Shadow::new(STREAM, ram.clone(), limits, Some(SimSuccessor(world.clone(), 0)));
    let setup = Setup {
        stream: STREAM,
        epoch: EPOCH,
        memory: Bytes(200 * 4096),
        pace: Pace::Every(Duration::ZERO),
        link,
        patience: Duration::from_secs(60),
    };
    let tracker = SimTracker(SharedWorld(world.clone()), tier);
    let primary = Replicator::new(
        setup,
        Box::new(SimHypervisor(world.clone())),
        Box::new(tracker),
        Box::new(|_| Ok(Vec::new())),
    );
    Pair { world, ram, shadow: Arc::new(Mutex::new(shadow)), primary, tier }
}

impl Pair {
    /// What the shadow claims is what the guest was at that moment.
    fn assert_a_moment(&self) {
        let shadow = self.shadow.lock().unwrap();
        let world = self.world.lock().unwrap();
        if shadow.committed().is_some() {
            let moment = world.judged[&0];
            assert!(*self.ram.0.lock().unwrap() == world.moments[&moment], "memory is not that of moment {moment}");
        }
    }

    /// The guest writes to a page before each message while it runs.
    fn write_beside(&self, link: &Link<SimSuccessor>, seed: u64) {
        let (world, mut at) = (self.world.clone(), seed);
        link.on_message(move |_| {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            world.lock().unwrap().write((at >> 33) % PAGES as u64, (at >> 20) as usize % 4096, at as u8);
        });
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Deed {
    Write(Vec<(u64, usize, u8)>),
    Fill {
        from: u64,
        count: u64,
        byte: u8,
    },
    Checkpoint,
    /// What was written is sent, and no checkpoint made.
    Pass,
    /// The link is cut after so many messages, within what comes.
    Cut(u64),
    ScanFails(u32),
    Forget,
    OtherPace,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let write = prop::collection::vec((0..PAGES as u64, 0usize..4096, any::<u8>()), 1..20);
    let deed = prop_oneof![
        4 => write.prop_map(Deed::Write),
        2 => (0..PAGES as u64, 1..PAGES as u64, 0u8..3).prop_map(|(from, count, byte)| Deed::Fill { from, count, byte }),
        8 => Just(Deed::Checkpoint),
        4 => Just(Deed::Pass),
        2 => (0u64..9).prop_map(Deed::Cut),
        1 => (1u32..4).prop_map(Deed::ScanFails),
        1 => Just(Deed::Forget),
        1 => Just(Deed::OtherPace),
    ];
    prop::collection::vec(deed, 1..24)
}

fn live(pair: &mut Pair, deeds: Vec<Deed>, seed: u64) {
    let mut link = Link::connect(&mut pair.primary, &pair.shadow, EPOCH).0;
    pair.write_beside(&link, seed);
    for deed in deeds {
        match deed {
            Deed::Write(writes) => {
                let mut world = pair.world.lock().unwrap();
                writes.into_iter().for_each(|(page, at, byte)| world.write(page, at, byte));
            }
            Deed::Fill { from, count, byte } => {
                let mut world = pair.world.lock().unwrap();
                (from..(from + count).min(PAGES as u64)).for_each(|page| world.fill(page, byte));
            }
            Deed::Checkpoint => {
                if let Err(error) = pair.primary.checkpoint() {
                    assert_eq!(pair.primary.is_connected(), !error.ends_the_session(), "{error}");
                }
            }
            // A tier that needs a standing guest has no passes.
            Deed::Pass if pair.tier.needs_standing_guest() => {}
            Deed::Pass => {
                if let Err(error) = pair.primary.owed().and_then(|_| pair.primary.send_beside()) {
                    assert_eq!(pair.primary.is_connected(), !error.ends_the_session(), "{error}");
                }
            }
            Deed::Cut(after) => link.left.store(after, SeqCst),
            Deed::ScanFails(scans) => pair.world.lock().unwrap().scan_fails_in = Some(scans),
            Deed::Forget => pair.shadow.lock().unwrap().start_over(),
            Deed::OtherPace => pair.primary.set_pace(Pace::Adaptive(Default::default())),
        }
        pair.assert_a_moment();
        assert!(!pair.world.lock().unwrap().stands, "a guest never stays standing");
        if !pair.primary.is_connected() {
            link = Link::connect(&mut pair.primary, &pair.shadow, EPOCH).0;
            pair.write_beside(&link, seed ^ 1);
        }
    }
    // However it went, a link that holds and a scan that works bring the shadow to the present.
    pair.world.lock().unwrap().scan_fails_in = None;
    let _ = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    let told = pair.primary.freeze().expect("nothing is in the way");
    assert_eq!(pair.shadow.lock().unwrap().has(), Some((EPOCH, told.checkpoint)));
    pair.assert_a_moment();
    assert!(*pair.ram.0.lock().unwrap() == pair.world.lock().unwrap().memory);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_shadow_is_always_a_moment_of_the_guest(
        deeds in deeds(), seed in any::<u64>(), soft in any::<bool>(), slow in any::<bool>(),
    ) {
        let tier = if soft { TrackerTier::SoftDirty } else { TrackerTier::PagemapScan };
        let link = slow.then_some(BytesPerSecond(1_000_000));
        live(&mut pair(tier, Limits::default(), link), deeds, seed);
    }
}

#[test]
fn a_link_that_returns_carries_only_what_was_not_sealed() {
    let mut pair = pair(TrackerTier::PagemapScan, Limits::default(), None);
    for page in 0..PAGES as u64 {
        pair.world.lock().unwrap().write(page, 5, page as u8 | 1);
    }
    let (link, resume) = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    assert_eq!(resume, Resume::StartsOver);
    let first = pair.primary.checkpoint().expect("sent");
    assert_eq!(first.codings.pages(), PageCount(PAGES as u64));
    for page in 0..9 {
        pair.world.lock().unwrap().write(page, 7, 1);
    }
    // The seal arrives, and its answer does not.
    let left = link.left.clone();
    link.on_message(move |message| {
        if matches!(message, Message::Seal { .. }) {
            left.store(1, SeqCst);
        }
    });
    pair.primary.checkpoint().expect("sent");
    pair.world.lock().unwrap().write(100, 7, 1);
    pair.primary.checkpoint().expect_err("the link is cut");
    let (_, resume) = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    assert_eq!(resume, Resume::Continues);
    let told = pair.primary.freeze().expect("sent");
    assert_eq!((told.checkpoint, told.codings.pages()), (4, PageCount(1)), "3 was captured, and is left out");
    pair.assert_a_moment();
}

#[test]
fn what_was_sent_beside_the_guest_is_not_sent_while_it_stands() {
    let mut pair = pair(TrackerTier::PagemapScan, Limits::default(), None);
    for page in 0..PAGES as u64 {
        pair.world.lock().unwrap().write(page, 5, page as u8 | 1);
    }
    let _link = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    assert_eq!(pair.primary.owed().expect("a look"), PageCount(PAGES as u64));
    pair.primary.send_beside().expect("sent");
    assert_eq!(pair.primary.owed().expect("a look"), PageCount(0));
    assert_eq!(pair.shadow.lock().unwrap().has(), None, "nothing is claimed before there is a checkpoint");
    (0..9).for_each(|page| pair.world.lock().unwrap().write(page, 7, 1));
    assert_eq!(pair.primary.owed().expect("a look"), PageCount(9));
    let told = pair.primary.freeze().expect("sent");
    assert_eq!((told.standing, told.running), (PageCount(9), PageCount(0)));
    pair.assert_a_moment();
    assert!(*pair.ram.0.lock().unwrap() == pair.world.lock().unwrap().memory);
    pair.primary.leave_standing();
}

#[test]
fn the_last_checkpoint_is_undone_once() {
    let mut pair = pair(TrackerTier::PagemapScan, Limits::default(), None);
    let _link = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    for byte in 1..4 {
        pair.world.lock().unwrap().write(1, 0, byte);
        pair.primary.checkpoint().expect("sent");
    }
    let mut shadow = pair.shadow.lock().unwrap();
    assert_eq!((shadow.revert(), shadow.has()), (Some(2), Some((EPOCH, 2))));
    assert!(*pair.ram.0.lock().unwrap() == pair.world.lock().unwrap().moments[&2]);
    assert_eq!(shadow.revert(), None, "only one is kept");
    let told = shadow.take_over(Duration::ZERO).expect("it runs");
    assert_eq!((told.checkpoint, told.epoch), (2, EPOCH));
    assert!(matches!(shadow.take_over(Duration::ZERO), Err(FailoverError::Done)));
}

#[test]
fn a_shadow_with_nothing_takes_nothing_over() {
    let mut pair = pair(TrackerTier::PagemapScan, Limits::default(), None);
    let (link, _) = Link::connect(&mut pair.primary, &pair.shadow, EPOCH);
    link.left.store(1, SeqCst);
    pair.primary.checkpoint().expect_err("the link is cut");
    let error = pair.shadow.lock().unwrap().take_over(Duration::ZERO).expect_err("nothing was sealed");
    assert!(matches!(error, FailoverError::Nothing), "{error}");
}
