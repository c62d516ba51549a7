//! A peer with a good certificate and bad manners: whatever it says, the session ends with a reason that names it,
//! what arrived before is not lost, and others are served.

use std::{sync::Arc, time::Duration};

use gnomon_link::{CloseReason, Listener, Options, SendError, Session, connect, pki};
use gnomon_proto::{
    Class,
    frame::{FrameError, HEADER_LEN, Hello, Kind, MAX_BODY, Message, Stream},
};
use gnomon_terms::{Epoch, ErrorKind, Extent};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::fleet::Fleet;

/// The connections of node "a", in the order of [`Class::ALL`], without anybody who minds what is said on them.
struct Raw(Vec<TlsStream<TcpStream>>);

impl Raw {
    /// Opens a session with node "b" as the protocol says, so far.
    async fn open(fleet: &Fleet, listener: &Listener) -> (Raw, Session) {
        let connector = TlsConnector::from(client_config(fleet));
        let mut lanes = Vec::new();
        for class in Class::ALL {
            let tcp = TcpStream::connect(listener.local_addr()).await.expect("a connection");
            let name = ServerName::try_from("b").expect("a name");
            let mut lane = connector.connect(name, tcp).await.expect("TLS");
            let hello = Hello { node: "a".into(), boot: 7, class, session: 9 };
            lane.write_all(&encoded(&Message::Hello(hello))).await.expect("said");
            let mut answer = [0; HEADER_LEN + 32 + 1];
            lane.read_exact(&mut answer).await.expect("the hello of b");
            lanes.push(lane);
        }
        (Raw(lanes), listener.accept().await.expect("a session"))
    }

    async fn say(&mut self, class: Class, bytes: &[u8]) {
        let lane = &mut self.0[class.index()];
        lane.write_all(bytes).await.expect("written");
        lane.flush().await.expect("sent");
    }

    /// Ends one connection, as TLS does it.
    async fn leave(&mut self, class: Class) {
        self.0[class.index()].shutdown().await.expect("closed");
    }
}

fn client_config(fleet: &Fleet) -> Arc<ClientConfig> {
    let dir = fleet.folder("a");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join(pki::CA_CERT)).expect("a certificate")).expect("a root");
    let certificate = CertificateDer::from_pem_file(dir.join(pki::NODE_CERT)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(dir.join(pki::NODE_KEY)).expect("a key");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .expect("a configuration");
    Arc::new(config)
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).expect("a good message");
    bytes
}

fn fetch(id: u64) -> Message {
    Message::Fetch { stream: Stream(1), epoch: Epoch(1), id, extent: Extent::new(id, 1) }
}

