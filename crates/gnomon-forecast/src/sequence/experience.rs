//! What the sequence experts of one volume have learned, in a form that outlives their process.
//!
//! ```text
//!   experts ──keep──► Experience ──encode──► bytes … bytes ──decode──► Experience ──► experts that go on
//! ```
//! Kept are recorded boots, the rows of the tables, and a network that goes on learning. *Not* kept is anybody's standing:
//! whoever comes back has to earn being heard again, so that what was learned of another time can mislead nobody. Not
//! kept either is what is forgotten soon anyway: where the guest was, and sightings that were not enough to associate.

use gnomon_terms::ErrorKind;

use super::association;
use super::deltas;
use super::model::{Model, ModelError, number};
use super::recorded::{KEPT, Recording};
use super::tensors::{Numbers, Tensor, Tensors, TensorsError};
use crate::UnitIndex;

/// What a reader of this version reads. Another layout has another number.
const VERSION: &str = "1";

/// Rows of tables as they are kept; each expert knows its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub(super) deltas: Vec<[i32; deltas::KEPT_ROW]>,
    pub(super) partners: Vec<[i32; association::KEPT_ROW]>,
}

/// What is kept of one volume's experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Experience {
    /// Blocks in the units that all of it is about; 0 when there is nothing.
    pub blocks_per_unit: u32,
    /// Accesses that it was learned of, as its owner counts them; 0 in files that are older than this number.
    pub accesses: u64,
    /// Recorded boots, the latest last; four at most.
    pub recordings: Vec<Recording>,
    /// What the tables hold.
    pub tables: Tables,
    /// The network, where it goes on learning.
    pub network: Option<Model>,
}

/// Why bytes are no experience.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExperienceError {
    /// Not a file of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// A file of tensors, but of something else, or of another version.
    #[error("a file of tensors, but not what version {VERSION} of gnomon has learned: '{0}' means nothing here")]
    Foreign(&'static str),
    /// A table with rows that no expert writes.
    #[error("the table '{0}' has rows that cannot be")]
    Table(&'static str),
    /// The network in it is none.
    #[error("the network in it: {0}")]
    Network(ModelError),
}

impl ExperienceError {
    /// All of them: bytes that should be trustworthy are not.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl Tables {
    /// True when no row is kept.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.partners.is_empty()
    }
}

impl Experience {
    /// True when nothing was learned.
    pub fn is_empty(&self) -> bool {
        self.recordings.is_empty() && self.tables.is_empty() && self.network.is_none()
    }

    /// As bytes, less than 1 MiB beside the network. The same experience gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut tensors = Tensors::default();
        tensors.metadata.insert("experience".to_owned(), VERSION.to_owned());
        tensors.metadata.insert("unit".to_owned(), self.blocks_per_unit.to_string());
        tensors.metadata.insert("accesses".to_owned(), self.accesses.to_string());
        for (nth, recording) in self.recordings.iter().enumerate() {
            let units: Vec<i32> = recording.units().iter().map(|unit| unit.0.cast_signed()).collect();
            integers(&mut tensors, recording_name(nth), &[units.len()], units);
        }
        let Tables { deltas, partners } = &self.tables;
        integers(&mut tensors, "deltas", &[deltas.len(), deltas::KEPT_ROW], deltas.as_flattened().to_vec());
        integers(
            &mut tensors,
            "partners",
            &[partners.len(), association::KEPT_ROW],
            partners.as_flattened().to_vec(),
        );
        if let Some(network) = &self.network {
            network.write(&mut tensors);
        }
        tensors.encode()
    }

    /// Reads bytes that nobody vouches for.
    pub fn decode(bytes: &[u8]) -> Result<Experience, ExperienceError> {
        let tensors = Tensors::decode(bytes)?;
        if tensors.metadata.get("experience").map(String::as_str) != Some(VERSION) {
            return Err(ExperienceError::Foreign("experience"));
        }
        let blocks_per_unit = number(&tensors, "unit").map_err(|_| ExperienceError::Foreign("unit"))?;
        let accesses = match tensors.metadata.contains_key("accesses") {
            true => number(&tensors, "accesses").map_err(|_| ExperienceError::Foreign("accesses"))?,
            false => 0,
        };
        let recordings = (0..KEPT).filter_map(|nth| tensors.integers_of(recording_name(nth)));
        let recordings = recordings.map(recording).collect::<Option<_>>().ok_or(ExperienceError::Table("boot"))?;
        let deltas = rows(&tensors, "deltas", deltas::is_kept)?;
        let partners = rows(&tensors, "partners", association::is_kept)?;
        let has_network = tensors.metadata.contains_key("cell");
        let network = has_network.then(|| Model::read(&tensors)).transpose().map_err(ExperienceError::Network)?;
        if network.as_ref().is_some_and(|model| model.blocks_per_unit != blocks_per_unit) {
            return Err(ExperienceError::Foreign("unit"));
        }
        Ok(Experience { blocks_per_unit, accesses, recordings, tables: Tables { deltas, partners }, network })
    }
}

