//! A volume as its guest sees it, whatever role this host has for it: the gate that every request passes.
//!
//! ```text
//!                 begin_shadow                    hand_over
//!   Primary ───────────────────► Primary, tracked ───────────► Fenced
//!      ▲                                                          │ (take_back: Primary again)
//!      │ release                        activate                  ▼
//!      └──────────────── Draining ◄──────────────────────────── Shadow
//!                doubt ▼ ▲ confirm
//!                     Unconfirmed
//! ```
//!
//! **Forecasts advise, epochs decide:** the role changes only when the handover of the volume's epoch says so (see
//! gnomon-proto), and a change waits for the writes that are under way. Reads need no fence: a guest that is stopped
//! for a switchover reads nothing, and a read that began before it is ordered before it.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant as Clock},
};

use gnomon_proto::frame::Content;
use gnomon_terms::{Bytes, Epoch, Extent};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::{
    Disk, DiskError, FileDisk, ForkDisk, LayeredDisk, Segment, TrackedDisk,
    layered::{FETCH_BLOCKS, Peer},
};
use crate::stripes::split;

/// How long a write waits for the peer to say that this host is still the writer: as long as a read waits for blocks.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(300);

/// What this host is for a volume.
#[derive(Clone)]
pub enum Role {
    /// The only writer; all bytes are here.
    Primary,
    /// The only writer; writes are noted as owed to a shadow.
    Tracked(Arc<TrackedDisk>),
    /// Not a writer: reads are passed to the primary, so that a waiting QEMU can open the disk.
    Shadow(Arc<dyn Peer>),
    /// The only writer; some bytes are still at the peer.
    Draining(Arc<LayeredDisk>),
    /// Drained when its daemon ended, and has not heard from the peer since: writes wait, for the peer may have taken
    /// the volume back meanwhile.
    Unconfirmed(Arc<LayeredDisk>),
    /// Was the writer; another host is now.
    Fenced {
        /// Who.
        to: String,
    },
}

impl Role {
    /// Its name in records and on the screen.
    pub fn name(&self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Tracked(_) => "primary, shadowed",
            Role::Shadow(_) => "shadow",
            Role::Draining(_) => "primary, draining",
            Role::Unconfirmed(_) => "draining, unconfirmed",
            Role::Fenced { .. } => "fenced",
        }
    }
}

/// A volume behind its gate.
pub struct VolumeDisk {
    local: Arc<FileDisk>,
    gate: RwLock<(Epoch, Role)>,
    /// Who must be given a block's content before it changes. Changed only while the gate is shut.
    forks: RwLock<Vec<Weak<ForkDisk>>>,
    /// Told when an unconfirmed role has become another one. Taken after the gate.
    turn: Mutex<()>,
    turned: Condvar,
}

impl VolumeDisk {
    /// A volume in `local` with the role and epoch its record tells.
    pub fn new(local: Arc<FileDisk>, epoch: Epoch, role: Role) -> VolumeDisk {
        let gate = RwLock::new((epoch, role));
        VolumeDisk { local, gate, forks: RwLock::default(), turn: Mutex::default(), turned: Condvar::new() }
    }

    /// The file or device below.
    pub fn local(&self) -> &Arc<FileDisk> {
        &self.local
    }

    /// The epoch and role now.
    pub fn state(&self) -> (Epoch, Role) {
        self.gate.read().clone()
    }

    /// Changes the role; returns when no write under the old one is under way. An older epoch is refused.
    pub fn become_role(&self, epoch: Epoch, role: Role) -> Result<(), DiskError> {
        let mut gate = self.gate.write();
        turn(&mut gate, epoch, role)?;
        drop(gate);
        self.tell_turned();
        Ok(())
    }

    /// The same, unless a write that is under way takes longer than `patience`: false, and nothing has changed.
    pub fn become_role_within(&self, patience: Duration, epoch: Epoch, role: Role) -> Result<bool, DiskError> {
        let Some(mut gate) = self.gate.try_write_for(patience) else { return Ok(false) };
        turn(&mut gate, epoch, role)?;
        drop(gate);
        self.tell_turned();
        Ok(true)
    }

