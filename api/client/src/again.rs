//! What is asked again without the caller's knowing: only what the server asks for.

use hyper::{Request, Response, header::RETRY_AFTER};
use kube::client::{Body, retry::RetryPolicy};
use tower::{BoxError, retry::Policy};

/// Repeats a request where the answer says when, with `Retry-After`, as `kubectl` and client-go do. kube's policy alone
/// repeats every 503 for almost three minutes: a node that does not answer would look like a command that hangs, and
/// who tries again by itself, and says so, would have nothing to say.
#[derive(Clone)]
pub(crate) struct WhenAsked(pub(crate) RetryPolicy);

impl<B> Policy<Request<Body>, Response<B>, BoxError> for WhenAsked {
    type Future = <RetryPolicy as Policy<Request<Body>, Response<B>, BoxError>>::Future;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Self::Future> {
        let is_asked = result
            .as_ref()
            .is_ok_and(|answer| answer.headers().contains_key(RETRY_AFTER));
        is_asked.then(|| self.0.retry(request, result)).flatten()
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<B>, _>::clone_request(&mut self.0, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_the_server_asks_for_is_repeated() {
        let answer = |status, after: Option<&str>| {
            let mut answer = Response::builder().status(status);
            if let Some(after) = after {
                answer = answer.header(RETRY_AFTER, after);
            }
            Ok::<_, BoxError>(answer.body(()).unwrap())
        };
        for (status, after, is_repeated) in [
            (429, Some("1"), true),
            (503, Some("1"), true),
            (429, None, false),
            (503, None, false),
            (504, None, false),
            (500, Some("1"), false),
            (200, Some("1"), false),
        ] {
            let mut policy = WhenAsked(RetryPolicy::server_retry());
            let mut request = Request::new(Body::empty());
            let again = policy.retry(&mut request, &mut answer(status, after));
            assert_eq!(again.is_some(), is_repeated, "{status} {after:?}");
        }
        let mut policy = WhenAsked(RetryPolicy::server_retry());
        let mut failed: Result<Response<()>, BoxError> = Err("no connection".into());
        let again = policy.retry(&mut Request::new(Body::empty()), &mut failed);
        assert!(again.is_none());
    }
}
