//! Identities: of a client certificate (common name = user, organizations = groups) or a service account's token.

use std::collections::BTreeMap;

use x509_parser::{
    certificate::X509Certificate,
    prelude::{FromDer, X509Error},
};

use crate::token::{Found, GROUP_SERVICE_ACCOUNTS, TokenError, Verified, user_name};

/// Group of everybody who showed a valid certificate or token; no certificate can claim or shed it.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";

/// Longest user or group name.
const MAX_NAME_BYTES: usize = 256;

/// Most groups in a certificate.
const MAX_GROUPS: usize = 32;

/// A user and their groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Groups, [`GROUP_AUTHENTICATED`] last.
    pub groups: Vec<String>,
    /// UID of a service account; empty for others.
    pub uid: String,
    /// What is known beside that, in Kubernetes' words: which certificate or token it was, a token's pod and node.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Proof that an identity was read from a verified client certificate, or from a verified token whose account and
/// pod are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    identity: Identity,
    issued_at: Option<i64>,
    expires_at: Option<i64>,
}

/// What identifies the certificate or token by which somebody is who they are, among [`Identity::extra`].
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// By how many seconds the authority dates certificates back, because clocks differ.
pub const BACKDATED_SECONDS: i64 = 5 * 60;

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It does not parse.
    #[error("client certificate does not parse")]
    Parse(#[source] x509_parser::nom::Err<X509Error>),
    /// Bytes follow the certificate.
    #[error("client certificate has bytes behind it")]
    Trailing,
    /// It has not exactly one common name.
    #[error("client certificate has {0} common names, one is needed")]
    CommonNames(usize),
    /// It has too many organizations.
    #[error("client certificate has more than {MAX_GROUPS} organizations")]
    TooManyGroups,
    /// A name is empty, too long, or holds characters that would garble a log line.
    #[error(
        "client certificate: user and group names must have 1 to {MAX_NAME_BYTES} printable ASCII characters"
    )]
    Name,
    /// It claims a group that the server assigns.
    #[error("client certificate claims the group {0}, which only the server assigns")]
    ReservedGroup(String),
}

impl Authenticated {
    /// Reads the identity from a DER certificate whose chain, validity and client usage the TLS layer has
    /// verified. Calling it with anything else forges an identity.
    pub fn from_verified_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(IdentityError::Parse)?;
        if !rest.is_empty() {
            return Err(IdentityError::Trailing);
        }
        let subject = certificate.subject();
        // The first name that cannot be read as text makes the whole certificate worthless.
        let mut users = Vec::new();
        for attribute in subject.iter_common_name() {
            users.push(name(attribute.as_str().ok())?);
        }
        let mut groups = Vec::new();
        for attribute in subject.iter_organization() {
            groups.push(name(attribute.as_str().ok())?);
        }
        let Ok([user]) = <[String; 1]>::try_from(users) else {
            return Err(IdentityError::CommonNames(subject.iter_common_name().count()));
        };
        if groups.len() > MAX_GROUPS {
            return Err(IdentityError::TooManyGroups);
        }
        let reserved = |group: &&String| {
            *group == GROUP_AUTHENTICATED
                || *group == GROUP_SERVICE_ACCOUNTS
                || group.starts_with(&format!("{GROUP_SERVICE_ACCOUNTS}:"))
        };
        if let Some(group) = groups.iter().find(reserved) {
            return Err(IdentityError::ReservedGroup(group.clone()));
        }
        groups.push(GROUP_AUTHENTICATED.to_owned());
        let validity = certificate.validity();
        let begins = validity.not_before.timestamp();
        let credential = format!("X509SHA256={}", api::Digest::of(der).hex());
        Ok(Self {
            identity: Identity {
                user,
                groups,
                uid: String::new(),
                extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![credential])]),
            },
            issued_at: Some(begins.saturating_add(BACKDATED_SECONDS)),
            expires_at: Some(validity.not_after.timestamp()),
        })
    }

    /// The service account of a token that is bound to nothing that has gone. `found` says what is there now.
    pub fn from_token(token: &Verified, found: &Found) -> Result<Self, TokenError> {
        token.check_bound(found)?;
        let account = token.account();
        let mut extra = BTreeMap::new();
        let mut say = |key: &str, value: String| {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
            }
        };
        say("credential-id", format!("JTI={}", token.id()));
        if let Some(pod) = token.pod() {
            say("pod-name", pod.name.clone());
            say("pod-uid", pod.uid.clone());
        }
        if let Some(node) = token.node() {
            say("node-name", node.name.clone());
            say("node-uid", node.uid.clone());
        }
        let identity = Identity {
            user: user_name(token.namespace(), &account.name),
            groups: vec![
                GROUP_SERVICE_ACCOUNTS.to_owned(),
                format!("{GROUP_SERVICE_ACCOUNTS}:{}", token.namespace()),
                GROUP_AUTHENTICATED.to_owned(),
            ],
            uid: account.uid.clone(),
            extra,
        };
        Ok(Self {
            identity,
            issued_at: None,
            expires_at: None,
        })
    }

    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the authority issued the certificate, in seconds since the epoch; `None` for a token.
    pub fn issued_at(&self) -> Option<i64> {
        self.issued_at
    }

    /// Whether the certificate is past its validity, which the TLS layer has verified at the beginning of a connection only.
    /// A token is verified whenever it is shown.
    pub fn is_expired(&self, now_seconds: i64) -> bool {
        self.expires_at.is_some_and(|at| at < now_seconds)
    }
}

