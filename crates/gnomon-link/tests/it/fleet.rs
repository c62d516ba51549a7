//! Nodes to test with: certificates in a temporary folder, and pairs of sessions.

use std::time::Duration;

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

    /// The identity of a node that is valid for `validity`.
    pub fn node_for(&self, name: &str, validity: Duration) -> Identity {
        let dir = self.dir.path().join(name);
        self.authority.issue(name, validity).expect("a certificate").write(&dir).expect("written");
        Identity::load(&dir).expect("an identity")
    }

    pub fn node(&self, name: &str) -> Identity {
        self.node_for(name, pki::NODE_VALIDITY)
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
