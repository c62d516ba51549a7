//! NBD under TLS: libnbd with a good certificate authority, a wrong one, and without.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use gnomon_volume::{
    front::nbd::{NbdAddress, NbdServer, TlsMode},
    serve::Exports,
};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer, server::WebPkiClientVerifier};

use crate::rig::{HeldDisk, export, noise, run, text};

/// A certificate authority of the test.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }

    fn issue(&self) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a server needs that demands client certificates of this authority.
    fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let (certificate, key) = self.issue();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        Arc::new(config)
    }

    /// A folder as libnbd expects it: whom to trust, and who the client is.
    fn client_folder(&self, at: &Path, trusts: &Authority) {
        let (certificate, key) = self.issue();
        fs::create_dir(at).unwrap();
        fs::write(at.join("ca-cert.pem"), trusts.certificate.pem()).unwrap();
        fs::write(at.join("client-cert.pem"), certificate.pem()).unwrap();
        fs::write(at.join("client-key.pem"), key.serialize_pem()).unwrap();
    }
}

fn serve(authority: &Authority, mode: TlsMode) -> (NbdServer, SocketAddr) {
    let exports = Exports::new();
    let disk = HeldDisk::new(noise(8, 4 << 20));
    disk.let_go();
    exports.add(export("disk", disk, false)).unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], 0));
    let server =
        NbdServer::bind(NbdAddress::TcpTls { at, config: authority.server_config(), mode }, exports).unwrap();
    let NbdAddress::TcpTls { at, .. } = *server.address() else { unreachable!("bound as TLS") };
    (server, at)
}

/// A script with `h`, not yet connected, that demands TLS with the given folder.
fn python(folder: &Path, port: u16, script: &str) {
    let prologue = format!(
        "import nbd, os\ndef handle():\n    h = nbd.NBD(); h.set_tls_certificates('{}'); h.set_tls(nbd.TLS_REQUIRE)\n    \
         h.set_export_name('disk'); return h\nh = handle()\n\
         def fails(do):\n    try:\n        do()\n    except nbd.Error:\n        return\n    assert False, 'should have failed'\n\
         port = '{port}'\n",
        text(folder)
    );
    run("/usr/bin/python3", &["-c", &format!("{prologue}{script}")]);
}

#[test]
fn everything_works_under_tls() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let folder = dir.path().join("good");
    authority.client_folder(&folder, &authority);
    let (server, at) = serve(&authority, TlsMode::Required);
    python(
        &folder,
        at.port(),
        "h.connect_tcp('localhost', port)\n\
         assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()\n\
         data = os.urandom(3 << 20)\n\
         h.pwrite(data, 12345); assert h.pread(3 << 20, 12345) == data\n\
         for n in range(500): assert h.pread(4096, 12345 + n * 5000) == data[n * 5000:n * 5000 + 4096]\n\
         h.flush(); h.zero(1 << 20, 0); assert h.pread(1 << 20, 0) == bytearray(1 << 20)\n\
         left = [32]\n\
         def done(err): left[0] -= 1; return 1\n\
         b = [nbd.Buffer(1 << 20) for _ in range(32)]\n\
         for n in range(32): h.aio_pread(b[n], n << 15, done)\n\
         while left[0]: h.poll(-1)\n\
         assert all(b[n].to_bytearray() == h.pread(1 << 20, n << 15) for n in range(32))\n\
         h.shutdown()",
    );
    server.stop();
}

#[test]
fn strangers_are_not_served() {
    let (dir, authority, stranger) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let (bad, deceived) = (dir.path().join("bad"), dir.path().join("deceived"));
    stranger.client_folder(&bad, &authority);
    authority.client_folder(&deceived, &stranger);
    let (server, at) = serve(&authority, TlsMode::Required);
    // TLS 1.3 tells a client that it is not trusted after its side of the handshake, so the first use fails at the latest.
    python(&bad, at.port(), "fails(lambda: (h.connect_tcp('localhost', port), h.pread(512, 0)))");
    python(&deceived, at.port(), "fails(lambda: h.connect_tcp('localhost', port))");
    python(
        &deceived,
        at.port(),
        "h.set_tls(nbd.TLS_DISABLE)\nfails(lambda: h.connect_tcp('localhost', port))\n\
         g = nbd.NBD(); g.set_opt_mode(True); g.connect_tcp('localhost', port)\n\
         fails(lambda: g.opt_list(lambda name, description: 0))",
    );
    server.stop();
}

#[test]
fn tls_may_be_offered_without_being_demanded() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let folder = dir.path().join("good");
    authority.client_folder(&folder, &authority);
    let (server, at) = serve(&authority, TlsMode::Offered);
    python(
        &folder,
        at.port(),
        "h.connect_tcp('localhost', port); assert h.get_tls_negotiated()\n\
         g = handle(); g.set_tls(nbd.TLS_DISABLE); g.connect_tcp('localhost', port)\n\
         assert not g.get_tls_negotiated() and g.pread(4096, 0) == h.pread(4096, 0)",
    );
    server.stop();
}
