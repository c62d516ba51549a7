//! A feed's text from where it is: a file, a web address, a command. Bounded in bytes and in time, whatever the source
//! does.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    time::Duration,
};

use gnomon_forecast::location::MAX_FEED_BYTES;
use http_body_util::Empty;
use hyper::Request;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{io::AsyncReadExt, process::Command, time};

use crate::{
    config::{FeedConfig, FeedSource},
    daemon::web,
};

/// One byte more than a feed may have: whoever has that many has too many, and no more of it is read.
const MOST: usize = MAX_FEED_BYTES + 1;

/// Why there is no text. The last one goes on to hold until it is too old.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("nothing whole came within {} s: look at its source, or raise `patience`", patience.as_secs())]
    Late { patience: Duration },
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("it is no regular file")]
    NoFile,
    #[error("the server cannot be asked: {0}")]
    Unreachable(#[source] io::Error),
    #[error("the server answered {0}")]
    Refused(hyper::StatusCode),
    #[error("the command ended with {0}")]
    Failed(std::process::ExitStatus),
}

/// Fetches a feed's text; at most one byte more than a feed may have.
pub async fn fetch(feed: &FeedConfig) -> Result<Vec<u8>, FetchError> {
    let patience = feed.patience;
    let fetched = async {
        match &feed.source {
            FeedSource::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read(&path)).await.map_err(io::Error::other)?
            }
            FeedSource::Url { host, path } => get(host, path).await,
            FeedSource::Command(words) => run(words).await,
        }
    };
    time::timeout(patience, fetched).await.map_err(|_| FetchError::Late { patience })?
}

/// A regular file only, and opened so that nothing else can hold us up.
fn read(path: &Path) -> Result<Vec<u8>, FetchError> {
    let mut open = File::options();
    let file = open.read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FetchError::NoFile);
    }
    let mut text = Vec::new();
    file.take(MOST as u64).read_to_end(&mut text)?;
    Ok(text)
}

async fn get(host: &str, path: &str) -> Result<Vec<u8>, FetchError> {
    let asked = web::ask(host, Request::get(path), Empty::new());
    let answer = asked.await.map_err(FetchError::Unreachable)?;
    match answer.status().is_success() {
        true => Ok(answer.text(MOST).await?),
        false => Err(FetchError::Refused(answer.status())),
    }
}

/// Runs a command and takes what it prints. It has a process group of its own, which is killed when enough was printed
/// or nobody waits any more.
async fn run(words: &[String]) -> Result<Vec<u8>, FetchError> {
    let (program, arguments) = words.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).process_group(0).spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let mut text = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MOST as u64).read_to_end(&mut text).await?;
    }
    if text.len() == MOST {
        // It has said too much already, and may have more to say for ever.
        return Ok(text);
    }
    let status = child.wait().await?;
    drop(group);
    if status.success() { Ok(text) } else { Err(FetchError::Failed(status)) }
}

/// A command's processes; those that are left are killed with it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody may be left in it.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
