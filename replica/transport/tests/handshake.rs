//! What the handshake lets through, seen from a client that does not play by the rules: keys
//! that are none, keys of somebody else, certificates, older versions. And what a stream carries
//! once it stands, in both directions at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{IoSlice, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use trivet_transport::{Entry, Expect, Identity, PeerSet, Peers, Role, Security, TransportError};

const SOON: Duration = Duration::from_secs(20);

fn pair() -> (Security, Security) {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let entry = |name: &str, identity: &Identity| Entry {
        name: name.into(),
        role: Role::Node,
        key: identity.public(),
    };
    let list = PeerSet::new([entry("a", &a), entry("b", &b)]).unwrap();
    let tls = |identity| Security::tls(identity, Peers::new(list.clone())).unwrap();
    (tls(a), tls(b))
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Takes the server as it is: only what the client shows is of interest here.
#[derive(Debug)]
struct Anybody {
    raw: bool,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

/// PKCS#8 and SubjectPublicKeyInfo of an Ed25519 key with this secret.
fn key(secret: u8) -> (Arc<dyn SigningKey>, Vec<u8>) {
    let pkcs8 = [
        &[
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ][..],
        &[secret; 32],
    ]
    .concat();
    let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).unwrap();
    let spki = signer.public_key().unwrap().to_vec();
    (signer, spki)
}

fn text(spki: &[u8]) -> String {
    let raw = &spki[spki.len() - 32..];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = raw.iter().map(|b| format!("{b:08b}")).collect();
    let digits: String = format!("{bits}00")
        .as_bytes()
        .chunks(6)
        .map(|six| {
            let six = std::str::from_utf8(six).unwrap();
            char::from(alphabet[usize::from_str_radix(six, 2).unwrap()])
        })
        .collect();
    format!("trivet1:{digits}=")
}

/// What the server says about a client that shows `shown`, if anything, and signs with `signer`.
fn accepted(
    shown: Option<Vec<u8>>,
    signer: Arc<dyn SigningKey>,
    listed: &str,
) -> Result<String, TransportError> {
    let entry = Entry {
        name: "victim".into(),
        role: Role::Node,
        key: listed.parse().unwrap(),
    };
    let list = Peers::new(PeerSet::new([entry]).unwrap());
    let server = Security::tls(Identity::generate().unwrap(), list).unwrap();
    let (listener, address) = listen();
    let raw = shown.is_some();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { raw }));
    let config = match shown {
        Some(spki) => {
            let key = CertifiedKey::new(vec![spki.into()], signer);
            let key = AlwaysResolvesClientRawPublicKeys::new(Arc::new(key));
            config.with_client_cert_resolver(Arc::new(key))
        }
        None => config.with_no_client_auth(),
    };
    let client = thread::spawn(move || {
        let name = ServerName::IpAddress(address.ip().into());
        let mut state = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        // Until the server says something, or ends it.
        while state
            .complete_io(&mut socket)
            .is_ok_and(|(read, _)| read > 0)
        {}
    });
    let (socket, _) = listener.accept().unwrap();
    let accepted = server.accept(socket, SOON);
    let name = accepted.map(|c| c.peer().name.clone());
    client.join().unwrap();
    name
}

#[test]
fn only_the_owner_of_a_listed_key_gets_in() {
    let ((owner, spki), (thief, other)) = (key(1), key(2));
    let listed = text(&spki);
    assert_eq!(
        accepted(Some(spki.clone()), owner.clone(), &listed).unwrap(),
        "victim"
    );
    // Somebody else with the public key, which is no secret.
    let told = accepted(Some(spki.clone()), thief.clone(), &listed).unwrap_err();
    assert!(told.to_string().contains("BadSignature"), "{told}");
    // A key of their own.
    let told = accepted(Some(other), thief, &listed).unwrap_err();
    assert!(matches!(told, TransportError::Stranger { .. }), "{told}");
    // Something that is no key, a key of another kind, one that is cut short or too long.
    let mut rsa = spki.clone();
    rsa[8] ^= 1;
    let long = [&spki[..], b"x"].concat();
    for shown in [
        vec![],
        vec![0x30],
        rsa,
        spki[..43].to_vec(),
        long,
        vec![7; 9000],
    ] {
        let told = accepted(Some(shown), owner.clone(), &listed).unwrap_err();
        assert!(matches!(told, TransportError::Handshake { .. }), "{told}");
    }
    // No key at all, and certificates instead of keys.
    let told = accepted(None, owner, &listed).unwrap_err();
    assert!(matches!(told, TransportError::Handshake { .. }), "{told}");
}

#[test]
fn a_server_that_never_finishes_the_handshake_is_given_up_in_time() {
    let (a, _) = pair();
    let (listener, address) = listen();
    let limit = Duration::from_millis(100);
    let told = a.connect(address, &Expect::Listed, limit).map(drop);
    assert!(
        matches!(told, Err(TransportError::HandshakeTimeout { .. })),
        "{told:?}"
    );
    drop(listener);
}

fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

#[test]
fn both_directions_carry_much_at_once_and_nothing_is_lost_or_reordered() {
    const LEN: usize = 24 << 20;
    let (a, b) = pair();
    for (client, server) in [(a, b), (Security::Plain, Security::Plain)] {
        let (listener, address) = listen();
        let accepting = thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            server.accept(socket, SOON).unwrap()
        });
        let there = client.connect(address, &Expect::Listed, SOON).unwrap();
        let ends = [(there, 1, 2), (accepting.join().unwrap(), 2, 1)];
        thread::scope(|s| {
            for (end, mine, theirs) in ends {
                let (mut reader, writer) = end.split();
                // One side waits, the other comes back when there is room.
                s.spawn(move || {
                    let all = content(mine, LEN);
                    let mut rest = &all[..];
                    while !rest.is_empty() {
                        let (head, tail) = rest.split_at(rest.len().min(100_001));
                        let parts = [IoSlice::new(head), IoSlice::new(tail)];
                        let sent = match mine {
                            1 => writer.write(&parts),
                            _ => writer.try_write(&parts),
                        };
                        match sent {
                            Ok(n) => rest = &rest[n..],
                            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                                writer.wait_writable(SOON);
                            }
                            Err(e) => panic!("{e}"),
                        }
                    }
                    while writer.try_flush().is_err() {
                        writer.wait_writable(SOON);
                    }
                    assert!(!writer.has_pending());
                });
                s.spawn(move || {
                    let mut got = vec![0; LEN];
                    reader.read_exact(&mut got).unwrap();
                    assert!(got == content(theirs, LEN));
                });
            }
        });
    }
}

#[test]
fn a_deadline_ends_a_read_and_can_be_lifted() {
    let (a, b) = pair();
    let (listener, address) = listen();
    let accepting = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        b.accept(socket, SOON).unwrap()
    });
    let (mut reader, _writer) = a.connect(address, &Expect::Listed, SOON).unwrap().split();
    let (_other_reader, other) = accepting.join().unwrap().split();
    let mut out = [0; 4];
    reader
        .set_deadline(Some(Instant::now() + Duration::from_millis(20)))
        .unwrap();
    let told = reader.read(&mut out).unwrap_err();
    assert_eq!(told.kind(), std::io::ErrorKind::TimedOut);
    reader.set_deadline(None).unwrap();
    other.write(&[IoSlice::new(b"late")]).unwrap();
    reader.read_exact(&mut out).unwrap();
    assert_eq!(&out, b"late");
    // The end of the stream is the end.
    other.shutdown();
    assert_eq!(reader.read(&mut out).unwrap(), 0);
}
