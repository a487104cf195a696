//! Certificate signing requests of nodes: made by an agent, judged and signed by the signer.
//!
//! The signer signs for nodes only, and nothing that a request says gets into a certificate but its public key and names
//! that were judged: subject, usages and lifetime are the signer's own words.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime},
};

use api::{
    Digest,
    annotations::{GROUP_NODES, USER_NODE_PREFIX},
};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKey, PublicKeyData as _, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::{
    PkiError,
    authority::{Authority, params},
    files::Dir,
    node_server_name,
};

/// Kubernetes' names for the two signers.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Longest request that is looked at.
const MAX_BYTES: usize = 16 << 10;
/// Names in one certificate.
const MAX_NAMES: usize = 16;
/// Kubernetes' shortest lifetime.
const SHORTEST: Duration = Duration::from_secs(600);
/// Longest lifetime, and the one of who does not ask.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a node's certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To show to the API server.
    Client,
    /// To serve the node's own API with.
    Serving,
}

impl Kind {
    /// Kubernetes' name of the signer.
    pub fn signer(self) -> &'static str {
        match self {
            Self::Client => CLIENT_SIGNER,
            Self::Serving => SERVING_SIGNER,
        }
    }

    /// The kind that a signer signs, if it is one of ours.
    pub fn of_signer(name: &str) -> Option<Self> {
        [Self::Client, Self::Serving]
            .into_iter()
            .find(|kind| kind.signer() == name)
    }

    /// Usages in Kubernetes' words: those that must be asked for.
    pub fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is too long, not PEM, or not signed with its own key.
    #[error("spec.request is no certificate signing request that is signed with its own key")]
    Unreadable(#[source] rcgen::Error),
    /// It is too long.
    #[error("spec.request has more than {MAX_BYTES} bytes")]
    TooLong,
    /// The subject is not exactly a node's.
    #[error("the subject must be CN={USER_NODE_PREFIX}NAME and O={GROUP_NODES}, and nothing else")]
    Subject,
    /// The usages are not exactly those of the signer.
    #[error("spec.usages must be {wanted:?}; \"key encipherment\" may be there too")]
    Usages {
        /// Those that it takes.
        wanted: [&'static str; 2],
    },
    /// A client has no names, a server has some: its own DNS name and addresses.
    #[error("names of the certificate: {problem}")]
    Names {
        /// What is wrong.
        problem: &'static str,
    },
    /// The certificate could not be made.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
}

/// A request that was understood. Whether the node may have it is another matter.
pub struct NodeRequest {
    /// The node that it names.
    pub node: String,
    /// What for.
    pub kind: Kind,
    /// DNS names and addresses, those of servers.
    pub names: BTreeSet<String>,
    alternative: Vec<SanType>,
    public_key: PublicKey,
}

impl NodeRequest {
    /// Reads the PEM text of a request to `kind`'s signer.
    pub fn parse(kind: Kind, pem: &str, usages: &[String]) -> Result<Self, RequestError> {
        if pem.len() > MAX_BYTES {
            return Err(RequestError::TooLong);
        }
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(RequestError::Unreadable)?;
        let wanted = kind.usages();
        let asked: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
        let others = asked.iter().filter(|usage| **usage != "key encipherment");
        if !others.copied().eq(BTreeSet::from(wanted)) {
            return Err(RequestError::Usages { wanted });
        }
        let node = node_of(&request.params.distinguished_name).ok_or(RequestError::Subject)?;
        let alternative = request.params.subject_alt_names;
        let names = names(&alternative, &own_name(&node))?;
        match kind {
            Kind::Client if !names.is_empty() => {
                return Err(RequestError::Names {
                    problem: "a client has none",
                });
            }
            Kind::Serving if names.is_empty() || names.len() > MAX_NAMES => {
                return Err(RequestError::Names {
                    problem: "a server has 1 to 16",
                });
            }
            _ => {}
        }
        Ok(Self {
            node,
            kind,
            names,
            alternative,
            public_key: request.public_key,
        })
    }
}

/// A new key, and a request for a certificate for it: both PEM.
pub fn make(node: &str, kind: Kind, names: &[String]) -> Result<(Zeroizing<String>, String), PkiError> {
    let key = KeyPair::generate().map_err(|source| PkiError::Issue {
        subject: format!("{USER_NODE_PREFIX}{node}"),
        source,
    })?;
    let key = Zeroizing::new(key.serialize_pem());
    let request = make_for(&key, node, kind, names)?;
    Ok((key, request))
}

/// A request for a certificate for a key that is there, PEM.
pub fn make_for(key: &str, node: &str, kind: Kind, names: &[String]) -> Result<String, PkiError> {
    let subject = format!("{USER_NODE_PREFIX}{node}");
    let issue = |source| PkiError::Issue {
        subject: subject.clone(),
        source,
    };
    let key = KeyPair::from_pem(key).map_err(issue)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(|source| PkiError::Name {
        name: names.join(", "),
        source,
    })?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject.clone());
    name.push(DnType::OrganizationName, GROUP_NODES);
    params.distinguished_name = name;
    debug_assert!(kind == Kind::Serving || names.is_empty(), "clients have no names");
    params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(issue)
}

