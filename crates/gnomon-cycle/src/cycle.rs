//! The loop of one resource: observe, forecast, plan, move, serve, adjust.
//!
//! ```text
//!             begin_shadow            switched              whole, end_shadow
//!   watching ─────────────► priming ───────────► draining ───────────────────► watching
//!      ▲                       │ end_shadow (cancel)
//!      └───────────────────────┘
//! ```
//! *Watching*: accesses are learned from. *Priming*: the guest runs at the source, copies are made at the shadow in
//! background order, the guest's writes make copies outdated. *Draining*: the guest runs at the shadow, its writes
//! and demands cover blocks there, and reactive forecasts go ahead of the background order.
//!
//! The inventory is what the plane says, never what was planned: coverage changes only by [`Event::Covered`],
//! [`Event::Outdated`] and [`Event::Settled`]. A move covers the hull of what a unit lacks, so it may include blocks
//! that are there already: **the plane must not write over a block that is valid at the place.**
//!
//! Same events in, same moves out: no clock, no random source.

use gnomon_forecast::sequence::{Experience, Knowledge, Lesson, Model};
use gnomon_forecast::{BlockMap, Chance, Geometry, Predictor, UnitIndex};
use gnomon_terms::{
    Access, BlockCount, Bytes, Event, Extent, Instant, Move, Op, Outcome, Place, Priority, ResourceId, Settled, Verb,
};

use crate::config::{CycleConfig, CycleError, DEFAULT_WINDOW, check_size, predictor};
use crate::flights::{Flight, Flights};
use crate::plan::Rest;
use crate::score::Score;
use crate::shadow::Shadow;
use crate::spare::{Room, room};
use crate::stall::RecentReads;

/// The loop of one resource.
pub struct Cycle {
    pub(crate) resource: ResourceId,
    pub(crate) geometry: Geometry,
    pub(crate) allocated: BlockMap,
    pub(crate) predictor: Box<dyn Predictor>,
    pub(crate) shadow: Option<Shadow>,
    pub(crate) recent: RecentReads,
    pub(crate) window: Bytes,
    pub(crate) budget: Option<Bytes>,
    pub(crate) score: Score,
    pub(crate) now: Instant,
    pub(crate) flights: Flights,
    pub(crate) accesses: u64,
    /// Accesses at which the order is computed anew.
    pub(crate) rank_at: u64,
    pub(crate) chances: Vec<Chance>,
}

impl Cycle {
    /// A loop that watches. Allocates about 6 bytes a unit of the resource at once.
    pub fn new(config: CycleConfig) -> Result<Cycle, CycleError> {
        let geometry = Geometry::new(config.size, config.blocks_per_unit)?;
        check_size(&config.allocated, config.size)?;
        let predictor = predictor(config.forecast, geometry, &config.allocated)?;
        Ok(Cycle {
            resource: config.resource,
            geometry,
            allocated: config.allocated,
            predictor,
            shadow: None,
            recent: RecentReads::default(),
            window: DEFAULT_WINDOW,
            budget: None,
            score: Score::default(),
            now: Instant::ORIGIN,
            flights: Flights::default(),
            accesses: 0,
            rank_at: u64::MAX,
            chances: Vec::new(),
        })
    }

    /// The resource it serves.
    pub fn resource(&self) -> ResourceId {
        self.resource
    }

    /// How the resource is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Accesses that it has seen.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// The blocks that hold something, as far as is known.
    pub fn allocated(&self) -> &BlockMap {
        &self.allocated
    }

    /// Time has come to `now`; it never goes back. [`crate::turn`] says it each turn.
    pub fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Begins a shadow at `place`, which lacks `lacking`; the rest of what is allocated is valid there. What lacks
    /// is allocated from now on. The score starts anew. Costs O(units).
    pub fn begin_shadow(&mut self, place: Place, lacking: BlockMap) -> Result<(), CycleError> {
        if let Some(shadow) = &self.shadow {
            return Err(CycleError::ShadowExists(shadow.place));
        }
        check_size(&lacking, self.geometry.blocks())?;
        for run in lacking.runs() {
            self.allocated.insert(run);
        }
        self.score = Score::default();
        let flights = std::mem::take(&mut self.flights);
        self.shadow = Some(Shadow::new(place, self.geometry, lacking, flights));
        self.rank();
        Ok(())
    }

