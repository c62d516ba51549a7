//! The volume plane, as the loop sees it: one volume behind the plug [`Plane`].

use std::sync::Arc;

use gnomon_terms::{Access, Event, Move, Op, Place, Plane, ResourceId, Routes};

use crate::{
    mover::{Mover, Phase},
    shadow::Shadow,
    tap::Tap,
};

/// Who carries for a volume at present.
#[derive(Clone, Default)]
pub enum Carrier {
    /// Nobody: no move is on, the loop only watches.
    #[default]
    Nobody,
    /// This host is the source of a move.
    Source {
        /// The engine.
        mover: Arc<Mover>,
        /// Where the shadow is.
        place: Place,
        /// Where the guest runs.
        phase: Phase,
    },
    /// This host is the destination: accesses are passed on to the loop at the source.
    Destination(Arc<Shadow>),
}

/// One volume's events and moves.
pub struct VolumePlane {
    resource: ResourceId,
    tap: Arc<Tap>,
    carrier: Carrier,
    scratch: Vec<Event>,
}

impl VolumePlane {
    /// A plane over a volume's tap.
    pub fn new(resource: ResourceId, tap: Arc<Tap>) -> VolumePlane {
        VolumePlane { resource, tap, carrier: Carrier::Nobody, scratch: Vec::new() }
    }

    /// Who carries.
    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// Changes who carries.
    pub fn set_carrier(&mut self, carrier: Carrier) {
        self.carrier = carrier;
    }

    /// What a write at the source means for the copy: it is out of date.
    fn outdated_by(&self, access: &Access) -> Option<Event> {
        let Carrier::Source { place, phase: Phase::Priming, .. } = &self.carrier else { return None };
        let (resource, extent, place) = (self.resource, access.extent, *place);
        (access.op != Op::Read).then_some(Event::Outdated { resource, extent, place })
    }
}

impl Plane for VolumePlane {
    fn drain(&mut self, into: &mut Vec<Event>) {
        self.scratch.clear();
        self.tap.drain(&mut self.scratch);
        if let Carrier::Destination(shadow) = &self.carrier {
            shadow.report(&self.scratch);
        }
        for event in &self.scratch {
            into.push(*event);
            if let Event::Accessed(access) = event {
                into.extend(self.outdated_by(access));
            }
        }
    }

    /// A move that nobody can carry is passed over: whoever ended the move has told the loop so.
    fn begin(&mut self, mv: Move) {
        if let Carrier::Source { mover, .. } = &self.carrier {
            mover.begin(mv);
        }
    }

    /// The layered disk serves each block from where it is valid, which is newer than any snapshot.
    fn adopt(&mut self, _routes: Arc<Routes>) {}
}
