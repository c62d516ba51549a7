//! A plane of one shadow, for tests: it remembers what is where, block by block, and what version of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gnomon_terms::{
    Access, Event, Extent, Instant, Move, Op, Outcome, Place, Plane, Priority, ResourceId, Routes, Settled, Verb,
};

pub(crate) const RESOURCE: ResourceId = ResourceId(7);
pub(crate) const SHADOW: Place = Place(1);

/// The source's blocks and the shadow's, each block a version number.
pub(crate) struct TestPlane {
    pub(crate) source: Vec<u32>,
    /// `None` while not valid.
    pub(crate) shadow: Vec<Option<u32>>,
    pub(crate) switched: bool,
    /// Every n-th move fails; none if 0.
    pub(crate) fail_each: usize,
    /// Moves in the order they were begun.
    pub(crate) begun: Vec<Move>,
    /// Moves on their way with the blocks they carry; `None` for a block that was written meanwhile.
    flying: VecDeque<(Move, Vec<Option<u32>>)>,
    events: Vec<Event>,
    stalls: u64,
}

impl TestPlane {
    pub(crate) fn new(blocks: usize) -> TestPlane {
        TestPlane {
            source: vec![1; blocks],
            shadow: vec![None; blocks],
            switched: false,
            fail_each: 0,
            begun: Vec::new(),
            flying: VecDeque::new(),
            events: Vec::new(),
            stalls: 0,
        }
    }

    /// The guest does something. Before the switch at the source, afterwards at the shadow.
    pub(crate) fn guest(&mut self, at: Instant, op: Op, extent: Extent) {
        let access = Access { at, resource: RESOURCE, extent, op };
        self.events.push(Event::Accessed(access));
        match (op, self.switched) {
            (Op::Read, true) => self.read(access),
            (Op::Read, false) | (Op::Discard, _) => {}
            (Op::Write, true) => {
                self.blocks(extent).for_each(|block| self.shadow[block] = Some(100));
                self.events.push(Event::Covered { resource: RESOURCE, extent, place: SHADOW });
            }
            (Op::Write, false) => {
                for block in self.blocks(extent) {
                    self.source[block] += 1;
                    self.shadow[block] = None;
                    self.spoil(block);
                }
                self.events.push(Event::Outdated { resource: RESOURCE, extent, place: SHADOW });
            }
        }
    }

    fn spoil(&mut self, block: usize) {
        for (mv, data) in &mut self.flying {
            if let Some(carried) = block.checked_sub(mv.extent.start.0 as usize).and_then(|at| data.get_mut(at)) {
                *carried = None;
            }
        }
    }

    fn read(&mut self, access: Access) {
        if self.blocks(access.extent).all(|block| self.shadow[block].is_some()) {
            return;
        }
        self.stalls += 1;
        self.events.push(Event::Stalled(access));
        for block in self.blocks(access.extent) {
            self.shadow[block].get_or_insert(self.source[block]);
        }
        self.events.push(Event::Covered { resource: RESOURCE, extent: access.extent, place: SHADOW });
    }

    /// Up to `count` moves end, oldest first.
    pub(crate) fn carry(&mut self, count: usize) {
        for (mv, data) in self.flying.drain(..count.min(self.flying.len())) {
            let nth = mv.id.0 as usize + 1;
            // Once the guest runs at the shadow, nothing is given up there.
            let too_late = self.switched && mv.verb == Verb::Drop;
            let failed = too_late || self.fail_each > 0 && nth.is_multiple_of(self.fail_each);
            let start = mv.extent.start.0 as usize;
            match mv.verb {
                _ if failed => {}
                Verb::Drop => self.shadow[start..start + data.len()].fill(None),
                // What the guest wrote at the shadow is never written over.
                Verb::Copy => data.iter().enumerate().for_each(|(nth, version)| {
                    let there = &mut self.shadow[start + nth];
                    *there = there.or(*version);
                }),
            }
            let settled = if failed { Settled::Failed } else { Settled::Done };
            let outcome = Outcome { id: mv.id, settled, carried: mv.extent.bytes(), took: Duration::ZERO };
            self.events.push(Event::Settled(outcome));
        }
    }

    pub(crate) fn flying(&self) -> usize {
        self.flying.len()
    }

    pub(crate) fn stalls(&self) -> u64 {
        self.stalls
    }

    fn blocks(&self, extent: Extent) -> std::ops::Range<usize> {
        extent.start.0 as usize..extent.end().0 as usize
    }
}

impl Plane for TestPlane {
    fn drain(&mut self, into: &mut Vec<Event>) {
        into.append(&mut self.events);
    }

    fn begin(&mut self, mv: Move) {
        let over = |other: &Move| !other.extent.overlap(mv.extent).is_empty();
        assert!(!self.flying.iter().any(|(other, _)| over(other)), "two moves over {:?}", mv.extent);
        assert!(self.switched || mv.priority == Priority::Background, "reactive before the switch: {mv:?}");
        assert!(!self.switched || mv.verb == Verb::Copy, "dropped after the switch: {mv:?}");
        assert_eq!((mv.resource, mv.to), (RESOURCE, SHADOW));
        // What is carried is what the source holds when the move begins; a later write makes it old.
        let blocks = mv.extent.start.0 as usize..mv.extent.end().0 as usize;
        let data = self.source[blocks].iter().copied().map(Some).collect();
        self.flying.push_back((mv, data));
        self.begun.push(mv);
    }

    fn adopt(&mut self, _: Arc<Routes>) {}
}
