//! TLS 1.3 with certificates on both sides, and the name in the peer's certificate.

use std::{io, sync::Arc};

use gnomon_proto::is_node_name;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::{Identity, LinkError};

/// The one provider of cryptography, named so that no global is consulted. AES-128 goes first: it is a third
/// faster than AES-256 where the CPU has the instructions, and no weaker against anything known.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// 128 random bits.
pub(crate) fn random(provider: &CryptoProvider) -> Result<u128, Error> {
    let mut bytes = [0; 16];
    provider.secure_random.fill(&mut bytes).map_err(|_| Error::FailedToGetRandomBytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Accepts peers with a certificate of our authority.
pub(crate) fn server_config(identity: &Identity) -> Result<ServerConfig, Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(identity.roots(), identity.provider().clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(identity.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain(), identity.key())?;
    // A resumed session would skip the certificates, and a session is opened once per move: not worth it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Connects to a node of our authority: to `expected`, or to whoever it is.
pub(crate) fn client_config(identity: &Identity, expected: Option<&str>) -> Result<ClientConfig, Error> {
    let chain = WebPkiServerVerifier::builder_with_provider(identity.roots(), identity.provider().clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let verifier = NodeVerifier { chain, expected: expected.map(str::to_string) };
    let mut config = ClientConfig::builder_with_provider(identity.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain(), identity.key())?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The node a certificate was issued to: its only DNS name. `None` if it is not a node's certificate.
pub(crate) fn node_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.as_slice()),
        _ => None,
    });
    match (names.next()?, names.next()) {
        ([GeneralName::DNSName(name)], None) if is_node_name(name) => Some(name.to_string()),
        _ => None,
    }
}

/// Checks the chain as webpki does, under the name the certificate itself bears, and that name against the one
/// that is expected, if any.
#[derive(Debug)]
struct NodeVerifier {
    chain: Arc<WebPkiServerVerifier>,
    expected: Option<String>,
}

/// Travels through rustls to come out as [`LinkError::WrongName`].
#[derive(Debug, thiserror::Error)]
#[error("expected node '{expected}', got '{got}'")]
struct NameMismatch {
    expected: String,
    got: String,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = node_name(end_entity).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let name = ServerName::try_from(got.clone()).map_err(|error| Error::General(error.to_string()))?;
        let verified = self.chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)?;
        match &self.expected {
            Some(expected) if *expected != got => {
                let mismatch = NameMismatch { expected: expected.clone(), got };
                Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(mismatch)))))
            }
            _ => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What an I/O error of a TLS stream means.
pub(crate) fn explain(what: &'static str, addr: &str, error: io::Error) -> LinkError {
    let addr = addr.to_string();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned();
    match tls {
        None => LinkError::Io { what, addr, source: error },
        Some(Error::InvalidCertificate(error)) => explain_certificate(addr, error),
        Some(Error::InvalidMessage(_)) => LinkError::NotTls { addr },
        Some(Error::AlertReceived(alert)) if about_certificate(alert) => {
            LinkError::RefusedByPeer { addr, alert: format!("{alert:?}") }
        }
        Some(source) => LinkError::Tls { addr, source },
    }
}

fn explain_certificate(addr: String, error: CertificateError) -> LinkError {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => LinkError::WrongCa { addr },
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            LinkError::Expired { addr, state: "expired" }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            LinkError::Expired { addr, state: "not yet valid" }
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<NameMismatch>() {
            Some(NameMismatch { expected, got }) => {
                LinkError::WrongName { addr, expected: expected.clone(), got: got.clone() }
            }
            None => LinkError::Tls { addr, source: Error::InvalidCertificate(CertificateError::Other(other)) },
        },
        error => LinkError::Tls { addr, source: Error::InvalidCertificate(error) },
    }
}

/// Alerts by which a peer says that it does not like our certificate. Source: RFC 8446, section 6.2.
fn about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::UnknownCA
            | A::BadCertificate
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::CertificateRevoked
            | A::UnsupportedCertificate
            | A::AccessDenied
            | A::DecryptError
    )
}
