//! Tokens of service accounts: claims that this cluster signed (JSON Web Tokens, RFC 7519; Ed25519 as in RFC 8037).
//!
//! A token is believed in two steps. [`TokenKeys::verify`] checks what the token says of itself: signature, issuer,
//! audience, time. [`crate::Authenticated::from_token`] compares what it is bound to with what is there now: a token
//! ends with its account, its pod or its secret, whatever its expiry says.
//!
//! Signing takes no randomness and the time is an argument, so this is as pure as the rest of the crate. There is one
//! algorithm: what a token claims as its algorithm is compared with it and chooses nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Prefix of a service account's user name; its namespace, a colon and its name follow.
pub const USER_SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Group of all service accounts; with a colon and a namespace, of those of that namespace.
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

const ALGORITHM: &str = "EdDSA";

/// Keys that sign and verify. The first one signs, all of them verify: that is how a key is replaced.
pub struct TokenKeys {
    issuer: String,
    keys: Vec<Key>,
}

struct Key {
    id: String,
    pair: Ed25519KeyPair,
}

/// An object that a token names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its UID; a node's may be unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What a token shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Namespace of the account and of what the token is bound to.
    pub namespace: String,
    /// The account.
    pub account: Named,
    /// The pod that the token ends with.
    pub pod: Option<Named>,
    /// The secret that the token ends with.
    pub secret: Option<Named>,
    /// The pod's node; for people, the token does not end with it.
    pub node: Option<Named>,
    /// Whom the token may be shown to.
    pub audiences: Vec<String>,
    /// Identity of the token itself.
    pub id: String,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Seconds since 1970; from then on it is worth nothing.
    pub expires_at: i64,
}

/// What a token says whose signature, issuer, audience and time are right. Made by [`TokenKeys::verify`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    claims: Claims,
    audiences: Vec<String>,
}

/// UIDs of the objects that a token names, as far as they are there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The account's.
    pub account: Option<String>,
    /// The pod's, if the token names one.
    pub pod: Option<String>,
    /// The secret's, if the token names one.
    pub secret: Option<String>,
}

/// Why a key is none.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// It is no Ed25519 key in PKCS#8 form with its public key.
    #[error("key {0} of the file that signs tokens is no Ed25519 key (PKCS#8, version 2)")]
    Form(usize),
    /// There is none.
    #[error("the file that signs tokens holds no key")]
    None,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token of the form that this cluster makes.
    #[error("the token is malformed")]
    Malformed,
    /// No key of this cluster has signed it.
    #[error("the token was not signed by this cluster")]
    Signature,
    /// Another cluster issued it.
    #[error("the token has another issuer")]
    Issuer,
    /// It is meant for others.
    #[error("the token is for another audience")]
    Audience,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    Early,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// The account, pod or secret that it is bound to is gone, or is another one of the same name.
    #[error("the {0} that the token is bound to is gone")]
    Gone(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Named>,
    serviceaccount: Named,
}

impl TokenKeys {
    /// Keys from their PKCS#8 forms. `issuer` is the cluster's name in tokens, and their audience unless they ask
    /// for others.
    pub fn new<K: AsRef<[u8]>>(
        issuer: &str,
        pkcs8: impl IntoIterator<Item = K>,
    ) -> Result<Self, TokenKeyError> {
        let mut keys = Vec::new();
        for (index, document) in pkcs8.into_iter().enumerate() {
            let pair = Ed25519KeyPair::from_pkcs8(document.as_ref())
                .map_err(|_rejected: ring::error::KeyRejected| TokenKeyError::Form(index + 1))?;
            let hash = digest::digest(&digest::SHA256, pair.public_key().as_ref());
            let id = URL_SAFE_NO_PAD.encode(hash);
            keys.push(Key { id, pair });
        }
        match keys.is_empty() {
            true => Err(TokenKeyError::None),
            false => Ok(Self {
                issuer: issuer.to_owned(),
                keys,
            }),
        }
    }