    /// The shadow is given up, or has become the original. Outcomes that still come are passed over.
    pub fn end_shadow(&mut self) {
        if let Some(mut shadow) = self.shadow.take() {
            shadow.flights.clear();
            self.flights = shadow.flights;
        }
    }

    /// The guest runs at the shadow's place from now on. No drop is asked for from here on, and the plane settles as
    /// failed those it has not begun: the copy is the original now. Costs O(lacking units).
    pub fn switched(&mut self, now: Instant) {
        self.advance(now);
        let Some(shadow) = &mut self.shadow else { return };
        shadow.switched = true;
        self.predictor.begin(self.now, &shadow.lacking);
        self.rank();
    }

    /// How many bytes of copies may be on their way; 0 stops asking. The unit of the first move may exceed it.
    pub fn set_window(&mut self, window: Bytes) {
        self.window = window;
    }

    /// How much a spare copy may take at the place while priming; no limit if none. Copies less likely to be read
    /// are dropped for those more likely. Costs O(lacking units).
    pub fn set_space_budget(&mut self, budget: Option<Bytes>) {
        self.budget = budget;
        self.rank();
    }

    /// Takes in one event. O(1) in the size of the resource.
    ///
    /// Each request is [`Event::Accessed`] once; a read that also has to wait is [`Event::Stalled`] as well,
    /// afterwards. Events of other resources and places are passed over.
    pub fn handle(&mut self, now: Instant, event: Event) {
        self.advance(now);
        match event {
            Event::Accessed(access) if access.resource == self.resource => self.accessed(access),
            Event::Stalled(access) if access.resource == self.resource => self.stalled(access),
            Event::Covered { resource, extent, place } if resource == self.resource => self.covered(extent, place),
            Event::Outdated { resource, extent, place } if resource == self.resource => self.outdated(extent, place),
            Event::Settled(outcome) => self.settled(outcome),
            _ => {}
        }
    }

    fn accessed(&mut self, access: Access) {
        let access = Access { extent: self.geometry.clip(access.extent), ..access };
        self.accesses += 1;
        self.predictor.observe(&access);
        match access.op {
            Op::Read => self.read(access),
            Op::Write => self.written(access.extent),
            // What becomes of a discarded block at the place is for the plane to say.
            Op::Discard => {}
        }
    }

