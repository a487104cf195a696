//! Sealing of values: AES-256-GCM with a data key per write, wrapped by a key-encryption key.
//!
//! Layout of a sealed value, integers big endian:
//!
//! | bytes | content                                                          |
//! |-------|------------------------------------------------------------------|
//! | 1     | format, 1                                                        |
//! | 8     | id of the key-encryption key                                     |
//! | 8     | revision of the write                                            |
//! | 2, n  | uid, with its length before it                                   |
//! | 12    | nonce of the wrapped data key                                    |
//! | 48    | data key, sealed by the key-encryption key                       |
//! | n+16  | value, sealed by the data key                                    |
//!
//! The first four rows and the object's key are the associated data of both boxes, so a value that was moved
//! to another object, another uid or another revision does not open. Nonces of wrapped data keys are random:
//! one key-encryption key is good for 2^32 writes (NIST SP 800-38D, 8.3) before it should be replaced.

use std::{fmt, str::FromStr};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use crate::{Keyring, ObjectKey, Revision};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

const FORMAT: u8 = 1;
const TAG_BYTES: usize = 16;
const DOMAIN: &[u8] = b"palisade store v1";

/// Name of a key-encryption key, in plain text in every sealed value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; Self::BYTES]);

/// Why a value could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Shorter than a header, or of another format.
    #[error("the stored bytes are not a sealed value of a known format")]
    Format,
    /// The keyring lacks the key.
    #[error("sealed with key {id}, which is not in the key file")]
    UnknownKey {
        /// The missing key.
        id: KeyId,
    },
    /// Damaged, or sealed for another object.
    #[error("the stored bytes were changed, or belong to another object")]
    Authentication,
    /// The uid is longer than 65535 bytes.
    #[error("the uid is too long")]
    Uid,
    /// Neither key nor randomness to seal with.
    #[error("no key or no randomness to seal with")]
    Random,
}

/// What stands in plain text before the ciphertext. Trustworthy only once [`open`] succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    key_id: KeyId,
    pub(crate) revision: Revision,
    pub(crate) uid: &'a str,
}

/// Seals `value` for `key`.
pub(crate) fn seal(
    keyring: &Keyring,
    key: &ObjectKey,
    uid: &str,
    revision: Revision,
    value: &[u8],
) -> Result<Vec<u8>, SealError> {
    let (key_id, kek) = keyring.active().ok_or(SealError::Random)?;
    let mut out = header(*key_id, revision, uid)?;
    let aad = associated_data(&out, key);

    // `ring` says only that it failed; there is no cause to pass on.
    let random = SystemRandom::new();
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    random
        .fill(data_key.as_mut_slice())
        .map_err(|_e| SealError::Random)?;
    let mut nonce = [0; NONCE_LEN];
    random.fill(&mut nonce).map_err(|_e| SealError::Random)?;

    let mut wrapped = *data_key;
    let tag = kek
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut wrapped)
        .map_err(|_e| SealError::Random)?;
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&wrapped);
    out.extend_from_slice(tag.as_ref());

    let start = out.len();
    out.reserve_exact(value.len() + TAG_BYTES);
    out.extend_from_slice(value);
    let sealed = out.get_mut(start..).ok_or(SealError::Format)?;
    let tag = data_cipher(data_key.as_slice())?
        .seal_in_place_separate_tag(single_use_nonce(), Aad::from(&aad), sealed)
        .map_err(|_e| SealError::Random)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens what [`seal`] made for the same `key`.
pub(crate) fn open<'a>(
    keyring: &Keyring,
    key: &ObjectKey,
    sealed: &'a [u8],
) -> Result<(Header<'a>, Vec<u8>), SealError> {
    let (header, header_bytes, rest) = split_header(sealed)?;
    let kek = keyring
        .by_id(header.key_id)
        .ok_or(SealError::UnknownKey { id: header.key_id })?;
    let aad = associated_data(header_bytes, key);

    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Format)?;
    let (wrapped, value) = rest
        .split_first_chunk::<{ KEY_BYTES + TAG_BYTES }>()
        .ok_or(SealError::Format)?;

    let mut wrapped = Zeroizing::new(*wrapped);
    let data_key = kek
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(&aad),
            wrapped.as_mut_slice(),
        )
        .map_err(|_e| SealError::Authentication)?;
    let cipher = data_cipher(data_key)?;

    let mut value = value.to_vec();
    let opened = cipher
        .open_in_place(single_use_nonce(), Aad::from(&aad), &mut value)
        .map_err(|_e| SealError::Authentication)?
        .len();
    value.truncate(opened);
    Ok((header, value))
}

