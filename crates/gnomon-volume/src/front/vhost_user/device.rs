//! The device as a frontend sees it: features, configuration space, queues.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use super::{
    order::{Ledger, Ticket},
    request::{Parts, SECTOR, SEGMENTS},
};
use crate::{
    front::helpers::{Helpers, Job},
    serve::Session,
};

/// Queues a guest may use; QEMU asks for one per virtual CPU and refuses to start when there are fewer.
const QUEUES: usize = 16;
/// Threads that share them.
const THREADS: usize = 4;
/// Longest queue a guest may set up, as QEMU allows.
const QUEUE_SIZE: usize = 1024;
/// Data descriptors of a request: a queue of 128 less header and status.
const SEG_MAX: u32 = 126;
/// Bytes moved at once between disk and guest, so that they are still in cache the second time.
const PIECE: usize = 256 << 10;
/// Sectors of one discard or write-zeroes segment: 1 GiB.
const ZERO_SECTORS: u32 = (1 << 30) / SECTOR as u32;
/// Configuration space with room for fields of later versions, which read as zero.
const CONFIG_LEN: usize = 256;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Guard = GuestMemoryLoadGuard<GuestMemoryMmap>;
type Ring = VringRwLock<Memory>;

/// A disk behind virtio queues.
pub(super) struct Device {
    session: Arc<Session>,
    memory: RwLock<Option<Memory>>,
    helpers: Helpers,
    queues: [Arc<Queue>; QUEUES],
    scratch: [Mutex<Box<[u8]>>; THREADS],
}

/// What is kept of a queue beside the guest's memory.
#[derive(Default)]
struct Queue {
    ledger: Ledger,
    /// Whether it has been served since its frontend connected.
    begun: AtomicBool,
}

impl Device {
    pub(super) fn new(session: Arc<Session>) -> Device {
        Device {
            session,
            memory: RwLock::new(None),
            helpers: Helpers::new(),
            queues: std::array::from_fn(|_| Arc::default()),
            scratch: std::array::from_fn(|_| Mutex::new(vec![0; PIECE].into_boxed_slice())),
        }
    }

