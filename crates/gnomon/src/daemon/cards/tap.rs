//! A tap: the host's end of a guest's cable.
//!
//! One that is there is used and left as it was; one that is not is made, and vanishes with the last who holds it. It
//! becomes a port of its bridge and is switched on.
//!
//! Source: Linux, Documentation/networking/tuntap.rst; netdevice(7).

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::UdpSocket,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use gnomon_qemu::{MAX_INTERFACE, MacAddress, Uplink};
use rustix::io::Errno;

use super::UplinkError;

/// The first byte of the address of a tap that we make; the rest is that of the guest's card. A bridge takes the least
/// address of its ports for its own, and with this one a guest that comes or goes does not change it.
const TAP_ADDRESS: u8 = 0xfe;
/// An address of a card, in the terms of [`libc::SIOCSIFHWADDR`].
const ARPHRD_ETHER: u16 = 1;
/// Makes an interface a port of a bridge.
///
/// Source: Linux, include/uapi/linux/sockios.h.
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// An open tap.
#[derive(Debug)]
pub struct Tap(File);

/// What the kernel's calls about an interface take: its name, and 24 bytes whose meaning depends on the call.
///
/// Source: Linux, include/uapi/linux/if.h, `struct ifreq`.
#[repr(C, align(8))]
struct Request {
    name: [u8; MAX_INTERFACE + 1],
    value: [u8; 24],
}

impl Tap {
    /// Opens or makes the tap of an uplink. Does not block for longer than the kernel takes, some milliseconds.
    pub fn open(uplink: &Uplink, mac: MacAddress) -> Result<Tap, UplinkError> {
        let Uplink::Tap { name, bridge } = uplink;
        check_bridge(bridge.as_deref())?;
        let failed = |deed, error: Errno| of_kernel(deed, name, error);
        let control = control().map_err(|source| io_of("asking about", name, source))?;
        let is_new = index_of(&control, name).is_none();
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let tap = Tap(device.map_err(|error| of_device(name, error))?);
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
        let mut request = Request::about(name);
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        ask(tap.as_fd(), libc::TUNSETIFF, &mut request).map_err(|error| failed("opening tap", error))?;
        if is_new {
            let mut request = Request::about(name);
            request.value[..2].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
            let mut address = mac.bytes();
            address[0] = TAP_ADDRESS;
            request.value[2..8].copy_from_slice(&address);
            let given = ask(control.as_fd(), libc::SIOCSIFHWADDR, &mut request);
            given.map_err(|error| failed("giving an address to", error))?;
        }
        if let Some(bridge) = bridge {
            join(&control, name, bridge)?;
        }
        switch_on(&control, name).map_err(|error| failed("switching on", error))?;
        Ok(tap)
    }

    /// Whether the uplink could be opened, as far as can be told without doing it.
    pub fn check(uplink: &Uplink) -> Result<(), UplinkError> {
        let Uplink::Tap { name, bridge } = uplink;
        let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        device.map_err(|error| of_device(name, error))?;
        check_bridge(bridge.as_deref())
    }

    /// Sends a frame out. Never waits.
    pub fn write(&self, frame: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.0, frame).map(drop)
    }

    /// The next frame for the guest, cut to the room there is; `AGAIN` when there is none.
    pub fn read(&self, room: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.0, room)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Request {
    /// Names were checked when the card was described; a longer one would be cut.
    fn about(name: &str) -> Request {
        let mut request = Request { name: [0; MAX_INTERFACE + 1], value: [0; 24] };
        request.name.iter_mut().take(MAX_INTERFACE).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        request
    }

    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }
}

/// Any socket will do for questions about interfaces.
fn control() -> io::Result<UdpSocket> {
    UdpSocket::bind(("0.0.0.0", 0))
}

