//! A source and a destination in one process.

use std::{
    os::unix::fs::{FileExt, MetadataExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use gnomon_proto::{
    Class,
    frame::{Message, Stream},
};
use gnomon_terms::{
    BLOCK_SIZE, BlockCount, Bytes, Epoch, Event, Extent, Instant, Move, MoveId, Place, Priority, ResourceId, Verb,
};
use gnomon_volume::{
    blockmap::BlockMap,
    disk::{Disk, FileDisk, Follower, LayeredDisk, Role, TrackedDisk, VolumeDisk, layered::Peer},
    mover::{Mover, MoverParts, Phase},
    outbox::Outbox,
    shadow::{Shadow, ShadowParts},
    stripes::Stripes,
    tap::Tap,
    unflushed::Unflushed,
    verify::{Compared, VerifyError},
    wire::{Wire, WireClosed},
};

/// A disk of 4 MiB.
pub const BLOCKS: u64 = 1024;
const RESOURCE: ResourceId = ResourceId(1);
const PLACE: Place = Place(1);

/// One direction of a session: a queue for each class, and a switch that cuts both directions.
pub struct ChannelWire {
    queues: Vec<SyncSender<Message>>,
    cut: Arc<AtomicBool>,
}

impl Wire for ChannelWire {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        let queue = &self.queues[message.class().index()];
        let mut message = message;
        while !self.cut.load(Ordering::SeqCst) {
            match queue.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => break,
            }
            thread::yield_now();
        }
        Err(WireClosed)
    }
}

pub fn channel(cut: &Arc<AtomicBool>) -> (ChannelWire, Vec<Receiver<Message>>) {
    let (queues, receivers) = (0..Class::COUNT).map(|_| sync_channel(64)).unzip();
    (ChannelWire { queues, cut: Arc::clone(cut) }, receivers)
}

