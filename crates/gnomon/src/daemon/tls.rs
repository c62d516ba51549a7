//! TLS for disks over TCP: the same certificates as the link, asked of both sides.

use std::{path::Path, sync::Arc};

use gnomon_link::pki::{CA_CERT, NODE_CERT, NODE_KEY};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::api::ApiError;

/// What the NBD server proves itself with, and whom it lets in: whoever has a certificate of the same authority.
pub fn server_config(pki: &Path) -> Result<Arc<ServerConfig>, ApiError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&pki.join(CA_CERT))? {
        roots.add(root).map_err(|error| unusable(&pki.join(CA_CERT), &error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unusable(&pki.join(CA_CERT), &error))?;
    let key = PrivateKeyDer::from_pem_file(pki.join(NODE_KEY)).map_err(|e| unusable(&pki.join(NODE_KEY), &e))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ApiError::internal)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&pki.join(NODE_CERT))?, key)
        .map_err(|error| unusable(&pki.join(NODE_CERT), &error))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ApiError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    all.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> ApiError {
    ApiError::refused(format!("{} cannot be used: {error}", path.display()))
        .then("make certificates with `gnomon node init`, or correct volume.nbd_pki")
}