/// A good frame with some bytes of its header changed, and a check that says that all is well.
fn forged(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = encoded(&fetch(1));
    change(&mut bytes);
    // FNV-1a, as docs/protocol.md says.
    let check = bytes[..HEADER_LEN - 4]
        .iter()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn violation(error: &FrameError) -> CloseReason {
    CloseReason::Violation { class: Class::Demand, error: error.clone() }
}

/// What is said on the connection for demand, and how the session must end.
fn table() -> Vec<(&'static str, Vec<u8>, CloseReason)> {
    let damaged = {
        let mut bytes = encoded(&fetch(1));
        bytes[24] ^= 1;
        bytes
    };
    let check = |at: usize| u32::from_le_bytes(damaged[at..at + 4].try_into().expect("4 bytes"));
    let said = check(HEADER_LEN - 4);
    let sum = forged(|bytes| bytes[24] ^= 1);
    let is = u32::from_le_bytes(sum[HEADER_LEN - 4..HEADER_LEN].try_into().expect("4 bytes"));
    let hello = Message::Hello(Hello { node: "a".into(), boot: 7, class: Class::Demand, session: 9 });
    let long = (MAX_BODY as u32 + 1).to_le_bytes();
    let out_of_place = CloseReason::OutOfPlace { class: Class::Demand };
    vec![
        ("no frame", vec![b'x'; HEADER_LEN], violation(&FrameError::BadMagic { got: *b"xxxx" })),
        ("another version", forged(|bytes| bytes[4] = 9), violation(&FrameError::BadVersion { got: 9 })),
        ("a damaged header", damaged.clone(), violation(&FrameError::BadCheck { said, is })),
        ("an unknown kind", forged(|bytes| bytes[5] = 250), violation(&FrameError::UnknownKind { code: 250 })),
        (
            "a body that is too long",
            forged(|bytes| {
                bytes[5] = Kind::Push as u8;
                bytes[12..16].copy_from_slice(&long);
            }),
            violation(&FrameError::TooLong { kind: Kind::Push, len: MAX_BODY as u64 + 1, max: MAX_BODY }),
        ),
        ("a second hello", encoded(&hello), out_of_place.clone()),
        (
            "a frame of another class",
            encoded(&Message::PushAck { stream: Stream(1), seq: 1, settled: gnomon_proto::frame::Settlement::Done }),
            out_of_place.clone(),
        ),
        ("a goodbye in the wrong place", encoded(&Message::Goodbye { reason: "x".into() }), out_of_place),
    ]
}

#[tokio::test]
async fn bad_frames_end_the_session_and_lose_nothing_that_came_before() {
    let fleet = Fleet::new();
    let (here, a) = (fleet.node("b"), fleet.node("a"));
    let listener = Listener::bind("127.0.0.1:0", &here).await.expect("a listener");
    for (what, bytes, reason) in table() {
        let (mut raw, session) = Raw::open(&fleet, &listener).await;
        let mut fetches = session.take_receiver(Class::Demand).expect("not taken");
        let good: Vec<u8> = (0..10).flat_map(|id| encoded(&fetch(id))).collect();
        raw.say(Class::Demand, &[good, bytes].concat()).await;
        assert_eq!(session.closed().await, reason, "{what}");
        assert_eq!(reason.kind(), ErrorKind::Corrupt, "{what}");
        for id in 0..10 {
            assert_eq!(fetches.recv().await, Some(fetch(id)), "{what}: a frame before it is lost");
        }
        assert_eq!(fetches.recv().await, None, "{what}: something was made of it");
        assert!(
            matches!(session.sender().try_send(fetch(1)), Err(SendError::Closed(told)) if told == reason),
            "{what}"
        );
    }
    connect(&listener.local_addr().to_string(), Some("b"), &a).await.expect("others are served");
}

#[tokio::test]
async fn a_frame_that_is_cut_off_ends_the_session() {
    let fleet = Fleet::new();
    let (here, _a) = (fleet.node("b"), fleet.node("a"));
    let listener = Listener::bind("127.0.0.1:0", &here).await.expect("a listener");
    let whole = encoded(&Message::RamEnd { stream: Stream(1), ok: true });
    for cut in [1, HEADER_LEN - 1] {
        let (mut raw, session) = Raw::open(&fleet, &listener).await;
        let mut ram = session.take_receiver(Class::Ram).expect("not taken");
        raw.say(Class::Ram, &[&whole[..], &whole[..cut]].concat()).await;
        raw.leave(Class::Ram).await;
        let reason = session.closed().await;
        assert!(matches!(reason, CloseReason::Broken { class: Class::Ram, .. }), "{cut}: {reason}");
        assert!(ram.recv().await.is_some() && ram.recv().await.is_none(), "{cut}: one whole frame had come");
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dead() {
    let options = Options {
        ping_every: Duration::from_millis(20),
        dead_after: Duration::from_millis(100),
        ..Options::default()
    };
    let fleet = Fleet::new();
    let (here, _a) = (fleet.node("b"), fleet.node("a"));
    let listener = Listener::bind_with("127.0.0.1:0", &here, options).await.expect("a listener");
    let (_silent, session) = Raw::open(&fleet, &listener).await;
    let reason = session.closed().await;
    assert!(matches!(reason, CloseReason::Dead { silent } if silent > options.dead_after), "{reason}");
    assert!(matches!(session.sender().send(fetch(1)).await, Err(SendError::Closed(CloseReason::Dead { .. }))));
}
