//! What is known of a volume's extents: where their copy is, how much of it, and how likely they are to be read.
//!
//! One record for each 1,024 units of a volume (64 MiB of it), so that a change rewrites 4 KiB and a volume of 1 TiB
//! has 16 thousand records:
//!
//! ```text
//!   key    extent/VOLUME/CHUNK        CHUNK in 8 hex digits
//!   value  4 bytes a unit:  place u16 le · covered u8 (blocks) · chance u8 (255 = sure)
//! ```
//! Nothing here decides anything: coverage is recomputed from the maps at every start. It is what an operator looks
//! at, and what a restarted loop may begin its ranks with.

use gnomon_terms::Place;

use crate::store::{Store, StoreError};

/// Units described by one record.
pub const UNITS_PER_RECORD: usize = 1024;

/// Bytes of one unit in a record.
const UNIT_LEN: usize = 4;

/// What is known of one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnitFacts {
    /// Where its copy is, or is to be.
    pub place: Place,
    /// Blocks of it that are valid there, 0 to 255.
    pub covered: u8,
    /// The chance that it is read, 0 to 1, kept in 1/255.
    pub chance: f32,
}

/// The facts of one volume's units, with the records that changed since they were stored.
#[derive(Clone, Debug, Default)]
pub struct ExtentTable {
    volume: String,
    units: Vec<UnitFacts>,
    changed: std::collections::BTreeSet<usize>,
}

impl ExtentTable {
    /// Nothing is known of the `units` units of `volume`.
    pub fn new(volume: &str, units: usize) -> ExtentTable {
        ExtentTable { volume: volume.to_string(), units: vec![UnitFacts::default(); units], ..ExtentTable::default() }
    }

    /// What the store knows of them; units it does not know keep their defaults.
    pub fn load(volume: &str, units: usize, store: &dyn Store) -> Result<ExtentTable, StoreError> {
        let mut table = ExtentTable::new(volume, units);
        for chunk in 0..units.div_ceil(UNITS_PER_RECORD) {
            let key = table.key(chunk);
            if let Some(record) = store.get(&key)? {
                let first = chunk * UNITS_PER_RECORD;
                let last = (first + UNITS_PER_RECORD).min(units);
                decode(&key, &record.value, &mut table.units[first..last])?;
            }
        }
        Ok(table)
    }

    /// What is known of a unit; `None` past the end.
    pub fn get(&self, unit: usize) -> Option<UnitFacts> {
        self.units.get(unit).copied()
    }

    /// Notes what is known of a unit now; past the end it is passed over.
    pub fn set(&mut self, unit: usize, facts: UnitFacts) {
        if let Some(known) = self.units.get_mut(unit)
            && *known != facts
        {
            *known = facts;
            self.changed.insert(unit / UNITS_PER_RECORD);
        }
    }

    /// Stores the records that changed, in one commit.
    pub fn store(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let records: Vec<(String, Vec<u8>)> =
            self.changed.iter().map(|chunk| (self.key(*chunk), self.encode(*chunk))).collect();
        if !records.is_empty() {
            store.put_all(&records)?;
            self.changed.clear();
        }
        Ok(())
    }

    /// Removes what the store knows of `volume`.
    pub fn forget(volume: &str, store: &dyn Store) -> Result<(), StoreError> {
        for (key, _) in store.scan(&format!("extent/{volume}/"))? {
            store.delete(&key)?;
        }
        Ok(())
    }

    fn key(&self, chunk: usize) -> String {
        format!("extent/{}/{chunk:08x}", self.volume)
    }

    fn encode(&self, chunk: usize) -> Vec<u8> {
        let first = chunk * UNITS_PER_RECORD;
        let last = (first + UNITS_PER_RECORD).min(self.units.len());
        self.units[first..last].iter().flat_map(|facts| facts.to_bytes()).collect()
    }
}

impl UnitFacts {
    fn to_bytes(self) -> [u8; UNIT_LEN] {
        let place = u16::try_from(self.place.0).unwrap_or(u16::MAX).to_le_bytes();
        [place[0], place[1], self.covered, (self.chance.clamp(0.0, 1.0) * 255.0).round() as u8]
    }

    fn from_bytes(bytes: [u8; UNIT_LEN]) -> UnitFacts {
        let place = Place(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])));
        UnitFacts { place, covered: bytes[2], chance: f32::from(bytes[3]) / 255.0 }
    }
}

fn decode(key: &str, value: &[u8], into: &mut [UnitFacts]) -> Result<(), StoreError> {
    let (units, rest) = value.as_chunks::<UNIT_LEN>();
    if !rest.is_empty() || units.len() != into.len() {
        let what = format!("{} bytes for {} units of {UNIT_LEN}", value.len(), into.len());
        return Err(StoreError::Corrupt { key: key.to_string(), what });
    }
    for (known, bytes) in into.iter_mut().zip(units) {
        *known = UnitFacts::from_bytes(*bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStore;

    const SURE: UnitFacts = UnitFacts { place: Place(1), covered: 16, chance: 1.0 };

    #[test]
    fn facts_come_back_from_the_store() {
        let store = MemStore::default();
        let mut table = ExtentTable::new("root", 3000);
        table.set(0, SURE);
        table.set(2999, UnitFacts { covered: 3, ..SURE });
        table.set(5000, SURE);
        table.store(&store).expect("store");
        assert_eq!(store.scan("extent/root/").expect("scan").len(), 2, "only what changed is written");
        let again = ExtentTable::load("root", 3000, &store).expect("load");
        assert_eq!(again.get(0), Some(SURE));
        assert_eq!(again.get(2999).map(|facts| facts.covered), Some(3));
        assert_eq!(again.get(1), Some(UnitFacts::default()));
        assert_eq!(again.get(3000), None);
        ExtentTable::forget("root", &store).expect("forget");
        assert!(store.scan("extent/").expect("scan").is_empty());
    }

    #[test]
    fn a_damaged_record_is_told() {
        let store = MemStore::default();
        for damaged in [vec![1u8; 7], vec![0; 4 * 2000]] {
            store.put("extent/root/00000000", &damaged).expect("put");
            let error = ExtentTable::load("root", 1024, &store).expect_err("damaged");
            assert_eq!(error.kind(), gnomon_terms::ErrorKind::Corrupt);
        }
    }
}
