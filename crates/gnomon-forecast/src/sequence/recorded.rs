//! Record and replay of boots: what a volume's guest read when it started is what it reads when it starts again.
//!
//! ```text
//!   a read of the first unit after a rest ──► an episode begins: first reads are recorded in order, and each recording
//!                                             is followed: is what is read now in it, near where it was last?
//!   followed well ──► what comes next in the recording is foreseen; its rest is the order of the background
//!   8,192 units, or two minutes ──► the episode is over and is itself a recording (the oldest of four gives way)
//! ```
//! A machine's firmware reads the first sector before anything else, so this is where boots begin; whatever else begins
//! there is recorded too and followed only if it comes again.
//!
//! Source: Ustiugov et al., "Benchmarking, analysis, and optimization of serverless function snapshots" (REAP, ASPLOS
//! 2021), for recording a start's working set in order and fetching it ahead.

use std::{collections::HashSet, time::Duration};

use gnomon_terms::{Bytes, Instant};

use super::experience::Experience;
use super::expert::{Foreseen, SequenceExpert};
use crate::UnitIndex;

/// Units of a recording at most: 512 MiB at 64 KiB; booting Debian touches 190 MiB.
const LONGEST: usize = 8192;
/// How long an episode lasts at most: under emulation a boot takes a minute.
const LASTS: Duration = Duration::from_secs(120);
/// A read of the first unit begins an episode after a rest this long, so that tools that look at the partition table of
/// a running guest do not.
const REST: Duration = Duration::from_secs(5);
/// Recordings kept.
pub(super) const KEPT: usize = 4;
/// First reads after which a recording can be recognised.
const PROOF: u32 = 16;
/// The share of recent first reads that must be in a recording, near where they should be.
const RECOGNISED: f32 = 0.5;
/// How far from its place in the recording a read may be: requests of several readers overtake each other.
const NEAR: u32 = 256;
/// Units that are foreseen at a time.
const AHEAD: usize = 16;

/// The units that a guest read, in the order of their first reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    units: Vec<UnitIndex>,
    /// Unit and place, by unit.
    places: Vec<(UnitIndex, u32)>,
}

impl Recording {
    /// The first reads of a path, the first 8,192 of them.
    pub fn of(path: &[UnitIndex]) -> Recording {
        let mut seen = HashSet::new();
        let units: Vec<UnitIndex> = path.iter().copied().filter(|unit| seen.insert(*unit)).take(LONGEST).collect();
        let mut places: Vec<(UnitIndex, u32)> = units.iter().copied().zip(0..).collect();
        places.sort_unstable();
        Recording { units, places }
    }

    /// How many units it has.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// True when nothing was read.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The units, in order.
    pub fn units(&self) -> &[UnitIndex] {
        &self.units
    }

    fn place(&self, unit: UnitIndex) -> Option<u32> {
        self.places.binary_search_by_key(&unit, |entry| entry.0).ok().map(|at| self.places[at].1)
    }
}

/// How well a recording is followed by the episode under way.
#[derive(Clone, Copy, Debug, Default)]
struct Follow {
    /// The place after the last read that was near.
    at: u32,
    /// The share of recent first reads that were near.
    share: f32,
}

/// The first reads since the guest began.
#[derive(Clone, Debug)]
struct Episode {
    since: Instant,
    seen: HashSet<UnitIndex>,
    path: Vec<UnitIndex>,
    follows: Vec<Follow>,
}

/// The recordings, and the episode under way.
#[derive(Clone, Debug, Default)]
pub struct RecordedExpert {
    recordings: Vec<Recording>,
    episode: Option<Episode>,
    last_read: Option<Instant>,
}

impl RecordedExpert {
    /// Knows these recordings from the start; of more than four the last ones.
    pub fn new(mut recordings: Vec<Recording>) -> RecordedExpert {
        recordings.drain(..recordings.len().saturating_sub(KEPT));
        RecordedExpert { recordings, episode: None, last_read: None }
    }

    /// The recordings, the latest last.
    pub fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    fn begin(&mut self, at: Instant) {
        self.end();
        let follows = vec![Follow::default(); self.recordings.len()];
        self.episode = Some(Episode { since: at, seen: HashSet::new(), path: Vec::new(), follows });
    }

    /// The episode is over: it is a recording now. One that is too short to be recognised is forgotten; one that
    /// followed a recording to its end takes that one's place.
    fn end(&mut self) {
        let Some(episode) = self.episode.take().filter(|episode| episode.path.len() >= PROOF as usize) else {
            return;
        };
        match episode.best() {
            Some((same, _)) => drop(self.recordings.remove(same)),
            None if self.recordings.len() == KEPT => drop(self.recordings.remove(0)),
            None => {}
        }
        self.recordings.push(Recording::of(&episode.path));
    }

    /// The recording that is followed best, if any is followed, and where in it the guest is.
    fn followed(&self) -> Option<(&Recording, &Episode, Follow)> {
        let episode = self.episode.as_ref()?;
        let (which, follow) = episode.best()?;
        Some((&self.recordings[which], episode, follow))
    }
}

impl Episode {
    fn best(&self) -> Option<(usize, Follow)> {
        let proven = self.follows.iter().copied().enumerate().filter(|(_, follow)| follow.share >= RECOGNISED);
        let best = proven.max_by(|a, b| a.1.share.total_cmp(&b.1.share))?;
        (self.path.len() >= PROOF as usize).then_some(best)
    }