/// Hands what arrives in each class to an engine, until the wire is cut. What is under way then is lost.
pub fn pump(
    receivers: Vec<Receiver<Message>>,
    cut: &Arc<AtomicBool>,
    handle: impl Fn(Message) + Send + Sync + 'static,
) -> Vec<JoinHandle<()>> {
    let handle = Arc::new(handle);
    let pumps = receivers.into_iter().map(|receiver| {
        let (handle, cut) = (Arc::clone(&handle), Arc::clone(cut));
        thread::spawn(move || {
            while !cut.load(Ordering::SeqCst) {
                match receiver.recv_timeout(Duration::from_millis(5)) {
                    Ok(message) => handle(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })
    });
    pumps.collect()
}

fn tap() -> Arc<Tap> {
    Arc::new(Tap::since(std::time::Instant::now()))
}

pub struct Pair {
    pub source: Arc<VolumeDisk>,
    pub destination: Arc<VolumeDisk>,
    dir: tempfile::TempDir,
    source_local: Arc<FileDisk>,
    destination_local: Arc<FileDisk>,
    source_outbox: Arc<Outbox>,
    source_stripes: Arc<Stripes>,
    source_tap: Arc<Tap>,
    valid: Arc<BlockMap>,
    destination_outbox: Arc<Outbox>,
    destination_stripes: Arc<Stripes>,
    shadow: Arc<Shadow>,
    mover: Option<Arc<Mover>>,
    cut: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
    epoch: Epoch,
    /// What the source's file has after a power cut, since the switch.
    source_durable: Vec<u8>,
    /// What each block must read as: written and acknowledged.
    model: Vec<Vec<u8>>,
    next_move: u64,
    outstanding: usize,
}

impl Pair {
    pub fn new() -> Pair {
        let dir = tempfile::tempdir().expect("dir");
        let size = Bytes(BLOCKS * BLOCK_SIZE);
        let file = |name: &str| Arc::new(FileDisk::create(&dir.path().join(name), size).expect("disk"));
        let map = || BlockMap::volatile(BlockCount(BLOCKS)).expect("map");
        let (source_local, destination_local) = (file("source"), file("destination"));
        let source_outbox = Arc::new(Outbox::new(map()).expect("outbox"));
        source_outbox.owe(Extent::new(0, BLOCKS));
        let source_stripes = Arc::new(Stripes::default());
        let tracked = TrackedDisk {
            local: Arc::clone(&source_local),
            followers: vec![Follower { outbox: Arc::clone(&source_outbox), turns: Arc::default() }],
            stripes: Arc::clone(&source_stripes),
        };
        let source = Arc::new(VolumeDisk::new(Arc::clone(&source_local), Epoch(1), Role::Tracked(Arc::new(tracked))));
        let valid = Arc::new(map());
        let destination_outbox = Arc::new(Outbox::new(map()).expect("outbox"));
        let destination_stripes = Arc::new(Stripes::default());
        let shadow = Shadow::start(ShadowParts {
            resource: RESOURCE,
            stream: Stream(1),
            peer: "source".to_string(),
            local: Arc::clone(&destination_local),
            valid: Arc::clone(&valid),
            outbox: Arc::clone(&destination_outbox),
            unflushed: Unflushed::new(map()),
            stripes: Arc::clone(&destination_stripes),
            tap: tap(),
            reverse: true,
            patience: Duration::from_secs(60),
            mirror_patience: Duration::from_secs(60),
            phase: Phase::Priming,
            epoch: Epoch(1),
        });
        let role = Role::Shadow(shadow.clone());
        let destination = Arc::new(VolumeDisk::new(Arc::clone(&destination_local), Epoch(1), role));
        Pair {
            source,
            destination,
            dir,
            source_local,
            destination_local,
            source_outbox,
            source_stripes,
            source_tap: tap(),
            valid,
            destination_outbox,
            destination_stripes,
            shadow,
            mover: None,
            cut: Arc::new(AtomicBool::new(true)),
            pumps: Vec::new(),
            epoch: Epoch(1),
            source_durable: Vec::new(),
            model: vec![vec![0; BLOCK_SIZE as usize]; BLOCKS as usize],
            next_move: 0,
            outstanding: 0,
        }
    }

    /// Begins a session, as after a start of either daemon.
    pub fn connect(&mut self) {
        let cut = Arc::new(AtomicBool::new(false));
        let (to_destination, at_destination) = channel(&cut);
        let (to_source, at_source) = channel(&cut);
        let mover = Mover::start(MoverParts {
            resource: RESOURCE,
            place: PLACE,
            stream: Stream(1),
            local: Arc::clone(&self.source_local),
            outbox: Arc::clone(&self.source_outbox),
            stripes: Arc::clone(&self.source_stripes),
            tap: Arc::clone(&self.source_tap),
            wire: Arc::new(to_destination),
            phase: if self.epoch == Epoch(1) { Phase::Priming } else { Phase::Draining },
            epoch: self.epoch,
        });
        let (engine, shadow) = (Arc::clone(&mover), Arc::clone(&self.shadow));
        self.pumps = pump(at_source, &cut, move |message| engine.handle(message));
        self.pumps.extend(pump(at_destination, &cut, move |message| shadow.handle(message)));
        self.shadow.attach(Arc::new(to_source));
        self.mover = Some(mover);
        self.cut = cut;
    }

    /// Ends the session at an arbitrary frame; what the destination has is owed no longer, what it lacks is.
    pub fn cut(&mut self) {
        self.cut.store(true, Ordering::SeqCst);
        if let Some(mover) = self.mover.take() {
            mover.stop();
        }
        self.shadow.detach();
        // As the roof does: the next session begins when nothing of this one is being handled any more.
        for pump in self.pumps.drain(..) {
            pump.join().expect("pump");
        }
        self.settle();
        for missing in self.valid.runs(Extent::new(0, BLOCKS), false) {
            self.source_outbox.owe(missing);
        }
    }

    pub fn copy(&mut self, extent: Extent) {
        self.begin(extent, Verb::Copy);
    }

    /// A message of somebody who holds the other end of the session and does not keep to what was agreed.
    pub fn tell_source(&self, message: Message) {
        self.mover.as_ref().expect("connected").handle(message);
    }

    /// The same, to the destination.
    pub fn tell_destination(&self, message: Message) {
        self.shadow.handle(message);
    }

    pub fn drop_copy(&mut self, extent: Extent) {
        self.begin(extent, Verb::Drop);
    }

    fn begin(&mut self, extent: Extent, verb: Verb) {
        self.next_move += 1;
        self.outstanding += 1;
        let mover = self.mover.as_ref().expect("connected");
        let priority = if self.next_move.is_multiple_of(3) { Priority::Prefetch } else { Priority::Background };
        let due = Instant::ORIGIN;
        mover.begin(Move { id: MoveId(self.next_move), resource: RESOURCE, extent, to: PLACE, verb, priority, due });
    }

    /// Waits until every move has settled.
    pub fn settle(&mut self) {
        let mut events = Vec::new();
        while self.outstanding > 0 {
            self.source_tap.wait(Duration::from_secs(1));
            self.source_tap.drain(&mut events);
            self.outstanding -= events.drain(..).filter(|event| matches!(event, Event::Settled(_))).count();
        }
    }

    /// Whether a block is owed to the destination.
    pub fn owes(&self, block: u64) -> bool {
        self.source_outbox.owes(Extent::new(block, 1))
    }

    pub fn copy_all_owed(&mut self) {
        while self.owed() > BlockCount(0) {
            for run in self.source_outbox.owed_runs(Extent::new(0, BLOCKS)) {
                self.copy(run);
            }
            self.settle();
        }
    }

    /// What the roof does with proto's handover, without its records.
    pub fn hand_over(&mut self) {
        self.settle();
        let epoch = self.epoch.next();
        self.source.become_role(epoch, Role::Fenced { to: "destination".to_string() }).expect("fence");
        let lacking = self.source_outbox.owed_runs(Extent::new(0, BLOCKS));
        self.mover.as_ref().expect("connected").hand_over(epoch);
        self.shadow.take_over(epoch);
        self.valid.retract(&lacking).expect("retract");
        let layered = self.layered(Arc::clone(&self.shadow));
        self.destination.become_role(epoch, Role::Draining(layered)).expect("activate");
        self.source_durable = self.source_content();
        self.epoch = epoch;
    }

    fn layered(&self, shadow: Arc<Shadow>) -> Arc<LayeredDisk> {
        Arc::new(LayeredDisk {
            local: Arc::clone(&self.destination_local),
            valid: Arc::clone(&self.valid),
            peer: shadow,
            outbox: Some(Arc::clone(&self.destination_outbox)),
            stripes: Arc::clone(&self.destination_stripes),
        })
    }

    /// The same disk, with an engine that has no session and waits no longer than `patience` for one.
    pub fn destination_with_patience(&self, patience: Duration) -> Arc<LayeredDisk> {
        self.layered(Shadow::start(ShadowParts {
            resource: RESOURCE,
            stream: Stream(1),
            peer: "source".to_string(),
            local: Arc::clone(&self.destination_local),
            valid: Arc::clone(&self.valid),
            outbox: Arc::clone(&self.destination_outbox),
            unflushed: Unflushed::new(BlockMap::volatile(BlockCount(BLOCKS)).expect("map")),
            stripes: Arc::clone(&self.destination_stripes),
            tap: tap(),
            reverse: true,
            patience,
            mirror_patience: patience,
            phase: Phase::Draining,
            epoch: self.epoch,
        }))
    }

    /// A read that begins without a session is answered in the next one.
    pub fn read_across_a_reconnection(&mut self, block: u64) {
        let disk = Arc::clone(&self.destination);
        let reader = thread::spawn(move || {
            let mut bytes = vec![0; BLOCK_SIZE as usize];
            disk.read_at(&mut bytes, block * BLOCK_SIZE).map(|()| bytes)
        });
        self.connect();
        let bytes = reader.join().expect("reader").expect("read");
        assert_eq!(bytes, self.model[block as usize]);
    }

    /// Fills every block with its own pattern.
    pub fn fill(&mut self, seed: u64) {
        for block in 0..BLOCKS {
            self.write_at_source(block, seed);
        }
    }

    pub fn write_at_source(&mut self, block: u64, value: u64) {
        let content = pattern(block, value);
        self.source.write_at(&content, block * BLOCK_SIZE).expect("write");
        self.model[block as usize] = content;
    }

    pub fn write_at_destination(&mut self, block: u64, value: u64) {
        let content = pattern(block, value);
        self.destination.write_at(&content, block * BLOCK_SIZE).expect("write");
        self.model[block as usize] = content;
    }

    pub fn write_bytes_at_destination(&mut self, at: u64, data: &[u8]) {
        self.destination.write_at(data, at).expect("write");
        for (offset, byte) in data.iter().enumerate() {
            let place = at + offset as u64;
            self.model[(place / BLOCK_SIZE) as usize][(place % BLOCK_SIZE) as usize] = *byte;
        }
    }

    pub fn discard_at_destination(&mut self, block: u64) {
        self.destination.discard(block * BLOCK_SIZE, BLOCK_SIZE).expect("discard");
        self.model[block as usize].fill(0);
    }

    pub fn read_at_destination(&self, block: u64) {
        let mut bytes = vec![0; BLOCK_SIZE as usize];
        self.destination.read_at(&mut bytes, block * BLOCK_SIZE).expect("read");
        assert!(bytes == self.model[block as usize], "block {block} reads as something else");
    }

    pub fn assert_destination_reads_what_was_written(&self) {
        for block in 0..BLOCKS {
            self.read_at_destination(block);
        }
    }

    pub fn assert_source_has(&self, block: u64) {
        let mut bytes = vec![0; BLOCK_SIZE as usize];
        self.source_local.read_at(&mut bytes, block * BLOCK_SIZE).expect("read");
        assert!(bytes == self.model[block as usize], "block {block} is something else at the source");
    }

    /// Compares both copies, asked for by the source.
    pub fn verify_at_source(&self) -> Result<Compared, VerifyError> {
        self.mover.as_ref().expect("connected").verify(&mut |_| true)
    }

    /// Compares both copies, asked for by the destination.
    pub fn verify_at_destination(&self) -> Result<Compared, VerifyError> {
        self.shadow.verify(&mut |_| true)
    }

    /// A comparison that nobody wants after its first look.
    pub fn verify_cancelled(&self) -> Result<Compared, VerifyError> {
        self.mover.as_ref().expect("connected").verify(&mut |_| false)
    }

    /// Carries once what is owed now, however much is written meanwhile.
    pub fn copy_some_owed(&mut self) {
        for run in self.source_outbox.owed_runs(Extent::new(0, BLOCKS)) {
            self.copy(run);
        }
        self.settle();
    }

    /// Changes one byte of a block of the destination's file, behind everybody's back.
    pub fn corrupt_destination(&self, block: u64) {
        let file = std::fs::File::options().read(true).write(true).open(self.dir.path().join("destination"));
        let (file, mut byte) = (file.expect("file"), [0]);
        file.read_exact_at(&mut byte, block * BLOCK_SIZE + 99).expect("read");
        file.write_all_at(&[byte[0] ^ 1], block * BLOCK_SIZE + 99).expect("written");
    }

    /// A power cut at the source, between two sessions: of what no flush has covered it keeps the blocks that `keeps`
    /// says. The destination hears of it at the next session.
    pub fn source_loses_power(&mut self, mut keeps: impl FnMut(u64) -> bool) {
        let durable = std::mem::take(&mut self.source_durable);
        for (block, content) in durable.chunks(BLOCK_SIZE as usize).enumerate() {
            let at = block as u64 * BLOCK_SIZE;
            let mut now = vec![0; BLOCK_SIZE as usize];
            self.source_local.read_at(&mut now, at).expect("read");
            if now != content && !keeps(block as u64) {
                self.source_local.write_at(content, at).expect("written");
            }
        }
        self.source_durable = self.source_content();
        self.shadow.distrust_peer();
    }

    /// A flush of the guest: from now on the source loses nothing of what was written before.
    pub fn flush_at_destination(&mut self) {
        self.destination.flush().expect("flush");
        self.source_durable = self.source_content();
    }

    fn source_content(&self) -> Vec<u8> {
        let mut content = vec![0; (BLOCKS * BLOCK_SIZE) as usize];
        self.source_local.read_at(&mut content, 0).expect("read");
        content
    }

    /// What a rollback does before it is decided.
    pub fn make_durable_at_source(&self) {
        self.shadow.ask_flush();
        while self.at_risk() > BlockCount(0) {
            thread::yield_now();
        }
    }

    /// What the source lacks, or may lose.
    pub fn at_risk(&self) -> BlockCount {
        self.shadow.at_risk()
    }

    /// What a map of owed blocks says after a reboot of its host.
    pub fn destination_forgets_what_it_owed(&self) {
        self.destination_outbox.owe(Extent::new(0, BLOCKS));
    }

    pub fn await_nothing_owed_back(&self) {
        while self.owed_back() > BlockCount(0) {
            thread::yield_now();
        }
    }

    pub fn owed(&self) -> BlockCount {
        self.source_outbox.owed()
    }

    pub fn owed_back(&self) -> BlockCount {
        self.destination_outbox.owed()
    }

    pub fn missing(&self) -> BlockCount {
        BlockCount(BLOCKS - self.valid.count().0)
    }

    pub fn destination_allocated(&self) -> u64 {
        std::fs::metadata(self.dir.path().join("destination")).expect("stat").blocks() * 512
    }
}

pub fn pattern(block: u64, value: u64) -> Vec<u8> {
    let word = (block << 32 | value).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    word.to_le_bytes().repeat(BLOCK_SIZE as usize / 8)
}
