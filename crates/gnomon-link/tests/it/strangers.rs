//! Who is not let in, and what they are told.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use gnomon_link::{Identity, LinkError, Listener, connect, pki};
use gnomon_terms::ErrorKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::fleet::Fleet;

#[tokio::test]
async fn names_are_those_of_the_certificates() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node("a"), fleet.node("b"));
    let listener = Listener::bind("127.0.0.1:0", &b).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    let here = connect(&addr, None, &a).await.expect("whoever it is");
    let there = listener.accept().await.expect("the other end");
    assert_eq!((here.peer(), there.peer()), ("b", "a"));
    assert_eq!((here.peer_boot(), there.peer_boot()), (b.boot(), a.boot()));
    assert_eq!(here.id(), there.id());
}

#[tokio::test]
async fn another_node_than_expected_is_refused() {
    let fleet = Fleet::new();
    let listener = Listener::bind("127.0.0.1:0", &fleet.node("b")).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    let error = connect(&addr, Some("c"), &fleet.node("a")).await.expect_err("it is b");
    assert!(matches!(&error, LinkError::WrongName { expected, got, .. } if expected == "c" && got == "b"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn another_authority_is_refused() {
    let listener = Listener::bind("127.0.0.1:0", &Fleet::new().node("b")).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    let error = connect(&addr, None, &Fleet::new().node("a")).await.expect_err("a stranger");
    assert!(matches!(error, LinkError::WrongCa { .. }), "{error}");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused() {
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    for (valid, word) in [(now - 2 * day..now - day, "expired"), (now + day..now + 2 * day, "not yet valid")] {
        let fleet = Fleet::new();
        let other = fleet.node_between("b", valid);
        let listener = Listener::bind("127.0.0.1:0", &other).await.expect("a listener");
        let addr = listener.local_addr().to_string();
        let error = connect(&addr, None, &fleet.node("a")).await.expect_err("out of its time");
        assert!(matches!(error, LinkError::Expired { state, .. } if state == word), "{error}");
    }
}

#[tokio::test]
async fn whoever_is_not_let_in_is_told_so() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let (here, now) = (fleet.node("b"), SystemTime::now());
    let listener = Listener::bind("127.0.0.1:0", &here).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    // A stranger that trusts the listener: only the listener can be the one to refuse.
    other.node("a");
    std::fs::copy(fleet.folder("b").join(pki::CA_CERT), other.folder("a").join(pki::CA_CERT)).expect("copied");
    let stranger = Identity::load(&other.folder("a")).expect("an identity");
    let late = fleet.node_between("c", now - Duration::from_secs(7200)..now - Duration::from_secs(3600));
    // The alert comes after the caller's side of the handshake is done, in the middle of its hello: it must be heard
    // wherever it meets it.
    for _ in 0..20 {
        // All authorities have one name, so that of a stranger is known by its signature.
        for (identity, says) in [(&stranger, "DecryptError"), (&late, "CertificateExpired")] {
            let error = connect(&addr, Some("b"), identity).await.expect_err("not let in");
            assert!(matches!(&error, LinkError::RefusedByPeer { alert, .. } if alert == says), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::Refused);
        }
    }
}

#[tokio::test]
async fn a_listener_that_does_not_speak_tls_is_named() {
    let fleet = Fleet::new();
    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let addr = plain.local_addr().expect("its address").to_string();
    let server = tokio::spawn(async move {
        let (mut peer, _) = plain.accept().await.expect("a connection");
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("written");
        let _ = peer.read_to_end(&mut Vec::new()).await;
    });
    let error = connect(&addr, None, &fleet.node("a")).await.expect_err("no TLS");
    assert!(matches!(error, LinkError::NotTls { .. }), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_plaintext_caller_is_turned_away_and_others_are_served() {
    let fleet = Fleet::new();
    let listener = Listener::bind("127.0.0.1:0", &fleet.node("b")).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    let mut plain = TcpStream::connect(&addr).await.expect("a connection");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    // The end of the stream, clean or reset, is the refusal.
    let _ = plain.read_to_end(&mut Vec::new()).await;
    connect(&addr, Some("b"), &fleet.node("a")).await.expect("others are served");
    assert_eq!(listener.refused(), 1);
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = pki::Authority::create(pki::CA_VALIDITY).expect("an authority");
    authority.write(dir.path()).expect("written");
    assert!(matches!(authority.write(dir.path()), Err(pki::PkiError::AlreadyThere { .. })));
    let key = dir.path().join(pki::CA_KEY);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);
    pki::Authority::load(dir.path()).expect("what was written").issue("a", pki::NODE_VALIDITY).expect("it signs");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(matches!(pki::Authority::load(dir.path()), Err(pki::PkiError::Exposed { mode: 0o644, .. })));
    assert!(matches!(authority.issue("Not A Name", pki::NODE_VALIDITY), Err(pki::PkiError::BadName { .. })));
}
