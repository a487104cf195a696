//! The last step inside a container: confine the process, then execute the program. The same for a
//! container's first process, where libcontainer calls it, and for exec sessions.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use agent_sandbox::{ApplyError, Compiled, ImageRuleset, LandlockOutcome, Moment, PathRule};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::ContainerConfig;
use crate::protocol::{Failure, Phase};
use crate::shim::gate::Gate;
use crate::shim::program::{self, Program};
use crate::shim::{chain, terminal};

/// What a program on a terminal may assume of it, unless its environment says otherwise.
const TERM: &str = "xterm";

/// What a process says before it executes its program, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Word {
    /// Landlock restricts it now.
    Landlock(LandlockOutcome),
    /// It does not execute the program.
    Failed(Failure),
}

/// What confines one process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) ruleset: Arc<ImageRuleset>,
    pub(crate) mounts: Arc<Vec<PathRule>>,
    /// Closed by a successful execution; carries [`Word`]s before that.
    pub(crate) status: Arc<OwnedFd>,
    /// Where the process is looked at between its confinement and its program, if it is.
    pub(crate) gate: Option<Gate>,
    /// Where the terminal goes that the process is to live on, if it is.
    pub(crate) terminal: Option<Arc<OwnedFd>>,
}

impl Confinement {
    /// Confines this process and becomes the program. Returns only why it could not.
    pub(crate) fn execute(&self, argv: &[String]) -> Failure {
        match self.try_execute(argv) {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    pub(crate) fn report(&self, failure: Failure) {
        self.say(&Word::Failed(failure));
    }

    fn say(&self, word: &Word) {
        let mut line = serde_json::to_vec(word).unwrap_or_default();
        line.push(b'\n');
        let _creator_may_be_gone = rustix::io::write(self.status.as_fd(), &line);
    }

    fn try_execute(&self, argv: &[String]) -> Result<Infallible, Failure> {
        let Some(name) = argv.first() else {
            return Err("no program to execute".into());
        };
        let term = self.terminal.is_some().then_some(("TERM", TERM));
        let env = self
            .config
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let program = Program::new(argv, term.into_iter().chain(env)).map_err(|error| Failure {
            phase: Phase::Execution,
            ..format!("cannot execute {name:?}: {error}").into()
        })?;
        // Its parent is the shim: no container outlives the process that watches it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|errno| format!("cannot tie to the shim: {errno}"))?;
        if let Some(to_shim) = &self.terminal {
            terminal::settle(to_shim)?;
        }
        let unconfined = |error: ApplyError| Failure {
            reason: format!("cannot confine the container: {}", chain(&error)),
            layer: Some(error.layer()),
            phase: Phase::Preparation,
        };
        // Nothing of the container has run yet where there is a gate.
        let moment = match self.gate {
            Some(_) => Moment::Start,
            None => Moment::Later,
        };
        let restricted = self
            .compiled
            .restrict_in_container(&self.ruleset, &self.mounts, moment)
            .map_err(unconfined)?;
        // After the filter this process may be unable to say anything.
        if self.gate.is_some() {
            self.say(&Word::Landlock(restricted.landlock().clone()));
        }
        program::restore_signals().map_err(|errno| format!("cannot restore signals: {errno}"))?;
        restricted.install_filter().map_err(unconfined)?;
        // From here on the profile need leave nothing but `execve`.
        if let Some(gate) = self.gate
            && !gate.wait()
        {
            return Err("nobody looked at the confined process".into());
        }
        let error = std::io::Error::from(program.execute());
        Err(Failure {
            phase: phase_of(&error),
            ..format!("cannot execute {name:?}: {error}").into()
        })
    }
}

/// Whether a program is to blame for not being executed, or the node is, for want of something.
fn phase_of(error: &std::io::Error) -> Phase {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EIO | libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Phase::Preparation,
        _ => Phase::Execution,
    }
}

impl Executor for Confinement {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let failure = self.execute(&self.config.argv);
        let reason = failure.reason.clone();
        // libcontainer would lose the error it is given.
        self.report(failure);
        Err(ExecutorError::Other(reason))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Whether the program can be executed is known when it is executed, under the sandbox.
        Ok(())
    }

    fn setup_envs(
        &self,
        _envs: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        // The program gets exactly the configured environment when it is executed.
        Ok(())
    }
}
