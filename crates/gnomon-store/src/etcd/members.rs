//! The members of an etcd cluster: which one is asked, and what a try that failed has left behind.
//!
//! One client for each member, and one member at a time: the one that answered last. A client of several addresses
//! spreads requests over all of them, and about a third would go on hitting a member that is dead. A try is short,
//! because a request to a member that was killed just hangs; then the next member is asked.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::{Instant, sleep, timeout};

use crate::{address::EtcdAddress, store::StoreError, tls::EtcdTlsPem};

/// One try. A sound member answers in some milliseconds; an etcd elects a leader in 1 to 2 s by default, and while it
/// does, no answer comes.
pub(super) const TRY: Duration = Duration::from_millis(700);

/// How long a call is tried in all, if nothing else is said: two elections, and a look at every member.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Before everybody is asked again. Dead members refuse at once, and would be asked thousands of times otherwise.
const BREATH: Duration = Duration::from_millis(50);

/// A connection that is silent is asked whether it lives: a cut cable says nothing, and a watch may be silent for days.
const PING: Duration = Duration::from_secs(2);

/// The clients, and which of them answered last.
pub(super) struct Members {
    address: EtcdAddress,
    patience: Duration,
    clients: Vec<Client>,
    current: AtomicUsize,
}

/// An answer, and whether an earlier try may have been carried out too.
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) doubtful: bool,
}

/// What a try that failed has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trace {
    /// The request was not sent, or was sent to somebody who could do nothing: nothing happened.
    None,
    /// It was sent, and nobody knows.
    Unknown,
    /// It was answered with a no: nothing happened, and no other member would say otherwise.
    Declined,
}

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) trace: Trace,
    /// gRPC's number for what happened, when the member said one.
    pub(super) code: Option<i32>,
    said: String,
}

impl Members {
    /// Clients of all members; with `tls`, which speak no other. Connects to none yet.
    pub(super) async fn new(
        address: EtcdAddress,
        tls: Option<EtcdTlsPem>,
        patience: Duration,
    ) -> Result<Members, etcd_client::Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(TRY)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            // A member that was cut off from the others says so, instead of going silent.
            .with_require_leader(true);
        if let Some(tls) = tls {
            options = options.with_tls(options_of(tls));
        }
        let mut clients = Vec::with_capacity(address.members().len());
        for member in address.members() {
            clients.push(Client::connect([member.as_str()], Some(options.clone())).await?);
        }
        Ok(Members { address, patience, clients, current: AtomicUsize::new(0) })
    }

    /// Where they are.
    pub(super) fn address(&self) -> &EtcdAddress {
        &self.address
    }

    /// The member to ask, with its number for [`Members::pass_over`].
    pub(super) fn current(&self) -> (usize, Client) {
        let number = self.current.load(Ordering::Relaxed) % self.clients.len();
        (number, self.clients[number].clone())
    }

    /// From now on the member after `number` is asked, unless somebody else has passed it over already.
    pub(super) fn pass_over(&self, number: usize) {
        let next = (number + 1) % self.clients.len();
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks for what changes nothing that matters, or may be done twice.
    pub(super) async fn ask<T, F>(&self, deed: &str, request: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let answer = self.insist(request).await;
        answer.map(|answer| answer.value).map_err(|(failed, _)| self.give_up(deed, failed, false))
    }

    /// Asks for a change, and tells whether it may have been made more than once.
    pub(super) async fn tell<T, F>(&self, deed: &str, request: impl Fn(Client) -> F) -> Result<Answer<T>, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let answer = self.insist(request).await;
        answer.map_err(|(failed, doubtful)| self.give_up(deed, failed, doubtful))
    }

    /// Asks one member after the other until one answers or patience ends. An error comes with whether any
    /// of the tries may have been carried out.
    async fn insist<T, F>(&self, request: impl Fn(Client) -> F) -> Result<Answer<T>, (Failed, bool)>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let until = Instant::now() + self.patience;
        let mut doubtful = false;
        loop {
            for _ in 0..self.clients.len() {
                let (number, client) = self.current();
                let failed = match one_try(request(client)).await {
                    Ok(value) => return Ok(Answer { value, doubtful }),
                    Err(failed) => failed,
                };
                doubtful |= failed.trace == Trace::Unknown;
                let failed = failed.at(&self.address.members()[number]);
                if failed.trace == Trace::Declined || Instant::now() >= until {
                    return Err((failed, doubtful));
                }
                self.pass_over(number);
            }
            sleep(BREATH).await;
        }
    }

    fn give_up(&self, deed: &str, failed: Failed, doubtful: bool) -> StoreError {
        let (store, deed) = (self.address.to_string(), deed.to_string());
        match (failed.trace, doubtful) {
            (_, true) => StoreError::Unsettled { store, deed, source: Box::new(failed) },
            (Trace::Declined, false) => StoreError::Declined { store, deed, source: Box::new(failed) },
            (_, false) => StoreError::Unreachable { store, deed, waited: self.patience, source: Box::new(failed) },
        }
    }
}

