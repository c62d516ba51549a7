//! The guard of a protection: at a shared store a lease decides who may run the guest, without an operator.
//!
//! ```text
//!   primary's node                     etcd                          shadow's node
//!   PrimaryGuard ── renews ──► term: epoch, holder, heirs ◄── looks ── HeirGuard
//!     │ strikes the shadow off and puts it back ──►  │                    │ its lease has ended, and it is an heir
//!     │ stands, runs, superseded                     └─── claims ◄────────┤
//!     ▼                                                                   ▼
//!   the guest here is held, or given up (ended.rs)        takes over: promoted on record (takeover.rs)
//! ```
//! One record has the last word: the term. A node promotes its shadow only while it is the term's holder, and `promoted`,
//! at that node, says whether it has done so. A term belongs to one protection and ends with it; that of a guest whose
//! shadow took over stays, for nobody can say when its primary returns and looks.

mod heir;
mod primary;

use std::sync::Arc;

use gnomon_proto::guard::GuardState;
use gnomon_store::{
    Store,
    guarding::{Standing, Term},
};

pub use self::{
    heir::HeirGuard,
    primary::{PrimaryGuard, begin, end, rest, superseded_by},
};
use super::pulse::millis;
use crate::{
    api::{ApiError, types::GuardView},
    daemon::Daemon,
};

/// What names the guarded protection, and its term, at the store.
fn name_at_store(vm: &str, id: &str) -> String {
    format!("{vm}/{id}")
}

/// The store that both nodes see. Without one a guard would be a guess.
pub fn store(daemon: &Daemon) -> Result<Arc<dyn Store>, ApiError> {
    let none = || {
        ApiError::refused(
            "nothing fails over by itself here: this node has a store of its own only, and from the shadow's node nobody \
             could tell its death from a cut cable",
        )
        .then(
            "start both nodes with `gnomon serve --store etcd://HOST:PORT,...`, or leave --auto-failover out and use \
             `gnomon vm failover NAME --i-have-fenced NODE` when the host is dead",
        )
    };
    daemon.shared_store().ok_or_else(none)
}

/// How a guard stands, as the API shows it. `heir` is the node of the shadow, and `has_state` whether it says that it
/// could go on.
fn view(standing: Standing, heir: &str, has_state: bool) -> GuardView {
    let names = |term: &Term| term.holder != heir && term.heirs.iter().any(|known| known == heir);
    let holds = matches!(standing.state, GuardState::Holding { .. });
    let term = standing.term;
    GuardView {
        armed: has_state && term.as_ref().is_some_and(names),
        term: term.as_ref().map(|term| term.epoch),
        heirs: term.as_ref().map(|term| term.heirs.clone()).unwrap_or_default(),
        holder: term.map(|term| term.holder),
        lease_ms: holds.then(|| millis(standing.sure_for)),
        trouble: standing.trouble,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gnomon_terms::{Epoch, Instant};

    use super::*;

    #[test]
    fn a_shadow_is_armed_while_it_is_an_heir_that_could_go_on() {
        let term = |holder: &str, heirs: &[&str]| {
            let heirs = heirs.iter().map(|heir| heir.to_string()).collect();
            Some(Term { epoch: 3, holder: holder.to_string(), lease: 7, heirs })
        };
        let table = [
            (term("a", &["b"]), true, true),
            (term("a", &["b"]), false, false),
            (term("a", &[]), true, false),
            (term("b", &["b"]), true, false),
            (None, true, false),
        ];
        for (term, has_state, armed) in table {
            let state = GuardState::Holding { epoch: Epoch(3), sure_until: Instant::ORIGIN };
            let told = format!("{term:?} {has_state}");
            let standing = Standing { state, runs: true, sure_for: Duration::from_secs(1), term, trouble: None };
            assert_eq!(view(standing, "b", has_state).armed, armed, "{told}");
        }
    }
}
