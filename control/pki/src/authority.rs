//! The cluster's authority, and leaves as they should be.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use zeroize::Zeroizing;

use crate::{PkiError, files::Dir};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
const LEAF_LIFETIME: Duration = DAY.saturating_mul(365);

/// A certificate with less than this left is renewed.
const RENEW_BEFORE: Duration = DAY.saturating_mul(30);

/// Clocks differ. When a certificate was issued is told from when it begins, so all are dated back alike.
const BACKDATE: Duration = Duration::from_secs(control_auth::BACKDATED_SECONDS.unsigned_abs());

/// The authority with its key.
pub(crate) struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf certificate as it should be.
pub(crate) struct Leaf {
    /// Common name.
    pub(crate) user: String,
    /// Organization.
    pub(crate) group: Option<&'static str>,
    pub(crate) purpose: Purpose,
}

/// What a leaf may be used for; nothing serves both sides.
pub(crate) enum Purpose {
    Server {
        /// DNS names and addresses.
        names: Vec<String>,
    },
    Client,
}

impl Authority {
    /// Reads `ca.crt` and `ca.key` from `dir`, or makes them where neither exists.
    pub(crate) fn load_or_create(dir: &Dir, now: SystemTime) -> Result<Self, PkiError> {
        match (dir.read_text("ca.crt")?, dir.read_text("ca.key")?) {
            (None, None) => Self::create(dir, now),
            _ => Self::load(dir, now),
        }
    }

