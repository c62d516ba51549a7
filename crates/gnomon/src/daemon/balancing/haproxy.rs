//! HAProxy's runtime API: a line of text for each command, on its admin socket.
//!
//! Source: HAProxy 2.6 Management Guide, "9.3. Unix Socket commands". A connection takes one line and is closed by
//! HAProxy after the answer; an answer to a command that changed something is empty or says what was changed.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
};

use super::{BalanceError, PATIENCE};
use crate::config::Balancer;

/// The most we read of an answer: a backend of a thousand servers.
const ANSWER_LIMIT: u64 = 256 << 10;
/// `srv_op_state` of a server that takes connections.
const RUNNING: &str = "2";

/// A target of a HAProxy: one server of one of its backends.
pub struct Haproxy<'a> {
    /// Its admin socket: a path, or host:port.
    at: &'a str,
    /// `backend/server`.
    server: &'a str,
}

impl Haproxy<'_> {
    /// The target of a balancer.
    pub fn of(balancer: &Balancer) -> Haproxy<'_> {
        Haproxy { at: &balancer.haproxy, server: &balancer.server }
    }

    /// Whether another server of its backend takes connections.
    pub fn has_others(&self) -> Result<bool, BalanceError> {
        let (backend, server) = self.server.split_once('/').unwrap_or((self.server, ""));
        let command = format!("show servers state {backend}");
        let answer = self.ask(&command)?;
        others_run(&answer, server).ok_or_else(|| self.refused(&command, &answer))
    }

    /// No new connections; those that are there go on.
    pub fn drain(&self) -> Result<(), BalanceError> {
        self.change("state drain", |said| said.is_empty())
    }

    /// It takes connections.
    pub fn ready(&self) -> Result<(), BalanceError> {
        self.change("state ready", |said| said.is_empty())
    }

    /// New connections go to `address`.
    pub fn point(&self, address: SocketAddr) -> Result<(), BalanceError> {
        let change = format!("addr {} port {}", address.ip(), address.port());
        // It says what changed, or that there was no need to.
        self.change(&change, |said| said.contains("changed from") || said.contains("no need to change"))
    }

    fn change(&self, what: &str, is_done: impl Fn(&str) -> bool) -> Result<(), BalanceError> {
        let command = format!("set server {} {what}", self.server);
        let answer = self.ask(&command)?;
        match is_done(answer.trim()) {
            true => Ok(()),
            false => Err(self.refused(&command, &answer)),
        }
    }

    fn refused(&self, command: &str, answer: &str) -> BalanceError {
        let words = answer.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c });
        BalanceError::Refused { at: self.at.to_string(), command: command.to_string(), said: words.collect() }
    }

    fn ask(&self, command: &str) -> Result<String, BalanceError> {
        let answer = match self.at.starts_with('/') {
            true => UnixStream::connect(self.at).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(stream, command)
            }),
            false => connect(self.at).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(stream, command)
            }),
        };
        answer.map_err(|source| BalanceError::Unreachable { at: self.at.to_string(), source })
    }
}

fn connect(at: &str) -> io::Result<TcpStream> {
    let address = at.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    TcpStream::connect_timeout(&address, PATIENCE)
}

fn exchange(mut stream: impl Read + Write, command: &str) -> io::Result<String> {
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether a server other than `server` runs, by HAProxy's table of a backend; `None` when it is no such table.
///
/// Each line is: be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state …; drained by hand is bit 3 of the
/// last, in maintenance by hand bit 0.
fn others_run(answer: &str, server: &str) -> Option<bool> {
    let mut lines = answer.lines();
    if lines.next()?.trim() != "1" || !lines.next()?.starts_with('#') {
        return None;
    }
    let rows = lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|row| row.len() >= 7);
    let mut others = rows.filter(|row| row[3] != server);
    Some(others.any(|row| row[5] == RUNNING && row[6].parse::<u32>().is_ok_and(|admin| admin & 0b1001 == 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n";

    #[test]
    fn others_are_found_in_the_table() {
        let row = |name: &str, state: u32, admin: u32| format!("3 web 1 {name} 10.0.0.1 {state} {admin} 1 1 8\n");
        let table = [
            (HEAD.to_string(), Some(false)),
            (format!("{HEAD}{}", row("vm", 2, 0)), Some(false)),
            (format!("{HEAD}{}{}", row("vm", 2, 0), row("other", 2, 0)), Some(true)),
            (format!("{HEAD}{}{}", row("vm", 2, 0), row("other", 0, 0)), Some(false)),
            (format!("{HEAD}{}{}", row("vm", 2, 0), row("other", 2, 8)), Some(false)),
            (format!("{HEAD}{}{}", row("vm", 2, 0), row("other", 2, 1)), Some(false)),
            (format!("{HEAD}short line\n"), Some(false)),
            ("Can't find backend.\n".to_string(), None),
            (String::new(), None),
        ];
        for (answer, expected) in table {
            assert_eq!(others_run(&answer, "vm"), expected, "{answer}");
        }
    }
}