impl KeyId {
    /// Bytes of an id.
    pub const BYTES: usize = 8;

    /// An id from its bytes.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl FromStr for KeyId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; Self::BYTES];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A data key seals exactly one value, so its nonce may be constant.
fn single_use_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn data_cipher(key: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, key)
        .map(LessSafeKey::new)
        .map_err(|_e| SealError::Format)
}

fn header(key_id: KeyId, revision: Revision, uid: &str) -> Result<Vec<u8>, SealError> {
    let uid_bytes = u16::try_from(uid.len()).map_err(|_e| SealError::Uid)?;
    let mut out = vec![FORMAT];
    out.extend_from_slice(&key_id.0);
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(&uid_bytes.to_be_bytes());
    out.extend_from_slice(uid.as_bytes());
    Ok(out)
}

fn split_header(sealed: &[u8]) -> Result<(Header<'_>, &[u8], &[u8]), SealError> {
    let (&[format], rest) = sealed.split_first_chunk().ok_or(SealError::Format)?;
    let (key_id, rest) = rest.split_first_chunk().ok_or(SealError::Format)?;
    let (revision, rest) = rest.split_first_chunk().ok_or(SealError::Format)?;
    let (uid_bytes, rest) = rest.split_first_chunk().ok_or(SealError::Format)?;
    let (uid, rest) = rest
        .split_at_checked(u16::from_be_bytes(*uid_bytes).into())
        .ok_or(SealError::Format)?;
    let header_bytes = sealed.get(..sealed.len() - rest.len()).ok_or(SealError::Format)?;
    let (FORMAT, Ok(uid)) = (format, std::str::from_utf8(uid)) else {
        return Err(SealError::Format);
    };
    Ok((
        Header {
            key_id: KeyId(*key_id),
            revision: u64::from_be_bytes(*revision),
            uid,
        },
        header_bytes,
        rest,
    ))
}

/// Every field with its length before it, so that no two identities have the same bytes.
fn associated_data(header: &[u8], key: &ObjectKey) -> Vec<u8> {
    let fields = [
        DOMAIN,
        header,
        key.resource.as_bytes(),
        key.namespace.as_bytes(),
        key.name.as_bytes(),
    ];
    let mut out = Vec::with_capacity(fields.iter().map(|f| f.len() + 8).sum());
    for field in fields {
        out.extend_from_slice(&(field.len() as u64).to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new("core/secrets", namespace, name)
    }

    #[test]
    fn opens_only_for_the_same_identity() {
        let ring = Keyring::ephemeral().unwrap();
        let sealed = seal(&ring, &key("a", "b"), "uid", 7, b"value").unwrap();
        let (header, value) = open(&ring, &key("a", "b"), &sealed).unwrap();
        assert_eq!(
            (header.uid, header.revision, value.as_slice()),
            ("uid", 7, b"value".as_slice())
        );

        for other in [
            key("a", "c"),
            key("c", "b"),
            key("ab", ""),
            ObjectKey::new("core/configmaps", "a", "b"),
        ] {
            assert_eq!(
                open(&ring, &other, &sealed),
                Err(SealError::Authentication),
                "{other}"
            );
        }
    }

    #[test]
    fn another_keyring_is_named_as_the_reason() {
        let sealed = seal(&Keyring::ephemeral().unwrap(), &key("a", "b"), "u", 1, b"v").unwrap();
        let id = split_header(&sealed).unwrap().0.key_id;
        assert_eq!(
            open(&Keyring::ephemeral().unwrap(), &key("a", "b"), &sealed),
            Err(SealError::UnknownKey { id })
        );
    }

    #[test]
    fn every_single_bit_and_every_length_counts() {
        let ring = Keyring::ephemeral().unwrap();
        let key = key("a", "b");
        let sealed = seal(&ring, &key, "uid", 7, b"value").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&ring, &key, &changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(open(&ring, &key, &sealed[..length]).is_err(), "length {length}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(value: Vec<u8>, uid in ".{0,40}", revision: u64, name in "[a-z]{1,20}") {
            let ring = Keyring::ephemeral().unwrap();
            let key = key("ns", &name);
            let sealed = seal(&ring, &key, &uid, revision, &value).unwrap();
            let (header, opened) = open(&ring, &key, &sealed).unwrap();
            prop_assert_eq!((header.uid, header.revision), (uid.as_str(), revision));
            prop_assert_eq!(opened, value);
        }

        #[test]
        fn garbage_is_an_error(bytes: Vec<u8>) {
            prop_assert!(open(&Keyring::ephemeral().unwrap(), &key("a", "b"), &bytes).is_err());
        }
    }
}
