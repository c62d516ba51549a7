//! A terminal on a guest's serial console.

use std::io::IsTerminal;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, stdin, stdout},
    net::UnixStream,
};

use crate::api::ApiError;

/// Ctrl-], as telnet uses it to leave.
const LEAVE: u8 = 0x1d;

/// Joins this terminal and the console on `socket` until the user leaves or the console ends.
pub async fn attach(socket: &str) -> Result<(), ApiError> {
    let console = UnixStream::connect(socket).await.map_err(|error| {
        ApiError::unavailable(format!("the console {socket} does not answer: {error}"))
            .then("only one terminal at a time can be on a console; does the VM run?")
    })?;
    let _raw = RawTerminal::enter();
    let (mut from_guest, mut to_guest) = console.into_split();
    let printing = async {
        let mut out = stdout();
        let mut bytes = [0; 4096];
        loop {
            match from_guest.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    if out.write_all(&bytes[..len]).await.is_err() || out.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let typing = async {
        let mut input = stdin();
        let mut bytes = [0; 256];
        loop {
            match input.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    let typed = bytes[..len].split(|byte| *byte == LEAVE).next().unwrap_or_default();
                    if to_guest.write_all(typed).await.is_err() || typed.len() < len {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = printing => {}
        () = typing => {}
    }
    Ok(())
}

/// A terminal that hands every key through, and is put back when dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> RawTerminal {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return RawTerminal(None);
        }
        let Ok(before) = tcgetattr(&input) else { return RawTerminal(None) };
        let mut raw = before.clone();
        raw.make_raw();
        // A terminal that cannot be raw still shows the console.
        let _ = tcsetattr(&input, OptionalActions::Now, &raw);
        RawTerminal(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
