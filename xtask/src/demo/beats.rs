//! Heartbeats as the host saw them: two stamped byte streams, one from each node, and what they say about the move.

use std::time::Duration;

/// How far from the switch the longest silence is looked for: longer than any move's pause that is worth the name,
/// short enough to leave out hiccups of a busy machine before and after.
const AROUND: Duration = Duration::from_secs(1);

/// Bytes that arrived together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// When, since the demo began.
    pub at: Duration,
    /// What.
    pub bytes: Vec<u8>,
}

/// What the beats say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pulse {
    /// Beats that arrived.
    pub beats: u64,
    /// Beats that should have arrived between the first and the last, and did not.
    pub lost: u64,
    /// The longest distance between two arrivals around the switch; nothing when the guest did not beat on both nodes.
    pub gap: Option<Duration>,
}

/// Judges the beats of the source node, then those of the destination. A line that the switch cut in two is whole
/// again when the streams are read as one.
pub fn judge(source: &[Chunk], destination: &[Chunk]) -> Pulse {
    let mut lines = Lines::default();
    source.iter().for_each(|chunk| lines.take(chunk));
    let switch = lines.beats.len();
    destination.iter().for_each(|chunk| lines.take(chunk));
    let beats = lines.beats;
    Pulse { beats: beats.len() as u64, lost: lost(&beats), gap: gap(&beats, switch) }
}

/// The longest distance between two arrivals from `from` to `to`, the ends included.
pub fn longest(stream: &[Chunk], from: Duration, to: Duration) -> Duration {
    let inside = stream.iter().map(|chunk| chunk.at).filter(|at| (from..=to).contains(at));
    let (mut last, mut most) = (from, Duration::ZERO);
    for at in inside.chain([to]) {
        most = most.max(at.saturating_sub(last));
        last = at;
    }
    most
}

/// A beat: its number and its arrival.
type Beat = (u64, Duration);

#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    beats: Vec<Beat>,
}

impl Lines {
    fn take(&mut self, chunk: &Chunk) {
        for &byte in &chunk.bytes {
            if byte != b'\n' {
                self.rest.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.rest).into_owned();
            self.rest.clear();
            // A line without its two numbers is damage; its number then counts as lost.
            if let Some(seq) = sequence(&line) {
                self.beats.push((seq, chunk.at));
            }
        }
    }
}

fn sequence(line: &str) -> Option<u64> {
    let (seq, guest) = line.split_once(' ')?;
    guest.parse::<u64>().ok()?;
    seq.parse().ok()
}

/// Numbers missing from first to last, whatever the order; repeated ones count once.
fn lost(beats: &[Beat]) -> u64 {
    let mut seen: Vec<u64> = beats.iter().map(|&(seq, _)| seq).collect();
    seen.sort_unstable();
    seen.dedup();
    match (seen.first(), seen.last()) {
        (Some(first), Some(last)) => last - first + 1 - seen.len() as u64,
        _ => 0,
    }
}

fn gap(beats: &[Beat], switch: usize) -> Option<Duration> {
    let (left, right) = (beats.get(switch.checked_sub(1)?)?.1, beats.get(switch)?.1);
    let near = |at: Duration| at + AROUND >= left && at <= right + AROUND;
    let pairs = beats.windows(2).filter(|pair| near(pair[0].1) && near(pair[1].1));
    pairs.map(|pair| pair[1].1.saturating_sub(pair[0].1)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(rows: &[(u64, &str)]) -> Vec<Chunk> {
        rows.iter().map(|&(at, text)| Chunk { at: Duration::from_millis(at), bytes: text.into() }).collect()
    }

    #[test]
    fn the_longest_silence_counts_the_ends() {
        let beats = stream(&[(5, "0 0\n"), (10, "1 1\n"), (40, "2 2\n"), (90, "3 3\n")]);
        let ms = Duration::from_millis;
        for (from, to, most) in [(0, 100, 50), (8, 45, 30), (41, 60, 19), (200, 300, 100)] {
            assert_eq!(longest(&beats, ms(from), ms(to)), ms(most), "{from} to {to}");
        }
    }

    #[test]
    fn what_the_streams_say() {
        // (source, destination) → (beats, lost, gap in ms)
        type Row = (&'static [(u64, &'static str)], &'static [(u64, &'static str)], (u64, u64, Option<u64>));
        let table: &[Row] = &[
            (&[(0, "0 0\n"), (1, "1 1000\n")], &[(21, "2 2000\n"), (22, "3 3000\n")], (4, 0, Some(20))),
            // a line cut by the switch
            (&[(0, "0 0\n1 10")], &[(30, "00\n2 2000\n")], (3, 0, Some(30))),
            // beats 1 and 2 never came
            (&[(0, "0 0\n")], &[(30, "3 3000\n")], (2, 2, Some(30))),
            // a repeated beat is not a lost one
            (&[(0, "0 0\n1 1\n")], &[(9, "1 1\n2 2\n")], (4, 0, Some(9))),
            // the longest silence may lie just after the switch
            (&[(0, "0 0\n")], &[(5, "1 1\n"), (45, "2 2\n")], (3, 0, Some(40))),
            // a hiccup long before it does not count
            (&[(0, "0 0\n"), (900, "1 1\n"), (5000, "2 2\n")], &[(5007, "3 3\n")], (4, 0, Some(7))),
            (&[(0, "0 0\n")], &[], (1, 0, None)),
            (&[], &[(0, "0 0\nnoise\n2 2\n")], (2, 1, None)),
            (&[], &[], (0, 0, None)),
        ];
        for (source, destination, (beats, lost, gap)) in table {
            let expected = Pulse { beats: *beats, lost: *lost, gap: gap.map(Duration::from_millis) };
            assert_eq!(judge(&stream(source), &stream(destination)), expected, "{source:?} {destination:?}");
        }
    }
}
