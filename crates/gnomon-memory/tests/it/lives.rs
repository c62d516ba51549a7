//! Lives of a host by seed: requests, guests that write, daemons and holders that die. After each step
//! the accounts balance, what a request gets is zero and of its group, and the holder has nothing that a guest has seen.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use gnomon_memory::{Block, GroupName, Request, Reserved, Staging, blocks_of};
use gnomon_terms::Bytes;

use crate::{
    host::{PATIENCE, TestHost, end, group_limits, web},
    staging::another_descriptor,
};

/// The size of the smallest block.
const UNIT: u64 = 64 << 10;

const VMS: [&str; 3] = ["one", "two", "three"];

/// A block at a guest: what its QEMU has open, and what the daemon calls it.
struct Guest {
    vm: &'static str,
    memory: File,
    block: Arc<Block>,
}

struct Life {
    host: TestHost,
    groups: [GroupName; 2],
    state: u64,
    reserved: Vec<(usize, Reserved)>,
    guests: Vec<Guest>,
    /// How many blocks all targets want.
    wanted: u64,
    /// How many blocks guests have had.
    served: usize,
}

impl Life {
    fn new(seed: u64) -> Life {
        let groups = [web(), GroupName::new("db").expect("a name")];
        let (host, reserved, guests) = (TestHost::closed(), Vec::new(), Vec::new());
        let mut life = Life { host, groups, state: seed, reserved, guests, wanted: 0, served: 0 };
        life.open();
        life
    }

    /// A number below `end`. Source: Marsaglia, "Xorshift RNGs", 2003.
    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % end.max(1) as u64) as usize
    }

    /// A daemon starts: it opens the staging area, and finds in QEMU what is there.
    fn open(&mut self) {
        let mut opening = self.host.opening();
        for group in &self.groups {
            opening = opening.group(group.clone(), group_limits());
        }
        let open: Vec<Block> = blocks_of(std::process::id() as i32).expect("looked");
        self.host.opened(Staging::open(opening).expect("opened"));
        for block in open {
            if let Some(guest) = self.guests.iter_mut().find(|guest| guest.block.id() == block.id()) {
                guest.block = self.host.assigned_again(guest.vm, block).expect("on the books again");
            }
        }
    }

    fn step(&mut self) {
        match self.below(16) {
            0..=4 => self.take(),
            5 => drop(self.some_reserved()),
            6..=8 => self.assign(),
            9..=10 => self.give_back(),
            11 => self.vm_dies(),
            12 => self.target(),
            13 => self.settle(),
            14 => self.daemon_dies(),
            _ => self.holder_dies(),
        }
    }

    fn target(&mut self) {
        self.wanted = 0;
        for n in 0..self.groups.len() {
            let target: Vec<(Bytes, u32)> = [1, 2, 4].map(|size| (Bytes(size * UNIT), self.below(4) as u32)).to_vec();
            self.host.set_target(&self.groups[n], &target).expect("a target");
            self.wanted += target.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
        }
    }

    /// The worker has done what is to be done.
    fn settle(&self) {
        assert!(self.host.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks >= self.wanted));
    }

    fn take(&mut self) {
        if self.below(4) > 0 {
            self.settle();
        }
        let group = self.below(2);
        let bytes = Bytes(self.below(9) as u64 * UNIT);
        let request = Request { bytes, whole: self.below(8) == 0, slots: self.below(9) as u32, step: Bytes(1) };
        let taken = self.host.take(&self.groups[group], request).expect("decided");
        assert_eq!(taken.hit.0 + taken.missing.0, bytes.0);
        for block in taken.reserved.blocks() {
            assert_eq!(block.group(), &self.groups[group]);
            let mut content = vec![1; block.size().0 as usize];
            another_descriptor(block).read_exact_at(&mut content, 0).expect("read");
            assert!(content.iter().all(|byte| *byte == 0), "a guest's byte in block {}", block.id());
        }
        self.reserved.push((group, taken.reserved));
    }

    fn some_reserved(&mut self) -> Option<(usize, Reserved)> {
        let at = self.below(self.reserved.len());
        (at < self.reserved.len()).then(|| self.reserved.swap_remove(at))
    }

    fn assign(&mut self) {
        let Some((_, reserved)) = self.some_reserved() else { return };
        let vm = VMS[self.below(VMS.len())];
        for block in reserved.assign(vm).expect("assigned") {
            let memory = another_descriptor(&block);
            self.served += 1;
            memory.write_all_at(&vec![0xa5; block.size().0 as usize], 0).expect("the guest writes");
            self.guests.push(Guest { vm, memory, block });
        }
    }

    fn give_back(&mut self) {
        let at = self.below(self.guests.len());
        if at < self.guests.len() {
            let guest = self.guests.swap_remove(at);
            self.host.returned(guest.block.id()).expect("returned");
            assert_eq!(guest.block.allocated().expect("told"), Bytes(0));
            // A QEMU that has kept it writes on.
            guest.memory.write_all_at(&[0xa5; 4096], 0).expect("written");
        }
    }

    fn vm_dies(&mut self) {
        let vm = VMS[self.below(VMS.len())];
        let gone: Vec<Guest> = self.guests.extract_if(.., |guest| guest.vm == vm).collect();
        assert_eq!(self.host.vm_ended(vm).expect("ended"), gone.len());
        assert!(gone.iter().all(|guest| guest.block.allocated().expect("told") == Bytes(0)));
    }

    fn daemon_dies(&mut self) {
        self.reserved.clear();
        self.host.kill();
        self.open();
        self.target();
    }

    /// And the daemon has seen it, when this returns: or it has not, and finds out later.
    fn holder_dies(&mut self) {
        if let Some(pid) = self.host.holder_pid() {
            end(pid);
        }
    }

    fn check(&self) {
        let accounts = self.host.balanced().host;
        assert_eq!(accounts.assigned.blocks, self.guests.len() as u64);
        let reserved: usize = self.reserved.iter().map(|(_, reserved)| reserved.blocks().len()).sum();
        assert_eq!(accounts.reserved.blocks, reserved as u64);
        // A holder that was killed just now cannot be looked into, and has nothing.
        let held = self.host.holder_pid().and_then(|pid| blocks_of(pid).ok()).unwrap_or_default();
        for block in held {
            assert!(
                self.guests.iter().all(|guest| guest.block.inode() != block.inode()),
                "the holder has a guest's block"
            );
        }
    }

    /// Everything ends well.
    fn end(mut self) {
        self.reserved.clear();
        for vm in VMS {
            self.host.vm_ended(vm).expect("ended");
        }
        self.guests.clear();
        for group in self.groups.clone() {
            self.host.remove_group(&group).expect("removed");
        }
        assert!(self.host.wait_until(PATIENCE, |accounts| accounts.host.living() == 0), "{:?}", self.host.accounts());
        self.host.balanced();
    }
}

fn live(seed: u64) {
    let mut life = Life::new(seed);
    life.target();
    for _ in 0..300 {
        life.step();
        life.check();
    }
    assert!(life.served >= 10, "a dull life: {} blocks", life.served);
    life.end();
}

#[test]
fn a_first_life_is_well_at_every_step() {
    live(0x5eed_0001);
}

#[test]
fn a_second_life_is_well_at_every_step() {
    live(0xabcd_ef01_2345);
}

#[test]
fn a_third_life_is_well_at_every_step() {
    live(0x1357_9bdf_2468);
}
