//! One trust group at work: its record, its planner, and the step that is open.
//!
//! Requests are noted as they are served and reach the planner when the step ends, on the clock's thread. Whoever serves a
//! request takes none of the planner's locks: training may hold it for tenths of a second.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gnomon_cycle::staging::{
    Aim, GroupPlanner, MemberId, Mode, RANGES, Request, StagingConfig, StagingError, StepReport, Target,
};
use gnomon_memory::GroupName;
use gnomon_terms::Bytes;
use parking_lot::Mutex;

use crate::{api::ApiError, config::MemoryConfig, daemon::records::GroupRecord};

/// Share of what members have that may lie idle, which the reserve is turned towards: at a twentieth a pool of twenty VMs
/// had three quarters of what was asked for (docs/memory.md).
const IDLE_AIM: f64 = 0.05;
/// Requests of which the time is remembered.
const TIMES: usize = 256;

/// A group.
pub struct Group {
    /// Its name, as the staging area has it.
    pub name: GroupName,
    record: Mutex<GroupRecord>,
    planner: Mutex<GroupPlanner>,
    open: Mutex<Open>,
    /// Where its members use their memory: drawn with noise once a step, so that asking again does not wear it off.
    picture: Mutex<Option<[f64; RANGES]>>,
}

/// What is not in the planner yet.
#[derive(Default)]
struct Open {
    /// Members have numbers: names stay here.
    numbers: BTreeMap<String, MemberId>,
    next: MemberId,
    requests: Vec<Request>,
    staged: Times,
    cold: Times,
    /// Bytes that had gone unused when the step before ended.
    unused: Bytes,
}

/// How long the newest requests took.
#[derive(Debug, Default)]
struct Times(VecDeque<Duration>);

/// A request that was served.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Who asked.
    pub vm: &'a str,
    /// Bytes.
    pub size: Bytes,
    /// Whether it had to be one block.
    pub whole: bool,
    /// Bytes that were staged.
    pub hit: Bytes,
    /// From the request until the guest had it.
    pub took: Duration,
}

impl Group {
    /// A group of a record; `most` tells how much memory a member may have.
    pub fn new(record: GroupRecord, config: &MemoryConfig, most: impl Fn(&str) -> Bytes) -> Result<Group, ApiError> {
        let planner = GroupPlanner::new(StagingConfig {
            step: config.step,
            horizon: Duration::from_secs(record.horizon_s),
            floor: Bytes(record.reserve),
            budget: Bytes(record.budget),
            aim: Aim::Idle(IDLE_AIM),
            ..StagingConfig::default()
        })?;
        let name = GroupName::new(&record.name)?;
        let members = record.members.clone();
        let group = Group {
            name,
            record: Mutex::new(record),
            planner: Mutex::new(planner),
            open: Mutex::default(),
            picture: Mutex::default(),
        };
        members.iter().try_for_each(|vm| group.join(vm, most(vm)))?;
        Ok(group)
    }

    /// A copy of its record.
    pub fn record(&self) -> GroupRecord {
        self.record.lock().clone()
    }

    /// Whether a VM is in it.
    pub fn has(&self, vm: &str) -> bool {
        self.record.lock().members.iter().any(|member| member == vm)
    }

    /// Whether its blocks are of 2 MiB pages.
    pub fn is_huge(&self) -> bool {
        self.record.lock().huge_pages
    }

    /// Changes its record, once `write` has made the change durable.
    pub fn change(
        &self,
        deed: impl FnOnce(&mut GroupRecord),
        write: impl FnOnce(&GroupRecord) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let mut record = self.record.lock();
        let mut draft = record.clone();
        deed(&mut draft);
        write(&draft)?;
        *record = draft;
        Ok(())
    }

    /// Plans for a member that may have so much.
    pub fn join(&self, vm: &str, most: Bytes) -> Result<(), ApiError> {
        let number = {
            let mut open = self.open.lock();
            let next = open.next;
            let number = *open.numbers.entry(vm.to_string()).or_insert(next);
            open.next = open.next.max(number + 1);
            number
        };
        Ok(self.planner.lock().join(number, most)?)
    }

    /// Forgets a member, and what it told of its needs.
    pub fn leave(&self, vm: &str) -> Result<(), ApiError> {
        let number = self.open.lock().numbers.remove(vm);
        match number {
            Some(number) => Ok(self.planner.lock().leave(number)?),
            None => Ok(()),
        }
    }

    /// Looks so far ahead from now on.
    pub fn set_horizon(&self, horizon: Duration) -> Result<(), StagingError> {
        self.planner.lock().set_horizon(horizon)
    }

    /// Notes a request.
    pub fn note(&self, served: &Served<'_>) {
        let mut open = self.open.lock();
        let times = if served.hit == served.size { &mut open.staged } else { &mut open.cold };
        times.note(served.took);
        if let Some(member) = open.numbers.get(served.vm).copied() {
            let Served { size, whole, hit, .. } = *served;
            open.requests.push(Request { member, size, whole, hit });
        }
    }

    /// Ends the step: members need so much, so much lies idle, and so much has gone unused since the group began; what should
    /// be staged from now on.
    pub fn end_step(
        &self,
        demands: &[(String, Bytes)],
        idle: Bytes,
        unused: Bytes,
        bits: &mut dyn FnMut() -> u64,
    ) -> Target {
        let report = {
            let mut open = self.open.lock();
            let number = |vm: &String| open.numbers.get(vm).copied();
            let demands = demands.iter().filter_map(|(vm, bytes)| Some((number(vm)?, *bytes))).collect();
            let before = std::mem::replace(&mut open.unused, unused);
            let unused = Bytes(unused.0.saturating_sub(before.0));
            StepReport { demands, requests: std::mem::take(&mut open.requests), idle, late: Bytes(0), unused }
        };
        self.planner.lock().end_step(&report, bits)
    }

    /// Keeps the picture of a step.
    pub fn draw(&self, picture: Option<[f64; RANGES]>) {
        *self.picture.lock() = picture;
    }

    /// Where its members use their memory, in members for each range; `None` of fewer than three.
    pub fn picture(&self) -> Option<[f64; RANGES]> {
        *self.picture.lock()
    }

    /// What should be staged now.
    pub fn target(&self) -> Target {
        self.planner.lock().target()
    }

    /// What decides how much that is.
    pub fn mode(&self) -> Mode {
        self.planner.lock().mode()
    }

    /// Trains its models when they are due; up to tenths of a second.
    pub fn tend(&self) {
        self.planner.lock().tend();
    }

    /// What its planner thinks.
    pub fn planned(&self) -> gnomon_cycle::staging::GroupView {
        self.planner.lock().view()
    }

    /// Milliseconds that requests took, median and 95 of 100: those that were staged, and those that were not.
    pub fn took(&self) -> [Option<[f64; 2]>; 2] {
        let open = self.open.lock();
        [open.staged.told(), open.cold.told()]
    }
}

impl Times {
    fn note(&mut self, took: Duration) {
        if self.0.len() == TIMES {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    fn told(&self) -> Option<[f64; 2]> {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        let at = |share: usize| sorted[last * share / 100].as_secs_f64() * 1e3;
        Some([at(50), at(95)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_their_ranks() {
        let mut times = Times::default();
        assert_eq!(times.told(), None);
        (0..=100).rev().for_each(|ms| times.note(Duration::from_millis(ms)));
        assert_eq!(times.told(), Some([50.0, 95.0]));
        (0..1000).for_each(|_| times.note(Duration::from_millis(7)));
        assert_eq!((times.0.len(), times.told()), (TIMES, Some([7.0, 7.0])));
    }
}
