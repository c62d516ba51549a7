//! What the world outside says: weather, events, anything with a time and a word.
//!
//! A feed is text of lines `seconds,value`, from a file, an HTTP endpoint or a command; who fetches it is not here. The
//! value at a time is that of the last line *at or before* it: a line of the future is a plan, and is not looked at
//! until its time has come. When the text is late, the last value is used with its age, up to a bound; then the feed is
//! *unknown*. When a text is wrong, it is refused with its line and the feed is unknown until a good one comes: half a
//! truth is not used, and neither is an old one that the source itself has withdrawn.

use std::time::Duration;

use gnomon_terms::{ErrorKind, Instant};

/// Bytes of a feed's text at most: a year of 5-minute lines.
pub const MAX_FEED_BYTES: usize = 4 << 20;
/// Lines of a feed at most.
pub const MAX_FEED_ROWS: usize = 131_072;
/// Words, or bins of numbers, that a feed tells apart; more are an error.
pub const MAX_SYMBOLS: usize = 16;
/// The longest word.
const MAX_WORD: usize = 64;

/// Why a feed's text was refused. The feed is unknown until a good one comes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// More than is read.
    #[error("the feed has {0} bytes and {MAX_FEED_BYTES} are read at most: let it say less of the past")]
    TooLarge(usize),
    /// More lines than are kept.
    #[error("the feed has more than {MAX_FEED_ROWS} lines: let it say less of the past")]
    TooManyRows,
    /// Not text.
    #[error("the feed is not UTF-8 from byte {0} on: look at its source")]
    NotText(usize),
    /// Nothing in it.
    #[error("the feed has no line `seconds,value`: look at its source")]
    Empty,
    /// A line that is not understood.
    #[error("line {line} of the feed {what}: each is `seconds,value`, the oldest first")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More words than can be told apart.
    #[error("line {line} of the feed has a word that would be number {}: use fewer", MAX_SYMBOLS + 1)]
    TooManyWords {
        /// From 1.
        line: usize,
    },
}

impl FeedError {
    /// All of them: bytes that should be trustworthy are not.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// What a feed says at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The word's or the bin's number, below [`MAX_SYMBOLS`].
    pub symbol: u8,
    /// How old it is.
    pub age: Duration,
}

/// How values become symbols.
#[derive(Clone, Debug, PartialEq)]
enum Coding {
    /// Words, numbered as they first appear, over all texts.
    Words(Vec<String>),
    /// Numbers, by the edges of bins, rising.
    Numbers(Vec<f64>),
}

/// One feed, aligned to time.
#[derive(Clone, Debug)]
pub struct Feed {
    coding: Coding,
    oldest: Duration,
    rows: Vec<(Instant, u8)>,
}

impl Feed {
    /// A feed of words, each of use for as long as `oldest`.
    pub fn words(oldest: Duration) -> Feed {
        Feed { coding: Coding::Words(Vec::new()), oldest, rows: Vec::new() }
    }

    /// A feed of numbers, told apart by the edges of bins (the first [`MAX_SYMBOLS`] − 1 of them).
    pub fn numbers(mut edges: Vec<f64>, oldest: Duration) -> Feed {
        edges.retain(|edge| !edge.is_nan());
        edges.sort_by(f64::total_cmp);
        edges.truncate(MAX_SYMBOLS - 1);
        Feed { coding: Coding::Numbers(edges), oldest, rows: Vec::new() }
    }

    /// A new text takes the place of the one before. A first line that has no number is taken for a heading.
    pub fn replace(&mut self, text: &[u8]) -> Result<(), FeedError> {
        self.rows.clear();
        let mut coding = self.coding.clone();
        self.rows = parse(text, &mut coding)?;
        self.coding = coding;
        Ok(())
    }

    /// What it says at `now`; `None` is unknown.
    pub fn at(&self, now: Instant) -> Option<Known> {
        let (time, symbol) = self.rows[..self.rows.partition_point(|(time, _)| *time <= now)].last()?;
        let age = now.since(*time);
        (age <= self.oldest).then_some(Known { symbol: *symbol, age })
    }

    /// The word of a symbol, of a feed of words.
    pub fn word(&self, symbol: u8) -> Option<&str> {
        match &self.coding {
            Coding::Words(words) => words.get(usize::from(symbol)).map(String::as_str),
            Coding::Numbers(_) => None,
        }
    }
}

fn parse(text: &[u8], coding: &mut Coding) -> Result<Vec<(Instant, u8)>, FeedError> {
    if text.len() > MAX_FEED_BYTES {
        return Err(FeedError::TooLarge(text.len()));
    }
    let text = std::str::from_utf8(text).map_err(|error| FeedError::NotText(error.valid_up_to()))?;
    let mut rows: Vec<(Instant, u8)> = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what| FeedError::Line { line: at + 1, what };
        let (seconds, value) = line.split_once(',').ok_or_else(|| wrong("has no comma"))?;
        let time = match instant(seconds) {
            None if at == 0 => continue,
            time => time.ok_or_else(|| wrong("has no time in seconds"))?,
        };
        if rows.last().is_some_and(|(last, _)| *last >= time) {
            return Err(wrong("is not after the one before"));
        }
        if rows.len() == MAX_FEED_ROWS {
            return Err(FeedError::TooManyRows);
        }
        rows.push((time, coding.symbol(value.trim(), at + 1)?));
    }
    if rows.is_empty() { Err(FeedError::Empty) } else { Ok(rows) }
}

