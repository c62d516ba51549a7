//! What the world outside says (weather, events), fetched again and again and kept with its age.
//!
//! ```text
//!            ┌ a new text ─────────► current: its last line at or before now, until that is too old
//!   fetch ───┼ none in time ───────► late:    the last text goes on to hold, until its last line is too old
//!            └ a text that is wrong ► wrong:   unknown, until a good one comes
//! ```
//! A feed that is late has said nothing; one that is wrong has said that what it said cannot be trusted. Each feed has a
//! task of its own, so that one that hangs delays no other. What changes is told in the log, once. Times in a feed are
//! seconds since 1970.

mod fetch;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gnomon_forecast::location::{Feed, Known};
use parking_lot::Mutex;

use self::fetch::FetchError;
use crate::{
    api::types::{FeedState, FeedView},
    config::FeedConfig,
};

/// The feeds of this node.
#[derive(Clone, Default)]
pub struct Feeds {
    all: Arc<[Watched]>,
}

/// One feed.
struct Watched {
    config: FeedConfig,
    state: Mutex<State>,
}

struct State {
    feed: Feed,
    state: FeedState,
    /// Why it is late or wrong.
    why: Option<String>,
    /// When a good text came last.
    came: Option<Instant>,
}

impl Feeds {
    /// Nothing is fetched yet.
    pub fn new(configs: &[FeedConfig]) -> Feeds {
        Feeds { all: configs.iter().cloned().map(Watched::new).collect() }
    }

    /// Fetches all of them, each at its own pace, for ever.
    pub async fn run(&self) {
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..self.all.len() {
            let all = Arc::clone(&self.all);
            tasks.spawn(async move {
                loop {
                    let fetched = fetch::fetch(&all[at].config).await;
                    all[at].note(fetched);
                    tokio::time::sleep(all[at].config.every).await;
                }
            });
        }
        // When this is dropped, so are the tasks, and with them the commands that they have begun.
        std::future::pending::<()>().await;
    }

    /// All of them as they are now.
    pub fn views(&self) -> Vec<FeedView> {
        self.all.iter().map(|watched| watched.view(unix_now())).collect()
    }
}

impl Watched {
    fn new(config: FeedConfig) -> Watched {
        let feed = match &config.edges {
            Some(edges) => Feed::numbers(edges.clone(), config.oldest),
            None => Feed::words(config.oldest),
        };
        let state = State { feed, state: FeedState::Pending, why: None, came: None };
        Watched { config, state: Mutex::new(state) }
    }

    /// What came of a fetch.
    fn note(&self, fetched: Result<Vec<u8>, FetchError>) {
        let mut state = self.state.lock();
        let read = fetched.map(|text| state.feed.replace(&text));
        let (now, why) = match read {
            Ok(Ok(())) => {
                state.came = Some(Instant::now());
                (FeedState::Current, None)
            }
            Ok(Err(error)) => (FeedState::Wrong, Some(error.to_string())),
            Err(error) => (FeedState::Late, Some(error.to_string())),
        };
        if state.state != now {
            match &why {
                None => tracing::info!(feed = self.config.name, "the feed says what it should"),
                Some(why) => tracing::warn!(feed = self.config.name, state = now.name(), why, "a feed fails"),
            }
        }
        (state.state, state.why) = (now, why);
    }

    fn view(&self, now: gnomon_terms::Instant) -> FeedView {
        let state = self.state.lock();
        let known = state.feed.at(now);
        FeedView {
            name: self.config.name.clone(),
            source: self.config.source.to_string(),
            state: state.state,
            value: known.map(|known| self.value(&state.feed, known)),
            age_s: known.map(|known| known.age.as_secs_f64()),
            came_s: state.came.map(|came| came.elapsed().as_secs_f64()),
            why: state.why.clone(),
        }
    }

    /// A symbol as a person reads it: its word, or between which edges the number is.
    fn value(&self, feed: &Feed, known: Known) -> String {
        if let Some(word) = feed.word(known.symbol) {
            return word.to_string();
        }
        let edges = self.config.edges.as_deref().unwrap_or_default();
        let (at, from) = (usize::from(known.symbol), usize::from(known.symbol).checked_sub(1));
        match (from.and_then(|from| edges.get(from)), edges.get(at)) {
            (Some(from), Some(to)) => format!("{from} to {to}"),
            (None, Some(to)) => format!("below {to}"),
            (Some(from), None) => format!("{from} or more"),
            (None, None) => "any".to_string(),
        }
    }
}

fn unix_now() -> gnomon_terms::Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    gnomon_terms::Instant::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FeedSource;

    fn watched(edges: Option<Vec<f64>>) -> Watched {
        let (every, patience, oldest) = (Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(100));
        let source = FeedSource::File("/weather".into());
        Watched::new(FeedConfig { name: "weather".into(), source, every, patience, oldest, edges })
    }

    fn told(watched: &Watched, second: u64) -> (FeedState, Option<String>, Option<f64>) {
        let view = watched.view(gnomon_terms::Instant::from_micros(second * 1_000_000));
        (view.state, view.value, view.age_s)
    }

    fn late() -> Result<Vec<u8>, FetchError> {
        Err(FetchError::Late { patience: Duration::from_secs(1) })
    }

    #[test]
    fn who_is_late_is_believed_until_it_is_too_old_and_who_is_wrong_is_not() {
        let feed = watched(None);
        assert_eq!(told(&feed, 0), (FeedState::Pending, None, None));
        feed.note(late());
        assert_eq!(told(&feed, 0), (FeedState::Late, None, None));
        feed.note(Ok(b"1000,Rain\n1060,Snow\n".to_vec()));
        assert_eq!(told(&feed, 1010), (FeedState::Current, Some("Rain".into()), Some(10.0)));
        feed.note(late());
        assert_eq!(told(&feed, 1070), (FeedState::Late, Some("Snow".into()), Some(10.0)));
        assert_eq!(told(&feed, 1161), (FeedState::Late, None, None), "too old");
        feed.note(Ok(b"<html>".to_vec()));
        assert_eq!(told(&feed, 1070), (FeedState::Wrong, None, None));
        feed.note(late());
        assert_eq!(told(&feed, 1070), (FeedState::Late, None, None), "what was withdrawn does not come back");
        feed.note(Ok(b"1000,Rain\n".to_vec()));
        assert_eq!(told(&feed, 1000).1.as_deref(), Some("Rain"));
    }

    #[test]
    fn a_number_is_told_by_its_edges() {
        let feed = watched(Some(vec![0.0, 25.0]));
        for (degrees, said) in [("-4", "below 0"), ("0", "0 to 25"), ("99", "25 or more")] {
            feed.note(Ok(format!("1,{degrees}\n").into_bytes()));
            assert_eq!(told(&feed, 1).1.as_deref(), Some(said));
        }
    }
}
