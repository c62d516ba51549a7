//! A network card with a fixed address, and somebody to talk to: answers each line with how many there have been.
//!
//! Whoever has read `7 hello` knows that this guest counts seven lines; a guest that goes on elsewhere and counts fewer
//! has lost what it acknowledged.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, netlink::SocketAddrNetlink, recv, sendto, socket,
};

/// The longest line that is answered; a longer one ends its connection.
const LINE: u64 = 4096;

/// An address and how many of its bits are the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    ip: Ipv4Addr,
    prefix: u8,
}

impl FromStr for Address {
    type Err = ();

    /// `10.0.0.2/24`
    fn from_str(text: &str) -> Result<Address, ()> {
        let (ip, prefix) = text.split_once('/').ok_or(())?;
        let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or(())?;
        Ok(Address { ip: ip.parse().map_err(drop)?, prefix })
    }
}

/// Whether there is a card besides the loopback.
pub fn has_card() -> bool {
    index_of_first_card().is_ok()
}

/// Gives the first card its address and switches it on.
pub fn configure(address: Address) -> io::Result<()> {
    let index = index_of_first_card()?;
    let kernel = routes()?;
    for request in [new_address(index, address), switch_on(index)] {
        sendto(&kernel, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 512];
        let (length, _) = recv(&kernel, &mut answer[..], RecvFlags::empty())?;
        acknowledged(&answer[..length.min(answer.len())])?;
    }
    Ok(())
}

/// Answers whoever connects, on threads of its own.
pub fn answer(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let lines = Arc::new(AtomicU64::new(0));
    thread::Builder::new().name("answers".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines = Arc::clone(&lines);
            // A client that cannot be served, or has gone, is told by its connection.
            thread::spawn(move || drop(converse(stream, &lines)));
        }
    })?;
    Ok(())
}

/// Each line counts before it is answered.
fn converse(stream: TcpStream, lines: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(LINE).read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        let count = lines.fetch_add(1, Ordering::SeqCst) + 1;
        let mut reply = format!("{count} ").into_bytes();
        reply.extend_from_slice(&line);
        writer.write_all(&reply)?;
    }
}

fn index_of_first_card() -> io::Result<u32> {
    let cards = fs::read_dir("/sys/class/net")?.flatten().filter(|card| card.file_name() != "lo");
    let index = cards.filter_map(|card| fs::read_to_string(card.path().join("ifindex")).ok()?.trim().parse().ok());
    index.min().ok_or_else(|| io::Error::other("there is no network card"))
}

/// A socket to the kernel's routing: protocol 0 of netlink, which is what is got when none is named.
fn routes() -> io::Result<OwnedFd> {
    let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    bind(&kernel, &SocketAddrNetlink::new(0, 0))?;
    Ok(kernel)
}

/// Source: rtnetlink(7), `RTM_NEWADDR` with an `ifaddrmsg`; attributes `IFA_ADDRESS` (1) and `IFA_LOCAL` (2).
fn new_address(index: u32, address: Address) -> Vec<u8> {
    const RTM_NEWADDR: u16 = 20;
    let mut body = vec![AddressFamily::INET.as_raw() as u8, address.prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    for attribute in [1u16, 2] {
        body.extend(8u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(address.ip.octets());
    }
    request(RTM_NEWADDR, &body)
}

/// Source: rtnetlink(7), `RTM_NEWLINK` with an `ifinfomsg`: flags, and which of them change. `IFF_UP` is 1.
fn switch_on(index: u32) -> Vec<u8> {
    const RTM_NEWLINK: u16 = 16;
    let mut body = vec![0; 4];
    for number in [index, 1, 1] {
        body.extend(number.to_ne_bytes());
    }
    request(RTM_NEWLINK, &body)
}

/// Source: netlink(7): length, type, flags (`NLM_F_REQUEST`, `NLM_F_ACK`), sequence number, port.
fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    const REQUEST_AND_ACK: u16 = 1 | 4;
    let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(REQUEST_AND_ACK.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Source: netlink(7), `NLMSG_ERROR`: a negative error number, or zero.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::Error::other("the kernel's answer is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_network() {
        let address = |ip: [u8; 4], prefix| Ok(Address { ip: ip.into(), prefix });
        let table = [
            ("10.0.0.2/24", address([10, 0, 0, 2], 24)),
            ("10.0.0.2", Err(())),
            ("10.0.0.2/0", Err(())),
            ("10.0.0.2/33", Err(())),
            ("10.0.0/24", Err(())),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn the_kernel_takes_what_is_asked() {
        // The loopback of whoever runs this is on already, and an address that it has cannot be given without the right
        // to: either answer is one of the kernel's.
        let kernel = routes().expect("a socket");
        sendto(&kernel, &switch_on(u32::MAX), SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).expect("sent");
        let mut answer = [0; 512];
        let (length, _) = recv(&kernel, &mut answer[..], RecvFlags::empty()).expect("answered");
        let refused = acknowledged(&answer[..length]).expect_err("there is no such card");
        assert!(refused.raw_os_error().is_some(), "{refused}");
    }

    #[test]
    fn each_line_counts_and_a_long_one_ends_it() {
        let (lines, listener) = (AtomicU64::new(0), TcpListener::bind("127.0.0.1:0").expect("a port"));
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (stream, _) = listener.accept().expect("accepted");
        thread::scope(|scope| {
            scope.spawn(|| converse(stream, &lines));
            let mut reader = BufReader::new(client.try_clone().expect("the same socket"));
            for (said, answered) in [("hello\n", "1 hello\n"), ("\n", "2 \n")] {
                (&client).write_all(said.as_bytes()).expect("written");
                let mut reply = String::new();
                reader.read_line(&mut reply).expect("answered");
                assert_eq!(reply, answered);
            }
            (&client).write_all(&[b'x'; LINE as usize]).expect("written");
            assert_eq!(reader.read_line(&mut String::new()).unwrap_or(0), 0, "it hangs up");
        });
    }
}
