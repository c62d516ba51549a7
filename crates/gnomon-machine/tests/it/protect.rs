//! A guest that counts, in a real QEMU, with a shadow beside another one that waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use gnomon_machine::{
    primary::{Hypervisor, Pace, QemuHypervisor, Replicator, Setup, Told},
    shadow::{Limits, Shadow},
};
use gnomon_proto::frame::{Mark, Stream};
use gnomon_qemu::{CaptureOptions, GuestRam, Qemu, RamView, Role, Standby, StateError, TrackTarget, VmSpec, track};
use gnomon_terms::{Bytes, Epoch, PAGE_SIZE};

use crate::{
    guests::{Console, LONG, Stable, qemu, settled, ticks},
    link::Link,
};

pub const EPOCH: Epoch = Epoch(2);
pub const STREAM: Stream = Stream(9);

/// Where the guest keeps its 64 copies of the count, one a page.
const COUNTS_AT: u64 = 0x10000;
const COUNTS: u64 = 64;

/// RAM of most guests here: small, so that all of it can be compared at each checkpoint.
const MEMORY: u64 = 16 << 20;

/// All memory of a guest at a moment.
type Truth = Arc<Mutex<BTreeMap<u64, Vec<u8>>>>;

type WhileStanding = Arc<Mutex<Option<Box<dyn FnMut() + Send>>>>;

/// A guest that is protected.
pub struct Protected {
    pub qemu: Arc<Qemu>,
    pub primary: Replicator,
    pub shadow: Arc<Mutex<Shadow<Standby>>>,
    pub link: Arc<Link<Standby>>,
    pub ram: GuestRam,
    /// What the guest's memory was each time it stood, by how often that was.
    pub truth: Truth,
    /// Done each time while it stands.
    pub while_standing: WhileStanding,
    /// Keeps the QEMU that waits.
    _waiting: Qemu,
    /// Last: it ends the QEMUs, and each takes one client to its monitor at a time.
    pub stable: Stable,
}

/// Notes what the memory is when the guest stands.
struct Witness {
    inner: QemuHypervisor,
    view: RamView,
    truth: Option<Truth>,
}

