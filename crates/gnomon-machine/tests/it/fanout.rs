//! One simulated guest with several shadows: each is a moment of it, whatever becomes of the others, and it stands once for
//! all of them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use gnomon_machine::{
    page::ZERO_PAGE,
    primary::{Guest, Pace, ReplicateError, Replicator, Setup},
    shadow::{Limits, Shadow},
};
use gnomon_proto::frame::{Message, Stream};
use gnomon_qemu::TrackerTier;
use gnomon_terms::{Bytes, Epoch};
use proptest::prelude::*;

use crate::{
    link::Link,
    sim_guest::{Shared, SharedWorld, SimHypervisor, SimRam, SimSuccessor, SimTracker, world},
};

const PAGES: usize = 300;
const STREAM: Stream = Stream(3);
const EPOCH: Epoch = Epoch(5);

/// A shadow, and what keeps it.
struct Leg {
    number: usize,
    world: Shared,
    ram: Arc<SimRam>,
    shadow: Arc<Mutex<Shadow<SimSuccessor>>>,
    primary: Replicator,
    link: Arc<Link<SimSuccessor>>,
    /// Captured for it by another one.
    is_woken: Arc<AtomicBool>,
}

/// A guest with so many shadows.
fn legs(count: usize, tier: TrackerTier) -> (Shared, Vec<Leg>) {
    let world = world(PAGES);
    let tracker = SimTracker(SharedWorld(world.clone()), tier);
    let pace = Pace::Every(Duration::ZERO);
    let guest = Guest::new(Box::new(SimHypervisor(world.clone())), Box::new(tracker), pace);
    let legs = (0..count).map(|number| Leg::new(&world, &guest, number)).collect();
    (world, legs)
}

impl Leg {
    fn new(world: &Shared, guest: &Arc<Guest>, number: usize) -> Leg {
        let ram = Arc::new(SimRam(Mutex::new(vec![ZERO_PAGE; PAGES])));
        let successor = SimSuccessor(world.clone(), number);
        let shadow = Shadow::new(STREAM, ram.clone(), Limits::default(), Some(successor));
        let shadow = Arc::new(Mutex::new(shadow));
        let setup = Setup {
            stream: STREAM,
            epoch: EPOCH,
            memory: Bytes(100 * 4096),
            pace: Pace::Every(Duration::ZERO),
            link: None,
            // Answers come before a send returns here, or never.
            patience: Duration::from_millis(10),
        };
        let mut primary = Replicator::of(guest, setup, Box::new(|_| Ok(Vec::new())));
        let is_woken = Arc::new(AtomicBool::new(false));
        let waker = is_woken.clone();
        primary.on_captured(move || waker.store(true, SeqCst));
        let link = Link::connect(&mut primary, &shadow, EPOCH).0;
        Leg { number, world: world.clone(), ram, shadow, primary, link, is_woken }
    }

    fn checkpoint(&mut self) -> Result<u64, ReplicateError> {
        self.is_woken.store(false, SeqCst);
        self.primary.checkpoint().map(|told| told.checkpoint)
    }

    fn reconnect_if_lost(&mut self) {
        if !self.primary.is_connected() {
            self.reconnect();
        }
    }

    fn reconnect(&mut self) {
        self.link = Link::connect(&mut self.primary, &self.shadow, EPOCH).0;
    }

    fn assert_a_moment(&self) {
        let shadow = self.shadow.lock().unwrap();
        let world = self.world.lock().unwrap();
        if shadow.committed().is_some() {
            let (number, moment) = (self.number, world.judged[&self.number]);
            let same = *self.ram.0.lock().unwrap() == world.moments[&moment];
            assert!(same, "the memory of shadow {number} is not that of moment {moment}");
        }
    }

    fn assert_the_present(&self) {
        self.assert_a_moment();
        let same = *self.ram.0.lock().unwrap() == self.world.lock().unwrap().memory;
        assert!(same, "shadow {} is not as the guest is", self.number);
    }

    fn has(&self) -> Option<u64> {
        self.shadow.lock().unwrap().has().map(|(_, checkpoint)| checkpoint)
    }
}

/// One thing that happens; the first number names a shadow.
#[derive(Clone, Debug)]
enum Deed {
    Write(Vec<(u64, usize, u8)>),
    Checkpoint(usize),
    Freeze(usize),
    /// Its link is cut after so many messages.
    Cut(usize, u64),
    /// Its link is cut now, and it is back only when it is asked for a checkpoint.
    Away(usize),
    Forget(usize),
    ScanFails(u32),
}

const SHADOWS: usize = 3;

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let write = prop::collection::vec((0..PAGES as u64, 0usize..4096, any::<u8>()), 1..20);
    let which = || 0..SHADOWS;
    let deed = prop_oneof![
        6 => write.prop_map(Deed::Write),
        12 => which().prop_map(Deed::Checkpoint),
        1 => which().prop_map(Deed::Freeze),
        2 => (which(), 0u64..9).prop_map(|(leg, after)| Deed::Cut(leg, after)),
        1 => which().prop_map(Deed::Away),
        1 => which().prop_map(Deed::Forget),
        1 => (1u32..4).prop_map(Deed::ScanFails),
    ];
    prop::collection::vec(deed, 1..40)
}