fn ask(fd: BorrowedFd<'_>, call: libc::Ioctl, request: &mut Request) -> Result<(), Errno> {
    // SAFETY: `request` is as large as the kernel's `struct ifreq` (40 bytes) and aligned as it, lives for the call, and
    // any bytes are valid in it. The descriptor is open for as long as it is borrowed.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), call, std::ptr::from_mut(request)) };
    match answer {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn index_of(control: &UdpSocket, name: &str) -> Option<i32> {
    let mut request = Request::about(name);
    ask(control.as_fd(), libc::SIOCGIFINDEX as libc::Ioctl, &mut request).ok().map(|()| request.number())
}

fn check_bridge(bridge: Option<&str>) -> Result<(), UplinkError> {
    let Some(bridge) = bridge else { return Ok(()) };
    match fs::metadata(format!("/sys/class/net/{bridge}/bridge")).is_ok_and(|found| found.is_dir()) {
        true => Ok(()),
        false => Err(UplinkError::NoSuchBridge { bridge: bridge.to_string() }),
    }
}

/// Makes a tap a port of a bridge, unless it is one.
fn join(control: &UdpSocket, tap: &str, bridge: &str) -> Result<(), UplinkError> {
    match master_of(tap) {
        Some(master) if master == bridge => return Ok(()),
        Some(master) => {
            return Err(UplinkError::OtherBridge { tap: tap.to_string(), master, bridge: bridge.to_string() });
        }
        None => {}
    }
    let mut request = Request::about(bridge);
    request.value[..4].copy_from_slice(&index_of(control, tap).unwrap_or_default().to_ne_bytes());
    let joined = ask(control.as_fd(), SIOCBRADDIF, &mut request);
    joined.map_err(|error| match error {
        Errno::NODEV | Errno::OPNOTSUPP => UplinkError::NoSuchBridge { bridge: bridge.to_string() },
        error => of_kernel("adding to its bridge", tap, error),
    })
}

fn master_of(tap: &str) -> Option<String> {
    let master = fs::read_link(format!("/sys/class/net/{tap}/master")).ok()?;
    Some(master.file_name()?.to_string_lossy().into_owned())
}

fn switch_on(control: &UdpSocket, name: &str) -> Result<(), Errno> {
    let mut request = Request::about(name);
    ask(control.as_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]) | libc::IFF_UP as u16;
    let mut request = Request::about(name);
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    ask(control.as_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
}

fn of_device(tap: &str, error: io::Error) -> UplinkError {
    match error.kind() {
        io::ErrorKind::NotFound => UplinkError::NoTun,
        io::ErrorKind::PermissionDenied => UplinkError::NoPermission { tap: tap.to_string() },
        _ => io_of("opening /dev/net/tun for", tap, error),
    }
}

fn of_kernel(deed: &'static str, interface: &str, error: Errno) -> UplinkError {
    let tap = interface.to_string();
    match error {
        Errno::PERM | Errno::ACCESS => UplinkError::NoPermission { tap },
        Errno::BUSY => UplinkError::Busy { tap },
        Errno::INVAL => UplinkError::NotATap { tap },
        error => io_of(deed, interface, error.into()),
    }
}

fn io_of(deed: &'static str, interface: &str, source: io::Error) -> UplinkError {
    UplinkError::Io { deed, interface: interface.to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_the_kernel_has_it() {
        assert_eq!(
            (size_of::<Request>(), align_of::<Request>()),
            (size_of::<libc::ifreq>(), align_of::<libc::ifreq>())
        );
        let request = Request::about("fifteen-letters");
        assert_eq!((&request.name[..15], request.name[15]), (b"fifteen-letters".as_slice(), 0));
    }

    #[test]
    fn what_the_kernel_says_is_told() {
        let table = [
            (Errno::BUSY, "in use by another"),
            (Errno::PERM, "no permission"),
            (Errno::INVAL, "is no tap"),
            (Errno::NOMEM, "opening tap t0 failed"),
        ];
        for (errno, words) in table {
            let told = of_kernel("opening tap", "t0", errno).to_string();
            assert!(told.contains(words), "{told}");
        }
        let missing = Tap::check(&Uplink::Tap { name: "t0".into(), bridge: Some("no-such-bridge".into()) });
        assert!(missing.is_err());
    }
}