    fn tell_turned(&self) {
        // Under the lock, so that a waiter is either before its look at the gate or already waiting.
        let _turn = self.turn.lock();
        self.turned.notify_all();
    }

    /// Enters the gate to write at `at`; waits while it is not known whether this host is the writer.
    fn enter(&self, at: u64, len: u64) -> Result<RwLockReadGuard<'_, (Epoch, Role)>, DiskError> {
        let until = Clock::now() + CONFIRMED_WITHIN;
        loop {
            let gate = self.gate.read();
            let Role::Unconfirmed(disk) = &gate.1 else { return Ok(gate) };
            let place = disk.peer.name();
            let mut turn = self.turn.lock();
            drop(gate);
            if self.turned.wait_until(&mut turn, until).timed_out() {
                return Err(DiskError::Unreachable { at, len, place });
            }
        }
    }

    /// The volume as it is this moment, to be written apart from it, with what differs in `overlay`: a new disk of
    /// the same size, all holes. Waits for the writes under way. Only while all blocks are here and this host writes.
    pub fn fork(&self, overlay: FileDisk) -> Result<Arc<ForkDisk>, DiskError> {
        let gate = self.gate.write();
        match &gate.1 {
            Role::Primary | Role::Tracked(_) => {}
            other => return Err(DiskError::Fenced { why: format!("the volume is {}", other.name()) }),
        }
        let fork = Arc::new(ForkDisk::new(Arc::clone(&self.local), overlay));
        let mut forks = self.forks.write();
        forks.retain(|fork| fork.strong_count() > 0);
        forks.push(Arc::downgrade(&fork));
        Ok(fork)
    }

    /// Gives every fork the content of these bytes before they change.
    fn preserve(&self, at: u64, len: u64) {
        for fork in self.forks.read().iter().filter_map(Weak::upgrade) {
            fork.preserve(at, len);
        }
    }

    /// Changes `len` bytes at `at` under the gate, on the disk that the role writes to.
    fn change(
        &self,
        at: u64,
        len: u64,
        deed: impl FnOnce(&dyn Disk) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let gate = self.enter(at, len)?;
        if let Role::Primary | Role::Tracked(_) = gate.1 {
            self.preserve(at, len);
        }
        match &gate.1 {
            Role::Primary => deed(&*self.local),
            Role::Tracked(disk) => deed(&**disk),
            Role::Draining(disk) | Role::Unconfirmed(disk) => deed(&**disk),
            Role::Shadow(peer) => Err(DiskError::Fenced { why: format!("the volume is still at {}", peer.name()) }),
            Role::Fenced { to } => Err(DiskError::Fenced { why: format!("the volume has been handed to {to}") }),
        }
    }

    /// Fills `into` from the primary, stripe by stripe, keeping nothing: it may change the next moment.
    fn read_through(&self, peer: &dyn Peer, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        for piece in split(Extent::touching(at, into.len() as u64)) {
            debug_assert!(piece.len.0 <= FETCH_BLOCKS, "a stripe fits a fetch");
            let content = peer.fetch(piece)?;
            copy_part(&content, piece, into, at);
        }
        Ok(())
    }
}

/// Changes the role behind a gate that is shut.
fn turn(gate: &mut (Epoch, Role), epoch: Epoch, role: Role) -> Result<(), DiskError> {
    if epoch < gate.0 {
        return Err(DiskError::Fenced { why: format!("{epoch} is over, the volume is at {}", gate.0) });
    }
    *gate = (epoch, role);
    Ok(())
}