impl Identity {
    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Name of the node that this identity may bring in, and do nothing else for.
    pub fn bootstraps(&self) -> Option<&str> {
        let name = self.user.strip_prefix(api::annotations::USER_BOOTSTRAP_PREFIX)?;
        (self.in_group(api::annotations::GROUP_BOOTSTRAPPERS) && !name.is_empty()).then_some(name)
    }

    /// Name of the node this identity stands for: the user name *and* the group must say so.
    pub fn node(&self) -> Option<&str> {
        let name = self.user.strip_prefix(api::annotations::USER_NODE_PREFIX)?;
        (self.in_group(api::annotations::GROUP_NODES) && !name.is_empty()).then_some(name)
    }
}

fn name(text: Option<&str>) -> Result<String, IdentityError> {
    match text {
        Some(text)
            if (1..=MAX_NAME_BYTES).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') =>
        {
            Ok(text.to_owned())
        }
        _ => Err(IdentityError::Name),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    pub(crate) fn certificate(user: &str, groups: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        // rcgen keeps one attribute per type; one organization is all it takes here.
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn user_and_groups_come_from_the_subject() {
        let who = Authenticated::from_verified_certificate(&certificate("system:node:a", &["system:nodes"]))
            .unwrap();
        assert_eq!(who.identity().user, "system:node:a");
        assert_eq!(who.identity().groups, ["system:nodes", GROUP_AUTHENTICATED]);
        assert_eq!(who.identity().node(), Some("a"));
    }

    #[test]
    fn a_certificate_says_until_when_it_counts() {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "x");
        params.not_after = rcgen::date_time_ymd(2026, 1, 1);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let who = Authenticated::from_verified_certificate(der.der()).unwrap();
        let last = 1_767_225_600;
        assert!(!who.is_expired(last) && who.is_expired(last + 1));
    }

    #[test]
    fn a_node_needs_both_the_name_and_the_group() {
        for (user, groups) in [
            ("system:node:a", vec![]),
            ("a", vec!["system:nodes"]),
            ("system:node:", vec!["system:nodes"]),
        ] {
            let who = Authenticated::from_verified_certificate(&certificate(user, &groups)).unwrap();
            assert_eq!(who.identity().node(), None, "{user} {groups:?}");
        }
    }

    #[test]
    fn refuses_names_that_could_deceive() {
        for user in ["", "a\nb", "a\u{202e}b", &"x".repeat(300)] {
            let der = certificate(user, &[]);
            assert!(
                matches!(
                    Authenticated::from_verified_certificate(&der),
                    Err(IdentityError::Name)
                ),
                "{user:?}"
            );
        }
        for group in [
            GROUP_AUTHENTICATED,
            "system:serviceaccounts",
            "system:serviceaccounts:shop",
        ] {
            let claims = certificate("x", &[group]);
            assert!(matches!(
                Authenticated::from_verified_certificate(&claims),
                Err(IdentityError::ReservedGroup(_))
            ));
        }
        let mut trailing = certificate("x", &[]);
        trailing.push(0);
        assert!(matches!(
            Authenticated::from_verified_certificate(&trailing),
            Err(IdentityError::Trailing)
        ));
        let mut nameless = CertificateParams::default();
        nameless.distinguished_name = DistinguishedName::new();
        let nameless = nameless.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!(matches!(
            Authenticated::from_verified_certificate(nameless.der()),
            Err(IdentityError::CommonNames(0))
        ));
    }

    proptest! {
        #[test]
        fn damaged_certificates_never_panic(position in 0usize..400, value: u8) {
            let mut der = certificate("x", &["y"]);
            let position = position % der.len();
            der[position] = value;
            drop(Authenticated::from_verified_certificate(&der));
        }
    }
}
