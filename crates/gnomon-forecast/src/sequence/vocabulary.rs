//! What a sequence model reads: how far each read is from the one before, as a small number.
//!
//! ```text
//!   reads of units   7 8 8 9 107 9 …      the same unit again is one read
//!   deltas             +1  +1 +98 -98     in units
//!   tokens              3   3   1   2     the commonest deltas have one each; all others share the escape, 0
//! ```
//! Deltas instead of places: a loop over a file looks the same wherever the file is. What the escape hides cannot be
//! forecast, which is what bounds the network.

use gnomon_terms::{Access, Op};

use crate::{Geometry, UnitIndex};

/// Tokens at most, the escape among them: 256 deltas hold more than nine tenths of what can be foretold at all in the
/// traces that were looked at, and a network's cost grows with them.
pub const MAX_TOKENS: usize = 256;

/// The token of every delta that has none of its own.
pub const ESCAPE: u16 = 0;

/// Which deltas have a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// The delta of token `n + 1`.
    deltas: Vec<i32>,
    /// Delta and token, by delta.
    by_delta: Vec<(i32, u16)>,
}

/// Why deltas make no vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// More than there are tokens.
    #[error("{0} deltas for at most {most} tokens", most = MAX_TOKENS - 1)]
    TooMany(usize),
    /// A delta that is zero (it is no move) or there twice.
    #[error("the delta {0} is there twice, or is no move")]
    Repeated(i32),
}

impl Vocabulary {
    /// One token for each of `deltas`, in this order.
    pub fn new(deltas: Vec<i32>) -> Result<Vocabulary, VocabularyError> {
        if deltas.len() >= MAX_TOKENS {
            return Err(VocabularyError::TooMany(deltas.len()));
        }
        let mut by_delta: Vec<(i32, u16)> = deltas.iter().copied().zip(1..).collect();
        by_delta.sort_unstable();
        let twice = by_delta.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0);
        if let Some(delta) = twice.or(deltas.iter().copied().find(|delta| *delta == 0)) {
            return Err(VocabularyError::Repeated(delta));
        }
        Ok(Vocabulary { deltas, by_delta })
    }

    /// The commonest deltas of `paths`, as many as make `tokens` with the escape (2 to [`MAX_TOKENS`]); of two that are
    /// as common, the shorter. A delta that was seen once is no habit and gets none.
    pub fn of(paths: &[&[UnitIndex]], tokens: usize) -> Vocabulary {
        let steps = paths.iter().flat_map(|path| path.windows(2));
        let mut seen: Vec<i32> = steps.filter_map(|pair| delta(pair[0], pair[1])).collect();
        seen.sort_unstable();
        let mut counted: Vec<(usize, i32)> = seen.chunk_by(|a, b| a == b).map(|same| (same.len(), same[0])).collect();
        counted.retain(|(count, delta)| *count > 1 && *delta != 0);
        counted.sort_unstable_by_key(|(count, delta)| (usize::MAX - count, delta.unsigned_abs(), *delta));
        counted.truncate(tokens.clamp(2, MAX_TOKENS) - 1);
        let deltas = counted.into_iter().map(|(_, delta)| delta).collect();
        Vocabulary::new(deltas).expect("counted deltas are few, apart and no zero")
    }

    /// How many tokens there are, the escape among them.
    pub fn tokens(&self) -> usize {
        self.deltas.len() + 1
    }

    /// The deltas of the tokens from 1 on.
    pub fn deltas(&self) -> &[i32] {
        &self.deltas
    }

    /// The token of the step from one unit to another.
    pub fn token(&self, from: UnitIndex, to: UnitIndex) -> u16 {
        let found =
            delta(from, to).and_then(|delta| self.by_delta.binary_search_by_key(&delta, |entry| entry.0).ok());
        found.map_or(ESCAPE, |at| self.by_delta[at].1)
    }

    /// Where a token leads from `unit`; nowhere for the escape, an unknown token, and past the ends of what 32 bits
    /// count.
    pub fn follow(&self, unit: UnitIndex, token: u16) -> Option<UnitIndex> {
        let delta = self.deltas.get(usize::from(token).checked_sub(1)?)?;
        unit.0.checked_add_signed(*delta).map(UnitIndex)
    }

    /// The tokens of a whole path: one fewer than it has units.
    pub fn tokens_of(&self, path: &[UnitIndex]) -> Vec<u16> {
        path.windows(2).map(|pair| self.token(pair[0], pair[1])).collect()
    }
}

