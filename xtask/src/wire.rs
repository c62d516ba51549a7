//! A link with a rate and a delay, in user space: a TCP proxy for hosts whose kernel has no netem.
//!
//! One token bucket per direction is shared by all connections, as a real cable is. Each chunk is paid for, stamped
//! with its due time, and handed on in order when it is due. Little is buffered, so a full link pushes back on the
//! sender as a real one does. The link can be cut (bytes wait, connections stay) and mended while it runs.
//!
//! ```text
//! source ─read─► pay at the bucket ─► bounded queue, each chunk with its due time ─wait, write─► sink
//! ```

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    Ended,
    args::{self, Args, Misuse},
};

/// The most read at once; at 400 Mbit/s it is 0.3 ms of link, so no connection holds it long.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way in one direction of one connection besides those that the delay needs. When it is full the
/// source is not read, and TCP tells its sender to wait.
const QUEUE: usize = 8;

/// A running link. It runs until the process ends; dropping the handle changes nothing.
#[derive(Clone)]
pub struct Wire {
    /// Where it listens: connect here instead of the far side.
    pub address: SocketAddr,
    there: Arc<Lane>,
    back: Arc<Lane>,
}

/// One direction of the link.
struct Lane {
    rate: u64,
    delay: Duration,
    state: Mutex<LaneState>,
    mended: Condvar,
}

struct LaneState {
    /// Until when the lane is busy with bytes already accepted.
    busy_until: Instant,
    cut: bool,
    carried: u64,
}

/// A chunk and when it reaches the far side.
struct Parcel {
    due: Instant,
    bytes: Vec<u8>,
}

impl Wire {
    /// Listens on `listen` and forwards to `to` at `rate` bytes a second with a one-way `delay`.
    pub fn start(listen: SocketAddr, to: SocketAddr, rate: u64, delay: Duration) -> Result<Wire> {
        let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let wire =
            Wire { address: listener.local_addr()?, there: Lane::new(rate, delay), back: Lane::new(rate, delay) };
        let acceptor = wire.clone();
        thread::Builder::new().name("wire".to_owned()).spawn(move || {
            for near in listener.incoming().flatten() {
                // A far side that is not there shows to the near one as a closed connection.
                if let Ok(far) = TcpStream::connect(to) {
                    let _ = acceptor.join(near, far);
                }
            }
        })?;
        Ok(wire)
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.there.set_cut(true);
        self.back.set_cut(true);
    }

    /// Everything passes again, what has waited first.
    pub fn mend(&self) {
        self.there.set_cut(false);
        self.back.set_cut(false);
    }

    /// Bytes accepted so far: towards the far side, and back.
    pub fn carried(&self) -> (u64, u64) {
        (self.there.lock().carried, self.back.lock().carried)
    }

    fn join(&self, near: TcpStream, far: TcpStream) -> Result<()> {
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
        }
        self.there.carry(near.try_clone()?, far.try_clone()?)?;
        self.back.carry(far, near)
    }
}

impl Lane {
    fn new(rate: u64, delay: Duration) -> Arc<Lane> {
        let state = LaneState { busy_until: Instant::now(), cut: false, carried: 0 };
        Arc::new(Lane { rate: rate.max(1), delay, state: Mutex::new(state), mended: Condvar::new() })
    }

    /// Two threads: one pays and stamps, one waits and delivers.
    fn carry(self: &Arc<Lane>, source: TcpStream, sink: TcpStream) -> Result<()> {
        let chunks_of_delay = (self.rate as f64 * self.delay.as_secs_f64() / CHUNK as f64).ceil() as usize;
        let (sender, receiver) = mpsc::sync_channel(QUEUE + chunks_of_delay);
        let (pay, deliver) = (Arc::clone(self), Arc::clone(self));
        thread::Builder::new().name("wire-pay".to_owned()).spawn(move || pay.take_in(source, &sender))?;
        thread::Builder::new().name("wire-deliver".to_owned()).spawn(move || deliver.hand_out(&receiver, sink))?;
        Ok(())
    }