impl Hypervisor for Witness {
    fn stand(&mut self) -> Result<(), StateError> {
        self.inner.stand()?;
        if let Some(truth) = &self.truth {
            let mut truth = truth.lock().unwrap();
            let moment = truth.len() as u64 + 1;
            truth.insert(moment, all_of(&self.view));
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<Duration, StateError> {
        self.inner.go_on()
    }

    fn device(&self) -> Result<Vec<u8>, StateError> {
        self.inner.device()
    }

    fn hand_over(&mut self) {
        self.inner.hand_over();
    }
}

impl Protected {
    /// A guest whose every checkpoint is witnessed.
    pub fn start(limits: Limits) -> Protected {
        Protected::with(MEMORY, limits, true)
    }

    pub fn with(memory: u64, limits: Limits, witnessed: bool) -> Protected {
        let stable = Stable::new();
        let spec = VmSpec { memory, ..stable.ticker() };
        let vm = Arc::new(stable.launch("primary", &spec, Role::Boot));
        Console::open(&stable.home("primary")).tick();
        let ram = vm.open_ram().expect("opened").expect("gnomon made it");
        let copy = GuestRam::create("shadow", Bytes(settled(&spec).memory)).expect("made");
        let waiting = stable.launch_by(qemu(), "shadow", &spec, Role::IncomingPaused, Some(copy.shared()));
        let waiting = waiting.expect("waits");
        let standby = Standby::new(&waiting).expect("ready");
        let writer = Arc::new(copy.map_writable().expect("mapped"));
        let shadow = Arc::new(Mutex::new(Shadow::new(STREAM, writer, limits, Some(standby))));
        let truth = Truth::default();
        let witness = Witness {
            inner: QemuHypervisor::new(vm.clone(), CaptureOptions::default()),
            view: ram.map().expect("mapped"),
            truth: witnessed.then(|| truth.clone()),
        };
        let pid = vm.record().pid;
        let tracker = track(&TrackTarget::new(pid, &ram).expect("a target")).expect("a tracker").tracker;
        let while_standing = WhileStanding::default();
        let deed = while_standing.clone();
        let marks = move |_| {
            if let Some(deed) = deed.lock().unwrap().as_mut() {
                deed();
            }
            Ok(vec![Mark { stream: Stream(1), seq: 77 }])
        };
        let mut primary = Replicator::new(setup(), Box::new(witness), tracker, Box::new(marks));
        let link = Link::connect(&mut primary, &shadow, EPOCH).0;
        Protected { qemu: vm, primary, shadow, link, ram: copy, truth, while_standing, _waiting: waiting, stable }
    }

    /// A checkpoint after the guest has counted on.
    pub fn checkpoint_after_ticks(&mut self) -> Told {
        self.await_ticks();
        self.primary.checkpoint().expect("a checkpoint")
    }

    /// Waits until the guest has counted on by some.
    pub fn await_ticks(&self) {
        let mut console = Console::open(&self.stable.home("primary"));
        for _ in 0..3 {
            console.tick();
        }
    }

    /// The shadow's memory is that of the guest when it stood for the checkpoint that the shadow has: of the last one
    /// whose seal it has answered. Which time that was is `moment`.
    pub fn assert_shadow_is(&self, moment: u64) {
        let truth = self.truth.lock().unwrap();
        let (truth, shadow) = (&truth[&moment], all_of(&self.ram.map().expect("mapped")));
        let differ = truth.chunks(4096).zip(shadow.chunks(4096)).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "pages that differ from moment {moment}");
    }

    /// The counts in the shadow's memory: the least and the most, at most one apart.
    pub fn count(&self) -> u32 {
        let view = self.ram.map().expect("mapped");
        let counts: Vec<u32> = (0..COUNTS)
            .map(|page| {
                let mut bytes = [0; 4];
                view.read_at(COUNTS_AT + page * PAGE_SIZE, &mut bytes).expect("within");
                u32::from_le_bytes(bytes)
            })
            .collect();
        let (least, most) = (counts[0].min(counts[63]), counts[0].max(counts[63]));
        assert!(most - least <= 1 && counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
        least
    }

    /// The guest goes on at the shadow from the checkpoint it has, and counts on without a gap.
    pub fn take_over(&mut self) -> u64 {
        let count = self.count();
        let told = self.shadow.lock().unwrap().take_over(LONG).expect("taken over");
        assert_eq!(told.marks, [Mark { stream: Stream(1), seq: 77 }]);
        println!("taken over from checkpoint {}: {told:?}", told.checkpoint);
        let mut console = Console::open(&self.stable.home("shadow"));
        let seen = console.tick();
        (1..5).for_each(|more| assert_eq!(console.tick(), seen + more));
        let ticks = ticks(&self.stable.console("shadow"));
        assert!((count..=count + 1).contains(&ticks[0]), "from a count of {count} it went on with {}", ticks[0]);
        // QEMU's log may lose a character, and so a count, when a client connects to the port.
        assert!(ticks.is_sorted_by(|a, b| (1..=2).contains(&(b - a))), "{ticks:?}");
        told.checkpoint
    }
}

pub fn setup() -> Setup {
    Setup {
        stream: STREAM,
        epoch: EPOCH,
        memory: Bytes(64 << 20),
        pace: Pace::Adaptive(Default::default()),
        link: None,
        patience: LONG,
    }
}

fn all_of(view: &RamView) -> Vec<u8> {
    let mut all = vec![0; view.size().0 as usize];
    view.read_at(0, &mut all).expect("all of it");
    all
}

#[test]
fn a_shadow_is_the_guest_at_each_checkpoint_and_goes_on_from_the_last() {
    let mut guest = Protected::start(Limits::default());
    for moment in 1..=8 {
        let told = guest.checkpoint_after_ticks();
        assert_eq!((told.checkpoint, guest.primary.sealed()), (moment, Some(moment)));
        guest.assert_shadow_is(moment);
        println!("{told:?}");
    }
    let frozen = guest.primary.freeze().expect("frozen");
    guest.assert_shadow_is(9);
    let standing = guest.qemu.qmp().query_status().expect("answers");
    assert!(!standing.running, "it stands until it is told");
    assert_eq!(guest.take_over(), frozen.checkpoint);
    assert!(!guest.qemu.qmp().query_status().expect("answers").running);
}

#[test]
fn a_guest_that_was_frozen_can_go_on_where_it_was() {
    let mut guest = Protected::start(Limits::default());
    guest.primary.freeze().expect("frozen");
    guest.primary.go_on().expect("it runs on");
    let told = guest.checkpoint_after_ticks();
    assert_eq!(told.checkpoint, 2);
    guest.assert_shadow_is(2);
}

/// Pages a guest does not write cost nothing, however many there are.
#[test]
fn a_checkpoint_costs_what_changed_and_not_what_there_is() {
    let bytes = |memory: u64| {
        let mut guest = Protected::with(memory, Limits::default(), false);
        let first = guest.checkpoint_after_ticks();
        assert!(first.codings.pages().0 >= memory / PAGE_SIZE, "all of it, once");
        let later: Vec<Told> = (0..10).map(|_| guest.checkpoint_after_ticks()).collect();
        let mut costs: Vec<u64> = later.iter().map(|told| told.bytes.0).collect();
        costs.sort_unstable();
        println!("{} MiB: the first {:?}, then {costs:?} bytes, {:?}", memory >> 20, first.bytes, later[5]);
        costs[5]
    };
    let (small, large) = (bytes(MEMORY), bytes(16 * MEMORY));
    // Devices are said in pieces of 512 bytes, and how many of them change is chance; 256 MiB of pages would be 240 times
    // as much as 16.
    assert!(large <= small * 4, "{large} bytes a checkpoint with 256 MiB, and {small} with 16");
}
