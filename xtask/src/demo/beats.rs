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

/// What a guest lost that went on from its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fall {
    /// From the last arrival before to the first one after.
    pub gap: Duration,
    /// How much of its own time it lived twice, to a beat: its work since the past that it went on from. Not counted in
    /// beats: a guest that was held up makes many at once.
    pub lost: Duration,
}

/// Judges the beats of a host that died, then those of where the guest went on. The last line of the first and the first
/// line of the second may be parts of one, and say nothing; nothing when there are no others.
pub fn fall(before: &[Chunk], after: &[Chunk]) -> Option<Fall> {
    let read = |stream: &[Chunk]| {
        let mut lines = Lines::default();
        stream.iter().for_each(|chunk| lines.take(chunk));
        lines.beats
    };
    let (last, after) = (*read(before).last()?, read(after));
    let (first, next) = (after.first()?, after.get(1)?);
    Some(Fall { gap: first.at.saturating_sub(last.at), lost: last.guest.saturating_sub(next.guest) })
}

/// A beat.
#[derive(Clone, Copy, Debug)]
struct Beat {
    /// Its number.
    seq: u64,
    /// When the guest made it, by its own clock.
    guest: Duration,
    /// When it arrived, since the demo began.
    at: Duration,
}

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
            if let Some((seq, guest)) = numbers(&line) {
                self.beats.push(Beat { seq, guest, at: chunk.at });
            }
        }
    }
}

/// A beat's number, and when it was made.
fn numbers(line: &str) -> Option<(u64, Duration)> {
    let (seq, guest) = line.split_once(' ')?;
    Some((seq.parse().ok()?, Duration::from_micros(guest.parse().ok()?)))
}

/// Numbers missing from first to last, whatever the order; repeated ones count once.
fn lost(beats: &[Beat]) -> u64 {
    let mut seen: Vec<u64> = beats.iter().map(|beat| beat.seq).collect();
    seen.sort_unstable();
    seen.dedup();
    match (seen.first(), seen.last()) {
        (Some(first), Some(last)) => last - first + 1 - seen.len() as u64,
        _ => 0,
    }
}

fn gap(beats: &[Beat], switch: usize) -> Option<Duration> {
    let (left, right) = (beats.get(switch.checked_sub(1)?)?.at, beats.get(switch)?.at);
    let near = |at: Duration| at + AROUND >= left && at <= right + AROUND;
    let pairs = beats.windows(2).filter(|pair| near(pair[0].at) && near(pair[1].at));
    pairs.map(|pair| pair[1].at.saturating_sub(pair[0].at)).max()
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
    fn a_guest_that_goes_on_from_its_past_lives_some_of_it_twice() {
        let ms = Duration::from_millis;
        let before = stream(&[(0, "7 7000\n"), (1, "8 8000\n9 "), (2, "9000\n10 10")]);
        let fall = |lost| Some(Fall { gap: ms(48), lost: ms(lost) });
        let table = [
            (stream(&[(50, "6 6000\n"), (51, "7 7000\n")]), fall(2)),
            (stream(&[(50, "10 10000\n"), (51, "11 11000\n")]), fall(0)),
            // The first line is the end of "1006 6000".
            (stream(&[(50, "6 6000\n"), (51, "7 7000\n")]), fall(2)),
            // Held up until its sixth millisecond, it made up for five beats at once: one millisecond is lost.
            (stream(&[(50, "2 8000\n"), (51, "3 8000\n")]), fall(1)),
            (stream(&[(50, "8 8000\n")]), None),
        ];
        for (after, expected) in table {
            assert_eq!(super::fall(&before, &after), expected, "{after:?}");
        }
        assert_eq!(super::fall(&[], &before), None);
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
