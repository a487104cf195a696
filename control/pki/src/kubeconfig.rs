//! kubeconfig files with everything embedded.

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::API_SERVER_NAME;

/// A kubeconfig for one user of this cluster, with the client key in it: keep it as secret as the key. Clients
/// verify [`API_SERVER_NAME`] instead of the address in `url`.
pub fn kubeconfig(url: &str, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Zeroizing<String> {
    let key = Zeroizing::new(STANDARD.encode(key_pem));
    Zeroizing::new(format!(
        "apiVersion: v1
kind: Config
clusters:
- name: palisade
  cluster:
    server: {url}
    tls-server-name: {API_SERVER_NAME}
    certificate-authority-data: {ca}
users:
- name: palisade
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: palisade
  context:
    cluster: palisade
    user: palisade
current-context: palisade
",
        ca = STANDARD.encode(ca_pem),
        certificate = STANDARD.encode(certificate_pem),
        key = key.as_str(),
    ))
}

/// Whether the URL can stand unquoted in YAML and speaks TLS.
pub(crate) fn url_is_plain(url: &str) -> bool {
    url.strip_prefix("https://").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'/'))
    })
}
