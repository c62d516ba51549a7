//! State by user, bounded: whoever was not seen for longest is forgotten first.

use std::collections::BTreeMap;

use super::Who;

/// Users that are remembered.
pub(super) const MAX_WHO: usize = 4096;

/// What is known of each user.
#[derive(Clone, Debug)]
pub(super) struct ByWho<T> {
    all: BTreeMap<Who, (u64, T)>,
    by_age: BTreeMap<u64, Who>,
    clock: u64,
}

impl<T> Default for ByWho<T> {
    fn default() -> ByWho<T> {
        ByWho { all: BTreeMap::new(), by_age: BTreeMap::new(), clock: 0 }
    }
}

impl<T: Default> ByWho<T> {
    /// What is known of a user.
    pub(super) fn get(&self, who: Who) -> Option<&T> {
        self.all.get(&who).map(|(_, known)| known)
    }

    /// What is known of a user that is seen now; one new to us may cost another's place.
    pub(super) fn seen(&mut self, who: Who) -> &mut T {
        self.clock += 1;
        if let Some((age, _)) = self.all.get(&who) {
            self.by_age.remove(age);
        } else if self.all.len() == MAX_WHO
            && let Some((_, forgotten)) = self.by_age.pop_first()
        {
            self.all.remove(&forgotten);
        }
        self.by_age.insert(self.clock, who);
        let known = self.all.entry(who).or_default();
        known.0 = self.clock;
        &mut known.1
    }

    /// All that is known.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.all.values().map(|(_, known)| known)
    }

    /// Bytes of the maps.
    pub(super) fn bytes(&self) -> usize {
        self.all.len() * size_of::<(Who, (u64, T))>() + self.by_age.len() * size_of::<(u64, Who)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_seen_for_longest_goes() {
        let mut all = ByWho::<u32>::default();
        (0..MAX_WHO as Who).for_each(|who| *all.seen(who) += 1);
        *all.seen(0) += 1;
        all.seen(u64::MAX);
        assert_eq!((all.get(0), all.get(1), all.get(u64::MAX)), (Some(&2), None, Some(&0)));
        assert_eq!(all.all.len(), MAX_WHO);
        assert_eq!(all.by_age.len(), MAX_WHO);
    }
}
