//! Completions are told in the order of the requests, whichever is done first.
//!
//! A guest's queue outlives whoever serves it. After a crash the next server finds two numbers in the guest's memory:
//! how many requests were offered and how many were told as done. That is enough to go on if and only if the told
//! ones are the first ones: all others are carried out again, which does no harm, because the guest has not heard of
//! them. (The vhost-user protocol can share a record of requests in flight instead; the library below does not.)
//! The price: a request behind one that waits for another host is told with it. It has been carried out long before.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// A request that has been taken from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What is told of a finished request: the head of its chain, and how many bytes of it were written.
pub(super) type Told = (u16, u32);

/// The requests of one queue that were taken and not told yet.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The ticket of the first entry of `open`.
    first: u64,
    /// One entry a request, in their order; filled when it is done.
    open: VecDeque<Option<Told>>,
}

impl Ledger {
    /// Enters the next request. `None` when `limit` of them are open: a guest offers no more than its queue has.
    pub(super) fn enter(&self, limit: usize) -> Option<Ticket> {
        let mut state = self.state.lock();
        if state.open.len() >= limit {
            return None;
        }
        state.open.push_back(None);
        Some(Ticket(state.first + state.open.len() as u64 - 1))
    }

    /// Notes that a request is done, and has all told that can be told now. `tell` is called for one at a time.
    pub(super) fn finish<E>(
        &self,
        ticket: Ticket,
        told: Told,
        mut tell: impl FnMut(Told) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.state.lock();
        let place = (ticket.0 - state.first) as usize;
        state.open[place] = Some(told);
        while let Some(Some(told)) = state.open.front().copied() {
            state.open.pop_front();
            state.first += 1;
            tell(told)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_queue_has_no_more_requests_than_places() {
        let ledger = Ledger::default();
        let first = ledger.enter(2).expect("room");
        assert!(ledger.enter(2).is_some() && ledger.enter(2).is_none());
        ledger.finish(first, (7, 1), |_| Ok::<_, ()>(())).expect("told");
        assert!(ledger.enter(2).is_some());
    }

    proptest! {
        #[test]
        fn whatever_ends_first_is_told_in_order(order in Just((0..20u16).collect::<Vec<_>>()).prop_shuffle()) {
            let ledger = Ledger::default();
            let tickets: Vec<Ticket> = (0..20).map(|_| ledger.enter(20).expect("room")).collect();
            let mut told = Vec::new();
            for (count, head) in order.iter().enumerate() {
                let note = |(head, _): Told| { told.push(head); Ok::<_, ()>(()) };
                ledger.finish(tickets[usize::from(*head)], (*head, 0), note).expect("told");
                let prefix = (0..20u16).take_while(|head| order[..=count].contains(head)).count();
                prop_assert_eq!(told.len(), prefix);
            }
            prop_assert_eq!(told, (0..20).collect::<Vec<u16>>());
        }
    }
}
