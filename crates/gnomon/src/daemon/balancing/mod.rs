//! Load balancers and hooks: who is told where a VM is.
//!
//! ```text
//!   before a switch:  leave(vm)       new connections go to other targets, where there are others
//!   after it:         arrive(vm, node)  the target's address is that node's, and it takes connections again
//!   when it fails:    arrive(vm, here)
//!   always:           tell(event)     every hook hears what was done
//! ```
//! None of them can hold up a switch: they are told from a thread of their own, and one that fails is told in the log. A balancer that did not
//! hear sends connections to where the VM was; they are refused there, as without gnomon.

mod haproxy;
mod hook;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::runtime::Handle;

use self::haproxy::Haproxy;
use crate::{
    api::types::EventView,
    config::{Balancer, Hook},
};

/// How long a balancer may take for each step of a command. They answer within a millisecond on their host.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a balancer or a hook did not hear.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// It cannot be spoken with.
    #[error("{at} cannot be reached: {source}; is it running, and may this user talk to it?")]
    Unreachable {
        /// Socket, address or program.
        at: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It understood and said no.
    #[error("{at} did not do `{command}`: {said}")]
    Refused {
        /// Which.
        at: String,
        /// What it was told.
        command: String,
        /// Its words, printable and short.
        said: String,
    },
    /// The configuration does not say where the VM answers on a node.
    #[error("balancer {server} has no address for node '{node}': add it to `address` of its [[balancer]]")]
    NoAddress {
        /// The target.
        server: String,
        /// The node.
        node: String,
    },
}

/// What balancers are told of a VM.
enum Word {
    Leave { vm: String },
    Arrive { vm: String, node: String },
}

/// The balancers and hooks of this node's configuration.
#[derive(Debug)]
pub struct Balancing {
    words: mpsc::Sender<Word>,
    hooks: Arc<Vec<Hook>>,
    runtime: Handle,
}

impl Balancing {
    /// Nobody is spoken to yet. Called within a tokio runtime.
    pub fn new(balancers: Vec<Balancer>, hooks: Vec<Hook>) -> Balancing {
        let (words, heard) = mpsc::channel();
        // One thread, so that a VM's words arrive in their order. It ends with the daemon.
        thread::spawn(move || heard.into_iter().for_each(|word| say(&balancers, &word)));
        Balancing { words, hooks: Arc::new(hooks), runtime: Handle::current() }
    }

    /// A VM is about to leave its address: its targets get no new connections where others can take them. Returns at
    /// once.
    pub fn leave(&self, vm: &str) {
        self.send(Word::Leave { vm: vm.to_string() });
    }

    /// A VM answers on `node` now. Returns at once.
    pub fn arrive(&self, vm: &str, node: &str) {
        self.send(Word::Arrive { vm: vm.to_string(), node: node.to_string() });
    }

    fn send(&self, word: Word) {
        // The listener lives as long as there is a sender.
        let _ = self.words.send(word);
    }

    /// Tells the hooks. Returns at once.
    pub fn tell(&self, event: &EventView) {
        for index in (0..self.hooks.len()).filter(|&index| self.hooks[index].hears_of(&event.vm)) {
            let (hooks, event) = (Arc::clone(&self.hooks), event.clone());
            self.runtime.spawn(async move {
                if let Err(error) = hook::tell(&hooks[index], &event).await {
                    tracing::error!(vm = event.vm, what = event.what, %error, "a hook did not hear of an event");
                }
            });
        }
    }
}

fn say(balancers: &[Balancer], word: &Word) {
    let (Word::Leave { vm } | Word::Arrive { vm, .. }) = word;
    for balancer in balancers.iter().filter(|balancer| balancer.vm == *vm) {
        let said = match word {
            Word::Leave { .. } => leave(&Haproxy::of(balancer)),
            Word::Arrive { node, .. } => arrive(&Haproxy::of(balancer), balancer, node),
        };
        if let Err(error) = said {
            tracing::error!(vm, server = balancer.server, %error, "a balancer did not hear");
        }
    }
}

fn leave(target: &Haproxy<'_>) -> Result<(), BalanceError> {
    match target.has_others()? {
        true => target.drain(),
        // Alone it would refuse connections that can wait for the milliseconds of a switch.
        false => Ok(()),
    }
}

fn arrive(target: &Haproxy<'_>, balancer: &Balancer, node: &str) -> Result<(), BalanceError> {
    target.point(address_on(balancer, node)?)?;
    target.ready()
}

/// Where the VM answers on a node.
fn address_on(balancer: &Balancer, node: &str) -> Result<SocketAddr, BalanceError> {
    let text = balancer
        .address
        .get(node)
        .ok_or_else(|| BalanceError::NoAddress { server: balancer.server.clone(), node: node.to_string() })?;
    let unreachable = |source| BalanceError::Unreachable { at: text.clone(), source };
    let mut all = text.to_socket_addrs().map_err(unreachable)?;
    all.next().ok_or_else(|| unreachable(std::io::ErrorKind::AddrNotAvailable.into()))
}
