//! Calico's kinds as rules of the ordered form.
//!
//! As with [`crate::kubernetes`], one reader serves validation and compilation, and it fails closed where
//! Calico itself does not: a CIDR that does not parse is not left out of its list (which would widen the
//! rule), a selector that does not parse is not an empty one (which would select all), and a policy that is
//! not valid is not treated as absent.
//!
//! - A rule that cannot be understood is left out if it allows or logs; if it denies or passes, it becomes
//!   one that denies everything.
//! - A policy that cannot be understood as a whole applies to every endpoint that it could have meant, in both
//!   directions, and denies everything; before all others, if it is its tier that cannot be understood.

mod host;
mod policy;
mod rules;
mod sets;
mod tier;

pub(crate) use host::{read_configuration, read_host_endpoint};
pub use policy::default_types;
pub(crate) use policy::{Scope, StagedAction, named_tier, read_policy, read_staged_action, shown_name};
pub use rules::ServiceEndpoint;
pub(crate) use rules::{RuleScope, Services, read_rules};
pub(crate) use sets::{close_over, read_domain, read_network_set};
pub use tier::built_in_tiers;
pub(crate) use tier::{
    BUILT_IN_TIERS, DEFAULT_TIER, KUBE_ADMIN_TIER, KUBE_BASELINE_TIER, is_tier_name, read_tier,
};

use policies_ir::selector::Expression;

use crate::field::{Errors, Path, wrong};

/// An expression; nothing if the text is none.
fn read_expression(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<Expression> {
    match Expression::parse(text) {
        Ok(expression) => Some(expression),
        Err(error) => {
            let fix = "correct the selector, for example app == \"web\" && !has(old)";
            wrong(errors, path, format!("{text:?} is not a selector: {error}"), fix);
            None
        }
    }
}

/// An expression in which `global()` means nothing.
fn read_plain_expression(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<Expression> {
    let expression = read_expression(text, path, errors)?;
    if expression.mentions_global() {
        let fix = "use it alone, in the namespaceSelector of a rule's source or destination";
        wrong(errors, path, "global() has no meaning here", fix);
        return None;
    }
    Some(expression)
}