fn live(world: &Shared, legs: &mut [Leg], deeds: Vec<Deed>) {
    for deed in deeds {
        match deed {
            Deed::Write(writes) => {
                let mut world = world.lock().unwrap();
                writes.into_iter().for_each(|(page, at, byte)| world.write(page, at, byte));
            }
            Deed::Checkpoint(leg) => {
                let leg = &mut legs[leg];
                leg.reconnect_if_lost();
                if let Err(error) = leg.checkpoint() {
                    assert_eq!(leg.primary.is_connected(), !error.ends_the_session(), "{error}");
                }
            }
            Deed::Freeze(leg) => freeze_and_go_on(legs, leg),
            Deed::Cut(leg, after) => legs[leg].link.left.store(after, SeqCst),
            Deed::Away(leg) => legs[leg].primary.disconnect(),
            Deed::Forget(leg) => legs[leg].shadow.lock().unwrap().start_over(),
            Deed::ScanFails(scans) => world.lock().unwrap().scan_fails_in = Some(scans),
        }
        legs.iter().for_each(Leg::assert_a_moment);
        assert!(!world.lock().unwrap().stands, "a guest never stays standing");
    }
    world.lock().unwrap().scan_fails_in = None;
    for leg in &mut *legs {
        leg.reconnect();
        let told = leg.checkpoint().expect("nothing is in the way");
        assert_eq!(leg.has(), Some(told));
        leg.assert_the_present();
    }
}

/// One shadow's switchover is called off; the others get nothing meanwhile.
fn freeze_and_go_on(legs: &mut [Leg], which: usize) {
    let frozen = legs[which].primary.freeze();
    if frozen.is_err() {
        return;
    }
    legs[which].assert_the_present();
    let other = &mut legs[(which + 1) % SHADOWS];
    other.reconnect_if_lost();
    other.checkpoint().expect_err("the guest stands for another one");
    legs[which].primary.go_on().expect("it runs on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn each_shadow_is_always_a_moment_of_the_guest(deeds in deeds(), soft in any::<bool>()) {
        let tier = if soft { TrackerTier::SoftDirty } else { TrackerTier::PagemapScan };
        let (world, mut legs) = legs(SHADOWS, tier);
        live(&world, &mut legs, deeds);
    }
}

#[test]
fn a_guest_stands_once_for_all_that_are_ready() {
    let (world, mut legs) = legs(2, TrackerTier::PagemapScan);
    let stood = || world.lock().unwrap().moments.len();
    assert_eq!((legs[0].checkpoint().expect("sent"), legs[1].checkpoint().expect("sent")), (1, 2));
    assert_eq!(stood(), 2, "the second one was not ready when the first one was captured");
    legs[0].checkpoint().expect("sent");
    for count in 3..8u64 {
        world.lock().unwrap().write(count, 1, 1);
        let before = stood();
        let led = legs[(count % 2) as usize].checkpoint().expect("sent");
        let other = &mut legs[1 - (count % 2) as usize];
        assert!(other.is_woken.load(SeqCst) && !other.primary.may_wait(), "it is told");
        assert_ne!(other.has(), Some(led), "it sends by itself");
        assert_eq!(other.checkpoint().expect("sent"), led);
        assert!(other.primary.may_wait());
        assert_eq!(stood(), before + 1);
        legs.iter().for_each(Leg::assert_the_present);
    }
}

#[test]
fn one_that_is_slow_holds_nobody_up() {
    let (world, mut legs) = legs(2, TrackerTier::PagemapScan);
    let mut slow = legs.pop().expect("two");
    let quick = &mut legs[0];
    for leg in [&mut slow, &mut *quick] {
        leg.checkpoint().expect("sent");
    }
    slow.checkpoint().expect("what was captured with the other's");
    world.lock().unwrap().write(7, 7, 7);
    // Its link takes nothing until it is told to, from the first page of its next checkpoint on.
    let (reached, is_reached) = mpsc::channel();
    let (open, opened) = mpsc::channel::<()>();
    slow.link.on_message(move |message| {
        if matches!(message, Message::Pages { .. }) {
            let _ = reached.send(());
            let _ = opened.recv();
        }
    });
    let sending = thread::spawn(move || {
        let sent = slow.checkpoint();
        (slow, sent)
    });
    is_reached.recv().expect("it has begun");
    let held = quick.checkpoint().expect("what was captured with the other's, or a later one");
    for count in 0..5 {
        world.lock().unwrap().write(count, 9, 9);
        assert!(quick.checkpoint().expect("nobody is in its way") > held);
        quick.assert_the_present();
    }
    drop(open);
    let (mut slow, sent) = sending.join().expect("done");
    sent.expect("sent");
    slow.assert_a_moment();
    slow.checkpoint().expect("what it is owed");
    slow.assert_the_present();
}

#[test]
fn one_that_was_away_is_sent_what_it_missed_and_no_more() {
    let (world, mut legs) = legs(2, TrackerTier::PagemapScan);
    for leg in &mut legs {
        leg.checkpoint().expect("sent");
    }
    legs[1].primary.disconnect();
    for page in 0..9 {
        world.lock().unwrap().write(page, 0, 1);
        legs[0].checkpoint().expect("sent");
    }
    legs[1].reconnect();
    let told = legs[1].primary.checkpoint().expect("sent");
    assert_eq!(told.codings.pages().0, 9, "{told:?}");
    assert_eq!(Some(told.checkpoint), legs[1].has());
    legs[1].assert_the_present();
}

#[test]
fn when_it_was_handed_over_the_others_get_nothing_more() {
    let (world, mut legs) = legs(2, TrackerTier::PagemapScan);
    for leg in &mut legs {
        leg.checkpoint().expect("sent");
    }
    let mut gone = legs.remove(0);
    gone.primary.freeze().expect("frozen");
    gone.assert_the_present();
    assert!(legs[0].primary.guest().is_frozen());
    assert_eq!(legs[0].primary.guest().undisturbed(|| ()), None, "nobody makes it run");
    gone.primary.hand_over();
    let held = legs[0].checkpoint().expect_err("it is gone");
    assert!(matches!(held, ReplicateError::Held) && world.lock().unwrap().stands, "{held}");
}
