//! The holder's own loop. It has one thread, no clock but for its patience, and no state but descriptors.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gnomon_terms::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, chmod},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt},
    process::getuid,
};

use super::{
    HolderError,
    link::{Received, receive, send},
    message::{Answer, Request},
};
use crate::{
    block::{Block, BlockId, open_fd},
    descriptors::raise_limit,
    groups::PageKind,
    guard::{Ruling, judge},
    host::{Gauge, ProcGauge},
};

/// The most blocks that are held. A host of 1 TiB in blocks of 128 MiB has twice as many, and stages a fraction of it.
const MOST_HELD: usize = 4096;

/// Descriptors of the holder that are no blocks: its own, and one that is being received.
const OTHER_FDS: u64 = 32;

/// How often the host's memory is looked at while no daemon does. Pressure is told in averages of ten seconds.
const LOOK: Duration = Duration::from_secs(5);

/// What must be available on a host whose daemon is away: a thirty-second part of its memory. A daemon knows better, but
/// only a daemon.
const FLOOR_SHARE: u64 = 32;

/// Daemons that may wait to be accepted.
const BACKLOG: i32 = 16;

/// How long the holder stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With nothing held and nobody connected.
    pub empty: Duration,
    /// With blocks held and nobody connected: then they go back to the host.
    pub alone: Duration,
}

impl Default for Patience {
    /// A minute, and a quarter of an hour: the restart of a daemon takes seconds, an upgrade of its package minutes.
    fn default() -> Patience {
        Patience { empty: Duration::from_secs(60), alone: Duration::from_secs(15 * 60) }
    }
}

/// Holds blocks for daemons that connect to `socket`, until it is told to end or its patience is over. `ready` is called
/// when daemons can connect. Blocks for as long as it holds: it is the whole life of a process.
///
/// Refused with [`HolderError::AlreadyHeld`] when another process holds for this socket. What it holds goes back to the
/// host when it ends, unless a daemon has it too; and sooner when no daemon is there and the host is in need.
pub fn hold(socket: &Path, patience: Patience, ready: &mut dyn FnMut()) -> Result<(), HolderError> {
    hold_by(socket, patience, &ProcGauge, LOOK, ready)
}

/// The same by another gauge, and another time between two looks at it.
fn hold_by(
    socket: &Path,
    patience: Patience,
    gauge: &dyn Gauge,
    look: Duration,
    ready: &mut dyn FnMut(),
) -> Result<(), HolderError> {
    // Held until the end, by this process alone: who has it may take the socket's place.
    let _lock = lock(socket)?;
    let mut keeper = Keeper {
        listener: listener(socket)?,
        path: socket.to_path_buf(),
        daemon: None,
        held: BTreeMap::new(),
        most: room_for_descriptors(),
        alone_since: Instant::now(),
    };
    ready();
    let ended = keeper.run(patience, gauge, look);
    // While the lock is ours nobody else has made a socket there.
    let _ = fs::remove_file(socket);
    ended
}

/// The state.
struct Keeper {
    listener: OwnedFd,
    path: PathBuf,
    daemon: Option<OwnedFd>,
    held: BTreeMap<BlockId, Block>,
    most: usize,
    alone_since: Instant,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    HangUp,
    End,
}

impl Keeper {
    fn run(&mut self, patience: Patience, gauge: &dyn Gauge, look: Duration) -> Result<(), HolderError> {
        loop {
            let left = self.patience_left(patience);
            if left == Some(Duration::ZERO) {
                return Ok(());
            }
            let wait = left.map(|left| left.min(look));
            let (daemon, door) = self.wait(wait).map_err(|e| self.failed("wait at", e))?;
            // First the daemon that is there: when it has died, the next one may have come already.
            if daemon && self.hear() == Next::End {
                return Ok(());
            }
            if door {
                self.answer_the_door();
            }
            if self.daemon.is_none() && !self.held.is_empty() {
                self.spare_the_host(gauge);
            }
        }
    }

