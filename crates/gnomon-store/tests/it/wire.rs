//! A wire between a client and a member that can be cut as a cable is: nothing comes through, and nobody is told.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

pub struct Wire {
    port: u16,
    /// Odd while it is cut. A connection lives in the period in which it was made, and is dumb ever after.
    period: Arc<AtomicU32>,
}

impl Wire {
    /// A wire to where somebody listens on this host.
    pub fn to(far: impl Into<SocketAddr>) -> Wire {
        let address = far.into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
        let wire = Wire { port: listener.local_addr().expect("address").port(), period: Arc::default() };
        let period = Arc::clone(&wire.period);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(address) else { continue };
                join(near, far, &period);
            }
        });
        wire
    }

    /// Where its near end is.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing comes through.
    pub fn cut(&self) {
        assert_eq!(self.period.fetch_add(1, Ordering::SeqCst) % 2, 0, "it was whole");
    }

    /// From now on new connections come through.
    pub fn mend(&self) {
        assert_eq!(self.period.fetch_add(1, Ordering::SeqCst) % 2, 1, "it was cut");
    }
}

fn join(near: TcpStream, far: TcpStream, period: &Arc<AtomicU32>) {
    let made = period.load(Ordering::SeqCst);
    let ends = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
    for (from, to) in ends {
        let (from, to) = (from.expect("socket"), to.expect("socket"));
        let period = Arc::clone(period);
        thread::spawn(move || carry(from, to, || made.is_multiple_of(2) && period.load(Ordering::SeqCst) == made));
    }
}

/// Carries bytes while the wire is whole, and swallows them afterwards.
fn carry(mut from: TcpStream, mut to: TcpStream, is_whole: impl Fn() -> bool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if is_whole() && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // An end that is seen through a cut cable would be a sign.
    if is_whole() {
        let _ = to.shutdown(Shutdown::Write);
    }
}
