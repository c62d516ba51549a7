//! Frames that are malformed, cut short, too long or out of order. The server answers or hangs up; others go on.

use gnomon_volume::front::nbd::{OPTION_LIMIT, wire::Command};

use crate::{
    raw::{
        ABORT, ACK, ERR_INVALID, ERR_POLICY, ERR_UNKNOWN, ERR_UNSUP, EXPORT_NAME, INFO, LIST, LIST_META_CONTEXT, Raw,
        SET_META_CONTEXT, STARTTLS, STRUCTURED_REPLY, contexts, go, option, request,
    },
    rig::{NAME, Rig},
};

/// What the server does with an option: the kind of its last reply, or hanging up.
fn answer(raw: &mut Raw, bytes: &[u8]) -> Option<u32> {
    std::io::Write::write_all(&mut raw.0, bytes).ok()?;
    let mut head = [0; 20];
    loop {
        std::io::Read::read_exact(&mut raw.0, &mut head).ok()?;
        let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
        std::io::Read::read_exact(&mut raw.0, &mut vec![0; len as usize]).ok()?;
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        if kind == ACK || kind >> 31 == 1 {
            return Some(kind);
        }
    }
}

#[test]
fn every_option_has_its_answer() {
    let rig = Rig::new(1 << 20);
    let long = "x".repeat(4097);
    let mut cut = go(NAME);
    cut.pop();
    let mut many = go(NAME);
    many[8..10].copy_from_slice(&9u16.to_be_bytes());
    let wrong_length = [&u32::MAX.to_be_bytes()[..], b"disk"].concat();
    let table: &[(&str, Vec<u8>, Option<u32>)] = &[
        ("list", option(LIST, b""), Some(ACK)),
        ("list with data", option(LIST, b"x"), Some(ERR_INVALID)),
        ("info", option(INFO, &go(NAME)), Some(ACK)),
        ("info of nothing", option(INFO, &go("nothing")), Some(ERR_UNKNOWN)),
        ("info, empty", option(INFO, b""), Some(ERR_INVALID)),
        ("info, cut short", option(INFO, &cut), Some(ERR_INVALID)),
        ("info, more kinds than told", option(INFO, &many), Some(ERR_INVALID)),
        ("info, name longer than the data", option(INFO, &wrong_length), Some(ERR_INVALID)),
        ("info, name too long", option(INFO, &go(&long)), Some(ERR_INVALID)),
        ("info, not text", option(INFO, b"\0\0\0\x01\xff\0\0"), Some(ERR_INVALID)),
        ("starttls without certificate", option(STARTTLS, b""), Some(ERR_POLICY)),
        ("unknown", option(77, b"anything"), Some(ERR_UNSUP)),
        ("contexts before structured replies", option(SET_META_CONTEXT, &contexts(NAME, &[])), Some(ERR_INVALID)),
        ("structured replies with data", option(STRUCTURED_REPLY, b"x"), Some(ERR_INVALID)),
        ("structured replies", option(STRUCTURED_REPLY, b""), Some(ACK)),
        ("contexts of nothing", option(LIST_META_CONTEXT, &contexts("nothing", &[])), Some(ERR_UNKNOWN)),
        (
            "contexts, more told than there",
            option(LIST_META_CONTEXT, b"\0\0\0\x04disk\xff\xff\xff\xff"),
            Some(ERR_INVALID),
        ),
        ("all contexts", option(LIST_META_CONTEXT, &contexts(NAME, &["base:", "gnomon:shadow"])), Some(ACK)),
        ("unknown contexts", option(SET_META_CONTEXT, &contexts(NAME, &["qemu:dirty", "base:"])), Some(ACK)),
        ("abort", option(ABORT, b""), Some(ACK)),
    ];
    let mut raw = Raw::new(&rig);
    for (what, bytes, want) in table {
        assert_eq!(answer(&mut raw, bytes), *want, "{what}");
    }
    assert!(raw.is_closed());
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    let rig = Rig::new(1 << 20);
    let mut too_long = option(LIST, b"");
    too_long[12..16].copy_from_slice(&(OPTION_LIMIT + 1).to_be_bytes());
    let table = [
        ("an http request", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
        ("an option that is too long", too_long),
        ("the name of nothing", option(EXPORT_NAME, b"nothing")),
        ("a name that is no text", option(EXPORT_NAME, b"\xff\xff")),
    ];
    for (what, bytes) in table {
        let mut raw = Raw::new(&rig);
        assert_eq!(answer(&mut raw, &bytes), None, "{what}");
    }
    let mut flags = Raw(rig.connect());
    let _greeting: [u8; 18] = flags.take();
    flags.put(&0x10u32.to_be_bytes());
    assert!(flags.is_closed(), "unknown handshake flags");
    let mut endless = Raw::new(&rig);
    let list = option(LIST, b"");
    assert!((0..100_000).any(|_| answer(&mut endless, &list).is_none()), "options without end");
    rig.python("h.pwrite(b'alive', 0)");
}

#[test]
fn the_old_way_to_open_still_works() {
    let rig = Rig::new(1 << 20);
    let mut raw = Raw(rig.connect());
    let _greeting: [u8; 18] = raw.take();
    raw.put(&[&1u32.to_be_bytes()[..], &option(EXPORT_NAME, NAME.as_bytes())].concat());
    let facts: [u8; 10 + 124] = raw.take();
    assert_eq!(facts[..8], (1u64 << 20).to_be_bytes());
    assert_eq!(facts[10..], [0; 124], "padding, because the client did not say NO_ZEROES");
    raw.put(&request(Command::Flush, 7, 0, 0));
    assert_eq!(raw.simple_reply(), (0, 7));
}

#[test]
fn bad_requests_are_refused_and_their_payload_skipped() {
    let rig = Rig::new(1 << 20);
    let mut raw = Raw::open(&rig);
    let flagged = |flags: u16| {
        let mut bytes = request(Command::Write, 1, 0, 5);
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        [&bytes[..], b"hello"].concat()
    };
    let oversized = || [&request(Command::Write, 1, 0, 40 << 20)[..], &vec![7; 40 << 20]].concat();
    let table = [
        ("unknown command", request(Command::Unknown(99), 1, 0, 1 << 30).to_vec(), 22),
        ("unknown flags", flagged(0xff00), 22),
        ("a write past the end", [&request(Command::Write, 1, 1 << 20, 5)[..], b"hello"].concat(), 28),
        ("a write far past the end", [&request(Command::Write, 1, u64::MAX, 5)[..], b"hello"].concat(), 28),
        ("a write that is too long", oversized(), 22),
        ("a read that is too long", request(Command::Read, 1, 0, (32 << 20) + 1).to_vec(), 22),
        ("block status without contexts", request(Command::BlockStatus, 1, 0, 4096).to_vec(), 22),
        ("a trim of all numbers", request(Command::Trim, 1, u64::MAX, u32::MAX).to_vec(), 22),
        ("nothing written", request(Command::Write, 1, 0, 0).to_vec(), 0),
        ("nothing read", request(Command::Read, 1, 1 << 20, 0).to_vec(), 0),
    ];
    for (what, bytes, want) in table {
        raw.put(&bytes);
        assert_eq!(raw.simple_reply(), (want, 1), "{what}");
    }
    raw.put(&request(Command::Flush, 2, 0, 0));
    assert_eq!(raw.simple_reply(), (0, 2), "still in step");
    raw.put(b"this is no request, whatever else");
    assert!(raw.is_closed());
}

#[test]
fn a_request_may_come_byte_by_byte_and_many_at_once() {
    let rig = Rig::new(1 << 20);
    let mut raw = Raw::open(&rig);
    for byte in [&request(Command::Write, 1, 10, 5)[..], b"hello"].concat() {
        raw.put(&[byte]);
    }
    assert_eq!(raw.simple_reply(), (0, 1));
    let many: Vec<u8> = (0..2000).flat_map(|cookie| request(Command::Read, cookie, 10, 5)).collect();
    raw.put(&many);
    for cookie in 0..2000 {
        assert_eq!(raw.simple_reply(), (0, cookie));
        assert_eq!(&raw.take::<5>(), b"hello");
    }
    raw.put(&request(Command::Disconnect, 0, 0, 0));
    assert!(raw.is_closed());
}
