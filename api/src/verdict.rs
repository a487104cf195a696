//! The gate's word that an image may run: what it signs and a node demands before it starts a container.
//!
//! A signed verdict is text, `v2.CLAIMS.SIGNATURE` (version 1 had no end and is not read any more), both parts in hexadecimal: it stands in an annotation of the
//! pod (see [`crate::annotations::IMAGE_VERDICT_PREFIX`]). The signature covers the bytes of the claims as they
//! were sent, so that nobody has to agree on how JSON is written. Signing and verifying is `control/pki`'s.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Digest;

/// What precedes the claims in what is signed, so that the key's signature of anything else is no verdict.
const DOMAIN: &[u8] = b"palisade.dev/image-verdict/v2\0";
const VERSION: &str = "v2";
/// Longest text: claims have a namespace and three digests.
const MAX_TEXT_BYTES: usize = 2048;
/// Length of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// What the gate says: this image may run in this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verdict {
    /// Namespace whose policies judged.
    pub namespace: String,
    /// Digest of the manifest that was verified and scanned.
    pub digest: Digest,
    /// Vulnerability database of the scan, as in `ImageScan`.
    pub db_hash: Digest,
    /// Policies that judged, as in `ImageScan`.
    pub policy_hash: Digest,
    /// When.
    pub judged_at: Timestamp,
    /// Until when a container may start for the first time by it.
    pub not_after: Timestamp,
}

/// A text that looks like a signed verdict; nothing in it is to be believed before the signature is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedVerdict {
    /// The claims as they were signed.
    pub claims: Vec<u8>,
    /// Ed25519 over [`SignedVerdict::message`].
    pub signature: [u8; SIGNATURE_BYTES],
}

/// Why a text is no signed verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a signed verdict is v2.CLAIMS.SIGNATURE in hexadecimal, of at most 2048 bytes")]
pub struct VerdictTextError;

impl Verdict {
    /// The claims as they are signed.
    pub fn claims(&self) -> Vec<u8> {
        // A structure of texts always is JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl SignedVerdict {
    /// The bytes that are signed for `claims`.
    pub fn message(claims: &[u8]) -> Vec<u8> {
        [DOMAIN, claims].concat()
    }
}

impl std::fmt::Display for SignedVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (claims, signature) = (hex::encode(&self.claims), hex::encode(self.signature));
        write!(f, "{VERSION}.{claims}.{signature}")
    }
}

impl std::str::FromStr for SignedVerdict {
    type Err = VerdictTextError;

    fn from_str(text: &str) -> Result<Self, VerdictTextError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(VerdictTextError);
        }
        let mut parts = text.split('.');
        let (Some(VERSION), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(VerdictTextError);
        };
        let mut bytes = [0; SIGNATURE_BYTES];
        hex::decode_to_slice(signature, &mut bytes).map_err(|_no_hex| VerdictTextError)?;
        Ok(Self {
            claims: hex::decode(claims).map_err(|_no_hex| VerdictTextError)?,
            signature: bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip_and_others_are_refused() {
        let verdict = Verdict {
            // As long as namespaces get.
            namespace: "n".repeat(63),
            digest: Digest::of(b"image"),
            db_hash: Digest::of(b"db"),
            policy_hash: Digest::of(b"policy"),
            judged_at: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        let signed = SignedVerdict {
            claims: verdict.claims(),
            signature: [7; 64],
        };
        let text = signed.to_string();
        assert_eq!(text.parse(), Ok(signed.clone()));
        assert_eq!(
            serde_json::from_slice::<Verdict>(&signed.claims).unwrap(),
            verdict
        );
        let (head, _) = text.split_at(text.len() - 2);
        for bad in [
            "",
            "v2",
            "v2..",
            head,
            &text.replace("v2.", "v1."),
            &format!("{text}.00"),
            &format!("v2.{}.00", "00".repeat(2048)),
        ] {
            assert_eq!(bad.parse::<SignedVerdict>(), Err(VerdictTextError), "{bad}");
        }
    }
}
