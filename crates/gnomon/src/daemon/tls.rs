//! TLS for disks over TCP: the same certificates as the link, asked of both sides.

use std::{path::Path, sync::Arc};

use crate::api::ApiError;

/// What the NBD server proves itself with, and whom it lets in: whoever has a certificate of the same authority.
pub fn server_config(pki: &Path) -> Result<Arc<rustls::ServerConfig>, ApiError> {
    Ok(gnomon_link::Identity::load(pki)?.server_config())
}
