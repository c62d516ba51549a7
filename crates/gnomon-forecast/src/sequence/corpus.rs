//! What a network is trained on, and what it is judged by: the head and the tail of recorded paths.
//!
//! The tail is *held out*: nothing is learned from it, the vocabulary included. A network that is good only on what it
//! has seen is found out by it.

use crate::UnitIndex;

use super::vocabulary::{ESCAPE, Vocabulary};

/// Tokens of some recordings, divided into what may be learned from and what may not.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Which deltas have tokens.
    pub vocabulary: Vocabulary,
    /// What is learned from: the heads of the paths, an escape between two.
    pub training: Vec<u16>,
    /// What it is judged by: the tails.
    pub held_out: Vec<u16>,
}

impl Corpus {
    /// Holds the last `share` (0 to 0.9) of each path out; at most `tokens` tokens.
    pub fn of(paths: &[Vec<UnitIndex>], tokens: usize, share: f64) -> Corpus {
        let cut = |path: &Vec<UnitIndex>| (path.len() as f64 * (1.0 - share.clamp(0.0, 0.9))) as usize;
        let heads: Vec<&[UnitIndex]> = paths.iter().map(|path| &path[..cut(path)]).collect();
        let vocabulary = Vocabulary::of(&heads, tokens);
        let joined = |paths: &mut dyn Iterator<Item = &[UnitIndex]>| {
            let mut all = Vec::new();
            for path in paths {
                all.extend(vocabulary.tokens_of(path));
                all.push(ESCAPE);
            }
            all.pop();
            all
        };
        let training = joined(&mut heads.iter().copied());
        let held_out = joined(&mut paths.iter().map(|path| &path[cut(path)..]));
        Corpus { training, held_out, vocabulary }
    }

    /// The mean loss on what was held out of a model that knows only how common each token was, in nats a token. A
    /// network that is not below it has learned nothing of order.
    pub fn plain_loss(&self) -> f32 {
        let mut counts = vec![1.0f64; self.vocabulary.tokens()];
        self.training.iter().for_each(|token| counts[usize::from(*token)] += 1.0);
        let all: f64 = counts.iter().sum();
        let loss: f64 = self.held_out.iter().skip(1).map(|token| -(counts[usize::from(*token)] / all).ln()).sum();
        (loss / self.held_out.len().saturating_sub(1).max(1) as f64) as f32
    }

    /// A number that tells this corpus from others, so that training goes on with what it began with.
    ///
    /// Source: Fowler, Noll and Vo's hash, FNV-1a of 64 bits.
    pub fn digest(&self) -> u64 {
        let words = self.vocabulary.deltas().iter().map(|delta| *delta as u32);
        let tokens = self.training.iter().chain(&[u16::MAX]).chain(&self.held_out).map(|token| u32::from(*token));
        words
            .chain(tokens)
            .flat_map(u32::to_le_bytes)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(deltas: impl Iterator<Item = u32>) -> Vec<UnitIndex> {
        let mut at = 0;
        let steps = deltas.map(|delta| {
            at += delta;
            UnitIndex(at)
        });
        steps.collect()
    }

    #[test]
    fn nothing_is_learned_from_the_tail() {
        let head = || (0..80).map(|n| 1 + n % 2);
        let one = Corpus::of(&[path(head().chain((0..20).map(|_| 7)))], 16, 0.2);
        let other = Corpus::of(&[path(head().chain((0..20).map(|_| 9)))], 16, 0.2);
        assert_eq!((&one.vocabulary, &one.training), (&other.vocabulary, &other.training));
        assert_eq!(one.vocabulary.deltas(), [2, 1]);
        assert!(one.held_out.iter().all(|token| *token == ESCAPE) && one.held_out.len() == 19);
        assert_ne!(one.digest(), Corpus::of(&[path(head())], 16, 0.2).digest());
    }

    #[test]
    fn the_plain_loss_is_that_of_counting() {
        let corpus = Corpus::of(&[path((0..1000).map(|n| 1 + n % 2))], 16, 0.5);
        assert!((corpus.plain_loss() - 2f32.ln()).abs() < 0.01, "{}", corpus.plain_loss());
        let nothing = Corpus::of(&[], 16, 0.5);
        assert!(nothing.plain_loss() == 0.0 && nothing.training.is_empty());
    }
}