    /// Nobody else looks after the host now: the oldest blocks go while it is in need. Large pages would not help it.
    fn spare_the_host(&mut self, gauge: &dyn Gauge) {
        let Ok(memory) = gauge.read() else { return };
        let small = |block: &&Block| block.pages() == PageKind::Small;
        let held = self.held.values().filter(small).map(|block| block.size().0).sum();
        let floor = Bytes(memory.total.0 / FLOOR_SHARE);
        let Ruling::GiveBack(mut wanted) = judge(&memory, floor, &Bytes(held).into()).small else { return };
        let oldest: Vec<(BlockId, Bytes)> =
            self.held.values().filter(small).map(|block| (block.id(), block.size())).collect();
        for (id, size) in oldest {
            if wanted == Bytes(0) {
                return;
            }
            self.held.remove(&id);
            wanted.0 = wanted.0.saturating_sub(size.0);
        }
    }

    /// How long nobody may come from now on; `None` while somebody is here.
    fn patience_left(&self, patience: Patience) -> Option<Duration> {
        let all = if self.held.is_empty() { patience.empty } else { patience.alone };
        self.daemon.is_none().then(|| all.saturating_sub(self.alone_since.elapsed()))
    }

    /// Whether the daemon has said something (or hung up), and whether somebody is at the door.
    fn wait(&self, left: Option<Duration>) -> Result<(bool, bool), Errno> {
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN)];
        fds.extend(self.daemon.as_ref().map(|daemon| PollFd::from_borrowed_fd(daemon.as_fd(), PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {
                let said = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
                Ok((said(1), said(0)))
            }
            Err(Errno::INTR) => Ok((false, false)),
            Err(e) => Err(e),
        }
    }

    /// Hears what the daemon says, and answers. A daemon that cannot be heard has hung up.
    fn hear(&mut self) -> Next {
        let Some(daemon) = self.daemon.take() else { return Next::GoOn };
        let next = match receive(daemon.as_fd()) {
            Ok(Received { packet, .. }) if packet.is_empty() => Next::HangUp,
            Ok(Received { packet, fd }) => {
                let request = Request::decode(&packet);
                let answer = request.map_or(Answer::Strange, |request| self.serve(request, fd));
                match send(daemon.as_fd(), &answer.encode(), None) {
                    Ok(()) if request == Some(Request::End) => Next::End,
                    Ok(()) => Next::GoOn,
                    Err(_) => Next::HangUp,
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => Next::GoOn,
            Err(_) => Next::HangUp,
        };
        match next {
            Next::GoOn => self.daemon = Some(daemon),
            Next::HangUp | Next::End => self.alone_since = Instant::now(),
        }
        next
    }

    fn serve(&mut self, request: Request, fd: Option<OwnedFd>) -> Answer {
        match (request, fd) {
            (Request::Hello | Request::End, None) => Answer::Done(self.held.len() as u64),
            (Request::Keep(id), Some(fd)) => self.keep(id, &fd),
            (Request::Forget(id), None) => {
                // To have nothing to forget is to have forgotten.
                self.held.remove(&id);
                Answer::Done(self.held.len() as u64)
            }
            _ => Answer::Strange,
        }
    }

    /// Keeps what is a block by that name, whole, and not held yet.
    fn keep(&mut self, id: BlockId, fd: &OwnedFd) -> Answer {
        if self.held.len() >= self.most {
            return Answer::Full;
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        match open_fd(&path) {
            Ok(Some(block)) if block.id() == id && block.is_whole() && !self.held.contains_key(&id) => {
                self.held.insert(id, block);
                Answer::Done(self.held.len() as u64)
            }
            _ => Answer::Strange,
        }
    }

    /// Lets a daemon in, if there is none and it is of the same user. Whoever is not let in is told.
    fn answer_the_door(&mut self) {
        let Ok(guest) = accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        let ours = sockopt::socket_peercred(&guest).is_ok_and(|peer| peer.uid == getuid());
        if ours && self.daemon.is_none() {
            self.daemon = Some(guest);
        } else if ours {
            // What it has said already is read, or the kernel would tell it of that instead of our answer. It may have
            // hung up meanwhile; then nobody needs to be told.
            let _ = receive(guest.as_fd());
            let _ = send(guest.as_fd(), &Answer::Busy.encode(), None);
        }
    }

    fn failed(&self, what: &'static str, e: Errno) -> HolderError {
        HolderError::Socket { what, path: self.path.clone(), source: e.into() }
    }
}

/// Takes the lock beside the socket, for as long as the file is open.
fn lock(socket: &Path) -> Result<File, HolderError> {
    let failed = |source| HolderError::Socket { what: "lock", path: socket.to_path_buf(), source };
    let mut path = socket.as_os_str().to_os_string();
    path.push(".lock");
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(HolderError::AlreadyHeld { path: socket.to_path_buf() }),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Listens at the socket's path, in place of what a dead holder has left there.
fn listener(path: &Path) -> Result<OwnedFd, HolderError> {
    let failed = |what| move |e: Errno| HolderError::Socket { what, path: path.to_path_buf(), source: e.into() };
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(HolderError::Socket { what: "clear", path: path.to_path_buf(), source: e });
        }
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed("make"))?;
    let address = SocketAddrUnix::new(path).map_err(failed("name"))?;
    bind(&socket, &address).map_err(failed("bind"))?;
    chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed("guard"))?;
    listen(&socket, BACKLOG).map_err(failed("listen at"))?;
    Ok(socket)
}

/// How many blocks fit into the descriptors that this process may have.
fn room_for_descriptors() -> usize {
    let room = raise_limit().saturating_sub(OTHER_FDS);
    usize::try_from(room).unwrap_or(MOST_HELD).min(MOST_HELD)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use rustix::net::connect;

    use super::{super::link::readable, *};
    use crate::{
        groups::GroupName,
        host::{GaugeError, HostMemory},
    };

    const LOOK: Duration = Duration::from_millis(5);

    /// A host in need.
    struct NeedyHost;

    impl Gauge for NeedyHost {
        fn read(&self) -> Result<HostMemory, GaugeError> {
            Ok(HostMemory { total: Bytes(32 << 20), ..HostMemory::default() })
        }
    }

    fn ask(socket: &OwnedFd, request: Request, block: Option<&Block>) -> Option<Answer> {
        send(socket.as_fd(), &request.encode(), block.map(AsFd::as_fd)).expect("sent");
        assert!(readable(socket.as_fd(), Duration::from_secs(120)).expect("waited"));
        Answer::decode(&receive(socket.as_fd()).expect("received").packet)
    }

    fn dial(path: &Path) -> OwnedFd {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("made");
        connect(&socket, &SocketAddrUnix::new(path).expect("a path")).expect("connected");
        socket
    }

    /// Says that this block of 1 MiB is to be kept.
    fn keep_one(daemon: &OwnedFd) {
        let group = GroupName::new("web").expect("a name");
        let block = Block::create(&group, BlockId(1), Bytes(1 << 20), PageKind::Small).expect("made");
        block.populate(None, Bytes(1 << 20), &mut || true).expect("populated");
        assert_eq!(ask(daemon, Request::Keep(BlockId(1)), Some(&block)), Some(Answer::Done(1)));
    }

    #[test]
    fn blocks_that_no_daemon_comes_back_for_go_to_the_host() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("holder.sock");
        let (tell, told) = mpsc::channel();
        let patience = Patience { empty: Duration::from_secs(600), alone: Duration::ZERO };
        thread::scope(|scope| {
            let holder = scope.spawn(|| hold(&path, patience, &mut || tell.send(()).expect("heard")));
            told.recv().expect("it listens");
            let daemon = dial(&path);
            keep_one(&daemon);
            drop(daemon);
            holder.join().expect("no panic").expect("ended by itself");
        });
        assert!(!path.exists());
    }

    #[test]
    fn a_host_in_need_gets_its_memory_back_while_no_daemon_is_there_and_not_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("holder.sock");
        let (tell, told) = mpsc::channel();
        let patience = Patience { empty: Duration::from_secs(600), alone: Duration::from_secs(600) };
        thread::scope(|scope| {
            scope.spawn(|| hold_by(&path, patience, &NeedyHost, LOOK, &mut || tell.send(()).expect("heard")));
            told.recv().expect("it listens");
            let first = dial(&path);
            keep_one(&first);
            for _ in 0..20 {
                assert_eq!(ask(&first, Request::Hello, None), Some(Answer::Done(1)), "the daemon looks after it");
            }
            drop(first);
            let end = Instant::now() + Duration::from_secs(120);
            let last = loop {
                let daemon = dial(&path);
                if ask(&daemon, Request::Hello, None) == Some(Answer::Done(0)) {
                    break daemon;
                }
                assert!(Instant::now() < end, "it was not given back");
                // To hang up is what leaves the holder alone.
                drop(daemon);
                thread::sleep(LOOK);
            };
            assert_eq!(ask(&last, Request::End, None), Some(Answer::Done(0)));
        });
    }
}
