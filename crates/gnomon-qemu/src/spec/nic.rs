//! Network cards of a guest, and where their frames go.
//!
//! QEMU knows two unix sockets of a card and nothing else: each datagram is a frame. Whoever has the other socket
//! carries frames to the card's uplink; this crate does not.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::SpecError;

/// The longest name of a network interface: the kernel's 16 without the closing zero.
///
/// Source: Linux, include/uapi/linux/if.h, `IFNAMSIZ`.
pub const MAX_INTERFACE: usize = 15;

/// A network card. Each QEMU of a guest has it with the same address, so that a guest keeps its card wherever it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its address.
    pub mac: MacAddress,
    /// Where its frames go.
    pub uplink: Uplink,
    /// The unix socket that QEMU makes and reads frames for the guest from.
    pub socket: PathBuf,
    /// The unix socket that QEMU sends the guest's frames to. While nobody has it, frames are dropped.
    pub peer: PathBuf,
}

/// Where the frames of a card go: the same name on every host that runs the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Uplink {
    /// A tap of the host.
    Tap {
        /// The interface: 1 to 15 letters, digits, `.`, `_` and `-`.
        name: String,
        /// The bridge that it is a port of.
        #[serde(default)]
        bridge: Option<String>,
    },
}

/// The address of a card: of one card, and not of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// That a text is no address of a card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address of a network card: write six bytes such as 02:00:00:00:00:01, the first of them even")]
pub struct NoMacAddress(pub String);

impl MacAddress {
    /// An address that is administered locally, made of six bytes of anything.
    ///
    /// Source: IEEE 802-2014, 8.2: the lowest bit of the first byte says group, the next one local.
    pub fn local(bytes: [u8; 6]) -> MacAddress {
        let [first, rest @ ..] = bytes;
        let mut address = [first & !1 | 2, 0, 0, 0, 0, 0];
        address[1..].copy_from_slice(&rest);
        MacAddress(address)
    }

    /// Its bytes, in the order of the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = NoMacAddress;

    fn from_str(text: &str) -> Result<MacAddress, NoMacAddress> {
        let wrong = || NoMacAddress(text.chars().take(40).collect());
        let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| is_byte(part));
        let bytes: Vec<u8> = text.split(':').map(byte).collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
        match bytes[0] & 1 == 0 && bytes != [0; 6] {
            true => Ok(MacAddress(bytes)),
            false => Err(wrong()),
        }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NoMacAddress;

    fn try_from(text: String) -> Result<MacAddress, NoMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Uplink {
    /// As it is written on a command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uplink::Tap { name, bridge: None } => write!(f, "tap:{name}"),
            Uplink::Tap { name, bridge: Some(bridge) } => write!(f, "tap:{name},bridge={bridge}"),
        }
    }
}

impl Uplink {
    /// Checks what can be known without the host.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let Uplink::Tap { name, bridge } = self;
        check_interface(name)?;
        bridge.as_deref().map_or(Ok(()), check_interface)
    }
}

/// The kernel allows more, such as `%d` for a number of its choice; what is allowed here means the same everywhere.
fn check_interface(name: &str) -> Result<(), SpecError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.len() > MAX_INTERFACE {
        return Err(SpecError::InterfaceTooLong { name: name.chars().take(64).collect(), length: name.len() });
    }
    match name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(allowed) {
        true => Ok(()),
        false => Err(SpecError::BadName { what: "a network interface", name: name.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_one_card() {
        let table = [
            ("02:00:00:00:00:01", Some("02:00:00:00:00:01")),
            ("52:54:00:AB:cd:0f", Some("52:54:00:ab:cd:0f")),
            ("01:00:5e:00:00:01", None),
            ("00:00:00:00:00:00", None),
            ("02:00:00:00:00", None),
            ("02:00:00:00:00:01:02", None),
            ("2:0:0:0:0:1", None),
            ("+2:00:00:00:00:01", None),
            ("", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<MacAddress>().ok().map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
        for bytes in [[0; 6], [255; 6], [1, 2, 3, 4, 5, 6]] {
            let made = MacAddress::local(bytes);
            assert_eq!(made.to_string().parse(), Ok(made));
            assert_eq!(made.bytes()[0] & 3, 2, "local, and of one card");
        }
    }

    #[test]
    fn interfaces_have_names_that_the_kernel_takes() {
        let named = |name: &str, bridge: Option<&str>| {
            Uplink::Tap { name: name.to_string(), bridge: bridge.map(str::to_string) }.check()
        };
        for (name, good) in
            [("tap0", true), ("a.b_c-d", true), ("", false), (".", false), ("t%d", false), ("a/b", false)]
        {
            assert_eq!(named(name, None).is_ok(), good, "{name}");
            assert_eq!(named("tap0", Some(name)).is_ok(), good, "{name}");
        }
        assert_eq!(named("fifteen-letters", None), Ok(()));
        let error = named("sixteen-letters-", None).expect_err("too long").to_string();
        assert!(error.contains("16") && error.contains("15"), "{error}");
    }
}