/// The signed distance, if 32 bits hold it.
pub(super) fn delta(from: UnitIndex, to: UnitIndex) -> Option<i32> {
    i32::try_from(i64::from(to.0) - i64::from(from.0)).ok()
}

/// The units that were read, in order, each once however often it is read in a row. Of a long request the first unit and
/// the last: what matters is where it begins and where the next one does.
pub fn path_of(geometry: Geometry, accesses: &[Access]) -> Vec<UnitIndex> {
    let mut path: Vec<UnitIndex> = Vec::new();
    for access in accesses.iter().filter(|access| access.op == Op::Read) {
        for unit in ends(geometry, access).into_iter().flatten() {
            if path.last() != Some(&unit) {
                path.push(unit);
            }
        }
    }
    path
}

/// The first and the last unit of a request; the last only if it is another one.
pub(crate) fn ends(geometry: Geometry, access: &Access) -> [Option<UnitIndex>; 2] {
    let mut units = geometry.units_of(access.extent);
    let first = units.next();
    // By arithmetic: a request may have many units, and this is asked for each.
    let extent = geometry.clip(access.extent);
    let last = extent.end().0.saturating_sub(1) / u64::from(geometry.blocks_per_unit());
    let last = first.map(|_| UnitIndex(last as u32)).filter(|last| Some(*last) != first);
    [first, last]
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_terms::{BlockCount, Extent, Instant, ResourceId};
    use proptest::prelude::*;

    fn units(path: &[u32]) -> Vec<UnitIndex> {
        path.iter().copied().map(UnitIndex).collect()
    }

    #[test]
    fn the_commonest_deltas_have_tokens() {
        let path = units(&[0, 1, 2, 3, 103, 104, 204, 205, 7]);
        let vocabulary = Vocabulary::of(&[&path], 3);
        assert_eq!(vocabulary.deltas(), [1, 100]);
        assert_eq!(vocabulary.tokens_of(&path), [1, 1, 1, 2, 1, 2, 1, ESCAPE]);
        assert_eq!(vocabulary.follow(UnitIndex(5), 2), Some(UnitIndex(105)));
        assert_eq!(vocabulary.follow(UnitIndex(u32::MAX), 1), None);
        assert_eq!((vocabulary.follow(UnitIndex(5), ESCAPE), vocabulary.follow(UnitIndex(5), 9)), (None, None));
    }

    #[test]
    fn foreign_deltas_are_checked() {
        assert_eq!(Vocabulary::new(vec![3, 0]), Err(VocabularyError::Repeated(0)));
        assert_eq!(Vocabulary::new(vec![3, 4, 3]), Err(VocabularyError::Repeated(3)));
        assert_eq!(Vocabulary::new((1..=256).collect()), Err(VocabularyError::TooMany(256)));
        assert_eq!(Vocabulary::new(Vec::new()).unwrap().tokens(), 1);
    }

    #[test]
    fn a_path_has_the_ends_of_reads() {
        let geometry = Geometry::new(BlockCount(160), 16).unwrap();
        let access = |start, len, op| Access {
            at: Instant::ORIGIN,
            resource: ResourceId(0),
            extent: Extent::new(start, len),
            op,
        };
        let story = [(0, 1), (4, 1), (16, 48), (63, 1), (1000, 1)].map(|(start, len)| access(start, len, Op::Read));
        let mut story = story.to_vec();
        story.push(access(100, 1, Op::Write));
        assert_eq!(path_of(geometry, &story), units(&[0, 1, 3]));
    }

    proptest! {
        #[test]
        fn what_has_a_token_is_found_again(path in prop::collection::vec(any::<u32>(), 0..200), tokens in 0usize..400) {
            let path = units(&path);
            let vocabulary = Vocabulary::of(&[&path], tokens);
            prop_assert!(vocabulary.tokens() <= tokens.clamp(2, MAX_TOKENS));
            for pair in path.windows(2) {
                let token = vocabulary.token(pair[0], pair[1]);
                prop_assert!(token == ESCAPE || vocabulary.follow(pair[0], token) == Some(pair[1]));
            }
        }
    }
}