/// SHA-256 of the public key for which a request asks, if it is one that is signed with it.
pub fn public_key_digest(pem: &str) -> Option<Digest> {
    if pem.len() > MAX_BYTES {
        return None;
    }
    let request = CertificateSigningRequestParams::from_pem(pem).ok()?;
    Some(Digest::of(&request.public_key.subject_public_key_info()))
}

/// The name by which the API server knows a node, whatever its addresses are.
pub fn own_name(node: &str) -> String {
    node_server_name(node)
}

/// When a certificate begins and ends, in seconds since the epoch.
pub fn validity(pem: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The authority's key, in the one process that runs with it.
pub struct Signer {
    authority: Authority,
}

impl Signer {
    /// Reads `pki/ca.crt` and `pki/ca.key` below `state_dir`.
    pub fn load(state_dir: &Path) -> Result<Self, PkiError> {
        let pki = Dir::create_all(state_dir)?.subdir("pki", 0o700, None)?;
        let authority = Authority::load(&pki, SystemTime::now())?;
        Ok(Self { authority })
    }

    /// The certificate, PEM. `lifetime` is brought between ten minutes and a year.
    pub fn sign(
        &self,
        request: &NodeRequest,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, RequestError> {
        let user = format!("{USER_NODE_PREFIX}{}", request.node);
        let (group, usage) = match request.kind {
            Kind::Client => (Some(GROUP_NODES), ExtendedKeyUsagePurpose::ClientAuth),
            // As those that are made without a request: only clients have groups.
            Kind::Serving => (None, ExtendedKeyUsagePurpose::ServerAuth),
        };
        let mut params = params(&user, group, now, lifetime.clamp(SHORTEST, LONGEST));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = request.alternative.clone();
        self.authority
            .sign(&params, &request.public_key)
            .map_err(RequestError::Sign)
    }
}

fn node_of(subject: &DistinguishedName) -> Option<String> {
    let text = |kind: &DnType| match subject.get(kind)? {
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        rcgen::DnValue::PrintableString(text) => Some(text.to_string()),
        _ => None,
    };
    let node = text(&DnType::CommonName)?
        .strip_prefix(USER_NODE_PREFIX)?
        .to_owned();
    let group = text(&DnType::OrganizationName)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let is_name = !node.is_empty() && node.len() <= 253 && node.bytes().all(plain);
    (is_name && group == GROUP_NODES && subject.iter().count() == 2).then_some(node)
}

/// Of DNS names only the node's own: clients know the API server and other nodes by such names, whatever their addresses
/// are, and a node says itself which addresses and names it has.
fn names(alternative: &[SanType], own: &str) -> Result<BTreeSet<String>, RequestError> {
    let name = |name: &SanType| match name {
        SanType::DnsName(name) if name.as_str() == own => Some(own.to_owned()),
        SanType::IpAddress(address) => Some(address.to_string()),
        _ => None,
    };
    let names: Option<BTreeSet<String>> = alternative.iter().map(name).collect();
    names.ok_or(RequestError::Names {
        problem: "only the node's own DNS name and addresses can stand there",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(kind: Kind) -> Vec<String> {
        kind.usages().map(str::to_owned).to_vec()
    }

    #[test]
    fn a_node_gets_what_it_asked_for_in_the_signers_words() {
        let state = tempfile::tempdir().unwrap();
        let dir = Dir::create_all(state.path()).unwrap();
        let now = SystemTime::now();
        Authority::load_or_create(&dir.subdir("pki", 0o700, None).unwrap(), now).unwrap();
        let signer = Signer::load(state.path()).unwrap();

        let (_key, pem) = make("n1", Kind::Client, &[]).unwrap();
        let request = NodeRequest::parse(Kind::Client, &pem, &usages(Kind::Client)).unwrap();
        assert_eq!((request.node.as_str(), request.names.len()), ("n1", 0));
        let certificate = signer.sign(&request, Duration::from_secs(3600), now).unwrap();
        let (begins, ends) = validity(&certificate).unwrap();
        assert_eq!(
            ends - begins,
            3600 + 300,
            "an hour, and the five minutes that clocks differ"
        );
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let who = control_auth::Authenticated::from_verified_certificate(&der).unwrap();
        assert_eq!(who.identity().node(), Some("n1"));

        let names = [own_name("n1"), "10.0.0.7".to_owned()];
        let (_key, pem) = make("n1", Kind::Serving, &names).unwrap();
        let request = NodeRequest::parse(Kind::Serving, &pem, &usages(Kind::Serving)).unwrap();
        assert_eq!(request.names, BTreeSet::from(names));
        for name in [crate::API_SERVER_NAME.to_owned(), own_name("n2"), "n1".to_owned()] {
            let (_key, pem) = make("n1", Kind::Serving, std::slice::from_ref(&name)).unwrap();
            let refused = NodeRequest::parse(Kind::Serving, &pem, &usages(Kind::Serving));
            assert!(matches!(refused, Err(RequestError::Names { .. })), "{name}");
        }
        let long = signer.sign(&request, Duration::MAX, now).unwrap();
        let (begins, ends) = validity(&long).unwrap();
        assert!(ends - begins <= 366 * 24 * 3600);
    }

    #[test]
    fn requests_that_are_not_a_nodes_are_refused() {
        let parse = |kind: Kind, pem: &str| NodeRequest::parse(kind, pem, &usages(kind)).map(drop);
        let of = |build: &dyn Fn(&mut CertificateParams)| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, "system:node:n1");
            params
                .distinguished_name
                .push(DnType::OrganizationName, GROUP_NODES);
            build(&mut params);
            params.serialize_request(&key).unwrap().pem().unwrap()
        };
        assert!(parse(Kind::Client, &of(&|_| {})).is_ok());
        let subjects: [(DnType, &str); 4] = [
            (DnType::CommonName, "palisade-admin"),
            (DnType::CommonName, "system:node:../x"),
            (DnType::OrganizationName, "system:masters"),
            (DnType::CountryName, "XX"),
        ];
        for (kind, value) in subjects {
            let pem = of(&|params| params.distinguished_name.push(kind.clone(), value));
            assert!(
                matches!(parse(Kind::Client, &pem), Err(RequestError::Subject)),
                "{value}"
            );
        }
        let named = of(&|params| {
            params.subject_alt_names = vec![SanType::IpAddress("10.0.0.1".parse().unwrap())];
        });
        assert!(matches!(
            parse(Kind::Client, &named),
            Err(RequestError::Names { .. })
        ));
        assert!(matches!(
            parse(Kind::Serving, &of(&|_| {})),
            Err(RequestError::Names { .. })
        ));
        let both = ["digital signature", "client auth", "server auth"].map(str::to_owned);
        let pem = of(&|_| {});
        assert!(matches!(
            NodeRequest::parse(Kind::Client, &pem, &both),
            Err(RequestError::Usages { .. })
        ));
        assert!(parse(Kind::Client, "garbage").is_err());
        let cut = pem.replace("MI", "MJ");
        assert!(parse(Kind::Client, &cut).is_err());
    }
}
