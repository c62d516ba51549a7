//! What can be seen of the staging area from outside.

use std::collections::{BTreeMap, BTreeSet};

use gnomon_terms::Bytes;

use super::Staging;
use crate::{accounts::State, fit::Stock, groups::GroupName, guard::Ruling, numa::NumaNode};

impl Staging {
    /// What is staged for a group, by size.
    pub fn stock(&self, group: &GroupName) -> Vec<Stock> {
        let books = self.shared.books.lock();
        let own =
            books.pool.ledger().iter().filter(|(_, entry)| entry.group == *group && entry.state == State::Staged);
        let mut stock: BTreeMap<Bytes, u32> = BTreeMap::new();
        own.for_each(|(_, entry)| *stock.entry(entry.size).or_default() += 1);
        stock.into_iter().collect()
    }

    /// What is staged for a group on each node, by number; nothing on a host with one.
    pub fn by_node(&self, group: &GroupName) -> Vec<(NumaNode, Bytes)> {
        self.shared.books.lock().pool.by_node(group).into_iter().collect()
    }

    /// The VMs that have a block.
    pub fn guests(&self) -> BTreeSet<String> {
        let books = self.shared.books.lock();
        let vm = |state: &State| match state {
            State::Assigned(vm) => Some(vm.clone()),
            _ => None,
        };
        books.pool.ledger().iter().filter_map(|(_, entry)| vm(&entry.state)).collect()
    }

    /// Why nothing of 4 KiB pages may be staged now; `None` when it may. Looks at the host's memory: some 50 µs.
    pub fn held_back(&self) -> Option<String> {
        match self.shared.judge().small {
            Ruling::Stage(_) => None,
            Ruling::Hold => Some("the host has little more available than what has to stay so".to_string()),
            Ruling::GiveBack(bytes) => Some(format!("the host is short of memory: {bytes} go back to it")),
        }
    }
}
