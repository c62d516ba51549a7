//! A real etcd that speaks TLS and asks for certificates: who has the right ones is served, and nobody else.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use gnomon_store::{EtcdStore, EtcdTls, OwnCertificate, Store, StoreError};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// As long as an etcd may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// For what is expected to fail.
const SHORT: Duration = Duration::from_secs(2);

/// An authority, as files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = dir.join(format!("{name}.pem"));
        fs::write(&ca, params.self_signed(&key).expect("a certificate").pem()).expect("written");
        Authority { issuer: Issuer::new(params, key), ca }
    }

    /// A certificate for somebody on this host, for both sides of a connection.
    fn issue(&self, dir: &Path, name: &str) -> OwnCertificate {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_string()]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let own =
            OwnCertificate { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
        fs::write(&own.certificate, certificate.pem()).expect("written");
        fs::write(&own.key, key.serialize_pem()).expect("written");
        fs::set_permissions(&own.key, fs::Permissions::from_mode(0o600)).expect("set");
        own
    }
}

/// An etcd of one member, which dies with the test.
struct Etcd {
    process: Child,
    port: u16,
}

impl Etcd {
    fn start(dir: &Path, own: &OwnCertificate, clients: &Path) -> Etcd {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
        let (port, peer) = (free(), format!("http://127.0.0.1:{}", free()));
        let client = format!("https://127.0.0.1:{port}");
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--data-dir"])
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"])
            .arg("--cert-file")
            .arg(&own.certificate)
            .arg("--key-file")
            .arg(&own.key)
            .arg("--trusted-ca-file")
            .arg(clients)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd runs: `cargo xtask setup` installs it");
        Etcd { process, port }
    }

    fn open(&self, tls: Option<&EtcdTls>, patience: Duration) -> Result<EtcdStore, StoreError> {
        let address = format!("etcd://127.0.0.1:{}", self.port).parse().expect("an address");
        EtcdStore::open_with(address, tls, patience)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_etcd_with_certificates_serves_who_has_the_right_ones() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let etcd = Etcd::start(dir.path(), &ours.issue(dir.path(), "etcd"), &ours.ca);
    let (known, stranger) = (ours.issue(dir.path(), "node-a"), theirs.issue(dir.path(), "stranger"));
    let tls = |authority: &Authority, own: Option<&OwnCertificate>| {
        Some(EtcdTls { ca: authority.ca.clone(), own: own.cloned() })
    };

    let store = etcd.open(tls(&ours, Some(&known)).as_ref(), PATIENCE).expect("a store");
    store.put("vm/web", b"a").expect("written");
    assert_eq!(store.get("vm/web").expect("read").map(|found| found.value), Some(b"a".to_vec()));
    let lease = store.leases().and_then(|leases| leases.grant(Duration::from_secs(60))).expect("a lease");
    store.leases().and_then(|leases| leases.revoke(&lease)).expect("revoked");

    // Without TLS, without a certificate, with one of another authority, and believing another authority.
    let table = [None, tls(&ours, None), tls(&ours, Some(&stranger)), tls(&theirs, Some(&known))];
    for (number, tls) in table.iter().enumerate() {
        let store = etcd.open(tls.as_ref(), SHORT).expect("a store");
        let read = store.get("vm/web");
        assert!(read.is_err(), "{number}: {read:?}");
    }
    fs::set_permissions(&known.key, fs::Permissions::from_mode(0o644)).expect("set");
    let error = etcd.open(tls(&ours, Some(&known)).as_ref(), SHORT).err().expect("a key that others can read");
    assert!(std::error::Error::source(&error).is_some_and(|why| why.to_string().contains("chmod 600")), "{error}");
}