    /// Serves all that is in the queue.
    fn serve(&self, ring: &Ring, queue: &Arc<Queue>, scratch: &mut [u8]) -> io::Result<()> {
        let Some(memory) = self.memory.read().as_ref().map(GuestAddressSpace::memory) else {
            return Err(io::Error::other("a queue was started before the guest's memory was known"));
        };
        if !queue.begun.swap(true, Ordering::Relaxed) {
            go_on(ring, &memory)?;
        }
        loop {
            ring.disable_notification().map_err(io::Error::other)?;
            while let Some(chain) = pop(ring, &memory) {
                let ticket = queue.ledger.enter(QUEUE_SIZE);
                let ticket = ticket.ok_or_else(|| io::Error::other("the guest offers more than its queue has"))?;
                let request = Request { ring: ring.clone(), queue: Arc::clone(queue), ticket };
                self.serve_one(request, &memory, chain, scratch)?;
            }
            // True when the guest has added something between the last look and now.
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }

    fn serve_one(
        &self,
        request: Request,
        memory: &Guard,
        chain: DescriptorChain<Guard>,
        scratch: &mut [u8],
    ) -> io::Result<()> {
        let head = chain.head_index();
        let Some(mut parts) = Parts::of(memory, chain.clone()) else {
            // No room for a status: all that can be told is that the chain is free again.
            return request.complete(head, 0);
        };
        let task = match parts.admit(&self.session) {
            Ok(task) => task,
            Err(status) => return request.complete(head, parts.finish(status)),
        };
        if let Some(status) = task.carry_out_now(&self.session, &mut parts, scratch) {
            return request.complete(head, parts.finish(status));
        }
        drop(parts);
        let (session, memory) = (self.session.clone(), memory.clone());
        let work = Box::new(move || {
            let Some(mut parts) = Parts::of(&memory, chain) else { return };
            let status = task.carry_out(&session, &mut parts, &mut vec![0; PIECE]);
            if let Err(error) = request.complete(head, parts.finish(status)) {
                tracing::warn!(%error, "a finished request could not be told to the guest");
            }
        });
        self.helpers.hand_over(Job { bytes: PIECE, work });
        Ok(())
    }
}

/// A request that has been taken from its queue.
struct Request {
    ring: Ring,
    queue: Arc<Queue>,
    ticket: Ticket,
}

impl Request {
    /// Tells the guest, once all requests before it have been told.
    fn complete(&self, head: u16, written: u32) -> io::Result<()> {
        self.queue.ledger.finish(self.ticket, (head, written), |(head, written)| {
            self.ring.add_used(head, written).map_err(io::Error::other)?;
            if self.ring.needs_notification().map_err(io::Error::other)? {
                self.ring.signal_used_queue()?;
            }
            Ok(())
        })
    }
}

/// Begins where the one who served this queue before has ended, perhaps by a crash: after the last request that the
/// guest has been told of. It may have been told without being woken, so it is woken.
fn go_on(ring: &Ring, memory: &Guard) -> io::Result<()> {
    {
        let mut state = ring.get_mut();
        let told = state.get_queue().used_idx(&**memory, Ordering::Acquire).map_err(io::Error::other)?;
        state.get_queue_mut().set_next_avail(told.0);
    }
    ring.signal_used_queue()
}

fn pop(ring: &Ring, memory: &Guard) -> Option<DescriptorChain<Guard>> {
    // A malformed ring ends like an empty one: the guest has broken its own disk.
    ring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone())
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        match self.session.is_read_only() {
            true => bits.push(VIRTIO_BLK_F_RO),
            false => bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]),
        }
        bits.iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |all, bit| all | 1 << bit)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    /// The queues know by themselves when the guest wants to be told.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = config(self.session.size().0);
        let end = (offset as usize).checked_add(size as usize);
        end.and_then(|end| config.get(offset as usize..end)).map_or_else(Vec::new, <[u8]>::to_vec)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.write() = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        masks()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // Held while its thread serves; the queue is not ready any more, so nothing new is taken.
        drop(self.scratch[queue as usize % THREADS].lock());
        self.helpers.wait_until_idle();
        Ok(())
    }

    fn handle_event(&self, event: u16, events: EventSet, rings: &[Ring], thread: usize) -> io::Result<()> {
        // A thread's rings are every fourth of the queues, as [`masks`] tells.
        let queue = self.queues.get(usize::from(event) * THREADS + thread);
        let (true, Some(ring), Some(queue), Some(scratch)) =
            (events == EventSet::IN, rings.get(usize::from(event)), queue, self.scratch.get(thread))
        else {
            return Err(io::Error::other(format!("an event that was never asked for: {event} on thread {thread}")));
        };
        self.serve(ring, queue, &mut scratch.lock())
    }
}

/// Which queues each thread serves: every fourth, so that the queues of a small guest are spread.
fn masks() -> Vec<u64> {
    (0..THREADS).map(|thread| (thread..QUEUES).step_by(THREADS).fold(0, |mask, queue| mask | 1 << queue)).collect()
}

/// The configuration space. Source: VIRTIO 1.2, 5.2.4 "Device configuration layout". Little-endian.
fn config(size: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // Topology: physical blocks of 2^3 sectors = 4 KiB, smallest and best request of 8 sectors.
    put(24, &[3]);
    put(26, &8u16.to_le_bytes());
    put(28, &8u32.to_le_bytes());
    // Writes are cached until a flush.
    put(32, &[1]);
    put(34, &(QUEUES as u16).to_le_bytes());
    put(36, &ZERO_SECTORS.to_le_bytes());
    put(40, &(SEGMENTS as u32).to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &ZERO_SECTORS.to_le_bytes());
    put(52, &(SEGMENTS as u32).to_le_bytes());
    // Zeroes may give storage back.
    put(56, &[1]);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_is_counted_in_sectors() {
        assert_eq!(config(10 * SECTOR + 100)[..8], 10u64.to_le_bytes());
    }

    #[test]
    fn every_queue_has_one_thread() {
        assert_eq!(masks().iter().fold(0, |all, mask| all | mask), (1 << QUEUES) - 1);
        assert_eq!(masks().iter().map(|mask| mask.count_ones() as usize).sum::<usize>(), QUEUES);
    }
}
