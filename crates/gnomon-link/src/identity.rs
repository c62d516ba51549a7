//! What a node presents: its name, certificate and key, and the authority it trusts.

use std::{path::Path, sync::Arc};

use rustls::{RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    pki::{self, CA_CERT, NODE_CERT, NODE_KEY, PkiError},
    tls,
};

/// What a node presents to others. Cheap to clone; drawn once per process, since it carries the boot id.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    boot: u128,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// Reads `ca.pem`, `node.pem` and `node.key` from `dir`. Blocks on the disk.
    ///
    /// # Errors
    /// A missing or unusable file, a key that others may read, a key that is not the certificate's.
    pub fn load(dir: &Path) -> Result<Identity, PkiError> {
        let (ca, cert, key) = (dir.join(CA_CERT), dir.join(NODE_CERT), dir.join(NODE_KEY));
        let unusable = |path: &Path, what: String| PkiError::Unusable { path: path.into(), what };
        let chain = certificates(&cert)?;
        let name = tls::node_name(&chain[0]).ok_or_else(|| unusable(&cert, "it names no node".into()))?;
        let key_der = PrivateKeyDer::from_pem_slice(pki::read_key(&key)?.as_bytes())
            .map_err(|error| unusable(&key, error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca)? {
            roots.add(root).map_err(|error| unusable(&ca, error.to_string()))?;
        }
        let provider = tls::provider();
        let boot = tls::random(&provider).map_err(|error| unusable(&key, error.to_string()))?;
        let inner = Inner { name, boot, chain, key: key_der, roots: Arc::new(roots), provider };
        let identity = Identity { inner: Arc::new(inner) };
        tls::server_config(&identity).map_err(|error| unusable(&key, error.to_string()))?;
        Ok(identity)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Drawn at random when the identity was loaded: tells a restart of the process.
    pub fn boot(&self) -> u128 {
        self.inner.boot
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.inner.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.inner.key.clone_key()
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.inner.roots.clone()
    }

    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.inner.provider
    }
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let text = pki::read(path)?;
    let unusable = |what: String| PkiError::Unusable { path: path.into(), what };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable("it holds no certificate".into())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(error.to_string())),
    }
}
