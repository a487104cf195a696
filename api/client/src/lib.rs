//! The connection of every client to the API server: kube's, without delay.
//!
//! kube connects with Nagle's algorithm on: a small write waits until the other side has acknowledged the one before,
//! and that side waits 40 ms for something to acknowledge it with. Where several small writes follow each other, as in
//! a session of `exec`, that is most of the time it takes. `kubectl` has always connected without it.

#![forbid(unsafe_code)]

mod again;
mod answer;

use std::time::Duration;

use backon::ExponentialBuilder;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{ConfigExt as _, retry::RetryPolicy},
    runtime::watcher::ExponentialBackoff,
};
use tower::{BoxError, ServiceBuilder, layer::layer_fn, retry::RetryLayer};

pub use self::answer::{NoAnswer, within};
use self::{again::WhenAsked, answer::Answered};

/// How long a connection is kept that nobody uses. One costs some 40 kB at either end, and a crowd of pods opens dozens;
/// what is asked for every few seconds keeps its own.
const IDLE_FOR: Duration = Duration::from_secs(15);
/// Most bytes that are read at once. Whoever once had a long answer would keep room for the next.
const MAX_BUFFER: usize = 64 << 10;

/// How soon a connection that says nothing is asked whether there is still somebody, how often after that, and how many
/// questions in vain end it. A host that went down says nothing, and whoever watches it would hear nothing for ever.
const PROBE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// How long a watch that failed waits before it is opened again. At most five seconds, where kube's default is thirty:
/// who waits for a certificate or a pod should not notice for long that the server was away. The delays are random, so
/// that nodes do not come back all at once.
pub fn watch_again() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_millis(2500))
        .with_jitter()
        .without_max_times()
        .into()
}

/// A client of the API server that `config` names. Nothing is sent yet.
pub fn connect(config: Config) -> Result<Client, kube::Error> {
    client(config, None)
}

/// The same, for which an answer that is not there within `limit` is an error, [`NoAnswer`]. A watch has begun by then, and
/// stays open.
pub fn connect_within(config: Config, limit: Duration) -> Result<Client, kube::Error> {
    client(config, Some(limit))
}

fn client(mut config: Config, limit: Option<Duration>) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // What the way to a proxy does to small writes, its other half does again. Here nothing is repeated.
        config.default_retry = false;
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE.0));
    tcp.set_keepalive_interval(Some(PROBE.1));
    tcp.set_keepalive_retries(Some(PROBE.2));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(layer_fn(|inner| Answered { inner, limit }))
        .layer(config.base_uri_layer())
        .option_layer(
            config
                .default_retry
                .then(|| RetryLayer::new(WhenAsked(RetryPolicy::server_retry()))),
        )
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(
            Builder::new(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_FOR)
                .http1_max_buf_size(MAX_BUFFER)
                .build(connector),
        );
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_opened_again_within_five_seconds_for_ever() {
        let delays: Vec<Duration> = watch_again().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        // The random part doubles a delay at most.
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(5)));
    }
}
