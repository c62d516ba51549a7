//! A shadow's host, simulated: a volume and a journal that stop at any byte written, and lose what was not synced when
//! the power goes.

use std::{io, sync::Arc};

use gnomon_terms::Bytes;
use gnomon_volume::{
    disk::{Disk, DiskError, Segment},
    standby::Medium,
};
use parking_lot::Mutex;

use crate::seeded::Dice;

/// Power cuts tear writes at sectors.
const SECTOR: usize = 512;

/// What is stored there. Clones are the same host.
#[derive(Clone)]
pub struct Machine {
    life: Arc<Mutex<u64>>,
    pub volume: Storage,
    pub journal: Storage,
}

/// A file, as its host's kernel has it and as its disk has it.
#[derive(Clone)]
pub struct Storage {
    life: Arc<Mutex<u64>>,
    image: Arc<Mutex<Image>>,
}

#[derive(Clone)]
struct Image {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Machine {
    pub fn new(volume: u64, journal: u64) -> Machine {
        let life = Arc::new(Mutex::new(u64::MAX));
        let storage = |len: u64| {
            let image = Image { now: vec![0; len as usize], durable: vec![0; len as usize], unsynced: Vec::new() };
            Storage { life: Arc::clone(&life), image: Arc::new(Mutex::new(image)) }
        };
        let (volume, journal) = (storage(volume), storage(journal));
        Machine { life, volume, journal }
    }

    /// Its daemon is killed after so many more bytes; a sync counts as one.
    pub fn dies_after(&self, bytes: u64) {
        *self.life.lock() = bytes;
    }

    /// Whether its daemon was killed.
    pub fn is_dead(&self) -> bool {
        *self.life.lock() == 0
    }

    /// Another daemon starts.
    pub fn revive(&self) {
        *self.life.lock() = u64::MAX;
    }

    /// The power goes: of what was not synced, some sectors are there and some are not.
    pub fn lose_power(&self, dice: &mut Dice) {
        for storage in [&self.volume, &self.journal] {
            storage.image.lock().lose_power(dice);
        }
    }

    /// A host with the same files.
    pub fn copy(&self) -> Machine {
        let life = Arc::new(Mutex::new(u64::MAX));
        let copy = |storage: &Storage| {
            let image = storage.image.lock().clone();
            Storage { life: Arc::clone(&life), image: Arc::new(Mutex::new(image)) }
        };
        let (volume, journal) = (copy(&self.volume), copy(&self.journal));
        Machine { life, volume, journal }
    }
}

impl Image {
    fn lose_power(&mut self, dice: &mut Dice) {
        for (at, data) in std::mem::take(&mut self.unsynced) {
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if dice.roll(2) == 0 {
                    let from = at + number * SECTOR;
                    self.durable[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.now.clone_from(&self.durable);
    }
}

impl Storage {
    pub fn content(&self) -> Vec<u8> {
        self.image.lock().now.clone()
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<()> {
        let mut life = self.life.lock();
        let here = (data.len() as u64).min(*life) as usize;
        let (mut image, at) = (self.image.lock(), at as usize);
        image.now[at..at + here].copy_from_slice(&data[..here]);
        image.unsynced.push((at, data[..here].to_vec()));
        *life = life.saturating_sub(here as u64);
        if here < data.len() { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn make_durable(&self) -> io::Result<()> {
        let mut life = self.life.lock();
        if *life == 0 {
            return Err(io::Error::other("killed"));
        }
        *life -= 1;
        let mut image = self.image.lock();
        for (at, data) in std::mem::take(&mut image.unsynced) {
            image.durable[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn read(&self, into: &mut [u8], at: u64) {
        into.copy_from_slice(&self.image.lock().now[at as usize..][..into.len()]);
    }
}

impl Medium for Storage {
    fn len(&self) -> u64 {
        self.image.lock().now.len() as u64
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read(into, at);
        Ok(())
    }

    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        self.write(data, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.make_durable()
    }
}

impl Disk for Storage {
    fn size(&self) -> Bytes {
        Bytes(Medium::len(self))
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.read(into, at);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.write(data, at).map_err(DiskError::io("write", at, data.len() as u64))
    }

    fn write_zeroes(&self, at: u64, len: u64, _punch: bool) -> Result<(), DiskError> {
        Disk::write_at(self, &vec![0; len as usize], at)
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, len, true)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.make_durable().map_err(DiskError::io("flush", 0, Disk::size(self).0))
    }

    fn segments(&self, _at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        Ok(vec![Segment { len, hole: false, zero: false, local: true }])
    }
}
