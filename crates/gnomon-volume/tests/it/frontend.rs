//! A vhost-user frontend made by hand: one queue, memory that the test writes like a guest, honest or not.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserConfigFlags, VhostUserProtocolFeatures},
    },
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Memory of the "guest".
pub const MEMORY: u64 = 1 << 20;
/// Where test data may go.
pub const DATA: u64 = 0x10000;

const QUEUE: u16 = 64;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where the frontend claims to have mapped the memory; only differences to it mean anything.
const CLAIMED: u64 = 0x1000_0000;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One descriptor.
#[derive(Clone, Copy)]
pub struct Desc {
    pub at: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A connected frontend with one running queue.
pub struct Guest {
    frontend: Frontend,
    memory: File,
    kick: EventFd,
    call: EventFd,
    submitted: u16,
}

impl Guest {
    pub fn connect(socket: &Path) -> Guest {
        let mut frontend = Frontend::connect(socket, 16).expect("the server listens");
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        // All but EVENT_IDX (bit 29), which the test's queue does not keep.
        frontend.set_features(features & !(1 << 29)).unwrap();
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ).unwrap();
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mut guest = Guest { frontend, memory, kick: event(), call: event(), submitted: 0 };
        guest.start();
        guest
    }

    fn start(&mut self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: CLAIMED,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
        self.frontend.set_vring_num(0, QUEUE).unwrap();
        let addresses = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: CLAIMED + DESCRIPTORS,
            used_ring_addr: CLAIMED + USED,
            avail_ring_addr: CLAIMED + AVAILABLE,
            log_addr: None,
        };
        self.frontend.set_vring_addr(0, &addresses).unwrap();
        self.frontend.set_vring_base(0, 0).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    /// The first `len` bytes of the configuration space.
    pub fn config(&mut self, len: usize) -> Vec<u8> {
        self.frontend.get_config(0, len as u32, VhostUserConfigFlags::WRITABLE, &vec![0; len]).unwrap().1
    }

    /// Stops the queue; returns how many chains the device has taken.
    pub fn stop(&self) -> u32 {
        self.frontend.get_vring_base(0).unwrap()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Offers a chain that begins with descriptor 0 and does not wait.
    pub fn offer(&mut self, chain: &[Desc]) {
        for (number, desc) in chain.iter().enumerate() {
            let bytes = [
                &desc.at.to_le_bytes()[..],
                &desc.len.to_le_bytes(),
                &desc.flags.to_le_bytes(),
                &desc.next.to_le_bytes(),
            ];
            self.put(DESCRIPTORS + 16 * number as u64, &bytes.concat());
        }
        self.put(AVAILABLE + 4 + 2 * u64::from(self.submitted % QUEUE), &0u16.to_le_bytes());
        self.submitted += 1;
        self.put(AVAILABLE + 2, &self.submitted.to_le_bytes());
        self.kick.write(1).unwrap();
    }

    /// Waits until all offered chains are used; returns how many bytes were written into the last.
    pub fn await_used(&self) -> u32 {
        const LONG: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
        while u16::from_le_bytes(self.get(USED + 2, 2).try_into().unwrap()) != self.submitted {
            // SAFETY: the event outlives the borrow, which ends with this turn of the loop.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let told = poll(&mut [PollFd::new(&call.as_fd(), PollFlags::IN)], Some(&LONG)).unwrap();
            assert!(told > 0, "the device does not answer");
            // Empty when the device was faster than this look.
            let _ = self.call.read();
        }
        let last = USED + 4 + 8 * u64::from((self.submitted - 1) % QUEUE) + 4;
        u32::from_le_bytes(self.get(last, 4).try_into().unwrap())
    }

    /// One request with data for the device and room for data from it; returns its status and that data.
    pub fn request(&mut self, kind: u32, sector: u64, input: &[u8], room: u32) -> (u8, Vec<u8>) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let (data, output) = (DATA + 16, DATA + 16 + input.len() as u64);
        let status = output + u64::from(room);
        self.put(DATA, &[&header[..], input].concat());
        self.put(status, &[0xee]);
        self.offer(&[
            Desc { at: DATA, len: 16, flags: NEXT, next: 1 },
            Desc { at: data, len: input.len() as u32, flags: NEXT, next: 2 },
            Desc { at: output, len: room, flags: NEXT | WRITE, next: 3 },
            Desc { at: status, len: 1, flags: WRITE, next: 0 },
        ]);
        self.await_used();
        (self.get(status, 1)[0], self.get(output, room as usize))
    }
}