    fn take_in(&self, mut source: TcpStream, parcels: &SyncSender<Parcel>) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = source.read(&mut chunk) {
            let sent = self.pay(count as u64);
            let parcel = Parcel { due: sent + self.delay, bytes: chunk[..count].to_vec() };
            thread::sleep(sent.saturating_duration_since(Instant::now()));
            if parcels.send(parcel).is_err() {
                break;
            }
        }
        let _ = source.shutdown(Shutdown::Read);
    }

    /// Books `count` bytes on the lane and says when the last of them has left.
    fn pay(&self, count: u64) -> Instant {
        let mut state = self.lock();
        state.carried += count;
        state.busy_until = leaves(state.busy_until, Instant::now(), count, self.rate);
        state.busy_until
    }

    fn hand_out(&self, parcels: &Receiver<Parcel>, mut sink: TcpStream) {
        for parcel in parcels {
            thread::sleep(parcel.due.saturating_duration_since(Instant::now()));
            self.await_whole();
            if sink.write_all(&parcel.bytes).is_err() {
                break;
            }
        }
        let _ = sink.shutdown(Shutdown::Write);
    }

    fn await_whole(&self) {
        let mut state = self.lock();
        while state.cut {
            state = self.mended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set_cut(&self, cut: bool) {
        self.lock().cut = cut;
        self.mended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When `count` bytes have left a lane that is busy until `busy_until`: it sends at `rate`, and saves up nothing while idle.
fn leaves(busy_until: Instant, now: Instant, count: u64, rate: u64) -> Instant {
    let nanos = u128::from(count) * 1_000_000_000 / u128::from(rate);
    busy_until.max(now) + Duration::from_nanos(nanos as u64)
}

/// `cargo xtask wire`: runs until it is interrupted.
pub fn run(args: &Args) -> Ended {
    let address = |name: &str| -> Result<SocketAddr> {
        let text = args.text(name).ok_or_else(|| Misuse(format!("--{name} ADDRESS:PORT is needed")))?;
        Ok(text.parse().map_err(|_| Misuse(format!("--{name} {text}: write 127.0.0.1:7000")))?)
    };
    let rate = args::rate(args.text("rate").unwrap_or("400mbit"))?;
    let delay = args::delay(args.text("delay").unwrap_or("1ms"))?;
    let wire = Wire::start(address("listen")?, address("to")?, rate, delay)?;
    println!("wire: {} bytes/s, {delay:?} one way, on {}", rate, wire.address);
    println!("wire: type cut, mend or nothing and enter");
    for line in std::io::stdin().lines() {
        match line?.trim() {
            "cut" => wire.cut(),
            "mend" => wire.mend(),
            _ => {}
        }
        let (there, back) = wire.carried();
        println!("wire: {there} bytes there, {back} back");
    }
    // Nobody types: carry on until the process is ended.
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// A wire to a far side that accepts one connection; returns both ends.
    fn ends(rate: u64, delay: Duration) -> (Wire, TcpStream, TcpStream) {
        let far = TcpListener::bind(ANY).unwrap();
        let wire = Wire::start(ANY, far.local_addr().unwrap(), rate, delay).unwrap();
        let near = TcpStream::connect(wire.address).unwrap();
        (wire, near, far.accept().unwrap().0)
    }

    #[test]
    fn bytes_arrive_whole_in_order_and_not_early() {
        let (rate, delay) = (4_000_000, Duration::from_millis(20));
        let (_wire, mut near, mut far) = ends(rate, delay);
        let sent: Vec<u8> = (0..400_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let started = Instant::now();
        let copy = sent.clone();
        thread::spawn(move || near.write_all(&copy));
        let mut got = vec![0; sent.len()];
        far.read_exact(&mut got[..1]).unwrap();
        assert!(started.elapsed() >= delay, "the first byte came after {:?}", started.elapsed());
        far.read_exact(&mut got[1..]).unwrap();
        let least = delay + Duration::from_millis(100);
        assert!(started.elapsed() >= least, "400 kB at 4 MB/s came after {:?}", started.elapsed());
        assert!(got == sent, "bytes changed or came out of order");
    }

    #[test]
    fn an_end_is_passed_on_and_answers_still_come() {
        let (_wire, mut near, mut far) = ends(1_000_000, Duration::from_millis(1));
        near.write_all(b"ask").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut asked = Vec::new();
        far.read_to_end(&mut asked).unwrap();
        far.write_all(b"answer").unwrap();
        drop(far);
        let mut answered = Vec::new();
        near.read_to_end(&mut answered).unwrap();
        assert_eq!((asked.as_slice(), answered.as_slice()), (&b"ask"[..], &b"answer"[..]));
    }

    #[test]
    fn what_is_sent_while_cut_arrives_after_mending() {
        let (wire, mut near, mut far) = ends(1_000_000, Duration::ZERO);
        wire.cut();
        near.write_all(b"late").unwrap();
        while wire.carried().0 < 4 {
            thread::yield_now();
        }
        far.set_nonblocking(true).unwrap();
        assert!(far.read(&mut [0; 4]).is_err(), "something passed a cut link");
        far.set_nonblocking(false).unwrap();
        wire.mend();
        let mut got = [0; 4];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"late");
    }

    #[test]
    fn a_lane_is_shared_and_saves_nothing_up() {
        let start = Instant::now();
        let one = leaves(start, start, 500, 1000);
        assert_eq!(one - start, Duration::from_millis(500));
        assert_eq!(leaves(one, start, 500, 1000) - start, Duration::from_secs(1));
        let later = start + Duration::from_secs(60);
        assert_eq!(leaves(one, later, 1000, 1000) - later, Duration::from_secs(1));
    }
}