fn recording_name(nth: usize) -> &'static str {
    ["boot.0", "boot.1", "boot.2", "boot.3"][nth]
}

fn integers(tensors: &mut Tensors, name: &str, shape: &[usize], values: Vec<i32>) {
    let tensor = Tensor { shape: shape.to_vec(), numbers: Numbers::I32(values) };
    tensors.tensors.insert(name.to_owned(), tensor);
}

/// A recording that is as one is made: every unit once, and no more than are recorded.
fn recording(units: &[i32]) -> Option<Recording> {
    let path: Vec<UnitIndex> = units.iter().map(|unit| UnitIndex(unit.cast_unsigned())).collect();
    Some(Recording::of(&path)).filter(|recording| recording.len() == path.len())
}

fn rows<const N: usize>(
    tensors: &Tensors,
    name: &'static str,
    is_kept: fn(&[[i32; N]]) -> bool,
) -> Result<Vec<[i32; N]>, ExperienceError> {
    let values = tensors.integers_of(name).ok_or(ExperienceError::Foreign(name))?;
    let (rows, rest) = values.as_chunks::<N>();
    match rest.is_empty() && is_kept(rows) {
        true => Ok(rows.to_vec()),
        false => Err(ExperienceError::Table(name)),
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::Instant;
    use proptest::prelude::*;

    use super::*;
    use crate::sequence::{AssociationExpert, DeltaExpert, Foreseen, Order, RecordedExpert, SequenceExpert};
    use crate::sequence::{Cell, Network, Shape, Vocabulary};

    /// A boot of scattered units, then pairs that are read together, then a stride.
    fn life() -> Vec<UnitIndex> {
        let boot = (0..200u32).map(|n| n.wrapping_mul(7919) % 10_007);
        let pair = |n: u32| [20_000 + n % 100 * 50, 400_000 + (n % 100) * 31, 500_000 + n * 977];
        let stride = (0..200u32).map(|n| 100_000 + n * 7);
        boot.chain((0..1200).flat_map(pair)).chain(stride).map(UnitIndex).collect()
    }

    fn experts() -> Vec<Box<dyn SequenceExpert>> {
        vec![
            Box::new(RecordedExpert::new(Vec::new())),
            Box::new(DeltaExpert::new(Order::Two)),
            Box::<AssociationExpert>::default(),
        ]
    }

    fn lived() -> Experience {
        let mut experts = experts();
        for (nth, unit) in life().into_iter().enumerate() {
            experts.iter_mut().for_each(|expert| expert.read(Instant::from_micros(nth as u64 * 1000), unit));
        }
        let mut experience = Experience { blocks_per_unit: 16, accesses: 1 << 40, ..Experience::default() };
        experts.iter().for_each(|expert| expert.keep(&mut experience));
        experience
    }

    fn with_network() -> Experience {
        let vocabulary = Vocabulary::new(vec![1, -1, 300]).unwrap();
        let network = Network::seeded(Shape { cell: Cell::Gru, tokens: 4, hidden: 3 }, 9);
        let model = Model { network, vocabulary, blocks_per_unit: 16, about: Default::default() };
        Experience { network: Some(model), ..lived() }
    }

    fn foreseen(expert: &mut dyn SequenceExpert, path: &[u32]) -> Vec<Foreseen> {
        let mut out = Vec::new();
        let at = |nth: usize| Instant::from_micros(nth as u64 * 1000);
        path.iter().enumerate().for_each(|(nth, unit)| expert.read(at(nth), UnitIndex(*unit)));
        expert.foresee(&mut out);
        out
    }

    #[test]
    fn what_is_written_is_read_and_a_table_goes_on_where_it_was() {
        for experience in [Experience::default(), lived(), with_network()] {
            let bytes = experience.encode();
            assert_eq!(Experience::decode(&bytes), Ok(experience.clone()));
            assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        }
        let kept = Experience::decode(&lived().encode()).unwrap();
        let path = [900_000, 900_007];
        let mut deltas = DeltaExpert::knowing(Order::Two, &kept.tables);
        assert_eq!(foreseen(&mut deltas, &path)[0].unit, UnitIndex(900_014));
        assert_eq!(foreseen(&mut DeltaExpert::new(Order::Two), &path), [], "two reads alone teach nothing");
        let mut pairs = AssociationExpert::knowing(&kept.tables);
        let partner = foreseen(&mut pairs, &[20_000 + 7 * 50]);
        assert!(partner.iter().any(|found| found.unit == UnitIndex(400_000 + 7 * 31)), "{partner:?}");
    }

    #[test]
    fn a_file_that_does_not_say_of_how_much_it_was_learned_is_read() {
        let mut tensors = Tensors::decode(&lived().encode()).unwrap();
        tensors.metadata.remove("accesses");
        assert_eq!(Experience::decode(&tensors.encode()), Ok(Experience { accesses: 0, ..lived() }));
    }

    #[test]
    fn a_boot_that_is_under_way_is_kept_unless_it_is_one_that_is_known() {
        let read = |expert: &mut RecordedExpert, most: usize| {
            let units = life().into_iter().take(most).enumerate();
            units.for_each(|(nth, unit)| expert.read(Instant::from_micros(nth as u64 * 1000), unit));
        };
        let kept = |expert: &RecordedExpert| {
            let mut experience = Experience::default();
            expert.keep(&mut experience);
            experience.recordings.iter().map(Recording::len).collect::<Vec<_>>()
        };
        let mut first = RecordedExpert::new(Vec::new());
        read(&mut first, 10);
        assert_eq!(kept(&first), [0; 0], "ten reads are no boot");
        read(&mut first, 200);
        assert_eq!(kept(&first), [200]);
        let mut second = RecordedExpert::new(vec![Recording::of(&life()[..200])]);
        read(&mut second, 60);
        assert_eq!(kept(&second), [200], "sixty reads of it do not take the place of all");
    }

    #[test]
    fn rows_that_cannot_be_are_refused() {
        type Change = fn(&mut Tensors);
        fn first(tensors: &mut Tensors, name: &str, at: usize, value: i32) {
            let Numbers::I32(values) = &mut tensors.tensors.get_mut(name).unwrap().numbers else { panic!() };
            values[at] = value;
        }
        let table: [(Change, ExperienceError); 9] = [
            (|t| drop(t.metadata.remove("experience")), ExperienceError::Foreign("experience")),
            (|t| drop(t.metadata.insert("experience".into(), "2".into())), ExperienceError::Foreign("experience")),
            (|t| drop(t.metadata.insert("unit".into(), "8".into())), ExperienceError::Foreign("unit")),
            (|t| drop(t.metadata.insert("accesses".into(), "-1".into())), ExperienceError::Foreign("accesses")),
            (|t| drop(t.tensors.remove("deltas")), ExperienceError::Foreign("deltas")),
            (|t| first(t, "deltas", 0, 1 << 20), ExperienceError::Table("deltas")),
            (|t| first(t, "partners", 0, -1), ExperienceError::Table("partners")),
            (|t| first(t, "boot.0", 1, 0), ExperienceError::Table("boot")),
            (|t| drop(t.tensors.remove("bias")), ExperienceError::Network(ModelError::Part("bias"))),
        ];
        for (change, expected) in table {
            let mut tensors = Tensors::decode(&with_network().encode()).unwrap();
            change(&mut tensors);
            let error = Experience::decode(&tensors.encode()).unwrap_err();
            assert_eq!((&error, error.kind()), (&expected, ErrorKind::Corrupt));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_bytes_are_refused_or_harmless(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut bytes = with_network().encode();
            let len = bytes.len();
            flips.into_iter().for_each(|(at, with)| bytes[at % len] = with);
            if let Ok(kept) = Experience::decode(&bytes) {
                for expert in [
                    &mut DeltaExpert::knowing(Order::Two, &kept.tables) as &mut dyn SequenceExpert,
                    &mut AssociationExpert::knowing(&kept.tables),
                    &mut RecordedExpert::new(kept.recordings),
                ] {
                    foreseen(expert, &[0, 7, 14, 21, 20_000]);
                }
            }
        }
    }
}
