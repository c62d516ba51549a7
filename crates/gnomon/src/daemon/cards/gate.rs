//! The network cards of one VM together: plugged in where its guest runs, and, in strict mode, what holds their frames.

use gnomon_qemu::NicSpec;
use parking_lot::Mutex;

use super::{UplinkError, card::Card, tap::Tap};
use crate::api::types::NicView;

/// The cards of one VM.
pub struct Gate {
    vm: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    cards: Vec<Card>,
    /// The guest was given away, or taken: none of its frames leaves here any more.
    is_fenced: bool,
    /// The session with the shadow whose commits count; none while the VM is not protected strictly.
    session: Option<u64>,
    /// Counts sessions.
    sessions: u64,
    /// Whether cards that come up hold from the beginning.
    holds: bool,
}

impl Gate {
    /// That of a VM without cards.
    pub(super) fn new(vm: &str) -> Gate {
        Gate { vm: vm.to_string(), inner: Mutex::default() }
    }

    // ---- cables ---------------------------------------------------------------------------------------------

    /// Plugs the cards of a guest in that begins anew, with their uplinks open when this returns. After an error none is.
    pub fn plug_in_now(&self, nics: &[NicSpec]) -> Result<(), UplinkError> {
        let mut inner = self.inner.lock();
        (inner.is_fenced, inner.session, inner.holds) = (false, None, false);
        let taps: Vec<Tap> = nics.iter().map(|nic| Tap::open(&nic.uplink, nic.mac)).collect::<Result<_, _>>()?;
        inner.end_all();
        let cards = nics.iter().zip(taps).map(|(nic, tap)| Card::start(&self.vm, nic.clone(), Some(tap)));
        inner.cards = cards.collect::<Result<_, _>>()?;
        inner.tell_new();
        Ok(())
    }

    /// Plugs the cards of the guest's QEMU in, instead of those of another QEMU, if it had one. Uplinks that cannot be
    /// opened are looked for until they can. Does nothing to a guest that was given away.
    pub fn plug_in(&self, nics: &[NicSpec]) {
        let mut inner = self.inner.lock();
        let is_same = inner.cards.iter().map(Card::nic).eq(nics);
        if inner.is_fenced || is_same {
            return;
        }
        let before = inner.end_all();
        let mut taps: Vec<_> = before.into_iter().collect();
        for nic in nics {
            let kept = taps.iter().position(|(uplink, _)| *uplink == nic.uplink);
            let tap = kept.and_then(|at| taps.swap_remove(at).1);
            match Card::start(&self.vm, nic.clone(), tap) {
                Ok(card) => inner.cards.push(card),
                Err(error) => tracing::error!(vm = self.vm, %error, "its guest has no network"),
            }
        }
        inner.tell_new();
    }

    /// Pulls the cables: what may leave has left when this returns, and the uplinks are free.
    pub fn unplug(&self) {
        self.inner.lock().end_all();
    }

    /// The guest does not run here any more, or must not: the cables are pulled, and none is plugged in until
    /// [`Gate::unfence`].
    pub fn fence(&self) {
        let mut inner = self.inner.lock();
        inner.is_fenced = true;
        inner.end_all();
    }

    /// The guest is this node's again.
    pub fn unfence(&self) {
        self.inner.lock().is_fenced = false;
    }

    // ---- strict mode ----------------------------------------------------------------------------------------

    /// The guest has a shadow already, and its frames wait: a daemon that was restarted goes on where it was.
    pub fn hold(&self) {
        let mut inner = self.inner.lock();
        inner.holds = true;
        inner.cards.iter().for_each(|card| card.with_hold(|hold| hold.hold()));
    }

    /// A session with the shadow has begun; its number. From the first checkpoint of it on, frames wait.
    pub fn begin(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.sessions += 1;
        let session = inner.sessions;
        inner.session = Some(session);
        inner.cards.iter().for_each(|card| card.with_hold(|hold| hold.begin(session)));
        session
    }

    /// The guest stands for a checkpoint. Does nothing unless a session has begun.
    pub fn close(&self, checkpoint: u64) {
        let mut inner = self.inner.lock();
        if inner.session.is_some() {
            inner.holds = true;
            inner.cards.iter().for_each(|card| card.close(checkpoint));
        }
    }

    /// The shadow has said in this session that it has a checkpoint.
    pub fn commit(&self, session: u64, checkpoint: u64) {
        let inner = self.inner.lock();
        inner.cards.iter().for_each(|card| card.with_hold(|hold| hold.commit(session, checkpoint)));
    }

    /// The guest goes on without its shadow, and that is on record: what waits leaves, and what comes leaves at once.
    pub fn expose(&self) {
        let mut inner = self.inner.lock();
        (inner.session, inner.holds) = (None, false);
        inner.cards.iter().for_each(|card| card.with_hold(|hold| hold.expose()));
    }

    // ---- views ----------------------------------------------------------------------------------------------

    /// As the API shows them.
    pub fn view(&self) -> Vec<NicView> {
        self.inner.lock().cards.iter().map(Card::view).collect()
    }
}

impl Inner {
    fn end_all(&mut self) -> Vec<(gnomon_qemu::Uplink, Option<Tap>)> {
        self.cards.drain(..).map(|card| (card.nic().uplink.clone(), card.end())).collect()
    }

    /// Cards that have just come up do as the VM does.
    fn tell_new(&self) {
        for card in &self.cards {
            card.with_hold(|hold| {
                if self.holds {
                    hold.hold();
                }
                if let Some(session) = self.session {
                    hold.begin(session);
                }
            });
        }
    }
}
