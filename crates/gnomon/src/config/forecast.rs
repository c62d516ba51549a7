//! What forecasts are told: the sections `[forecast]` and `[[feed]]`.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use gnomon_forecast::location::MAX_SYMBOLS;
use serde::Deserialize;

use super::{ConfigError, name, url_of, value};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawForecast {
    pub(super) learn: bool,
    pub(super) model: Option<PathBuf>,
}

/// With which network forecasts of reads begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelChoice {
    /// The one that is part of the program.
    #[default]
    Shipped,
    /// With none.
    Nothing,
    /// One in a file.
    File(PathBuf),
}

impl ModelChoice {
    /// As it is written: `shipped`, which is also meant when nothing is, `none`, or a file.
    pub fn of(written: Option<PathBuf>) -> ModelChoice {
        match written {
            None => ModelChoice::Shipped,
            Some(word) if word == Path::new("shipped") => ModelChoice::Shipped,
            Some(word) if word == Path::new("none") => ModelChoice::Nothing,
            Some(file) => ModelChoice::File(file),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeed {
    name: String,
    file: Option<PathBuf>,
    url: Option<String>,
    command: Option<Vec<String>>,
    every: Option<u64>,
    patience: Option<u64>,
    oldest: Option<u64>,
    edges: Option<Vec<f64>>,
}

/// What the world outside says, and how often it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedConfig {
    /// Its name.
    pub name: String,
    /// Where its text is.
    pub source: FeedSource,
    /// How long to wait between two fetches.
    pub every: Duration,
    /// How long a fetch may take.
    pub patience: Duration,
    /// How old the last line may be and still hold.
    pub oldest: Duration,
    /// The edges of bins for a feed of numbers; none for one of words.
    pub edges: Option<Vec<f64>>,
}

/// Where a feed's text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedSource {
    /// In a file.
    File(PathBuf),
    /// At `http://HOST/PATH`.
    Url {
        /// host:port
        host: String,
        /// From its first slash on.
        path: String,
    },
    /// What a program prints: the program and its arguments.
    Command(Vec<String>),
}

impl fmt::Display for FeedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeedSource::File(path) => write!(f, "{}", path.display()),
            FeedSource::Url { host, path } => write!(f, "http://{host}{path}"),
            FeedSource::Command(words) => write!(f, "{}", words.join(" ")),
        }
    }
}

/// Seconds between two fetches, that a fetch may take, and that the last line holds: unless told, and at most.
const EVERY_S: (u64, u64) = (300, 86_400);
const PATIENCE_S: (u64, u64) = (10, 3_600);
const OLDEST_S: (u64, u64) = (3_600, 31_536_000);

/// The feeds, each with a name of its own.
pub(super) fn feeds(raw: Vec<RawFeed>) -> Result<Vec<FeedConfig>, ConfigError> {
    let feeds: Vec<FeedConfig> = raw.into_iter().map(feed).collect::<Result<_, _>>()?;
    let twice = feeds.iter().enumerate().find(|(at, feed)| feeds[..*at].iter().any(|other| other.name == feed.name));
    match twice {
        Some((_, feed)) => Err(value("feed.name", &feed.name, "give each feed a name of its own")),
        None => Ok(feeds),
    }
}

fn feed(raw: RawFeed) -> Result<FeedConfig, ConfigError> {
    name("feed.name", &raw.name)?;
    let source = match (raw.file, raw.url, raw.command) {
        (Some(file), None, None) => FeedSource::File(file),
        (None, Some(url), None) => {
            let (host, path) = url_of("feed.url", &url)?;
            FeedSource::Url { host, path }
        }
        (None, None, Some(words)) if !words.is_empty() => FeedSource::Command(words),
        _ => return Err(value("feed.name", &raw.name, "a feed has one of: file, url, command = [\"PROGRAM\", …]")),
    };
    let is_rising =
        |edges: &[f64]| edges.iter().all(|edge| edge.is_finite()) && edges.is_sorted_by(|one, two| one < two);
    if raw.edges.as_ref().is_some_and(|edges| edges.len() >= MAX_SYMBOLS || !is_rising(edges)) {
        return Err(value("feed.edges", &raw.name, format!("write fewer than {MAX_SYMBOLS} numbers that rise")));
    }
    Ok(FeedConfig {
        name: raw.name,
        source,
        every: seconds("feed.every", raw.every, EVERY_S)?,
        patience: seconds("feed.patience", raw.patience, PATIENCE_S)?,
        oldest: seconds("feed.oldest", raw.oldest, OLDEST_S)?,
        edges: raw.edges,
    })
}

fn seconds(key: &'static str, written: Option<u64>, (usual, most): (u64, u64)) -> Result<Duration, ConfigError> {
    match written.unwrap_or(usual) {
        seconds if (1..=most).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        seconds => Err(value(key, &seconds.to_string(), format!("write seconds, from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FeedConfig, String> {
        let raw: RawFeed = toml::from_str(text).map_err(|error| error.to_string())?;
        feeds(vec![raw]).map(|mut feeds| feeds.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_feed_has_one_source_and_times_that_mean_something() {
        let feed = parse("name = 'weather'\nurl = 'http://10.0.0.1/w.csv'\nevery = 60").expect("a feed");
        assert_eq!((feed.source.to_string().as_str(), feed.every.as_secs()), ("http://10.0.0.1:80/w.csv", 60));
        for (text, why) in [
            ("name = 'w'", "one of"),
            ("name = 'w'\nfile = '/a'\ncommand = ['b']", "one of"),
            ("name = 'w'\ncommand = []", "one of"),
            ("name = '/'\nfile = '/a'", "feed.name"),
            ("name = 'w'\nurl = 'ftp://a'", "feed.url"),
            ("name = 'w'\nfile = '/a'\nevery = 0", "feed.every"),
            ("name = 'w'\nfile = '/a'\nedges = [nan]", "feed.edges"),
            ("name = 'w'\nfile = '/a'\nedges = [2, 1]", "feed.edges"),
            ("name = 'w'\nfile = '/a'\nurgent = true", "urgent"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
