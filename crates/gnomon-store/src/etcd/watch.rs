//! A watch that breaks is opened again where it ended, and nobody notices.
//!
//! ```text
//!   begin: list at revision r ──► open at r+1 ──► events ──► open at the event's revision + 1 …
//!                                   ▲  │ broken: the next member
//!                                   └──┘
//!                                      │ that history is compacted: list again, and tell what differs
//! ```
//! etcd forgets old revisions when somebody compacts it. A watch that was away for so long cannot be told each change,
//! but what is there now is compared with what was told last: the last change to each key is never missed.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::Duration,
};

use etcd_client::{Client, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::time::sleep;

use super::{
    Core, LONGEST_MESSAGE, end_of,
    members::{Failed, OUT_OF_RANGE, Trace, one_try},
    record,
};
use crate::store::{Change, StoreError, Version, Versioned};

/// Before a broken watch is opened again at the next member.
const BREATH: Duration = Duration::from_millis(100);

/// One watch: what was told, and where to go on.
struct Watch {
    core: Arc<Core>,
    prefix: String,
    tell: mpsc::Sender<Change>,
    /// What is below the prefix as far as it was told.
    told: BTreeMap<String, Version>,
    /// The first revision that was not told.
    next: i64,
}

/// Why an open watch ended.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// The member went away, or wants to be rid of it.
    Broken,
    /// What comes next was compacted, or is too long for one message.
    Forgotten,
}

/// Begins to watch: from the revision at which this returns.
pub(super) async fn begin(core: Arc<Core>, prefix: String) -> Result<mpsc::Receiver<Change>, StoreError> {
    let (revision, all) = core.scan(&prefix).await?;
    let told = all.into_iter().map(|(key, record)| (key, record.version)).collect();
    let (tell, heard) = mpsc::channel();
    let watch = Watch { core, prefix, tell, told, next: revision + 1 };
    tokio::spawn(watch.run());
    Ok(heard)
}

impl Watch {
    async fn run(mut self) {
        loop {
            let (number, client) = self.core.members.current();
            match self.follow(client).await {
                Ended::Unheard => return,
                Ended::Broken => {
                    self.core.members.pass_over(number);
                    sleep(BREATH).await;
                }
                Ended::Forgotten => match self.catch_up().await {
                    Ok(()) => {}
                    Err(Unheard) => return,
                },
            }
        }
    }

    /// Opens the watch and tells what comes, until it ends.
    async fn follow(&mut self, client: Client) -> Ended {
        let path = self.core.path(&self.prefix).into_bytes();
        let options = WatchOptions::new().with_range(end_of(path.clone())).with_start_revision(self.next);
        let mut client = client.watch_client().max_decoding_message_size(LONGEST_MESSAGE);
        let mut stream = match one_try(client.watch(path, Some(options))).await {
            Ok(stream) => stream,
            Err(failed) => return why(&failed),
        };
        loop {
            match next_message(&mut stream).await {
                Err(ended) => return ended,
                Ok(message) => match self.hear(&message) {
                    None => {}
                    Some(ended) => return ended,
                },
            }
        }
    }

    /// Tells what a message says.
    fn hear(&mut self, message: &WatchResponse) -> Option<Ended> {
        if message.canceled() {
            return Some(if message.compact_revision() > 0 { Ended::Forgotten } else { Ended::Broken });
        }
        for kv in message.events().iter().filter_map(etcd_client::Event::kv) {
            // All changes of one revision come in one message, so one that was told is told as a whole.
            self.next = self.next.max(kv.mod_revision().saturating_add(1));
            // What is not ours is no change of ours; whoever reads it is told.
            let Ok(change) = self.change(kv) else { continue };
            if self.say(change).is_err() {
                return Some(Ended::Unheard);
            }
        }
        None
    }

    fn change(&self, kv: &KeyValue) -> Result<Change, StoreError> {
        let key = self.core.key(kv.key())?;
        // Writes count from 1; what was deleted has no version.
        let now = match kv.version() {
            0 => None,
            _ => Some(record::decode(&key, kv.mod_revision(), kv.value())?),
        };
        Ok(Change { key, now })
    }

    fn say(&mut self, change: Change) -> Result<(), Unheard> {
        match &change.now {
            Some(now) => _ = self.told.insert(change.key.clone(), now.version),
            None => _ = self.told.remove(&change.key),
        }
        self.tell.send(change).map_err(|_| Unheard)
    }

    /// Tells how what is there differs from what was told.
    async fn catch_up(&mut self) -> Result<(), Unheard> {
        let (revision, all) = loop {
            match self.core.scan(&self.prefix).await {
                Ok(found) => break found,
                Err(_) => sleep(BREATH).await,
            }
        };
        for change in differences(&self.told, all) {
            self.say(change)?;
        }
        self.next = revision + 1;
        Ok(())
    }
}

/// Nobody listens any more.
struct Unheard;

async fn next_message(stream: &mut WatchStream) -> Result<WatchResponse, Ended> {
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Ended::Broken),
        Err(error) => Err(why(&Failed::from(error))),
    }
}

fn why(failed: &Failed) -> Ended {
    match (failed.trace, failed.code) {
        (Trace::Declined, Some(OUT_OF_RANGE)) => Ended::Forgotten,
        _ => Ended::Broken,
    }
}

/// The changes that lead from what was told to what is there: what went, then what was written, in order of writing.
fn differences(told: &BTreeMap<String, Version>, mut there: Vec<(String, Versioned)>) -> Vec<Change> {
    there.sort_by_key(|(_, record)| record.version);
    let is_there: std::collections::BTreeSet<&str> = there.iter().map(|(key, _)| key.as_str()).collect();
    let gone = told.keys().filter(|key| !is_there.contains(key.as_str()));
    let mut changes: Vec<Change> = gone.map(|key| Change { key: key.clone(), now: None }).collect();
    let written = there.into_iter().filter(|(key, record)| told.get(key) != Some(&record.version));
    changes.extend(written.map(|(key, record)| Change { key, now: Some(record) }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_gap_the_last_change_to_each_key_is_told() {
        let told = BTreeMap::from([("a".to_string(), 1), ("b".to_string(), 2), ("c".to_string(), 3)]);
        let record = |version| Versioned { version, value: vec![] };
        let there = vec![("b".to_string(), record(9)), ("c".to_string(), record(3)), ("d".to_string(), record(7))];
        let changes = differences(&told, there);
        let seen: Vec<(&str, Option<Version>)> =
            changes.iter().map(|change| (change.key.as_str(), change.now.as_ref().map(|now| now.version))).collect();
        assert_eq!(seen, [("a", None), ("d", Some(7)), ("b", Some(9))]);
    }
}
