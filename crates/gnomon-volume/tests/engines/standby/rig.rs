//! A primary's volume and its standby in one process, with the one who joins turns to checkpoints.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use gnomon_proto::frame::{Message, Stream};
use gnomon_terms::{BLOCK_SIZE, BlockCount, Bytes, Epoch};
use gnomon_volume::{
    blockmap::{BlockMap, BootId},
    disk::{Disk, FileDisk, Follower, Role, TrackedDisk, VolumeDisk},
    outbox::Outbox,
    standby::{
        Has, Lineage, ReceiverParts, SenderError, SenderParts, StandbyError, StandbyReceiver, StandbySender, Turns,
    },
    stripes::Stripes,
    wire::{Wire, WireClosed},
};
use parking_lot::Mutex;

use super::machine::Machine;
use crate::{
    pair::{channel, pattern, pump},
    seeded::Dice,
};

/// A disk of 2 MiB and a bit.
pub const BLOCKS: u64 = 520;
const SIZE: u64 = BLOCKS * BLOCK_SIZE - 1000;
/// Two writes of the longest kind fit: the log goes round often.
const JOURNAL: u64 = 2_200_000;
const STREAM: Stream = Stream(4);
pub const EPOCH: Epoch = Epoch(3);
/// Longer than anything takes.
pub const LONG: Duration = Duration::from_secs(60);

/// A wire that holds frames back while it is closed.
pub struct Valve {
    inner: Arc<dyn Wire>,
    pub shut: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
}

impl Wire for Valve {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        while self.shut.load(Ordering::SeqCst) && !self.cut.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.inner.send(message)
    }
}

