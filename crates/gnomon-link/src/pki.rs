//! Who may speak: one certificate authority for a fleet, one certificate per node.
//!
//! The authority's key signs nodes and nothing else; a node's name stands in its certificate as its only DNS
//! name. Files are PEM: `ca.pem` and `ca.key` where the authority lives; `ca.pem`, `node.pem` and `node.key` on
//! each node. Keys are ECDSA P-256, written with mode 0600, and never overwritten.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gnomon_proto::is_node_name;
use gnomon_terms::ErrorKind;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// File name of the authority's certificate.
pub const CA_CERT: &str = "ca.pem";
/// File name of the authority's key.
pub const CA_KEY: &str = "ca.key";
/// File name of a node's certificate.
pub const NODE_CERT: &str = "node.pem";
/// File name of a node's key.
pub const NODE_KEY: &str = "node.key";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an authority is valid: ten years, the life of a fleet.
pub const CA_VALIDITY: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// How long a node's certificate is valid: two years; renewing one is one command.
pub const NODE_VALIDITY: Duration = Duration::from_secs(730 * DAY.as_secs());
/// Certificates start an hour early: clocks of a fleet differ.
const EARLY: Duration = Duration::from_secs(3600);

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is a file already. It may be the only copy of a key, so it is never overwritten.
    #[error("{} exists already: move it away first if it is no longer needed", path.display())]
    AlreadyThere {
        /// Which.
        path: PathBuf,
    },
    /// A name that cannot be a node's.
    #[error("'{name}' cannot be a node name: use lower-case letters, digits, '-' and '.', as in a host name")]
    BadName {
        /// The name.
        name: String,
    },
    /// Others may read a key.
    #[error("{} can be read by others (mode {mode:o}): run chmod 600 on it, and make a new key if in doubt", path.display())]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{} is not usable: {what}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A certificate could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl PkiError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PkiError::File { .. } => ErrorKind::Unavailable,
            PkiError::AlreadyThere { .. } | PkiError::BadName { .. } | PkiError::Exposed { .. } => ErrorKind::Refused,
            PkiError::Unusable { .. } | PkiError::Make(_) => ErrorKind::Corrupt,
        }
    }
}

/// A certificate authority: it can issue certificates for nodes.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
}

/// A node's certificate and key, not yet written.
pub struct Issued {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
}

impl Authority {
    /// Makes a new authority, valid for `validity` from now. Nothing is written.
    pub fn create(validity: Duration) -> Result<Authority, PkiError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = common_name("gnomon CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_between(&mut params, &from_now(validity));
        let cert = params.self_signed(&key)?;
        Ok(Authority { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Writes `ca.pem` and `ca.key` into `dir`, which is made if need be. Durable when it returns.
    pub fn write(&self, dir: &Path) -> Result<(), PkiError> {
        make_dir(dir)?;
        write_new(&dir.join(CA_KEY), &self.key_pem, 0o600)?;
        write_new(&dir.join(CA_CERT), &self.cert_pem, 0o644)
    }

    /// Reads what [`Authority::write`] wrote.
    pub fn load(dir: &Path) -> Result<Authority, PkiError> {
        let authority = Authority { cert_pem: read(&dir.join(CA_CERT))?, key_pem: read_key(&dir.join(CA_KEY))? };
        authority
            .issuer()
            .map_err(|error| PkiError::Unusable { path: dir.join(CA_CERT), what: error.to_string() })?;
        Ok(authority)
    }

    /// Makes a certificate for node `name`, valid for `validity` from now. Nothing is written.
    pub fn issue(&self, name: &str, validity: Duration) -> Result<Issued, PkiError> {
        self.issue_between(name, from_now(validity))
    }

    /// As [`Authority::issue`], valid in a time of the caller's choice, to the second: for hosts whose clocks are
    /// known to differ, and to see what comes of a certificate that is over.
    pub fn issue_between(&self, name: &str, valid: Range<SystemTime>) -> Result<Issued, PkiError> {
        if !is_node_name(name) {
            return Err(PkiError::BadName { name: name.to_string() });
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![name.to_string()])?;
        params.distinguished_name = common_name(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid_between(&mut params, &valid);
        let cert = params.signed_by(&key, &self.issuer()?)?;
        Ok(Issued { ca_pem: self.cert_pem.clone(), cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_pem(&self.cert_pem, KeyPair::from_pem(&self.key_pem)?)
    }
}

impl Issued {
    /// Writes `ca.pem`, `node.pem` and `node.key` into `dir`, which is made if need be. Durable when it returns.
    pub fn write(&self, dir: &Path) -> Result<(), PkiError> {
        make_dir(dir)?;
        write_new(&dir.join(NODE_KEY), &self.key_pem, 0o600)?;
        write_new(&dir.join(NODE_CERT), &self.cert_pem, 0o644)?;
        let ca = dir.join(CA_CERT);
        match fs::read_to_string(&ca) {
            Ok(there) if there == self.ca_pem => Ok(()),
            _ => write_new(&ca, &self.ca_pem, 0o644),
        }
    }
}

/// The contents of a key file that only its owner can read.
pub(crate) fn read_key(path: &Path) -> Result<String, PkiError> {
    let metadata = fs::metadata(path).map_err(|source| PkiError::File { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::Exposed { path: path.into(), mode });
    }
    read(path)
}

/// The contents of a PEM file.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.into(), source })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a little before now, for clocks that are behind, until `validity` from now.
fn from_now(validity: Duration) -> Range<SystemTime> {
    let now = SystemTime::now();
    let until = now.checked_add(validity).unwrap_or(now);
    now.checked_sub(EARLY).unwrap_or(UNIX_EPOCH)..until
}

fn valid_between(params: &mut CertificateParams, valid: &Range<SystemTime>) {
    let since_epoch = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let origin = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = origin + since_epoch(valid.start);
    params.not_after = origin + since_epoch(valid.end);
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.into(), source })
}

/// Writes a file that must not exist yet, and makes it durable.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let result = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    result.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::AlreadyThere { path: path.into() },
        _ => PkiError::File { path: path.into(), source },
    })
}