    /// The cluster's name in tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The token that says what is granted.
    pub fn sign(&self, grant: &Grant) -> String {
        let Some(key) = self.keys.first() else {
            unreachable!("there is a key, or `new` had failed");
        };
        let header = Header {
            alg: ALGORITHM.to_owned(),
            kid: key.id.clone(),
            typ: None,
        };
        let claims = Claims {
            aud: grant.audiences.clone(),
            exp: grant.expires_at,
            iat: grant.issued_at,
            iss: self.issuer.clone(),
            jti: grant.id.clone(),
            bound: Bound {
                namespace: grant.namespace.clone(),
                node: grant.node.clone(),
                pod: grant.pod.clone(),
                secret: grant.secret.clone(),
                serviceaccount: grant.account.clone(),
            },
            nbf: grant.issued_at,
            sub: user_name(&grant.namespace, &grant.account.name),
        };
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(key.pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// Checks signature, issuer, audience and time. One of `audiences` must be meant by the token; `now` is in
    /// seconds since 1970.
    pub fn verify(&self, token: &str, audiences: &[String], now: i64) -> Result<Verified, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = parse(header)?;
        if header.alg != ALGORITHM || header.typ.is_some_and(|kind| kind != "JWT") {
            return Err(TokenError::Malformed);
        }
        let signature = decode(signature)?;
        let key = self.keys.iter().find(|key| key.id == header.kid);
        let key = key.ok_or(TokenError::Signature)?;
        UnparsedPublicKey::new(&ED25519, key.pair.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .map_err(|_forged: ring::error::Unspecified| TokenError::Signature)?;
        // Only what this cluster has signed is read further.
        let claims: Claims = parse(claims)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if claims.sub != user_name(&claims.bound.namespace, &claims.bound.serviceaccount.name) {
            return Err(TokenError::Malformed);
        }
        let meant: Vec<String> = audiences
            .iter()
            .filter(|audience| claims.aud.contains(audience))
            .cloned()
            .collect();
        if meant.is_empty() {
            return Err(TokenError::Audience);
        }
        if now < claims.nbf {
            return Err(TokenError::Early);
        }
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        Ok(Verified {
            claims,
            audiences: meant,
        })
    }
}

impl Verified {
    /// Namespace of everything that the token names.
    pub fn namespace(&self) -> &str {
        &self.claims.bound.namespace
    }

    /// The account.
    pub fn account(&self) -> &Named {
        &self.claims.bound.serviceaccount
    }

    /// The pod that it is bound to.
    pub fn pod(&self) -> Option<&Named> {
        self.claims.bound.pod.as_ref()
    }

    /// The secret that it is bound to.
    pub fn secret(&self) -> Option<&Named> {
        self.claims.bound.secret.as_ref()
    }

    /// The node of its pod.
    pub fn node(&self) -> Option<&Named> {
        self.claims.bound.node.as_ref()
    }

    /// Identity of the token itself.
    pub fn id(&self) -> &str {
        &self.claims.jti
    }

    /// Which of the audiences that were asked for the token means.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Whether everything that it is bound to is there.
    pub(crate) fn check_bound(&self, found: &Found) -> Result<(), TokenError> {
        let bound = &self.claims.bound;
        let parts = [
            ("service account", Some(&bound.serviceaccount), &found.account),
            ("pod", bound.pod.as_ref(), &found.pod),
            ("secret", bound.secret.as_ref(), &found.secret),
        ];
        for (what, named, found) in parts {
            let Some(named) = named else { continue };
            // An empty UID is nobody's.
            if named.uid.is_empty() || found.as_deref() != Some(&named.uid) {
                return Err(TokenError::Gone(what));
            }
        }
        Ok(())
    }
}

/// User name of a service account.
pub fn user_name(namespace: &str, account: &str) -> String {
    format!("{USER_SERVICE_ACCOUNT_PREFIX}{namespace}:{account}")
}

fn part(value: &impl Serialize) -> String {
    match serde_json::to_vec(value) {
        Ok(bytes) => URL_SAFE_NO_PAD.encode(bytes),
        Err(_) => unreachable!("structs of texts and numbers have a JSON form"),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_not_base64: base64::DecodeError| TokenError::Malformed)
}

fn parse<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(part)?).map_err(|_other: serde_json::Error| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{Authenticated, GROUP_AUTHENTICATED};

    const ISSUER: &str = "https://cluster.example";

    fn document() -> Vec<u8> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .unwrap()
            .serialize_der()
    }