/// Copies what a fetched piece has of the bytes from `at` on.
fn copy_part(content: &Content, piece: Extent, into: &mut [u8], at: u64) {
    let from = piece.start.byte().max(at);
    let to = piece.end().byte().min(at + into.len() as u64);
    let target = &mut into[(from - at) as usize..(to - at) as usize];
    match content {
        Content::Zero => target.fill(0),
        Content::Data(data) => {
            let skip = (from - piece.start.byte()) as usize;
            let have = data.len().saturating_sub(skip).min(target.len());
            target[..have].copy_from_slice(&data[skip..skip + have]);
        }
    }
}

impl Disk for VolumeDisk {
    fn size(&self) -> Bytes {
        self.local.size()
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        // The guard is not held while a read waits for the peer, so a role can change meanwhile.
        let role = {
            let gate = self.gate.read();
            if let Role::Primary | Role::Tracked(_) = gate.1 {
                return self.local.read_at(into, at);
            }
            gate.1.clone()
        };
        match role {
            Role::Primary | Role::Tracked(_) => self.local.read_at(into, at),
            Role::Draining(disk) | Role::Unconfirmed(disk) => disk.read_at(into, at),
            Role::Shadow(peer) => self.read_through(&*peer, into, at),
            Role::Fenced { to } => Err(DiskError::Fenced { why: format!("the volume has been handed to {to}") }),
        }
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.change(at, data.len() as u64, |disk| disk.write_at(data, at))
    }

    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError> {
        self.change(at, len, |disk| disk.write_zeroes(at, len, punch))
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.change(at, len, |disk| disk.discard(at, len))
    }

    /// A disk that may not write has nothing to make durable: QEMU flushes what it lets go of.
    fn flush(&self) -> Result<(), DiskError> {
        let role = self.gate.read().1.clone();
        match role {
            Role::Draining(disk) | Role::Unconfirmed(disk) => disk.flush(),
            _ => self.local.flush(),
        }
    }

    fn is_local(&self, at: u64, len: u64) -> bool {
        match &self.gate.read().1 {
            Role::Primary | Role::Tracked(_) | Role::Fenced { .. } => true,
            Role::Draining(disk) | Role::Unconfirmed(disk) => disk.is_local(at, len),
            Role::Shadow(_) => false,
        }
    }

