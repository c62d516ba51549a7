//! A hook: a program or a web address that hears of every event of a VM, as JSON.

use std::{io, process::Stdio, time::Duration};

use http_body_util::Full;
use hyper::{Request, body::Bytes};
use tokio::{io::AsyncWriteExt, process::Command, time};

use super::BalanceError;
use crate::{
    api::types::EventView,
    config::{Hook, HookTo},
    daemon::web,
};

/// How often an event is told before it is given up, and how long to wait in between: a listener that restarts is back
/// within half a minute.
const TRIES: u32 = 4;
const REST: Duration = Duration::from_secs(10);
/// How long a listener may take for an event.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells a hook of an event, again when it does not hear; takes up to two and a half minutes.
pub async fn tell(hook: &Hook, event: &EventView) -> Result<(), BalanceError> {
    let body = serde_json::to_vec(event).expect("an event has nothing that JSON cannot hold");
    let mut tries = 1;
    loop {
        let told = match time::timeout(PATIENCE, tell_once(&hook.to, &body)).await {
            Ok(told) => told,
            Err(_) => Err(hook.to.unreachable(io::ErrorKind::TimedOut.into())),
        };
        match told {
            Err(error) if tries < TRIES => tracing::warn!(%error, tries, "a hook is told again in a while"),
            told => return told,
        }
        tries += 1;
        time::sleep(REST).await;
    }
}

async fn tell_once(to: &HookTo, body: &[u8]) -> Result<(), BalanceError> {
    match to {
        HookTo::Command(program) => run(to, program, body).await,
        HookTo::Url { host, path } => post(to, host, path, body).await,
    }
}

/// Runs a program with the event on its standard input; exit code 0 is heard.
async fn run(to: &HookTo, program: &std::path::Path, body: &[u8]) -> Result<(), BalanceError> {
    let unreachable = |source| to.unreachable(source);
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(unreachable)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not want to read it has heard all the same.
        let _ = input.write_all(body).await;
    }
    let status = child.wait().await.map_err(unreachable)?;
    match status.success() {
        true => Ok(()),
        false => Err(to.refused(status.to_string())),
    }
}

/// Posts the event; a status of 2xx is heard.
async fn post(to: &HookTo, host: &str, path: &str, body: &[u8]) -> Result<(), BalanceError> {
    let request = Request::post(path).header("content-type", "application/json");
    let asked = web::ask(host, request, Full::new(Bytes::copy_from_slice(body)));
    let status = asked.await.map_err(|source| to.unreachable(source))?.status();
    match status.is_success() {
        true => Ok(()),
        false => Err(to.refused(status.to_string())),
    }
}

impl HookTo {
    fn name(&self) -> String {
        match self {
            HookTo::Command(program) => program.display().to_string(),
            HookTo::Url { host, path } => format!("http://{host}{path}"),
        }
    }

    fn unreachable(&self, source: io::Error) -> BalanceError {
        BalanceError::Unreachable { at: self.name(), source }
    }

    fn refused(&self, said: String) -> BalanceError {
        BalanceError::Refused { at: self.name(), command: "an event".to_string(), said }
    }
}