    fn keys() -> TokenKeys {
        TokenKeys::new(ISSUER, [document()]).unwrap()
    }

    fn named(name: &str, uid: &str) -> Named {
        Named {
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn grant() -> Grant {
        Grant {
            namespace: "shop".to_owned(),
            account: named("web", "u-web"),
            pod: Some(named("web-1", "u-pod")),
            secret: None,
            node: Some(named("n1", "")),
            audiences: vec![ISSUER.to_owned(), "vault".to_owned()],
            id: "j1".to_owned(),
            issued_at: 1000,
            expires_at: 2000,
        }
    }

    fn found() -> Found {
        Found {
            account: Some("u-web".to_owned()),
            pod: Some("u-pod".to_owned()),
            secret: None,
        }
    }

    fn own() -> Vec<String> {
        vec![ISSUER.to_owned()]
    }

    #[test]
    fn a_token_says_what_kubernetes_tokens_say() {
        let keys = keys();
        let token = keys.sign(&grant());
        let parts: Vec<&str> = token.split('.').collect();
        let claims: serde_json::Value = parse(parts[1]).unwrap();
        assert_eq!(
            claims,
            json!({
                "aud": [ISSUER, "vault"], "exp": 2000, "iat": 1000, "nbf": 1000, "iss": ISSUER, "jti": "j1",
                "sub": "system:serviceaccount:shop:web",
                "kubernetes.io": {
                    "namespace": "shop", "node": {"name": "n1"},
                    "pod": {"name": "web-1", "uid": "u-pod"},
                    "serviceaccount": {"name": "web", "uid": "u-web"},
                },
            })
        );
        let verified = keys.verify(&token, &own(), 1000).unwrap();
        let who = Authenticated::from_token(&verified, &found()).unwrap();
        assert_eq!(who.identity().user, "system:serviceaccount:shop:web");
        assert_eq!(
            who.identity().groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:shop",
                GROUP_AUTHENTICATED
            ]
        );
        assert_eq!(who.identity().node(), None);
    }

    #[test]
    fn time_audience_issuer_and_key_count() {
        let keys = keys();
        let token = keys.sign(&grant());
        let verify = |audiences: &[&str], now| {
            let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
            keys.verify(&token, &audiences, now).map(|v| v.audiences)
        };
        assert_eq!(verify(&[ISSUER], 999), Err(TokenError::Early));
        assert_eq!(verify(&[ISSUER], 2000), Err(TokenError::Expired));
        assert_eq!(verify(&["other"], 1500), Err(TokenError::Audience));
        assert_eq!(verify(&[], 1500), Err(TokenError::Audience));
        assert_eq!(verify(&["other", "vault"], 1500).unwrap(), ["vault"]);

        let foreign = self::keys().sign(&grant());
        assert_eq!(keys.verify(&foreign, &own(), 1500), Err(TokenError::Signature));
        // The same key under another name, as after a restore into a second cluster.
        let document = document();
        let one = TokenKeys::new("https://other", [&document]).unwrap();
        let two = TokenKeys::new(ISSUER, [&document]).unwrap();
        assert_eq!(
            two.verify(&one.sign(&grant()), &own(), 1500),
            Err(TokenError::Issuer)
        );
    }

    #[test]
    fn a_new_key_signs_and_the_old_one_still_verifies() {
        let (old, new) = (document(), document());
        let before = TokenKeys::new(ISSUER, [&old]).unwrap();
        let after = TokenKeys::new(ISSUER, [&new, &old]).unwrap();
        assert!(after.verify(&before.sign(&grant()), &own(), 1500).is_ok());
        assert_eq!(
            before.verify(&after.sign(&grant()), &own(), 1500),
            Err(TokenError::Signature)
        );
        assert!(matches!(
            TokenKeys::new(ISSUER, [b"no key"]),
            Err(TokenKeyError::Form(1))
        ));
        assert!(matches!(
            TokenKeys::new(ISSUER, Vec::<Vec<u8>>::new()),
            Err(TokenKeyError::None)
        ));
    }

    /// What the token says of its own algorithm and key chooses nothing.
    #[test]
    fn headers_of_other_algorithms_are_refused() {
        let keys = keys();
        let token = keys.sign(&grant());
        let (message, _) = token.rsplit_once('.').unwrap();
        let (_, claims) = message.split_once('.').unwrap();
        let kid = &keys.keys[0].id;
        for header in [
            json!({"alg": "none", "kid": kid}),
            json!({"alg": "HS256", "kid": kid}),
            json!({"alg": "EdDSA", "kid": kid, "crit": ["exp"]}),
            json!({"alg": "EdDSA", "kid": kid, "jwk": {}}),
            json!({"alg": "EdDSA"}),
        ] {
            // Even signed by the right key.
            let message = format!("{}.{claims}", part(&header));
            let signature = URL_SAFE_NO_PAD.encode(keys.keys[0].pair.sign(message.as_bytes()));
            let forged = format!("{message}.{signature}");
            assert_eq!(
                keys.verify(&forged, &own(), 1500),
                Err(TokenError::Malformed),
                "{header}"
            );
        }
        assert_eq!(
            keys.verify(&format!("{message}."), &own(), 1500),
            Err(TokenError::Signature)
        );
    }

    #[test]
    fn a_token_ends_with_what_it_is_bound_to() {
        let keys = keys();
        let verified = keys.verify(&keys.sign(&grant()), &own(), 1500).unwrap();
        let gone = |found: Found| Authenticated::from_token(&verified, &found).unwrap_err();
        let other = |uid: &str| Some(uid.to_owned());
        assert_eq!(
            gone(Found {
                account: None,
                ..found()
            }),
            TokenError::Gone("service account")
        );
        assert_eq!(
            gone(Found {
                account: other("u-new"),
                ..found()
            }),
            TokenError::Gone("service account")
        );
        assert_eq!(gone(Found { pod: None, ..found() }), TokenError::Gone("pod"));
        assert_eq!(
            gone(Found {
                pod: other("u-new"),
                ..found()
            }),
            TokenError::Gone("pod")
        );
        let mut of_secret = grant();
        of_secret.secret = Some(named("s", "u-s"));
        let verified = keys.verify(&keys.sign(&of_secret), &own(), 1500).unwrap();
        assert_eq!(
            Authenticated::from_token(&verified, &found()).unwrap_err(),
            TokenError::Gone("secret")
        );
        let mut nobody = grant();
        nobody.account.uid = String::new();
        let verified = keys.verify(&keys.sign(&nobody), &own(), 1500).unwrap();
        let empty = Found {
            account: other(""),
            ..found()
        };
        assert!(Authenticated::from_token(&verified, &empty).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_token_is_worth_nothing(position in 0usize..2000, value in "[A-Za-z0-9_.-]") {
            let keys = keys();
            let token = keys.sign(&grant());
            let position = position % token.len();
            let mut changed = token.clone();
            changed.replace_range(position..=position, &value);
            prop_assume!(changed != token);
            prop_assert!(keys.verify(&changed, &own(), 1500).is_err());
        }

        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            prop_assert!(keys().verify(&text, &own(), 1500).is_err());
        }
    }
}
