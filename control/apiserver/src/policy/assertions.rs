//! Which assertions a change would break, and how that is told.

use api::palisade::{Enforcement, PolicyAssertion};
use policies_checker::{
    Model,
    assertion::{self, BrokenAssertion, Problem, broken_assertion},
};
use policies_compiler::ClusterView;
use tokio_util::sync::CancellationToken;

use crate::policy::{GaveUp, cluster::Objects};

/// Assertions that one message spells out.
const SHOWN: usize = 3;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Assertions that would hold no longer.
    pub(super) broken: Vec<Broken>,
    /// For whoever asked.
    pub(super) notes: Vec<String>,
}

/// An assertion that a change would break.
#[derive(Debug)]
pub(super) struct Broken {
    assertion: BrokenAssertion,
    /// Whether that is a reason to refuse the change.
    pub(super) blocks: bool,
}

/// Judges a change, `after` being what it leads to, or, without one, the assertions themselves. Stops between two
/// assertions once nobody waits.
pub(super) fn judge(
    before: &Objects,
    after: Option<&ClusterView>,
    assertions: &[PolicyAssertion],
    nobody_waits: &CancellationToken,
) -> Result<Judged, GaveUp> {
    let broken_in = |model: &Model, assertions: &[PolicyAssertion]| -> Result<Vec<BrokenAssertion>, GaveUp> {
        let mut broken = Vec::new();
        for assertion in assertions {
            GaveUp::check(nobody_waits)?;
            broken.extend(broken_assertion(model, assertion));
        }
        Ok(broken)
    };
    if assertions.is_empty() {
        return Ok(Judged::default());
    }
    GaveUp::check(nobody_waits)?;
    let Some(after) = after else {
        let view = before.view();
        let model = Model::new(&view);
        let broken = broken_in(&model, assertions)?;
        let notes = if broken.is_empty() {
            assertions.iter().filter_map(|one| reserve(&model, one)).collect()
        } else {
            Vec::new()
        };
        return Ok(Judged {
            broken: mark(broken, assertions),
            notes,
        });
    };
    let mut broken = broken_in(&Model::new(after), assertions)?;
    if !broken.is_empty() {
        // What was broken before is not this change's doing. Few changes come this far.
        let suspects: Vec<PolicyAssertion> = assertions
            .iter()
            .filter(|assertion| broken.iter().any(|broken| is_about(broken, assertion)))
            .cloned()
            .collect();
        let earlier = broken_in(&Model::new(&before.view()), &suspects)?;
        broken.retain(|broken| !earlier.iter().any(|earlier| earlier.name == broken.name));
    }
    Ok(Judged {
        broken: mark(broken, assertions),
        notes: Vec::new(),
    })
}

/// Why a change is refused.
pub(super) fn refusal(broken: &[Broken], is_assertion: bool) -> String {
    let named = broken.iter().take(SHOWN).map(|broken| match is_assertion {
        true => format!("it does not hold: {}", broken.shown(false)),
        false => format!(
            "it would break PolicyAssertion {:?} ({}): {}",
            broken.assertion.name,
            broken.assertion.assertion,
            broken.shown(true)
        ),
    });
    let mut message = named.collect::<Vec<_>>().join("; ");
    let more = broken.len().saturating_sub(SHOWN);
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    message
}

impl Broken {
    /// For the one who may do it all the same.
    pub(super) fn warning(&self, is_assertion: bool) -> String {
        let Self { assertion, .. } = self;
        let no_longer = if is_assertion {
            "does not hold"
        } else {
            "holds no longer"
        };
        format!(
            "PolicyAssertion {} {no_longer} ({}): {}",
            assertion.name,
            assertion.assertion,
            self.shown(false)
        )
    }

    fn shown(&self, would: bool) -> String {
        match &self.assertion.problem {
            Problem::Counterexample(packet) => {
                let verb = match (would, packet.allowed) {
                    (true, true) => "would pass",
                    (true, false) => "would not pass",
                    (false, true) => "passes",
                    (false, false) => "does not pass",
                };
                format!("{packet} {verb}, {}", packet.rulings())
            }
            other => other.text().unwrap_or_default(),
        }
    }
}

fn mark(broken: Vec<BrokenAssertion>, assertions: &[PolicyAssertion]) -> Vec<Broken> {
    let mark = |broken: BrokenAssertion| {
        let of = assertions.iter().find(|assertion| is_about(&broken, assertion));
        Broken {
            blocks: of.is_none_or(|of| of.enforcement() == Enforcement::Block),
            assertion: broken,
        }
    };
    broken.into_iter().map(mark).collect()
}

fn is_about(broken: &BrokenAssertion, assertion: &PolicyAssertion) -> bool {
    assertion.metadata.name.as_deref() == Some(&*broken.name)
}

/// Why an assertion that holds says nothing yet, or less than it may seem to.
fn reserve(model: &Model, object: &PolicyAssertion) -> Option<String> {
    let parsed = assertion::parse(&object.spec.assertion).ok()?;
    let proof = assertion::prove(model, &parsed);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let vacuous = proof
        .vacuous
        .map(|why| format!("says nothing about the cluster as it is: {why}"));
    let left_out = proof.left_out;
    let left_out = left_out.map(|such| format!("leaves out what nodes send to their own pods: {such}"));
    let reserve = vacuous.or(left_out)?;
    Some(format!("PolicyAssertion {name} {reserve}"))
}