    fn read(&mut self, unit: UnitIndex, recordings: &[Recording]) {
        if !self.seen.insert(unit) {
            return;
        }
        self.path.push(unit);
        for (follow, recording) in self.follows.iter_mut().zip(recordings) {
            let place = recording.place(unit).filter(|place| place.abs_diff(follow.at) <= NEAR);
            // A mean over all first reads while they are few, and over about the last 32 later.
            let weight = 1.0 / self.path.len().min(32) as f32;
            follow.share += weight * (f32::from(u8::from(place.is_some())) - follow.share);
            follow.at = place.map_or(follow.at, |place| follow.at.max(place + 1));
        }
    }
}

impl SequenceExpert for RecordedExpert {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn read(&mut self, at: Instant, unit: UnitIndex) {
        let rested = self.last_read.replace(at).is_none_or(|last| at.since(last) >= REST);
        if unit == UnitIndex(0) && rested {
            self.begin(at);
        }
        let Some(episode) = &mut self.episode else { return };
        if at.since(episode.since) > LASTS || episode.path.len() == LONGEST {
            return self.end();
        }
        episode.read(unit, &self.recordings);
    }

    fn foresee(&mut self, out: &mut Vec<Foreseen>) {
        let Some((recording, episode, follow)) = self.followed() else { return };
        let next = recording.units.iter().skip(follow.at as usize).filter(|unit| !episode.seen.contains(unit));
        out.extend(next.take(AHEAD).map(|unit| Foreseen { unit: *unit, sureness: follow.share }));
    }

    fn rest(&self, out: &mut Vec<UnitIndex>) {
        let Some((recording, episode, follow)) = self.followed() else { return };
        let unread = |unit: &&UnitIndex| !episode.seen.contains(unit);
        out.extend(recording.units.iter().skip(follow.at as usize).filter(unread));
    }

    /// The recordings. A boot under way is one as far as it has come, unless it is one that is known: then that is longer.
    fn keep(&self, into: &mut Experience) {
        into.recordings.clone_from(&self.recordings);
        let new = self.episode.as_ref().filter(|episode| episode.path.len() >= PROOF as usize);
        if let Some(new) = new.filter(|episode| episode.best().is_none()) {
            into.recordings.drain(..(self.recordings.len() + 1).saturating_sub(KEPT));
            into.recordings.push(Recording::of(&new.path));
        }
    }

    fn bytes(&self) -> Bytes {
        let recorded: usize = self.recordings.iter().map(|recording| recording.units.capacity() * 12).sum();
        let episode =
            self.episode.as_ref().map_or(0, |episode| episode.seen.capacity() * 5 + episode.path.capacity() * 4);
        Bytes((recorded + episode) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot of `units` units in a scattered order, the same each time but for one in ten.
    fn boot(units: u32, salt: u32) -> Vec<UnitIndex> {
        let unit = |n: u32| match (n, n % 10) {
            (0, _) => UnitIndex(0),
            (_, 9) => UnitIndex(1_000_000 + n * 17 + salt * 100_000),
            _ => UnitIndex(n.wrapping_mul(7919) % 100_003 + 1),
        };
        (0..units).map(unit).collect()
    }

    fn read(expert: &mut RecordedExpert, from_s: u64, path: &[UnitIndex]) {
        for (nth, unit) in path.iter().enumerate() {
            expert.read(Instant::from_micros(from_s * 1_000_000 + nth as u64 * 1000), *unit);
        }
    }

    #[test]
    fn a_boot_that_comes_again_is_recognised_and_its_rest_foretold() {
        let mut expert = RecordedExpert::new(vec![Recording::of(&boot(400, 1))]);
        let (mut out, mut rest, second) = (Vec::new(), Vec::new(), boot(400, 2));
        read(&mut expert, 0, &second[..10]);
        expert.foresee(&mut out);
        assert!(out.is_empty(), "ten reads prove nothing");
        read(&mut expert, 1, &second[10..100]);
        expert.foresee(&mut out);
        expert.rest(&mut rest);
        let to_come: HashSet<_> = second[100..].iter().collect();
        let right = rest.iter().filter(|unit| to_come.contains(unit)).count();
        assert!(out.len() == AHEAD && out[0].sureness > 0.8, "{out:?}");
        assert!(right >= 260 && rest.len() <= 310, "{right} of {}", rest.len());
    }

    #[test]
    fn a_boot_is_recorded_by_itself_and_replaced_by_the_next() {
        let mut expert = RecordedExpert::default();
        read(&mut expert, 0, &boot(300, 1));
        read(&mut expert, 1000, &boot(40, 2)[..39]);
        assert_eq!(expert.recordings().len(), 1);
        assert_eq!(expert.recordings()[0].len(), 300);
        let mut out = Vec::new();
        expert.foresee(&mut out);
        assert!(!out.is_empty());
        read(&mut expert, 2000, &boot(2, 3));
        assert_eq!((expert.recordings().len(), expert.recordings()[0].len()), (1, 39));
    }

    #[test]
    fn another_guest_is_not_followed_and_memory_is_bounded() {
        let mut expert = RecordedExpert::new(vec![Recording::of(&boot(400, 1))]);
        let other: Vec<UnitIndex> = (0..200_000).map(|n| UnitIndex(n * 3)).collect();
        for round in 0..6 {
            read(&mut expert, round * 1000, &other);
            let (mut out, mut rest) = (Vec::new(), Vec::new());
            expert.foresee(&mut out);
            expert.rest(&mut rest);
            assert!(round > 0 || out.is_empty() && rest.is_empty());
        }
        assert!(expert.recordings().len() <= KEPT);
        assert!(expert.recordings().iter().all(|recording| recording.len() <= LONGEST));
    }
}
