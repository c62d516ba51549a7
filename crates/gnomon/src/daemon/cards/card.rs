//! One network card: a thread that carries its frames between QEMU's socket and the uplink.
//!
//! ```text
//!   guest ─ QEMU ─ socket ──gather──► Hold ──let out──► tap ─ network
//!                    ▲                                   │
//!                    └──────────── bring in ─────────────┘
//! ```
//! The sockets have paths, so a daemon that was restarted takes the card up again while the guest runs; frames in between
//! are lost, as on a cable that was pulled out. Nothing here waits for the network: what it does not take is dropped. What
//! the guest does not take stays in the uplink's queue.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use gnomon_machine::frames::Hold;
use gnomon_qemu::NicSpec;
use gnomon_terms::Bytes;
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use super::{UplinkError, tap::Tap};
use crate::api::{chain, types::NicView};

/// The header of a frame: two addresses and a type. What is shorter is none.
const SMALLEST: usize = 14;
/// The largest packet that a guest can make of one, 64 KiB, with its header and a VLAN's tag.
const LARGEST: usize = (64 << 10) + SMALLEST + 4;
/// Frames handled in one direction before it is the other's turn.
const AT_ONCE: usize = 64;
/// More frames than the kernel keeps for a socket (`net.unix.max_dgram_qlen`: 10, and 512 where systemd sets it).
const ALL: usize = 4096;
/// What may wait for a checkpoint: at 1 Gbit/s, 130 ms of frames.
const HELD_MOST: Bytes = Bytes(16 << 20);
/// How often an uplink is looked for that could not be opened: another QEMU of the guest may just be letting go of it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A card whose frames are carried.
pub(super) struct Card {
    shared: Arc<Shared>,
    /// Returns the uplink when it ends.
    thread: Option<JoinHandle<Option<Tap>>>,
}

/// What the thread and others share.
struct Shared {
    vm: String,
    nic: NicSpec,
    socket: UnixDatagram,
    inbox: Mutex<Inbox>,
    /// Wakes the thread.
    wake: OwnedFd,
    ends: AtomicBool,
    counts: Counts,
    /// Why there is no uplink.
    trouble: Mutex<Option<String>>,
}

/// What the guest has sent and has not left.
struct Inbox {
    hold: Hold,
    room: Box<[u8]>,
}

#[derive(Default)]
struct Counts {
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
    dropped: AtomicU64,
}

/// A frame for the guest that QEMU had no room for yet.
struct Incoming {
    room: Box<[u8]>,
    len: usize,
}

impl Card {
    /// Carries frames from now on. Without `tap`, the uplink is looked for until it is there.
    pub(super) fn start(vm: &str, nic: NicSpec, tap: Option<Tap>) -> Result<Card, UplinkError> {
        let failed = |source| UplinkError::Socket { path: nic.peer.display().to_string(), source };
        let socket = bind(&nic.peer).map_err(failed)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        let inbox = Inbox { hold: Hold::new(HELD_MOST), room: room() };
        let shared = Arc::new(Shared {
            vm: vm.to_string(),
            socket,
            inbox: Mutex::new(inbox),
            wake,
            ends: AtomicBool::new(false),
            counts: Counts::default(),
            trouble: Mutex::default(),
            nic,
        });
        let carrier = Arc::clone(&shared);
        let thread = thread::Builder::new().name("card".into()).spawn(move || carrier.run(tap));
        match thread {
            Ok(thread) => Ok(Card { shared, thread: Some(thread) }),
            Err(source) => Err(UplinkError::Socket { path: shared.nic.peer.display().to_string(), source }),
        }
    }

    /// What it is.
    pub(super) fn nic(&self) -> &NicSpec {
        &self.shared.nic
    }

    /// Changes what is held; what may leave by then does.
    pub(super) fn with_hold(&self, deed: impl FnOnce(&mut Hold)) {
        deed(&mut self.shared.inbox.lock().hold);
        self.shared.wake();
    }

    /// The guest stands for a checkpoint: all that it has sent is of that one, or of one before.
    pub(super) fn close(&self, checkpoint: u64) {
        let mut inbox = self.shared.inbox.lock();
        self.shared.gather(&mut inbox, ALL);
        inbox.hold.close(checkpoint);
    }

    /// Ends it; what may leave does before. The uplink is free when this returns, or the caller's.
    pub(super) fn end(mut self) -> Option<Tap> {
        self.shared.ends.store(true, Relaxed);
        self.shared.wake();
        let tap = self.thread.take().and_then(|thread| thread.join().ok()).flatten();
        // QEMU is told that nobody listens when the socket is closed; its file is of no use without it.
        let _ = fs::remove_file(&self.shared.nic.peer);
        tap
    }

    /// As the API shows it.
    pub(super) fn view(&self) -> NicView {
        let Shared { nic, counts, trouble, .. } = &*self.shared;
        let inbox = self.shared.inbox.lock();
        NicView {
            mac: nic.mac.to_string(),
            uplink: nic.uplink.to_string(),
            why: trouble.lock().clone(),
            sent_frames: counts.sent_frames.load(Relaxed),
            sent_bytes: counts.sent_bytes.load(Relaxed),
            received_frames: counts.received_frames.load(Relaxed),
            received_bytes: counts.received_bytes.load(Relaxed),
            is_holding: inbox.hold.is_holding(),
            held_frames: inbox.hold.held() as u64,
            held_bytes: inbox.hold.held_bytes().0,
            dropped_frames: counts.dropped.load(Relaxed) + inbox.hold.dropped(),
        }
    }
}

