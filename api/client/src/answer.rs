//! How long an answer is waited for. A server that takes a connection and says nothing more is as good as none, but no
//! timeout of connections notices it: those wait for watches, which may say nothing for minutes.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt as _, Either};
use hyper::{Request, Response, Uri, body::Incoming};
use kube::client::Body;
use tower::{BoxError, Service};

/// No answer came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the API server did not answer within {} s", .0.as_secs_f32())]
pub struct NoAnswer(pub Duration);

/// Waits for what is asked of the API server, for so long and no longer.
pub async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_elapsed| Err(kube::Error::Service(NoAnswer(limit).into())))
}

/// Puts a limit to every request: to all of its answer, or to the beginning of it where that is a watch.
#[derive(Clone)]
pub(crate) struct Answered<S> {
    pub(crate) inner: S,
    pub(crate) limit: Option<Duration>,
}

impl<S> Service<Request<Body>> for Answered<S>
where
    S: Service<Request<Body>, Response = Response<Incoming>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Either<Body, Incoming>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watches = is_watch(request.uri());
        let begun = self.inner.call(request);
        let Some(limit) = self.limit else {
            return Box::pin(async move { Ok::<_, BoxError>(begun.await?.map(Either::Right)) });
        };
        let answered = async move {
            let answer = begun.await?;
            if watches {
                return Ok::<_, BoxError>(answer.map(Either::Right));
            }
            let (head, body) = answer.into_parts();
            let body = Body::from(body.collect().await?.to_bytes());
            Ok(Response::from_parts(head, Either::Left(body)))
        };
        Box::pin(async move {
            tokio::time::timeout(limit, answered)
                .await
                .unwrap_or_else(|_elapsed| Err(NoAnswer(limit).into()))
        })
    }
}

fn is_watch(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

#[cfg(test)]
mod tests {
    use std::{future::pending, net::SocketAddr};

    use futures::{StreamExt as _, pin_mut};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        Api, Client, Config,
        api::{WatchEvent, WatchParams},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// A client of a server that takes connections and does with each as it is told.
    async fn served<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Client
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                // All of the request has come: a client takes no answer before it has asked.
                let mut request = [0; 4096];
                assert_ne!(connection.read(&mut request).await.unwrap(), 0);
                tokio::spawn(serve(connection));
            }
        });
        crate::connect_within(Config::new(url.parse().unwrap()), LIMIT).unwrap()
    }

    fn is_no_answer(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Service(error) if error.downcast_ref() == Some(&NoAnswer(LIMIT)))
    }

    async fn say(connection: &mut TcpStream, text: &str) {
        connection.write_all(text.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_not_waited_for() {
        let silent = served(|mut connection: TcpStream| async move {
            let mut all = Vec::new();
            connection.read_to_end(&mut all).await.unwrap();
        });
        let maps: Api<ConfigMap> = Api::namespaced(silent.await, "ns");
        let get = tokio::time::timeout(LIMIT * 10, maps.get("m")).await;
        let error = get.expect("an end").unwrap_err();
        assert!(is_no_answer(&error), "{error}");
        let watch = tokio::time::timeout(LIMIT * 10, maps.watch(&WatchParams::default(), "0")).await;
        assert!(watch.expect("an end").is_err(), "not even a beginning");
    }

    #[tokio::test]
    async fn an_answer_that_stops_half_way_is_none() {
        let halting = served(|mut connection: TcpStream| async move {
            say(&mut connection, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").await;
            pending::<()>().await;
        });
        let maps: Api<ConfigMap> = Api::namespaced(halting.await, "ns");
        let get = tokio::time::timeout(LIMIT * 10, maps.get("m")).await;
        let error = get.expect("an end").unwrap_err();
        assert!(is_no_answer(&error), "{error}");
    }

    #[tokio::test]
    async fn a_watch_stays_open_however_long_nothing_happens() {
        let patient = served(|mut connection: TcpStream| async move {
            say(
                &mut connection,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await;
            for name in ["a", "b"] {
                tokio::time::sleep(LIMIT * 2).await;
                let object = format!(
                    r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","resourceVersion":"1"}}}}"#
                );
                let event = format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n");
                say(&mut connection, &format!("{:x}\r\n{event}\r\n", event.len())).await;
            }
            pending::<()>().await;
        });
        let maps: Api<ConfigMap> = Api::namespaced(patient.await, "ns");
        let events = maps.watch(&WatchParams::default(), "0").await.unwrap();
        pin_mut!(events);
        for name in ["a", "b"] {
            match events.next().await.unwrap().unwrap() {
                WatchEvent::Added(map) => assert_eq!(map.metadata.name.as_deref(), Some(name)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wanted_sooner_has_its_own_limit() {
        let error = within::<()>(LIMIT, pending()).await.unwrap_err();
        assert!(is_no_answer(&error));
        assert_eq!(within(LIMIT, async { Ok(1) }).await.unwrap(), 1);
    }

    #[test]
    fn a_watch_is_known_by_its_query() {
        let said = |text: &str| is_watch(&text.parse().unwrap());
        assert!(said("/api/v1/pods?watch=true&resourceVersion=1") && said("/api/v1/pods?limit=1&watch=1"));
        assert!(!said("/api/v1/pods") && !said("/api/v1/pods?watch=false&fieldSelector=a%3Dwatch"));
    }
}
