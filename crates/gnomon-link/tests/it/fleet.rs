//! Nodes to test with: certificates in a temporary folder, and pairs of sessions.

use std::{ops::Range, path::PathBuf, time::SystemTime};

use gnomon_link::{Identity, Listener, Options, Session, connect_with, pki};
use tempfile::TempDir;

/// A certificate authority and the folder its nodes are in.
pub struct Fleet {
    authority: pki::Authority,
    dir: TempDir,
}

impl Fleet {
    pub fn new() -> Fleet {
        let authority = pki::Authority::create(pki::CA_VALIDITY).expect("an authority");
        Fleet { authority, dir: tempfile::tempdir().expect("a directory") }
    }

    /// The folder of a node's certificate and key.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn node(&self, name: &str) -> Identity {
        let issued = self.authority.issue(name, pki::NODE_VALIDITY).expect("a certificate");
        self.keep(name, &issued)
    }

    /// The identity of a node whose certificate is valid in a time of its own.
    pub fn node_between(&self, name: &str, valid: Range<SystemTime>) -> Identity {
        let issued = self.authority.issue_between(name, valid).expect("a certificate");
        self.keep(name, &issued)
    }

    fn keep(&self, name: &str, issued: &pki::Issued) -> Identity {
        let dir = self.folder(name);
        issued.write(&dir).expect("written");
        Identity::load(&dir).expect("an identity")
    }
}

/// A session between nodes "a" and "b": the connecting side, then the accepting one.
pub async fn pair(options: Options) -> (Session, Session) {
    let fleet = Fleet::new();
    let listener = Listener::bind_with("127.0.0.1:0", &fleet.node("b"), options).await.expect("a listener");
    let addr = listener.local_addr().to_string();
    let a = connect_with(&addr, Some("b"), &fleet.node("a"), options).await.expect("a session");
    let b = listener.accept().await.expect("the other end");
    (a, b)
}