    fn read(&mut self, access: Access) {
        self.recent.note(access.at, access.extent);
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.switched) else { return };
        self.score.hits += 1;
        for unit in self.geometry.units_of(access.extent) {
            shadow.take_unread(unit);
        }
        self.predictor.react(&access, &mut self.chances);
        let (threshold, _) = self.predictor.bar();
        for chance in self.chances.drain(..) {
            // Forecasts wait only when the link has nothing to spare: the more of them do, the surer one must be.
            if chance.probability >= threshold + (1.0 - threshold) * shadow.plan.backlog() {
                shadow.plan.prefetch(chance);
            }
        }
    }

    /// What is written is allocated. While priming the shadow lacks it, unless the plane says otherwise.
    fn written(&mut self, extent: Extent) {
        if self.allocated.contains_all(extent) {
            return;
        }
        let new: Vec<Extent> = self.allocated.gaps(extent).collect();
        self.allocated.insert(extent);
        if self.shadow.as_ref().is_some_and(|shadow| !shadow.switched) {
            new.into_iter().for_each(|extent| self.uncover(extent));
        }
    }

    fn stalled(&mut self, access: Access) {
        let extent = self.geometry.clip(access.extent);
        let Some(shadow) = self.shadow.as_mut() else { return };
        self.score.misses += 1;
        self.score.hits = self.score.hits.saturating_sub(1);
        let mut units = self.geometry.units_of(extent);
        self.score.late += u64::from(units.any(|unit| shadow.flights.over(unit)));
        self.geometry.units_of(extent).for_each(|unit| self.predictor.missed(self.now, unit));
    }

    fn covered(&mut self, extent: Extent, place: Place) {
        let extent = self.geometry.clip(extent);
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.place == place) else { return };
        self.allocated.insert(extent);
        shadow.cover(extent);
    }

    fn outdated(&mut self, extent: Extent, place: Place) {
        let extent = self.geometry.clip(extent);
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.place == place) else { return };
        self.allocated.insert(extent);
        for unit in self.geometry.units_of(extent) {
            shadow.flights.spoil(unit, extent);
        }
        self.uncover(extent);
    }

    /// The shadow no longer has `extent`: units that were whole are asked for once more, in a while.
    fn uncover(&mut self, extent: Extent) {
        let Some(shadow) = self.shadow.as_mut() else { return };
        let (whole, lost) = shadow.uncover(extent);
        for unit in whole {
            // A unit that is on its way is looked at again when its move ends.
            if !shadow.flights.over(unit) {
                shadow.plan.again(unit, self.now, Rest::Outdated);
            }
        }
        for unit in self.geometry.units_of(extent) {
            if shadow.take_unread(unit) {
                self.score.unused += 1;
                let share = lost.bytes().0.min(self.geometry.unit_bytes().0);
                self.score.wasted.0 += share;
            }
        }
    }

    fn settled(&mut self, outcome: Outcome) {
        let Some(shadow) = self.shadow.as_mut() else { return };
        let Some(flight) = shadow.flights.end(outcome.id) else { return };
        self.score.moved.0 += outcome.carried.0;
        let (unit, verb) = (flight.unit, flight.verb);
        match (verb, outcome.settled) {
            (_, Settled::Failed) => self.score.failed += 1,
            (Verb::Copy, Settled::Done | Settled::Needless) => {
                flight.sound().into_iter().for_each(|extent| shadow.cover(extent));
                if outcome.settled == Settled::Done {
                    shadow.brought(unit);
                }
            }
            (Verb::Drop, Settled::Done | Settled::Needless) => return self.dropped(unit),
        }
        if shadow.lacking.contains_any(self.geometry.extent_of(unit)) {
            let rest = if outcome.settled == Settled::Failed { Rest::Failed } else { Rest::Spoiled };
            shadow.plan.again(unit, self.now, rest);
        }
    }

    /// The place gave up its copy of `unit`: it is the last to be asked for again.
    fn dropped(&mut self, unit: UnitIndex) {
        let Some(shadow) = self.shadow.as_mut() else { return };
        let extent = self.geometry.extent_of(unit);
        let held: Vec<_> = extent.blocks().filter(|block| self.allocated.contains(*block)).collect();
        let mut lost = 0;
        for block in held {
            lost += shadow.uncover(Extent { start: block, len: BlockCount(1) }).1.0;
        }
        if lost > 0 {
            shadow.plan.again(unit, self.now, Rest::Outdated);
        }
        self.score.dropped += 1;
        if shadow.take_unread(unit) {
            self.score.unused += 1;
            self.score.wasted.0 += BlockCount(lost).bytes().0;
        }
    }

    /// What its predictor would have learned from, elsewhere: training costs too much to be done between two accesses.
    pub fn lesson(&mut self) -> Option<Lesson> {
        self.predictor.lesson()
    }

    /// What came of a lesson.
    pub fn adopt(&mut self, model: Model) {
        self.predictor.adopt(model);
    }

    /// This is known from elsewhere; what its predictor's sequence experts had learned is forgotten.
    pub fn know(&mut self, knowledge: Knowledge) {
        self.predictor.know(knowledge);
    }

    /// What its predictor has learned that another process should know again.
    pub fn experience(&self) -> Experience {
        self.predictor.experience()
    }

    /// The next move to begin, if there is one and the window has room: reactive forecasts first, then the
    /// background order. At most one move is on its way for each unit. O(1) beside the times at which the order is
    /// computed anew: after as many accesses as it has units.
    pub fn poll_move(&mut self) -> Option<Move> {
        if self.shadow.is_none() || self.window.0 == 0 {
            return None;
        }
        if self.accesses >= self.rank_at {
            self.rank();
        }
        if self.held() > self.bound() {
            return self.begin_drop();
        }
        let shadow = self.shadow.as_mut()?;
        let prefetch = shadow.plan.next_prefetch(self.now, &shadow.lacking, &shadow.flights);
        let (unit, priority, due) = match prefetch {
            Some(chance) => (chance.unit, Priority::Prefetch, chance.due),
            None => {
                let unit = shadow.plan.next_background(self.now, &shadow.lacking, &shadow.flights)?;
                (unit, Priority::Background, END)
            }
        };
        let extent = shadow.lacking.hull(self.geometry.extent_of(unit));
        let flying = shadow.flights.copying().0;
        if flying > 0 && flying + extent.bytes().0 > self.window.0 {
            return None;
        }
        match self.room_for(unit, extent) {
            Room::Copy => Some(self.begin(Flight::new(unit, extent, Verb::Copy, priority), due)),
            Room::Drop => self.begin_drop(),
            Room::Rest => None,
        }
    }

    /// The space budget, while one holds: only for a spare.
    fn bound(&self) -> Bytes {
        let spare = self.shadow.as_ref().is_some_and(|shadow| !shadow.switched);
        self.budget.filter(|_| spare).unwrap_or(Bytes(u64::MAX))
    }

    /// Bytes of copies at the place once all moves have ended.
    fn held(&self) -> Bytes {
        let Some(shadow) = &self.shadow else { return Bytes(0) };
        let present = BlockCount(self.allocated.count().0 - shadow.lacking.count().0).bytes().0;
        Bytes((present + shadow.flights.copying().0).saturating_sub(shadow.flights.dropping().0))
    }

    /// Whether the space budget, if one holds, has room for a copy of `unit`.
    fn room_for(&mut self, unit: UnitIndex, extent: Extent) -> Room {
        let (held, bound) = (self.held(), self.bound());
        if held.0.saturating_add(extent.bytes().0) <= bound.0 {
            return Room::Copy;
        }
        let worst = self.worst_spare().map(|(chance, _)| chance);
        room(held, extent.bytes(), bound, self.predictor.probability(self.now, unit), worst)
    }

    /// Makes the list of whole copies anew if it is old.
    fn renew_spares(&mut self) {
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.spares.is_stale(self.now)) else { return };
        let copies = (0..self.geometry.units()).map(UnitIndex).filter(|unit| {
            let extent = self.geometry.extent_of(*unit);
            self.allocated.contains_any(extent) && !shadow.lacking.contains_any(extent)
        });
        let chances = copies.map(|unit| (self.predictor.probability(self.now, unit), unit));
        shadow.spares.renew(self.now, chances);
    }

    fn worst_spare(&mut self) -> Option<(f32, UnitIndex)> {
        self.renew_spares();
        let Shadow { spares, lacking, flights, .. } = self.shadow.as_mut()?;
        spares.worst(|unit| !flights.over(unit) && !lacking.contains_any(self.geometry.extent_of(unit)))
    }

    fn begin_drop(&mut self) -> Option<Move> {
        let (_, unit) = self.worst_spare()?;
        let extent = self.geometry.extent_of(unit);
        Some(self.begin(Flight::new(unit, extent, Verb::Drop, Priority::Background), END))
    }

    fn begin(&mut self, flight: Flight, due: Instant) -> Move {
        let shadow = self.shadow.as_mut().expect("a move is begun only while there is a shadow");
        let (extent, verb, priority) = (flight.extent, flight.verb, flight.priority);
        if verb == Verb::Copy {
            shadow.plan.begun(flight.unit);
        }
        let id = shadow.flights.begin(flight);
        Move { id, resource: self.resource, extent, to: shadow.place, verb, priority, due }
    }

    /// Computes the background order anew.
    fn rank(&mut self) {
        let Some(shadow) = self.shadow.as_mut() else { return };
        let mut queue = shadow.plan.take_queue();
        self.predictor.rank(self.now, &shadow.lacking, &mut queue);
        self.rank_at = self.accesses + (queue.len() as u64).max(RANK_AFTER);
        shadow.plan.rerank(queue);
    }
}

/// The end of time: when background moves are due.
const END: Instant = Instant::from_nanos(u64::MAX);
/// The order is computed anew after as many accesses as it has units, and no sooner than after this many.
const RANK_AFTER: u64 = 4096;
