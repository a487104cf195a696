//! Hooks after the start of a container and before its stop signal.

use std::{net::IpAddr, time::Duration};

use agent_health::{CheckError, HttpGet};
use agent_runtime::RuntimeError;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::{Context, held::HeldNetwork};

/// What a hook that nobody limits may take: longer than any deadline that makes sense, and yet an end.
pub(super) const LONGEST: Duration = Duration::from_hours(24);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("cannot run its program")]
    Runtime(#[from] RuntimeError),
    #[error("its program ended with code {0}")]
    Code(i32),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("its request: {0}")]
    Request(String),
    #[error("the pod has no address yet")]
    NoAddress,
    #[error("it has none of exec, httpGet and sleep")]
    Nothing,
}

/// Runs a hook to its end, for at most `limit`.
pub(super) async fn run(
    context: &Context,
    pod_uid: &str,
    container: &Container,
    hook: &LifecycleHandler,
    address: Option<IpAddr>,
    limit: Duration,
) -> Result<(), HookError> {
    if let Some(exec) = &hook.exec {
        let argv = exec.command.clone().unwrap_or_default();
        let ended = context
            .runtime
            .exec(pod_uid, &container.name, &argv, limit)
            .await?;
        return match ended.code {
            0 => Ok(()),
            code => Err(HookError::Code(code)),
        };
    }
    if let Some(get) = &hook.http_get {
        let get = HttpGet::of(get, container, address.ok_or(HookError::NoAddress)?)?;
        let network = HeldNetwork::of(&context.runtime, pod_uid, limit).await?;
        return agent_health::call(&get, network.path(), limit)
            .await
            .map_err(HookError::Request);
    }
    if let Some(sleep) = &hook.sleep {
        let wish = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default());
        tokio::time::sleep(wish.min(limit)).await;
        return Ok(());
    }
    Err(HookError::Nothing)
}
