//! The key with which the image gate signs its verdicts, and the other half, with which nodes verify them.
//!
//! [`crate::init`] makes the pair: `verdict.key` belongs to the control plane, `verdict.pub` goes to each node with
//! its certificates. The public file may hold several keys, so that a node can believe an old and a new one while
//! they change.

use std::path::{Path, PathBuf};

use api::verdict::{SignedVerdict, Verdict};
use rcgen::{KeyPair, PKCS_ED25519};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use x509_parser::{prelude::FromDer, x509::SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::{PkiError, files::Dir};

/// File of the private key.
pub const KEY_FILE: &str = "verdict.key";
/// File of the public keys.
pub const PUBLIC_FILE: &str = "verdict.pub";

/// The algorithm's number, 1.3.101.112 (RFC 8410, 3).
const ED25519_OID: &str = "1.3.101.112";

/// Signs verdicts.
pub struct Signer(Ed25519KeyPair);

/// Verifies verdicts.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Vec<UnparsedPublicKey<Vec<u8>>>,
}

/// Why there is no key to sign or verify with.
#[derive(Debug, thiserror::Error)]
#[error("{} holds no usable Ed25519 key: {problem}; palisade-control init makes it", path.display())]
pub struct KeyError {
    path: PathBuf,
    problem: String,
}

/// Why a verdict is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerdictError {
    /// It is no signed verdict.
    #[error(transparent)]
    Text(#[from] api::verdict::VerdictTextError),
    /// None of the known keys has signed it.
    #[error("its signature is not the image gate's")]
    Signature,
    /// It was signed, but says something that this version does not understand.
    #[error("the image gate signed claims that cannot be read")]
    Claims,
}

impl Signer {
    /// Reads the private key of a directory with keys.
    pub fn load(tls: &Path) -> Result<Self, KeyError> {
        let path = tls.join(KEY_FILE);
        let failed = |problem: String| KeyError {
            path: path.clone(),
            problem,
        };
        let key = PrivatePkcs8KeyDer::from_pem_file(&path).map_err(|error| failed(error.to_string()))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der());
        pair.map(Self).map_err(|rejected| failed(rejected.to_string()))
    }

    /// The signed verdict, as text.
    pub fn sign(&self, verdict: &Verdict) -> String {
        let claims = verdict.claims();
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(&SignedVerdict::message(&claims)).as_ref());
        SignedVerdict { claims, signature }.to_string()
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Verifier {
    /// Reads the public keys of a directory with keys.
    pub fn load(tls: &Path) -> Result<Self, KeyError> {
        let path = tls.join(PUBLIC_FILE);
        let failed = |problem: String| KeyError {
            path: path.clone(),
            problem,
        };
        let found = SubjectPublicKeyInfoDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed(error.to_string()))?;
        let mut keys = Vec::new();
        for der in &found {
            let (_, info) = SubjectPublicKeyInfo::from_der(der)
                .map_err(|_malformed| failed("it is no public key".to_owned()))?;
            if info.algorithm.algorithm.to_id_string() != ED25519_OID {
                return Err(failed("it is of another algorithm".to_owned()));
            }
            keys.push(UnparsedPublicKey::new(
                &ED25519,
                info.subject_public_key.data.to_vec(),
            ));
        }
        match keys.is_empty() {
            true => Err(failed("there is no PEM block PUBLIC KEY".to_owned())),
            false => Ok(Self { keys }),
        }
    }

    /// What the gate said, if it did.
    pub fn verify(&self, text: &str) -> Result<Verdict, VerdictError> {
        let signed: SignedVerdict = text.parse()?;
        let message = SignedVerdict::message(&signed.claims);
        let by = |key: &UnparsedPublicKey<Vec<u8>>| key.verify(&message, &signed.signature).is_ok();
        if !self.keys.iter().any(by) {
            return Err(VerdictError::Signature);
        }
        serde_json::from_slice(&signed.claims).map_err(|_unknown| VerdictError::Claims)
    }
}

/// Makes the private key in `dir` if it is missing, and returns the public one.
pub(crate) fn ensure(dir: &Dir, owner: Option<u32>) -> Result<String, PkiError> {
    let subject = "image verdicts";
    let issue = |source| PkiError::Issue {
        subject: subject.to_owned(),
        source,
    };
    let known = match dir.read_text(KEY_FILE)? {
        Some(pem) => KeyPair::from_pem(&pem).ok(),
        None => None,
    };
    // A damaged file, or a key of another kind, is as good as none.
    if let Some(key) = known.filter(|key| key.algorithm() == &PKCS_ED25519) {
        return Ok(key.public_key_pem());
    }
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(issue)?;
    let pem = Zeroizing::new(key.serialize_pem());
    dir.replace(KEY_FILE, pem.as_bytes(), 0o600, owner)?;
    Ok(key.public_key_pem())
}

#[cfg(test)]
mod tests {
    use api::Digest;
    use jiff::Timestamp;

    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            namespace: "shop".to_owned(),
            digest: Digest::of(b"image"),
            db_hash: Digest::of(b"db"),
            policy_hash: Digest::of(b"policy"),
            judged_at: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        }
    }

    fn pair() -> (tempfile::TempDir, Signer, Verifier) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::create_all(tmp.path()).unwrap();
        let public = ensure(&dir, None).unwrap();
        dir.replace(PUBLIC_FILE, public.as_bytes(), 0o644, None).unwrap();
        assert_eq!(ensure(&dir, None).unwrap(), public, "the key stays");
        let (signer, verifier) = (Signer::load(tmp.path()), Verifier::load(tmp.path()));
        (tmp, signer.unwrap(), verifier.unwrap())
    }

    #[test]
    fn only_what_the_gate_signed_is_believed() {
        let (_own, signer, verifier) = pair();
        let text = signer.sign(&verdict());
        assert_eq!(verifier.verify(&text), Ok(verdict()));

        let (_other, forger, _) = pair();
        assert_eq!(
            verifier.verify(&forger.sign(&verdict())),
            Err(VerdictError::Signature)
        );
        // Each changed bit of claims or signature.
        let signed: SignedVerdict = text.parse().unwrap();
        for at in 0..signed.claims.len() + signed.signature.len() {
            let mut forged = signed.clone();
            match at.checked_sub(forged.claims.len()) {
                Some(at) => forged.signature[at] ^= 1,
                None => forged.claims[at] ^= 1,
            }
            assert_eq!(
                verifier.verify(&forged.to_string()),
                Err(VerdictError::Signature),
                "byte {at}"
            );
        }
        assert!(matches!(verifier.verify("v2"), Err(VerdictError::Text(_))));
    }

    #[test]
    fn two_keys_are_believed_while_they_change() {
        let (old_dir, old, _) = pair();
        let (new_dir, new, _) = pair();
        let public = |dir: &tempfile::TempDir| std::fs::read_to_string(dir.path().join(PUBLIC_FILE)).unwrap();
        let both = public(&old_dir) + &public(&new_dir);
        std::fs::write(old_dir.path().join(PUBLIC_FILE), both).unwrap();
        let verifier = Verifier::load(old_dir.path()).unwrap();
        for signer in [old, new] {
            assert_eq!(verifier.verify(&signer.sign(&verdict())), Ok(verdict()));
        }
        std::fs::write(old_dir.path().join(PUBLIC_FILE), "").unwrap();
        assert!(Verifier::load(old_dir.path()).is_err(), "no key verifies nothing");
    }
}