    /// One look at the gate decides and reads: a role that changes afterwards finds the read done or not begun.
    fn try_read_at(&self, into: &mut [u8], at: u64) -> Result<bool, DiskError> {
        let gate = self.gate.read();
        match &gate.1 {
            Role::Primary | Role::Tracked(_) => self.local.try_read_at(into, at),
            Role::Draining(disk) | Role::Unconfirmed(disk) => disk.try_read_at(into, at),
            Role::Shadow(_) => Ok(false),
            Role::Fenced { to } => Err(DiskError::Fenced { why: format!("the volume has been handed to {to}") }),
        }
    }

    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        let role = self.gate.read().1.clone();
        match role {
            Role::Draining(disk) | Role::Unconfirmed(disk) => disk.segments(at, len),
            Role::Shadow(_) => Ok(vec![Segment { len, hole: false, zero: false, local: false }]),
            _ => self.local.segments(at, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path};

    use gnomon_terms::BLOCK_SIZE;

    use super::*;
    use crate::{
        blockmap::BlockMap,
        disk::{Follower, layered::FlushTicket},
        outbox::Outbox,
        stripes::Stripes,
    };

    /// A peer that nobody may need: a read that needs no waiting never asks it.
    struct Unneeded;

    impl Peer for Unneeded {
        fn name(&self) -> String {
            "far".to_owned()
        }

        fn fetch(&self, extent: Extent) -> Result<Arc<Content>, DiskError> {
            panic!("{extent:?} was fetched by a read that must not wait")
        }

        fn stalled(&self, extent: Extent) {
            panic!("{extent:?} was told as a stall by a read that must not wait")
        }

        fn offer(&self, _extent: Extent) {}

        fn ask_flush(&self) -> FlushTicket {
            FlushTicket(0)
        }

        fn wait_flush(&self, _ticket: FlushTicket) -> Result<(), DiskError> {
            Ok(())
        }
    }

    const SIZE: u64 = 16 << 20;
    /// Further from the start than any readahead.
    const AFAR: u64 = 8 << 20;

    /// A file of noise, and where it is.
    fn noise() -> (tempfile::TempDir, Arc<FileDisk>) {
        let dir = tempfile::tempdir().expect("a folder");
        let local = FileDisk::create(&dir.path().join("disk"), Bytes(SIZE)).expect("made");
        let bytes: Vec<u8> = (0..SIZE / 4).flat_map(|n| (n as u32 | 1 << 31).to_le_bytes()).collect();
        local.write_at(&bytes, 0).expect("written");
        local.flush().expect("durable");
        (dir, Arc::new(local))
    }

    /// Lets the kernel forget the content, where the file system has a device below it.
    fn evict(file: &Path) {
        let file = File::open(file).expect("opened");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    }

    fn map(blocks: u64, valid: Extent) -> BlockMap {
        let map = BlockMap::volatile(gnomon_terms::BlockCount(blocks)).expect("a map");
        map.set(valid);
        map
    }

    /// All roles of a volume in `local`, whose first half is valid when it drains.
    fn roles(local: &Arc<FileDisk>) -> Vec<(&'static str, Role)> {
        let blocks = SIZE / BLOCK_SIZE;
        let (stripes, peer): (_, Arc<dyn Peer>) = (Arc::new(Stripes::default()), Arc::new(Unneeded));
        let outbox = || Arc::new(Outbox::new(map(blocks, Extent::new(0, 0))).expect("an outbox"));
        let tracked = TrackedDisk {
            local: Arc::clone(local),
            followers: vec![Follower { outbox: outbox(), turns: Arc::default() }],
            stripes: Arc::clone(&stripes),
        };
        let layered = LayeredDisk {
            local: Arc::clone(local),
            valid: Arc::new(map(blocks, Extent::new(0, blocks / 2))),
            peer: Arc::clone(&peer),
            outbox: None,
            stripes,
        };
        vec![
            ("primary", Role::Primary),
            ("tracked", Role::Tracked(Arc::new(tracked))),
            ("draining", Role::Draining(Arc::new(layered))),
            ("shadow", Role::Shadow(peer)),
            ("fenced", Role::Fenced { to: "b".to_owned() }),
        ]
    }

    #[test]
    fn a_read_that_must_not_wait_honours_role_and_validity() {
        let (_dir, local) = noise();
        let half = SIZE / 2;
        // What the read at each place says: done, would wait, or refused.
        let places = [0, half - 4096, half - 2048, half];
        let (yes, no) = (Some(true), Some(false));
        let table = [[yes; 4], [yes; 4], [yes, yes, no, no], [no; 4], [None; 4]];
        for ((name, role), wanted) in roles(&local).into_iter().zip(table) {
            let disk = VolumeDisk::new(Arc::clone(&local), Epoch(1), role);
            for (at, wanted) in places.into_iter().zip(wanted) {
                let mut into = [0; 4096];
                let got = disk.try_read_at(&mut into, at).ok();
                assert_eq!(got, wanted, "{name} at {at}");
                let mut truth = [0; 4096];
                local.read_at(&mut truth, at).expect("read");
                assert!(got != yes || into == truth, "{name} at {at}: other bytes");
            }
        }
    }

    #[test]
    fn what_is_not_in_memory_is_left_to_others_in_every_role() {
        for number in 0..3 {
            // A file of its own each time: what the kernel reads ahead for one cannot be evicted for the next.
            let (dir, local) = noise();
            let (name, role) = roles(&local).swap_remove(number);
            let disk = VolumeDisk::new(Arc::clone(&local), Epoch(1), role);
            evict(&dir.path().join("disk"));
            // On a file system that lives in memory both are done at once.
            let alone = local.try_read_at(&mut [0; 4096], AFAR).expect("asked");
            let behind = disk.try_read_at(&mut [0; 4096], 0).expect("asked");
            assert_eq!(behind, alone, "{name}");
        }
    }
}
