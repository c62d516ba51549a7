//! Who is believed to be a member of the etcd, and as whom its members know us: PEM files, read when a store is opened.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use gnomon_terms::ErrorKind;

/// No certificate or key is longer: a chain of ten is some 20 KB.
const LONGEST: u64 = 1 << 20;

/// What a certificate, and what a key, begins with. Keys have words before theirs that name the kind.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const KEY: &str = "PRIVATE KEY-----";

/// The files with which an etcd is spoken to over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Certificates of the authorities that may have issued those of the members. No others are believed.
    pub ca: PathBuf,
    /// Our own, for members that ask for one.
    pub own: Option<OwnCertificate>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCertificate {
    /// The certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// Its key, which nobody else may read.
    pub key: PathBuf,
}

/// What is in the files.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTlsPem {
    /// The authorities.
    pub ca: String,
    /// Our certificate and its key.
    pub own: Option<(String, String)>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdTlsError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
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
    #[error("{} holds no {what} in PEM", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
}

impl EtcdTlsError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EtcdTlsError::File { .. } => ErrorKind::Unavailable,
            EtcdTlsError::Exposed { .. } | EtcdTlsError::Unusable { .. } => ErrorKind::Refused,
        }
    }
}

impl EtcdTls {
    /// Reads the files.
    pub fn read(&self) -> Result<EtcdTlsPem, EtcdTlsError> {
        let own = self.own.as_ref().map(OwnCertificate::read).transpose()?;
        Ok(EtcdTlsPem { ca: read(&self.ca, CERTIFICATE, "certificate")?, own })
    }
}

impl OwnCertificate {
    fn read(&self) -> Result<(String, String), EtcdTlsError> {
        let metadata = fs::metadata(&self.key);
        let mode =
            metadata.map_err(|source| EtcdTlsError::File { path: self.key.clone(), source })?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(EtcdTlsError::Exposed { path: self.key.clone(), mode: mode & 0o777 });
        }
        Ok((read(&self.certificate, CERTIFICATE, "certificate")?, read(&self.key, KEY, "key")?))
    }
}

fn read(path: &Path, holds: &str, what: &'static str) -> Result<String, EtcdTlsError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    match read {
        Ok(_) if text.contains(holds) => Ok(text),
        Err(source) if source.kind() != io::ErrorKind::InvalidData => {
            Err(EtcdTlsError::File { path: path.to_path_buf(), source })
        }
        _ => Err(EtcdTlsError::Unusable { path: path.to_path_buf(), what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_what_they_should_and_keys_are_not_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &[u8], mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            path
        };
        let certificate = file("ca.pem", CERTIFICATE.as_bytes(), 0o644);
        let key = file("key.pem", b"-----BEGIN EC PRIVATE KEY-----", 0o600);
        let shown = file("shown.pem", b"-----BEGIN PRIVATE KEY-----", 0o640);
        let other = file("other", b"\xff\xfe", 0o600);
        let tls = |ca: &Path, certificate: &Path, key: &Path| EtcdTls {
            ca: ca.to_path_buf(),
            own: Some(OwnCertificate { certificate: certificate.to_path_buf(), key: key.to_path_buf() }),
        };
        assert!(tls(&certificate, &certificate, &key).read().is_ok_and(|pem| pem.own.is_some()));
        let table = [
            (tls(&certificate, &certificate, &shown), "chmod 600"),
            (tls(&certificate, &certificate, &other), "no key"),
            (tls(&certificate, &key, &key), "no certificate"),
            (tls(&other, &certificate, &key), "no certificate"),
            (tls(Path::new("/nowhere"), &certificate, &key), "/nowhere"),
        ];
        for (tls, why) in table {
            let error = tls.read().err().expect(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