impl Drop for Card {
    /// Its thread ends by itself when nobody has waited for that.
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        self.shared.wake();
    }
}

impl Shared {
    /// The life of the thread.
    fn run(&self, mut tap: Option<Tap>) -> Option<Tap> {
        let mut incoming = Incoming { room: room(), len: 0 };
        loop {
            let ends = self.ends.load(Relaxed);
            if tap.is_none() && !ends {
                tap = self.look_for_uplink();
            }
            let gathered = self.gather(&mut self.inbox.lock(), if ends { ALL } else { AT_ONCE });
            self.let_out(tap.as_ref());
            if ends {
                return tap;
            }
            let brought = match &tap {
                Some(open) => self.bring_in(open, &mut incoming),
                None => Ok(false),
            };
            if let Err(error) = brought {
                tracing::warn!(vm = self.vm, uplink = %self.nic.uplink, %error, "a card has lost its uplink");
                tap = None;
            }
            if gathered < AT_ONCE && !brought.unwrap_or(false) {
                self.wait(tap.as_ref(), incoming.len > 0);
            }
        }
    }

    fn look_for_uplink(&self) -> Option<Tap> {
        let found = Tap::open(&self.nic.uplink, self.nic.mac);
        let mut trouble = self.trouble.lock();
        match found {
            Ok(tap) => {
                *trouble = None;
                Some(tap)
            }
            Err(error) => {
                let why = chain(&error);
                if trouble.as_ref() != Some(&why) {
                    tracing::warn!(vm = self.vm, uplink = %self.nic.uplink, why, "a card has no uplink yet");
                    *trouble = Some(why);
                }
                None
            }
        }
    }

    /// Takes what QEMU has sent, `most` frames of it at most; how many there were.
    fn gather(&self, inbox: &mut Inbox, most: usize) -> usize {
        for count in 0..most {
            match self.socket.recv(&mut inbox.room) {
                Ok(len) if (SMALLEST..=LARGEST).contains(&len) => inbox.hold.offer(inbox.room[..len].to_vec()),
                Ok(_) => self.drop_one(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return count,
            }
        }
        most
    }

    /// Lets out what may leave.
    fn let_out(&self, tap: Option<&Tap>) {
        loop {
            let Some(frame) = self.inbox.lock().hold.take() else { return };
            match tap.map(|tap| tap.write(&frame)) {
                Some(Ok(())) => {
                    self.counts.sent_frames.fetch_add(1, Relaxed);
                    self.counts.sent_bytes.fetch_add(frame.len() as u64, Relaxed);
                }
                // Full, switched off, or not there: a network may lose it.
                Some(Err(_)) | None => self.drop_one(),
            }
        }
    }

    /// Hands frames of the uplink to QEMU. True when there may be more at once; an error when the uplink is gone.
    fn bring_in(&self, tap: &Tap, incoming: &mut Incoming) -> Result<bool, Errno> {
        for _ in 0..AT_ONCE {
            if incoming.len == 0 {
                match tap.read(&mut incoming.room) {
                    Ok(len) if (SMALLEST..=LARGEST).contains(&len) => incoming.len = len,
                    Ok(_) => self.drop_one(),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            if incoming.len > 0 && !self.hand_over(incoming) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// False when QEMU has no room now: it reads on when the guest does.
    fn hand_over(&self, incoming: &mut Incoming) -> bool {
        let frame = &incoming.room[..incoming.len];
        let again = |_| self.socket.connect(&self.nic.socket).and_then(|()| self.socket.send(frame));
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let sent = match self.socket.send(frame) {
            // QEMU has just begun, or has ended.
            Err(error) if !is_full(&error) => again(error),
            sent => sent,
        };
        match sent {
            Err(error) if is_full(&error) => return false,
            Err(_) => self.drop_one(),
            Ok(_) => {
                self.counts.received_frames.fetch_add(1, Relaxed);
                self.counts.received_bytes.fetch_add(incoming.len as u64, Relaxed);
            }
        }
        incoming.len = 0;
        true
    }

    /// Waits until there is something to do.
    fn wait(&self, tap: Option<&Tap>, guest_is_full: bool) {
        let guest = if guest_is_full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.socket, guest), PollFd::new(&self.wake, PollFlags::IN)];
        // What cannot be handed on stays where it is.
        fds.extend(tap.filter(|_| !guest_is_full).map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)));
        let soon = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_EVERY.subsec_nanos()) };
        // Interrupted is as good as woken.
        let _ = poll(&mut fds, tap.is_none().then_some(&soon));
        // Empty when nobody has woken it.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn wake(&self) {
        // Full is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn drop_one(&self) {
        self.counts.dropped.fetch_add(1, Relaxed);
    }
}

/// Room for the largest frame, and a byte more, by which a larger one is known.
fn room() -> Box<[u8]> {
    vec![0; LARGEST + 1].into_boxed_slice()
}

/// Makes the socket that QEMU sends to. A file that is there was left by a daemon that died.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
