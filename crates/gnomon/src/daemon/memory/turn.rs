//! One change of a VM's memory at a time: whoever changes it, starts the VM or begins to carry it elsewhere has its turn.
//!
//! ```text
//!   free ──take──► a caller's ──drop──► free      another caller is refused: what it looked at is about to change
//!     └──glance──► the clock's ──drop──► free     a caller waits: the clock only looks
//! ```

use std::collections::BTreeMap;

use parking_lot::{Condvar, Mutex};

use crate::api::ApiError;

/// Whose turn it is with which VM.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<BTreeMap<String, By>>,
    ended: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Caller,
    Clock,
}

/// A turn; it ends when this is dropped. Nothing of the VM is taken for left over meanwhile.
#[derive(Debug)]
pub(in crate::daemon) struct Turn<'a> {
    turns: &'a Turns,
    vm: String,
}

impl Turns {
    /// A caller's turn. Waits while the clock looks, for as long as a monitor may take to answer; refused while it is
    /// another caller's.
    pub(super) fn take(&self, vm: &str) -> Result<Turn<'_>, ApiError> {
        let mut taken = self.taken.lock();
        while let Some(by) = taken.get(vm) {
            if *by == By::Caller {
                return Err(ApiError::refused(format!("the memory of VM '{vm}' is being changed already"))
                    .then("wait for that to end, and ask again"));
            }
            self.ended.wait(&mut taken);
        }
        Ok(self.turn(&mut taken, vm, By::Caller))
    }

    /// The clock's turn, unless it is somebody's.
    pub(super) fn glance(&self, vm: &str) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock();
        (!taken.contains_key(vm)).then(|| self.turn(&mut taken, vm, By::Clock))
    }

    fn turn(&self, taken: &mut BTreeMap<String, By>, vm: &str, by: By) -> Turn<'_> {
        taken.insert(vm.to_string(), by);
        Turn { turns: self, vm: vm.to_string() }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.vm);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_second_caller_is_refused_and_another_vm_is_free() {
        let turns = Turns::default();
        let web = turns.take("web").expect("free");
        assert!(turns.take("web").expect_err("taken").message.contains("being changed already"));
        assert!(turns.glance("web").is_none() && turns.take("db").is_ok());
        drop(web);
        assert!(turns.take("web").is_ok());
    }

    #[test]
    fn a_caller_waits_for_the_clock() {
        let turns = Turns::default();
        let looks = turns.glance("web").expect("free");
        thread::scope(|scope| {
            let caller = scope.spawn(|| turns.take("web").is_ok());
            drop(looks);
            assert!(caller.join().expect("it waited"));
        });
    }
}
