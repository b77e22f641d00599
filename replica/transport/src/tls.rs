//! TLS 1.3 with raw public keys (RFC 7250): no certificates, and so no authority and no expiry.
//!
//! Each side proves that it has the secret half of its key by signing the handshake; the other
//! checks the signature and looks the key up in its own list. Both are needed: neither a key that
//! is listed without the signature nor a signature of a key that is not listed gets through.
//!
//! Nothing is resumed: each connection proves it anew, so that a list that was replaced holds from
//! then on.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};

use crate::error::TransportError;
use crate::key::{Identity, PublicKey};
use crate::peers::Peers;

/// The cryptography, once per process: AES-128-GCM first, which the processors of servers do in
/// hardware, then the other suites of TLS 1.3.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        use rustls::crypto::aws_lc_rs::{self as aws, cipher_suite as suite};
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![aws::kx_group::X25519],
            ..aws::default_provider()
        })
    };
    PROVIDER.get_or_init(make).clone()
}

/// A key that proved itself and is not in the list.
#[derive(Debug)]
pub(crate) struct Stranger(pub(crate) PublicKey);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key {} is not in the list of peers", self.0)
    }
}

impl std::error::Error for Stranger {}

/// The key that somebody was refused for, if that was the reason.
pub(crate) fn stranger(error: &rustls::Error) -> Option<PublicKey> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
            why.downcast_ref::<Stranger>().map(|s| s.0)
        }
        _ => None,
    }
}

/// Takes whoever is in the list, on either side of a connection.
#[derive(Debug)]
struct Pinned(Peers);

impl Pinned {
    fn listed(&self, der: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let key =
            PublicKey::from_spki(der).ok_or(rustls::Error::from(CertificateError::BadEncoding))?;
        match self.0.current().by_key(&key) {
            Some(_) => Ok(()),
            None => {
                let why = OtherError(Arc::new(Stranger(key)));
                Err(CertificateError::Other(why).into())
            }
        }
    }

    fn signed(
        message: &[u8],
        der: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(der.as_ref());
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signature, &algorithms)
    }
}

/// TLS 1.2 is not even compiled in.
fn never() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.listed(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Pinned::signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.listed(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Pinned::signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Both ends' configuration, made once.
pub(crate) struct Configs {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Configs {
    pub(crate) fn new(identity: &Identity, peers: &Peers) -> Result<Configs, TransportError> {
        let crypto = |e: rustls::Error| TransportError::Crypto(e.to_string());
        let spki = CertificateDer::from(identity.public().spki());
        let key = Arc::new(CertifiedKey::new(vec![spki], identity.signer()));
        let verifier = Arc::new(Pinned(peers.clone()));
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                key.clone(),
            )));
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
        server.send_tls13_tickets = 0;
        Ok(Configs {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}