/// Seconds with at most nine decimals, from the origin of the caller's clock to its end in 584 years.
fn instant(text: &str) -> Option<Instant> {
    let seconds: f64 = text.trim().parse().ok()?;
    let nanos = seconds * 1e9;
    (0.0..1.8e19).contains(&nanos).then(|| Instant::from_nanos(nanos as u64))
}

impl Coding {
    fn symbol(&mut self, value: &str, line: usize) -> Result<u8, FeedError> {
        let wrong = |what| FeedError::Line { line, what };
        match self {
            Coding::Numbers(edges) => {
                let number: f64 = value.parse().map_err(|_| wrong("has no number"))?;
                if !number.is_finite() {
                    return Err(wrong("has no number"));
                }
                Ok(edges.partition_point(|edge| *edge <= number) as u8)
            }
            Coding::Words(_) if value.is_empty() || value.len() > MAX_WORD => {
                Err(wrong("has no word, or a too long one"))
            }
            Coding::Words(words) => {
                let known = words.iter().position(|word| word == value);
                let at = known.unwrap_or(words.len());
                if at == MAX_SYMBOLS {
                    return Err(FeedError::TooManyWords { line });
                }
                if known.is_none() {
                    words.push(value.to_owned());
                }
                Ok(at as u8)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn said(feed: &Feed, seconds: u64) -> Option<(&str, u64)> {
        let known = feed.at(at(seconds))?;
        Some((feed.word(known.symbol)?, known.age.as_secs()))
    }

    #[test]
    fn the_last_value_with_its_age_then_unknown_and_never_the_future() {
        let mut feed = Feed::words(Duration::from_secs(3600));
        assert_eq!(said(&feed, 0), None);
        feed.replace(b"time,weather\n1000,Rain\n2000,Clear\n").expect("a good text");
        let table = [
            (999, None),
            (1000, Some(("Rain", 0))),
            (1999, Some(("Rain", 999))),
            (2000, Some(("Clear", 0))),
            (5600, Some(("Clear", 3600))),
            (5601, None),
        ];
        for (now, expected) in table {
            assert_eq!(said(&feed, now), expected, "at {now}");
        }
    }

    #[test]
    fn a_wrong_text_is_refused_by_its_line_and_all_is_unknown_until_a_good_one() {
        // One word more than there is room for, with the one of the text before.
        let mut long = String::new();
        (0..=MAX_SYMBOLS).for_each(|word| long.push_str(&format!("{word},w{word}\n")));
        let line = |line, what| FeedError::Line { line, what };
        let table: [(&[u8], FeedError); 10] = [
            (b"", FeedError::Empty),
            (b"time,weather\n", FeedError::Empty),
            (b"1,a\n\xff,b", FeedError::NotText(4)),
            (b"1,a\n2;b\n", line(2, "has no comma")),
            (b"1,a\nx,b\n", line(2, "has no time in seconds")),
            (b"1,a\n-5,b\n", line(2, "has no time in seconds")),
            (b"5,a\n5,b\n", line(2, "is not after the one before")),
            (b"5,a\n4,b\n", line(2, "is not after the one before")),
            (b"5,a\n6,\n", line(2, "has no word, or a too long one")),
            (long.as_bytes(), FeedError::TooManyWords { line: MAX_SYMBOLS }),
        ];
        for (text, error) in table {
            let mut feed = Feed::words(Duration::from_secs(1 << 40));
            feed.replace(b"1,Rain\n").expect("a good text");
            assert_eq!(feed.replace(text), Err(error));
            assert_eq!(said(&feed, 100), None, "an old value was used after a wrong text");
            feed.replace(b"1,Snow\n").expect("a good text");
            assert_eq!(said(&feed, 1), Some(("Snow", 0)));
        }
        assert_eq!(
            Feed::words(Duration::ZERO).replace(&vec![b'a'; MAX_FEED_BYTES + 1]),
            Err(FeedError::TooLarge(MAX_FEED_BYTES + 1))
        );
    }

    #[test]
    fn numbers_have_bins_and_words_keep_their_numbers() {
        let mut degrees = Feed::numbers(vec![25.0, 0.0, f64::NAN], Duration::from_secs(9));
        degrees.replace(b"1,-4\n2,0\n3,24.9\n4,99").expect("a good text");
        let bins: Vec<u8> = (1..5).filter_map(|now| degrees.at(at(now))).map(|known| known.symbol).collect();
        assert_eq!(bins, [0, 1, 1, 2]);
        assert!(degrees.replace(b"1,warm").is_err() && degrees.replace(b"1,inf").is_err());
        let mut words = Feed::words(Duration::from_secs(9));
        words.replace(b"1,Rain\n2,Clear\n").expect("a good text");
        words.replace(b"1,Clear\n").expect("a good text");
        assert_eq!(words.at(at(1)).map(|known| known.symbol), Some(1));
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in prop::collection::vec(any::<u8>(), 0..300), now in any::<u64>()) {
            let mut feed = Feed::words(Duration::MAX);
            let _ = feed.replace(&text);
            let known = feed.at(Instant::from_nanos(now));
            prop_assert!(known.is_none_or(|known| usize::from(known.symbol) < MAX_SYMBOLS));
        }
    }
}
