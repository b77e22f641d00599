//! Who a node is: an Ed25519 key in a file.
//!
//! The file is PKCS#8 in PEM, of mode 0600; a directory that is missing is made with 0700. It is
//! never overwritten: the key in it is what the others know this node by. Written durably under
//! its name at once, and nothing else is kept: a crash while it is made leaves no file or one that
//! is refused when it is read. The secret is never printed, and its memory is not shared.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;
use serde::{Deserialize, Serialize};

use crate::base64;
use crate::error::{Result, TransportError};
use crate::tls::provider;

/// What the text form begins with.
const PREFIX: &str = "trivet1:";
/// Bytes of an Ed25519 key, secret or public.
const KEY: usize = 32;
/// DER of a SubjectPublicKeyInfo with an Ed25519 key, up to the key (RFC 8410).
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// DER of a PKCS#8 private key with an Ed25519 key, up to the key (RFC 8410).
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Bytes of a key file, at most.
const MAX_FILE: u64 = 4096;

/// The public half: what a list of peers holds. Its text is `trivet1:` and base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; KEY]);

impl PublicKey {
    /// The form in which TLS carries it.
    pub(crate) fn spki(&self) -> Vec<u8> {
        [&SPKI[..], &self.0].concat()
    }

    /// From the form in which TLS carries it; `None` for every other kind of key.
    pub(crate) fn from_spki(der: &[u8]) -> Option<PublicKey> {
        let key = der.strip_prefix(&SPKI)?;
        Some(PublicKey(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", base64::encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<PublicKey> {
        let raw = text.strip_prefix(PREFIX).and_then(base64::decode);
        raw.and_then(|r| r.try_into().ok())
            .map(PublicKey)
            .ok_or_else(|| TransportError::PublicKey {
                text: text.chars().take(80).collect(),
            })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = TransportError;

    fn try_from(text: String) -> Result<PublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// A key with its secret half.
#[derive(Clone)]
pub struct Identity {
    public: PublicKey,
    /// PKCS#8.
    secret: Arc<PrivatePkcs8KeyDer<'static>>,
    signer: Arc<dyn SigningKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.public).finish()
    }
}

impl Identity {
    /// A new one, of the system's randomness.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Identity> {
        let mut seed = [0; KEY];
        provider()
            .secure_random
            .fill(&mut seed)
            .map_err(|_| TransportError::Crypto("no randomness from the system".into()))?;
        Identity::from_pkcs8([&PKCS8[..], &seed].concat()).map_err(TransportError::Crypto)
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Identity, String> {
        let secret = PrivatePkcs8KeyDer::from(der);
        let signer = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&secret)
            .map_err(|e| format!("it is no Ed25519 key ({e})"))?;
        let public = signer
            .public_key()
            .and_then(|spki| PublicKey::from_spki(&spki))
            .ok_or("it has no Ed25519 public half")?;
        Ok(Identity {
            public,
            secret: Arc::new(secret),
            signer,
        })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn signer(&self) -> Arc<dyn SigningKey> {
        self.signer.clone()
    }

    /// Writes it to a new file of mode 0600; makes the directory (0700) if it is missing.
    ///
    /// # Errors
    /// The file exists, or the disk fails.
    pub fn save_new(&self, path: &Path) -> Result<()> {
        let parent = match path.parent() {
            Some(p) if p != Path::new("") => p,
            _ => Path::new("."),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(TransportError::io("create", parent))?;
        let open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file = match open {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(TransportError::KeyExists {
                    path: path.to_path_buf(),
                });
            }
            Err(e) => return Err(TransportError::io("create", path)(e)),
        };
        let secret = base64::encode(self.secret.secret_pkcs8_der());
        let text = format!(
            "Secret key of a Trivet node; it never leaves this machine. Its public half:\n\
             {}\n{BEGIN}\n{secret}\n{END}\n",
            self.public
        );
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(TransportError::io("write", path))?;
        File::open(parent)
            .and_then(|d| d.sync_all())
            .map_err(TransportError::io("sync", parent))
    }

    /// Reads it. A file that others may read is refused: it may have been copied.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or it holds no Ed25519 key.
    pub fn load(path: &Path) -> Result<Identity> {
        let file = File::open(path).map_err(TransportError::io("open", path))?;
        let bad = |why: String| TransportError::KeyFile {
            path: path.to_path_buf(),
            why,
        };
        let meta = file
            .metadata()
            .map_err(TransportError::io("look at", path))?;
        if !meta.is_file() {
            return Err(bad("it is not a file".into()));
        }
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o777;
            return Err(bad(format!(
                "its mode is {mode:o}, so others may read it; if nobody did, `chmod 600` it"
            )));
        }
        let mut text = String::new();
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(TransportError::io("read", path))?;
        if text.len() as u64 > MAX_FILE {
            return Err(bad(format!("it is larger than {MAX_FILE} bytes")));
        }
        let body = text
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END))
            .map(|(body, _)| body.split_whitespace().collect::<String>())
            .ok_or_else(|| bad(format!("there is no {BEGIN} in it")))?;
        let der = base64::decode(&body).ok_or_else(|| bad("its base64 is damaged".into()))?;
        Identity::from_pkcs8(der).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_goes_to_its_file_and_back_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/node.key");
        let identity = Identity::generate().unwrap();
        identity.save_new(&path).unwrap();
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(Identity::load(&path).unwrap().public(), identity.public());
        let again = Identity::generate().unwrap().save_new(&path);
        assert!(matches!(again, Err(TransportError::KeyExists { .. })));
        assert_eq!(Identity::load(&path).unwrap().public(), identity.public());
    }

    #[test]
    fn a_file_that_others_may_read_and_a_damaged_one_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        Identity::generate().unwrap().save_new(&path).unwrap();
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        set(0o640);
        let told = Identity::load(&path).unwrap_err().to_string();
        assert!(told.contains("640") && told.contains("chmod 600"), "{told}");
        set(0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        let damaged = [
            text.replace("MC4CAQAw", "MC4CAQAx"),
            text.replace(BEGIN, "-----BEGIN EC PRIVATE KEY-----"),
            text.replace("MC4C", "MC4"),
            String::new(),
            "x".repeat(5000),
        ];
        for bad in damaged {
            std::fs::write(&path, &bad).unwrap();
            let told = Identity::load(&path).unwrap_err();
            assert!(matches!(told, TransportError::KeyFile { .. }), "{told}");
            // Whatever is said about it, the secret is not.
            assert!(!told.to_string().contains("MC4"), "{told}");
        }
    }

    #[test]
    fn the_public_form_is_one_text_for_one_key() {
        let key = Identity::generate().unwrap().public();
        let text = key.to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), key);
        assert_eq!(PublicKey::from_spki(&key.spki()), Some(key));
        for bad in ["", "trivet1:", "trivet2:AAAA", &text[8..], &text[..51]] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fixed_secret_has_the_public_half_of_the_standard() {
        // RFC 8032, section 7.1, test 1.
        let hex = |s: &str| -> Vec<u8> {
            let digit = |i: usize| u8::from_str_radix(&s[i..i + 2], 16).unwrap();
            (0..s.len()).step_by(2).map(digit).collect()
        };
        let secret = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let identity = Identity::from_pkcs8([&PKCS8[..], &secret].concat()).unwrap();
        assert_eq!(identity.public().0.as_slice(), public);
    }
}