/// Only these authorities are believed, and not those of the host.
fn options_of(tls: EtcdTlsPem) -> TlsOptions {
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
    match tls.own {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
        None => options,
    }
}

/// One request to one member.
pub(super) async fn one_try<T>(request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Failed> {
    match timeout(TRY, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failed::from(error)),
        Err(_) => Err(Failed { trace: Trace::Unknown, code: None, said: format!("no answer within {TRY:?}") }),
    }
}

impl From<etcd_client::Error> for Failed {
    fn from(error: etcd_client::Error) -> Failed {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                let code = i32::from(status.code());
                let trace = if never_sent(&status) { Trace::None } else { trace_of(code) };
                Failed { trace, code: Some(code), said: with_root(status.message(), &status) }
            }
            other => Failed { trace: Trace::Unknown, code: None, said: other.to_string() },
        }
    }
}

impl Failed {
    /// Says also whom was asked.
    fn at(self, member: &str) -> Failed {
        Failed { said: format!("{member}: {}", self.said), ..self }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl StdError for Failed {}

/// gRPC's number for "a bound was passed": history that was compacted, a message that is too long.
pub(super) const OUT_OF_RANGE: i32 = 11;

/// gRPC's number for "there is no such thing": a lease that has ended.
pub(super) const NOT_FOUND: i32 = 5;

/// What a request that ended with gRPC's `code` has left behind.
///
/// Source: the status codes of gRPC's core, and what etcd's `rpctypes` makes of its own errors: a leader that is lost
/// or a proposal that timed out is 14 (unavailable), and may be carried out later.
fn trace_of(code: i32) -> Trace {
    match code {
        // Invalid argument, not found, exists, permission, exhausted, precondition, range, unimplemented, credentials.
        3 | 5 | 6 | 7 | 8 | 9 | 11 | 12 | 16 => Trace::Declined,
        _ => Trace::Unknown,
    }
}

/// What was said, and the cause below all others, which is what the system said.
fn with_root(said: &str, error: &(dyn StdError + 'static)) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    let cause = root.to_string();
    match said.contains(&cause) || std::ptr::eq(root, error) {
        true => said.to_string(),
        false => format!("{said}: {cause}"),
    }
}

/// Whether it failed while the connection was being made.
fn never_sent(error: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkUnreachable)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_try_leaves_behind() {
        let table = [(14, Trace::Unknown), (4, Trace::Unknown), (13, Trace::Unknown), (3, Trace::Declined)];
        for (code, trace) in table.into_iter().chain([(OUT_OF_RANGE, Trace::Declined), (NOT_FOUND, Trace::Declined)])
        {
            assert_eq!(trace_of(code), trace, "{code}");
        }
        assert!(never_sent(&io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert!(!never_sent(&io::Error::from(io::ErrorKind::ConnectionReset)), "it may have been sent before");
    }
}
