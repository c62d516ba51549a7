//! Why a card has no uplink.

use std::io;

use gnomon_terms::ErrorKind;

/// Why the uplink of a card could not be had. Nothing was changed at it.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The kernel offers no taps.
    #[error("there is no /dev/net/tun here: load the module with `modprobe tun`")]
    NoTun,
    /// Taps and bridges are the administrator's.
    #[error(
        "no permission to use tap {tap}: run the daemon as root or with CAP_NET_ADMIN, or make the tap for its user with `ip tuntap add dev {tap} mode tap user USER`"
    )]
    NoPermission {
        /// Which.
        tap: String,
    },
    /// Another program has it.
    #[error("tap {tap} is in use by another program: choose another name, or end that program")]
    Busy {
        /// Which.
        tap: String,
    },
    /// An interface of this name is something else.
    #[error("{tap} is no tap that could be opened: choose the name of a tap, or one that is free")]
    NotATap {
        /// Which.
        tap: String,
    },
    /// The bridge is not there, or is no bridge.
    #[error("there is no bridge {bridge} here: make it with `ip link add {bridge} type bridge`")]
    NoSuchBridge {
        /// Which.
        bridge: String,
    },
    /// It is a port of another bridge.
    #[error(
        "tap {tap} belongs to {master} and not to {bridge}: take it from there with `ip link set {tap} nomaster`"
    )]
    OtherBridge {
        /// Which tap.
        tap: String,
        /// To what it belongs.
        master: String,
        /// To what it should.
        bridge: String,
    },
    /// The card's socket could not be made.
    #[error("the socket of a network card cannot be made at {path}")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else that the kernel said.
    #[error("{deed} {interface} failed")]
    Io {
        /// What was tried.
        deed: &'static str,
        /// At what.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UplinkError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            UplinkError::NoTun | UplinkError::Busy { .. } | UplinkError::Socket { .. } | UplinkError::Io { .. } => {
                ErrorKind::Unavailable
            }
            UplinkError::NoPermission { .. }
            | UplinkError::NotATap { .. }
            | UplinkError::NoSuchBridge { .. }
            | UplinkError::OtherBridge { .. } => ErrorKind::Refused,
        }
    }
}
