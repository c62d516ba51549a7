//! A guest of no hypervisor: memory that is written when the test says so, and devices that name the moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use gnomon_machine::{
    page::{Page, ZERO_PAGE},
    primary::Hypervisor,
    ram::Ram,
    shadow::{Ready, Successor},
};
use gnomon_qemu::{DirtyTracker, ScanCost, StateBlob, StateError, TrackError, TrackerTier};
use gnomon_terms::{PageCount, PageNumber, PageRun, PageSet};

/// What there is of the guest.
pub struct World {
    pub memory: Vec<Page>,
    dirty: BTreeSet<u64>,
    pub stands: bool,
    /// How often it has stood, and what its memory was each time.
    pub moments: BTreeMap<u64, Vec<Page>>,
    /// So many scans from now one fails.
    pub scan_fails_in: Option<u32>,
    /// The moment whose devices each shadow has judged last.
    pub judged: BTreeMap<usize, u64>,
}

pub type Shared = Arc<Mutex<World>>;

pub fn world(pages: usize) -> Shared {
    Arc::new(Mutex::new(World {
        memory: vec![ZERO_PAGE; pages],
        dirty: (0..pages as u64).collect(),
        stands: false,
        moments: BTreeMap::new(),
        scan_fails_in: None,
        judged: BTreeMap::new(),
    }))
}

impl World {
    /// The guest writes, unless it stands.
    pub fn write(&mut self, page: u64, at: usize, byte: u8) {
        if !self.stands {
            self.memory[page as usize][at] = byte;
            self.dirty.insert(page);
        }
    }

    /// The guest writes a whole page, the same for the same `byte`; zeroes for 0.
    pub fn fill(&mut self, page: u64, byte: u8) {
        self.write(page, 0, 0);
        self.memory[page as usize] = std::array::from_fn(|at| byte.wrapping_mul(at as u8));
    }
}

pub struct SimHypervisor(pub Shared);

impl Hypervisor for SimHypervisor {
    fn stand(&mut self) -> Result<(), StateError> {
        let mut world = self.0.lock().unwrap();
        world.stands = true;
        let (moment, memory) = (world.moments.len() as u64 + 1, world.memory.clone());
        world.moments.insert(moment, memory);
        Ok(())
    }

    fn go_on(&mut self) -> Result<Duration, StateError> {
        self.0.lock().unwrap().stands = false;
        Ok(Duration::from_millis(1))
    }

    /// Mostly the same from moment to moment, as devices are.
    fn device(&self) -> Result<Vec<u8>, StateError> {
        let moment = self.0.lock().unwrap().moments.len() as u64;
        let mut device = moment.to_le_bytes().to_vec();
        device.resize(2000 + (moment as usize * 37) % 1000, 7);
        Ok(device)
    }

    fn hand_over(&mut self) {}
}

#[derive(Debug)]
pub struct SimTracker(pub SharedWorld, pub TrackerTier);

/// A world that does not print itself.
#[derive(Clone)]
pub struct SharedWorld(pub Shared);

impl std::fmt::Debug for SharedWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a simulated guest")
    }
}

impl DirtyTracker for SimTracker {
    fn tier(&self) -> TrackerTier {
        self.1
    }

    fn pages(&self) -> PageCount {
        PageCount(self.0.0.lock().unwrap().memory.len() as u64)
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanCost, TrackError> {
        let mut world = self.0.0.lock().unwrap();
        assert!(world.stands || !self.1.needs_standing_guest(), "this tier is wrong while the guest runs");
        world.scan_fails_in = world.scan_fails_in.map(|left| left.saturating_sub(1));
        if world.scan_fails_in == Some(0) {
            world.scan_fails_in = None;
            world.dirty = (0..world.memory.len() as u64).collect();
            return Err(TrackError::Gone { pid: 1 });
        }
        let written = std::mem::take(&mut world.dirty);
        let reported = PageCount(written.len() as u64);
        written.into_iter().for_each(|page| dirty.insert(PageRun::new(page, 1)));
        Ok(ScanCost { took: Duration::ZERO, reported })
    }

    fn read(&self, start: PageNumber, into: &mut [u8]) -> Result<(), TrackError> {
        let world = self.0.0.lock().unwrap();
        for (at, page) in into.chunks_mut(4096).enumerate() {
            page.copy_from_slice(&world.memory[start.0 as usize + at]);
        }
        Ok(())
    }
}

/// Judges devices by noting which moment they are of. Shadows have numbers.
pub struct SimSuccessor(pub Shared, pub usize);

impl Successor for SimSuccessor {
    type Loaded = SimLoaded;

    fn fits(&self, device: &StateBlob) -> Result<(), StateError> {
        let bytes = device.bytes()?;
        let moment = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert_eq!(bytes.len(), 2000 + (moment as usize * 37) % 1000);
        assert!(bytes[8..].iter().all(|byte| *byte == 7));
        self.0.lock().unwrap().judged.insert(self.1, moment);
        Ok(())
    }

    fn load(self, _: &StateBlob, _: Duration) -> Result<SimLoaded, StateError> {
        Ok(SimLoaded)
    }
}

pub struct SimLoaded;

impl Ready for SimLoaded {
    fn run(self, _: Duration) -> Result<(), StateError> {
        Ok(())
    }
}

/// The shadow's memory.
pub struct SimRam(pub Mutex<Vec<Page>>);

impl Ram for SimRam {
    fn pages(&self) -> PageCount {
        PageCount(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, page: PageNumber, into: &mut Page) {
        *into = self.0.lock().unwrap()[page.0 as usize];
    }

    fn write(&self, page: PageNumber, content: &Page) {
        self.0.lock().unwrap()[page.0 as usize] = *content;
    }
}
