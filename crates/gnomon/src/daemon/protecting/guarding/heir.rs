//! The guard at the shadow's node: claims the term once the primary's lease has ended, and has the shadow take over.
//!
//! It inherits only while there is a whole checkpoint of the guest's memory here; otherwise it watches. A term that it has
//! claimed has no heirs, so from then on nobody but this node decides about the guest.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gnomon_proto::guard::Will;
use gnomon_store::guarding::{Guarding, Hands, Wish};
use gnomon_terms::Epoch;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use super::{name_at_store, store, view};
use crate::{
    api::{ApiError, types::GuardView},
    daemon::{
        Daemon,
        protecting::{blocking, shadow::Keeping, takeover},
        records::ShadowRecord,
    },
};

/// How long a claim may take that nothing stands in the way of: an election of etcd, and then some.
const CLAIMED_WITHIN: Duration = Duration::from_secs(30);

/// The guard of a protection whose shadow is kept here.
pub struct HeirGuard {
    guarding: Guarding,
    node: String,
    /// Whether it is to take over by itself.
    inherits: Mutex<bool>,
    /// The term that was claimed.
    claimed: watch::Receiver<Option<u64>>,
    /// Whether a takeover is under way, by itself or by hand: one at a time.
    busy: Arc<AtomicBool>,
}

impl HeirGuard {
    /// Begins to watch the term of a shadow; `None` when it has no guard. Called where tokio is.
    pub fn begin(daemon: &Arc<Daemon>, keeping: &Arc<Keeping>) -> Result<Option<Arc<HeirGuard>>, ApiError> {
        let record = keeping.record();
        let Some(lease_s) = record.lease_s else { return Ok(None) };
        let wish = Wish {
            node: daemon.config.node.clone(),
            vm: name_at_store(&record.vm, &record.id),
            ttl: Duration::from_secs(lease_s),
            strict: record.strict,
            will: Will::Watch,
            held: None,
        };
        let (tell, claimed) = watch::channel(None);
        let busy = Arc::new(AtomicBool::new(false));
        let hands = HeirHands {
            daemon: Arc::clone(daemon),
            keeping: Arc::downgrade(keeping),
            tell,
            busy: Arc::clone(&busy),
            runtime: Handle::current(),
        };
        let guarding = Guarding::begin(store(daemon)?, wish, Box::new(hands))?;
        let node = daemon.config.node.clone();
        Ok(Some(Arc::new(HeirGuard { guarding, node, inherits: Mutex::new(false), claimed, busy })))
    }

    /// There is something here to go on from, or not any more.
    pub fn inherits(&self, now: bool) {
        let mut inherits = self.inherits.lock();
        if *inherits != now {
            *inherits = now;
            self.guarding.set_will(if now { Will::Inherit } else { Will::Watch });
        }
    }

    /// Claims the term for an operator, heir or not; refused while the lease of the primary lives. Returns the epoch of
    /// the term. Whoever calls this takes over next, or says that it has come to nothing.
    pub async fn seize(self: &Arc<Self>, record: &ShadowRecord) -> Result<u64, ApiError> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(ApiError::refused(format!("the shadow of VM '{}' takes over already", record.vm))
                .then("see `gnomon job ls`"));
        }
        let claimed = self.claim(record).await;
        if claimed.is_err() {
            self.came_to_nothing();
        }
        claimed
    }

    async fn claim(self: &Arc<Self>, record: &ShadowRecord) -> Result<u64, ApiError> {
        let looker = Arc::clone(self);
        let seen = blocking(move || Ok(looker.guarding.look()?)).await?;
        refuse_unless_free(seen.map(|(term, held)| (term.holder, held)), &self.node, record)?;
        self.guarding.set_will(Will::Seize);
        let mut claimed = self.claimed.clone();
        let won = tokio::time::timeout(CLAIMED_WITHIN, claimed.wait_for(Option::is_some)).await;
        match won {
            Ok(Ok(epoch)) => Ok(epoch.unwrap_or_default()),
            Ok(Err(_)) | Err(_) => {
                let why = self.guarding.standing().trouble.unwrap_or_else(|| "somebody else holds it".to_string());
                Err(ApiError::unavailable(format!("the term of VM '{}' could not be claimed: {why}", record.vm)))
            }
        }
    }

    /// A takeover did not come about; another one may be tried.
    pub fn came_to_nothing(&self) {
        let will = if *self.inherits.lock() { Will::Inherit } else { Will::Watch };
        self.guarding.set_will(will);
        self.busy.store(false, Ordering::Release);
    }

    /// As the API shows it.
    pub fn view(&self) -> GuardView {
        view(self.guarding.standing(), &self.node, *self.inherits.lock())
    }
}

/// What an operator's word is worth where a lease tells the living from the dead.
fn refuse_unless_free(seen: Option<(String, bool)>, here: &str, record: &ShadowRecord) -> Result<(), ApiError> {
    let (vm, from) = (&record.vm, &record.from);
    match seen {
        Some((holder, true)) if holder != here => Err(ApiError::refused(format!(
            "node {holder} holds VM '{vm}' at the shared store, and its lease lives: it is not dead"
        ))
        .then(format!(
            "hand it over with `gnomon vm switchover {vm}` there, or stop that node: its lease ends {} s later",
            record.lease_s.unwrap_or_default()
        ))),
        Some(_) => Ok(()),
        None => Err(ApiError::refused(format!(
            "the term of VM '{vm}' is gone from the shared store: nobody can say whether node {from} runs it"
        ))
        .then(format!(
            "once node {from} is back it begins a new one; when it is gone for good, remove the shadow with `gnomon vm \
             unprotect {vm}` and restore from a backup"
        ))),
    }
}

/// What the guard does at the shadow's node.
struct HeirHands {
    daemon: Arc<Daemon>,
    keeping: Weak<Keeping>,
    tell: watch::Sender<Option<u64>>,
    busy: Arc<AtomicBool>,
    runtime: Handle,
}

impl Hands for HeirHands {
    fn run(&self, epoch: Epoch) {
        self.tell.send_replace(Some(epoch.0));
        let Some(keeping) = self.keeping.upgrade() else { return };
        if !self.busy.swap(true, Ordering::AcqRel) {
            self.runtime.spawn(takeover::by_itself(Arc::clone(&self.daemon), keeping, epoch.0));
        }
    }

    /// The term has no heirs: nobody takes over from a shadow that takes over.
    fn stand(&self) {}

    fn superseded(&self, by: Epoch) {
        if let Some(keeping) = self.keeping.upgrade() {
            tracing::error!(vm = keeping.record().vm, term = by.0, "somebody else has claimed its term");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Kind;

    #[test]
    fn a_guest_is_not_taken_from_a_node_that_lives() {
        let record = ShadowRecord { lease_s: Some(5), ..ShadowRecord::of("web", "a") };
        let table = [
            (Some(("a", true)), false, "its lease lives"),
            (Some(("a", false)), true, "its lease has ended"),
            (Some(("b", true)), true, "it was claimed here, and the takeover failed"),
            (None, false, "nobody knows"),
        ];
        for (seen, free, what) in table {
            let seen = seen.map(|(holder, held)| (holder.to_string(), held));
            let refused = refuse_unless_free(seen, "b", &record).err();
            assert_eq!(refused.as_ref().map(|error| error.kind), (!free).then_some(Kind::Refused), "{what}");
            assert!(refused.is_none_or(|error| error.next.is_some()), "{what}");
        }
    }
}