    /// Reads `ca.crt` and `ca.key` from `dir`.
    pub(crate) fn load(dir: &Dir, now: SystemTime) -> Result<Self, PkiError> {
        let damaged = |problem| PkiError::Authority {
            path: dir.path().to_owned(),
            problem,
        };
        let (certificate_pem, key_pem) = match (dir.read_text("ca.crt")?, dir.read_text("ca.key")?) {
            (None, None) => return Err(damaged("neither ca.crt nor ca.key is there")),
            (Some(certificate), Some(key)) => (certificate, key),
            (None, Some(_)) => return Err(damaged("ca.key is there, ca.crt is not")),
            (Some(_), None) => return Err(damaged("ca.crt is there, ca.key is not")),
        };
        // These errors say no more than that the text is no key or certificate.
        let key = KeyPair::from_pem(&key_pem).map_err(|_e| damaged("ca.key is no key"))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_e| damaged("ca.crt is no certificate"))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_e| damaged("ca.crt is no certificate"))?;
        if certificate.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(damaged("ca.crt and ca.key do not belong together"));
        }
        if !valid_for_long(&certificate, now) {
            return Err(damaged("ca.crt expires within 30 days"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|_e| damaged("ca.crt is no authority's certificate"))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_string(),
            issuer,
        })
    }

    /// Signs what was judged.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<String, rcgen::Error> {
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// The authority's certificate.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes `NAME.crt` and `NAME.key` in `dir` what `leaf` says. Whether anything had to be made.
    pub(crate) fn ensure(
        &self,
        dir: &Dir,
        owner: Option<u32>,
        name: &str,
        leaf: &Leaf,
        now: SystemTime,
    ) -> Result<bool, PkiError> {
        let (certificate_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
        if let (Some(certificate), Some(key)) = (dir.read_text(&certificate_file)?, dir.read_text(&key_file)?)
            && self.fits(&certificate, &key, leaf, now)
        {
            return Ok(false);
        }
        self.replace(dir, owner, name, leaf, LEAF_LIFETIME, now)?;
        Ok(true)
    }

    /// Makes `NAME.crt` and `NAME.key` in `dir` anew, for a time of the caller's choice.
    pub(crate) fn hand_out(
        &self,
        dir: &Dir,
        name: &str,
        leaf: &Leaf,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(), PkiError> {
        self.replace(dir, None, name, leaf, lifetime, now)
    }

    fn replace(
        &self,
        dir: &Dir,
        owner: Option<u32>,
        name: &str,
        leaf: &Leaf,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(), PkiError> {
        let (certificate_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
        let (certificate, key) = self.issue(leaf, lifetime, now)?;
        // A crash between the two leaves a pair that does not match, which the next run replaces.
        dir.replace(
            &key_file,
            Zeroizing::new(key.serialize_pem()).as_bytes(),
            0o600,
            owner,
        )?;
        dir.replace(&certificate_file, certificate.as_bytes(), 0o644, owner)
    }

    fn create(dir: &Dir, now: SystemTime) -> Result<Self, PkiError> {
        let subject = "palisade-ca";
        let issue = |source| PkiError::Issue {
            subject: subject.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = params(subject, None, now, AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(issue)?.pem();

        let key_pem = Zeroizing::new(key.serialize_pem());
        dir.replace("ca.key", key_pem.as_bytes(), 0o600, None)?;
        dir.replace("ca.crt", certificate_pem.as_bytes(), 0o644, None)?;
        Ok(Self {
            certificate_pem,
            issuer: Issuer::new(params, key),
        })
    }

    fn issue(&self, leaf: &Leaf, lifetime: Duration, now: SystemTime) -> Result<(String, KeyPair), PkiError> {
        let issue = |source| PkiError::Issue {
            subject: leaf.user.clone(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = params(&leaf.user, leaf.group, now, lifetime);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match &leaf.purpose {
            Purpose::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server { names } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names {
                    let with_name =
                        CertificateParams::new([name.clone()]).map_err(|source| PkiError::Name {
                            name: name.clone(),
                            source,
                        })?;
                    params.subject_alt_names.extend(with_name.subject_alt_names);
                }
            }
        }
        Ok((params.signed_by(&key, &self.issuer).map_err(issue)?.pem(), key))
    }

    /// Whether the pair is ours, belongs together, lasts a while and says what `leaf` says.
    fn fits(&self, certificate_pem: &str, key_pem: &str, leaf: &Leaf, now: SystemTime) -> bool {
        let (Ok(der), Ok(ca), Ok(key)) = (
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()),
            CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()),
            KeyPair::from_pem(key_pem),
        ) else {
            return false;
        };
        let (Ok((_, certificate)), Ok((_, ca))) =
            (X509Certificate::from_der(&der), X509Certificate::from_der(&ca))
        else {
            return false;
        };
        certificate.verify_signature(Some(ca.public_key())).is_ok()
            && certificate.public_key().subject_public_key.data == key.public_key_raw()
            && valid_for_long(&certificate, now)
            && says(&certificate, leaf)
    }
}

pub(crate) fn params(
    user: &str,
    group: Option<&str>,
    now: SystemTime,
    lifetime: Duration,
) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params
}

fn valid_for_long(certificate: &X509Certificate<'_>, now: SystemTime) -> bool {
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    let (Ok(now), Ok(later)) = (
        i64::try_from(now.as_secs()),
        i64::try_from((now + RENEW_BEFORE).as_secs()),
    ) else {
        return false;
    };
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now && later < validity.not_after.timestamp()
}

fn says(certificate: &X509Certificate<'_>, leaf: &Leaf) -> bool {
    let subject = certificate.subject();
    let users: Vec<_> = subject
        .iter_common_name()
        .filter_map(|a| a.as_str().ok())
        .collect();
    let groups: Vec<_> = subject
        .iter_organization()
        .filter_map(|a| a.as_str().ok())
        .collect();
    let usage = certificate
        .extended_key_usage()
        .ok()
        .flatten()
        .map(|u| (u.value.server_auth, u.value.client_auth));
    let (wanted_usage, wanted_names) = match &leaf.purpose {
        Purpose::Client => ((false, true), BTreeSet::new()),
        Purpose::Server { names } => (
            (true, false),
            names.iter().map(|name| normal_name(name)).collect(),
        ),
    };
    users == [leaf.user.as_str()]
        && groups == leaf.group.into_iter().collect::<Vec<_>>()
        && usage == Some(wanted_usage)
        && names(certificate) == Some(wanted_names)
}

/// One spelling per address.
fn normal_name(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_owned(), |ip| ip.to_string())
}

/// Addresses for which a certificate, DER, is issued; none for one that cannot be read.
pub(crate) fn addresses(certificate: &[u8]) -> BTreeSet<IpAddr> {
    let parsed = X509Certificate::from_der(certificate).ok();
    let names = parsed.and_then(|(_rest, certificate)| names(&certificate));
    let names = names.unwrap_or_default();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Names in the certificate, `None` for kinds of names that we never put there.
fn names(certificate: &X509Certificate<'_>) -> Option<BTreeSet<String>> {
    let Some(extension) = certificate.subject_alternative_name().ok()? else {
        return Some(BTreeSet::new());
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(user: &str) -> Leaf {
        Leaf {
            user: user.to_owned(),
            group: Some("g"),
            purpose: Purpose::Client,
        }
    }

    fn server(names: &[&str]) -> Leaf {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        Leaf {
            user: "s".to_owned(),
            group: None,
            purpose: Purpose::Server { names },
        }
    }

    #[test]
    fn a_leaf_is_renewed_for_each_reason_and_for_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::create_all(tmp.path()).unwrap();
        let now = SystemTime::now();
        let ca = Authority::load_or_create(&dir, now).unwrap();
        let ensure = |leaf: &Leaf, now| ca.ensure(&dir, None, "leaf", leaf, now).unwrap();

        assert!(ensure(&client("a"), now), "missing");
        assert!(!ensure(&client("a"), now));
        assert!(!ensure(&client("a"), now + LEAF_LIFETIME - RENEW_BEFORE - DAY));
        assert!(
            ensure(&client("a"), now + LEAF_LIFETIME - RENEW_BEFORE + DAY),
            "near expiry"
        );
        assert!(ensure(&client("a"), now), "not valid yet");
        assert!(ensure(&client("b"), now), "another user");
        assert!(ensure(&server(&["::1", "b", "a"]), now), "another purpose");
        assert!(
            !ensure(&server(&["a", "b", "0:0::1"]), now),
            "order and spelling do not count"
        );
        assert!(ensure(&server(&["a", "b"]), now), "a name less");

        let key = std::fs::read(tmp.path().join("leaf.key")).unwrap();
        assert!(ensure(&client("a"), now));
        std::fs::write(tmp.path().join("leaf.key"), key).unwrap();
        assert!(ensure(&client("a"), now), "the key of another certificate");
        std::fs::write(tmp.path().join("leaf.crt"), "garbage").unwrap();
        assert!(ensure(&client("a"), now), "damaged");

        let other = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(&Dir::create_all(other.path()).unwrap(), now).unwrap();
        assert!(
            other.ensure(&dir, None, "leaf", &client("a"), now).unwrap(),
            "another authority"
        );
    }

    #[test]
    fn an_authority_that_lost_a_half_is_not_replaced() {
        let now = SystemTime::now();
        for lost in ["ca.crt", "ca.key"] {
            let tmp = tempfile::tempdir().unwrap();
            let dir = Dir::create_all(tmp.path()).unwrap();
            Authority::load_or_create(&dir, now).unwrap();
            std::fs::remove_file(tmp.path().join(lost)).unwrap();
            assert!(
                matches!(
                    Authority::load_or_create(&dir, now),
                    Err(PkiError::Authority { .. })
                ),
                "{lost}"
            );
        }
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for tmp in [&a, &b] {
            Authority::load_or_create(&Dir::create_all(tmp.path()).unwrap(), now).unwrap();
        }
        std::fs::copy(a.path().join("ca.key"), b.path().join("ca.key")).unwrap();
        let mixed = Authority::load_or_create(&Dir::create_all(b.path()).unwrap(), now);
        assert!(matches!(mixed, Err(PkiError::Authority { problem, .. }) if problem.contains("together")));
    }
}