pub struct Rig {
    pub primary: Arc<VolumeDisk>,
    pub machine: Machine,
    pub sender: Option<Arc<StandbySender>>,
    pub receiver: Arc<StandbyReceiver>,
    pub shut: Arc<AtomicBool>,
    pub copies: Bytes,
    pub lineage: Lineage,
    _dir: Arc<tempfile::TempDir>,
    local: Arc<FileDisk>,
    outbox: Arc<Outbox>,
    stripes: Arc<Stripes>,
    turns: Arc<Turns>,
    cut: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
    boots: u8,
    boot: Arc<AtomicU8>,
    pub faults: Arc<Mutex<Vec<StandbyError>>>,
    /// The primary's disk at each mark.
    pub marks: BTreeMap<u64, Vec<u8>>,
    pub turn: u64,
    /// The newest turn the primary was told to be sealed, since the standby last gave one up.
    pub told: Option<u64>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::several(1).remove(0)
    }

    /// So many standbys of one volume.
    pub fn several(count: usize) -> Vec<Rig> {
        let dir = Arc::new(tempfile::tempdir().expect("dir"));
        let local = Arc::new(FileDisk::create(&dir.path().join("primary"), Bytes(SIZE)).expect("disk"));
        let map = || BlockMap::volatile(BlockCount(BLOCKS)).expect("map");
        let follower = || Follower { outbox: Arc::new(Outbox::new(map()).expect("outbox")), turns: Arc::default() };
        let followers: Vec<Follower> = (0..count).map(|_| follower()).collect();
        let stripes: Arc<Stripes> = Arc::default();
        let tracked =
            TrackedDisk { local: Arc::clone(&local), followers: followers.clone(), stripes: Arc::clone(&stripes) };
        let primary = Arc::new(VolumeDisk::new(Arc::clone(&local), EPOCH, Role::Tracked(Arc::new(tracked))));
        let of = |follower| Rig::of(&dir, &primary, &local, &stripes, follower);
        followers.into_iter().map(of).collect()
    }

    fn of(
        dir: &Arc<tempfile::TempDir>,
        primary: &Arc<VolumeDisk>,
        local: &Arc<FileDisk>,
        stripes: &Arc<Stripes>,
        follower: Follower,
    ) -> Rig {
        let machine = Machine::new(SIZE, JOURNAL);
        Rig {
            receiver: open(&machine, 1).expect("a new standby"),
            primary: Arc::clone(primary),
            machine,
            sender: None,
            shut: Arc::default(),
            copies: Bytes(1 << 20),
            lineage: Lineage::of("p@shadow"),
            _dir: Arc::clone(dir),
            local: Arc::clone(local),
            outbox: follower.outbox,
            stripes: Arc::clone(stripes),
            turns: follower.turns,
            cut: Arc::new(AtomicBool::new(true)),
            pumps: Vec::new(),
            boots: 1,
            boot: Arc::new(AtomicU8::new(1)),
            faults: Arc::default(),
            marks: BTreeMap::new(),
            turn: 0,
            told: None,
        }
    }

    /// Begins a session; what the standby said it has.
    pub fn connect(&mut self) -> Result<Has, StandbyError> {
        let cut = Arc::new(AtomicBool::new(false));
        let (to_shadow, at_shadow) = channel(&cut);
        let (to_primary, at_primary) = channel(&cut);
        let owed = self.owed();
        if owed.0 > JOURNAL / 2 - 8192 {
            // It may give the turn up, and then die before it says so.
            self.told = None;
        }
        let has = self.receiver.begin(self.lineage, EPOCH, owed, Arc::new(to_primary))?;
        if has.sealed.is_none() {
            self.told = None;
        }
        assert!(has.sealed >= self.told, "{has:?}, and {:?} was told", self.told);
        self.turn = self.turn.max(has.sealed.unwrap_or(0));
        let valve = Valve { inner: Arc::new(to_shadow), shut: Arc::clone(&self.shut), cut: Arc::clone(&cut) };
        let sender = StandbySender::start(
            SenderParts {
                stream: STREAM,
                epoch: EPOCH,
                local: Arc::clone(&self.local),
                outbox: Arc::clone(&self.outbox),
                stripes: Arc::clone(&self.stripes),
                turns: Arc::clone(&self.turns),
                wire: Arc::new(valve),
                copies: self.copies,
            },
            &has,
        );
        let (engine, receiver, faults) = (Arc::clone(&sender), Arc::clone(&self.receiver), Arc::clone(&self.faults));
        self.pumps = pump(at_primary, &cut, move |message| engine.handle(message));
        self.pumps.extend(pump(at_shadow, &cut, move |message| {
            if let Err(error) = receiver.handle(message) {
                faults.lock().push(error);
            }
        }));
        (self.sender, self.cut) = (Some(sender), cut);
        Ok(has)
    }

    /// Ends the session at an arbitrary frame.
    pub fn cut(&mut self) {
        self.cut.store(true, Ordering::SeqCst);
        self.shut.store(false, Ordering::SeqCst);
        if let Some(sender) = self.sender.take() {
            sender.stop();
            self.told = self.told.max(sender.state().sealed);
        }
        self.receiver.end();
        for pump in self.pumps.drain(..) {
            pump.join().expect("pump");
        }
    }

    pub fn await_in_step(&self) {
        let sender = self.sender.as_ref().expect("connected");
        assert!(sender.await_in_step(LONG).expect("in step"), "the first copy takes too long");
    }

    pub fn write(&self, block: u64, value: u64) {
        let content = pattern(block, value);
        let len = BLOCK_SIZE.min(SIZE - block * BLOCK_SIZE) as usize;
        self.primary.write_at(&content[..len], block * BLOCK_SIZE).expect("write");
    }

    /// The guest stands for a turn, and the disk is remembered as it is.
    pub fn mark(&mut self) -> Result<u64, SenderError> {
        self.turn += 1;
        self.marks.insert(self.turn, self.content());
        let mark = self.sender.as_ref().expect("connected").mark(self.turn)?;
        assert_eq!((mark.stream, mark.seq), (STREAM, self.turn));
        Ok(self.turn)
    }

    /// A turn that is sealed and applied, as the owner of all of a guest does it.
    pub fn seal(&self, turn: u64) -> Result<(), StandbyError> {
        self.receiver.await_whole(turn, LONG)?;
        self.receiver.seal(turn)?;
        self.receiver.apply(turn)
    }

    /// Marks and seals a turn; waits until the primary knows.
    pub fn checkpoint(&mut self) -> u64 {
        let turn = self.mark().expect("marked");
        self.seal(turn).expect("sealed");
        while self.sender.as_ref().expect("connected").state().sealed != Some(turn) {
            std::thread::yield_now();
        }
        turn
    }

    /// The shadow's daemon is dead, or its host is; another one starts.
    pub fn restart(&mut self, power: Option<&mut Dice>) {
        self.cut();
        if let Some(dice) = power {
            self.machine.lose_power(dice);
            self.boots += 1;
            self.boot.store(self.boots, Ordering::SeqCst);
        }
        self.machine.revive();
        self.receiver = open(&self.machine, self.boots).expect("opened");
        self.faults.lock().clear();
    }

    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.primary.read_at(&mut bytes, 0).expect("read");
        bytes
    }

    pub fn owed(&self) -> Bytes {
        self.outbox.owed().bytes()
    }

    /// The blocks that are not as at a mark, each with the marks it is as at.
    fn differences(&self, content: &[u8], turn: u64) -> Vec<(usize, Vec<u64>)> {
        let block = |bytes: &[u8], number: usize| bytes[number * 4096..bytes.len().min((number + 1) * 4096)].to_vec();
        let is_wrong = |number: &usize| block(content, *number) != block(&self.marks[&turn], *number);
        let as_at = |number: usize| {
            let same = self.marks.iter().filter(|(_, mark)| block(mark, number) == block(content, number));
            (number, same.map(|(turn, _)| *turn).collect())
        };
        (0..BLOCKS as usize).filter(is_wrong).map(as_at).collect()
    }

    /// What would be found if the primary died now: the disk of a mark that is not older than what it was told. Found on
    /// a copy of the host, so that life goes on; the turn.
    pub fn assert_takeover(&self) -> Option<u64> {
        let told = self.told.max(self.sender.as_ref().and_then(|sender| sender.state().sealed));
        let machine = self.machine.copy();
        let receiver = open(&machine, self.boots).expect("opened");
        let turn = match receiver.take_over() {
            Ok(turn) => turn,
            Err(StandbyError::NothingSealed) => {
                assert_eq!(told, None, "the primary was told of a turn that cannot be taken over");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(Some(turn) >= told, "turn {turn} is taken over, and {told:?} was told");
        let wrong = self.differences(&machine.volume.content(), turn);
        assert!(wrong.is_empty(), "not the disk of turn {turn}: {wrong:?}");
        assert_eq!(receiver.take_over().expect("again"), turn);
        Some(turn)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Its threads would go on until the process ends. A test that has failed is not asked for more.
        if !std::thread::panicking() {
            self.cut();
        }
    }
}

fn open(machine: &Machine, boot: u8) -> Result<Arc<StandbyReceiver>, StandbyError> {
    StandbyReceiver::open(ReceiverParts {
        stream: STREAM,
        local: Arc::new(machine.volume.clone()),
        stripes: Arc::default(),
        medium: Box::new(machine.journal.clone()),
        boot: BootId([boot; 16]),
    })
}
