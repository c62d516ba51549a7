//! A real HAProxy sends connections to where a VM is, and hooks hear of it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::Value;

use crate::{
    guest,
    house::{Pair, await_some},
};

/// A HAProxy with one backend called `web`; it ends with the test.
struct Haproxy {
    process: Child,
    admin: PathBuf,
    /// Where its clients go.
    front: PathBuf,
}

impl Haproxy {
    /// `servers` are lines of the backend.
    fn start(dir: &Path, servers: &str) -> Haproxy {
        let (admin, front) = (dir.join("admin.sock"), dir.join("front.sock"));
        let config = format!(
            "global\n stats socket {} level admin\n\
             defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             frontend front\n bind {}\n default_backend web\n\
             backend web\n{servers}",
            admin.display(),
            front.display()
        );
        fs::write(dir.join("haproxy.cfg"), config).expect("a configuration");
        let log = File::create(dir.join("haproxy.log")).expect("a log");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(dir.join("haproxy.cfg")).stdin(Stdio::null());
        let process = command.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("haproxy");
        let haproxy = Haproxy { process, admin, front };
        let said = || fs::read_to_string(dir.join("haproxy.log")).unwrap_or_default();
        await_some("HAProxy", said, || UnixStream::connect(&haproxy.admin).ok());
        haproxy
    }

    fn ask(&self, command: &str) -> String {
        let mut socket = UnixStream::connect(&self.admin).expect("it listens");
        socket.write_all(format!("{command}\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// The fields of a server: its operational state, and what was set by hand.
    fn server(&self, name: &str) -> (String, String) {
        let table = self.ask("show servers state web");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.into_iter().find(|row| row.get(3) == Some(&name)).expect("the server");
        (row[5].to_string(), row[6].to_string())
    }

    /// Who answers a new client.
    fn answers(&self) -> String {
        let mut said = String::new();
        // A client that nobody answers is refused or cut off.
        let read = UnixStream::connect(&self.front).and_then(|mut client| client.read_to_string(&mut said));
        read.map(|_| said).unwrap_or_default()
    }

    fn await_answer(&self, word: &str) {
        await_some(&format!("an answer of {word}"), || self.answers(), || (self.answers() == word).then_some(()));
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A service that says `word` to everybody; where it listens.
fn service(word: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a service");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that has left does not want to hear it.
            let _ = { client }.write_all(word.as_bytes());
        }
    });
    address
}

/// A listener of hooks: where it listens, and the events it was told.
fn listener() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address").to_string();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for (number, mut client) in listener.incoming().flatten().enumerate() {
            let body = body_of(&mut client);
            // The first is turned away: it has to be told again.
            let status = if number == 0 { "503 Busy" } else { "204 Heard" };
            let _ = write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            if number > 0 && tell.send(body).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn body_of(client: &mut TcpStream) -> Value {
    let mut reader = BufReader::new(client);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let line = line.trim().to_ascii_lowercase();
        match line.strip_prefix("content-length:") {
            Some(number) => length = number.trim().parse().expect("a length"),
            None if line.is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

/// Two nodes that both know where VM `web` answers on each, with `more` in the configuration of the first.
fn nodes(haproxy: &Haproxy, more: &str) -> Pair {
    let mut pair = Pair::unlit(["a", "b"], "", true);
    let balancer = format!(
        "[[balancer]]\nvm = 'web'\nhaproxy = '{}'\nserver = 'web/vm'\naddress = {{ a = '{}', b = '{}' }}\n",
        haproxy.admin.display(),
        service("a"),
        service("b")
    );
    for (house, more) in [(&pair.a, more), (&pair.b, "")] {
        let known = fs::read_to_string(house.config()).expect("a configuration");
        fs::write(house.config(), known + &balancer + more).expect("a configuration");
    }
    pair.a.start();
    pair.b.start();
    fs::write(pair.path("boot.raw"), guest::disk(&guest::READER)).expect("written");
    pair.a.ask(&["volume", "import", "boot", "--file", &pair.path("boot.raw").display().to_string()]);
    pair
}

const RUN: [&str; 9] = ["vm", "run", "web", "--memory", "16M", "--disk", "boot", "--accel", "tcg"];

#[test]
fn connections_go_to_where_the_vm_is() {
    let dir = tempfile::tempdir().expect("a folder");
    // Its address is nowhere, and somebody has drained it.
    let haproxy = Haproxy::start(dir.path(), " server vm 127.0.0.1:1\n");
    haproxy.ask("set server web/vm state drain");
    let (hook, told) = listener();
    let program = dir.path().join("told");
    fs::write(&program, format!("#!/bin/sh\ncat >> {}/events\n", dir.path().display())).expect("a program");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let hooks = format!(
        "[[hook]]\nvm = 'web'\nurl = 'http://{hook}/events'\n[[hook]]\ncommand = '{}'\n\
         [[hook]]\nvm = 'other'\ncommand = '/bin/false'\n",
        program.display()
    );
    let pair = nodes(&haproxy, &hooks);
    pair.a.ask(&RUN);
    haproxy.await_answer("a");
    assert_eq!(haproxy.server("vm"), ("2".to_string(), "0".to_string()));
    assert_eq!(pair.a.ask(&["vm", "move", "web", "--to", "b"])["state"], "done");
    haproxy.await_answer("b");
    let event = told.recv().expect("an event");
    let parts = ["vm", "what", "status", "to"].map(|key| event[key].as_str().unwrap_or_default());
    assert_eq!(parts, ["web", "move", "done", "node b"], "{event}");
    assert!(event["gap_ms"].as_f64().is_some_and(|gap| gap > 0.0), "{event}");
    let events = fs::read(dir.path().join("events")).expect("the program was run");
    assert_eq!(serde_json::from_slice::<Value>(&events).expect("JSON"), event, "both heard the same");
    assert_eq!(pair.a.ask(&["vm", "events", "web"]).as_array().map(Vec::len), Some(1));
    assert_eq!(pair.b.run(&["vm", "stop", "web", "--force"]).code, 0);
}

/// The other target takes new connections while the VM is on its way; and a move that is given up leaves all as it was.
#[test]
fn a_target_with_others_beside_it_is_drained_while_its_vm_moves() {
    let dir = tempfile::tempdir().expect("a folder");
    let other = service("other");
    let haproxy = Haproxy::start(dir.path(), &format!(" server vm 127.0.0.1:1\n server other {other}\n"));
    let pair = nodes(&haproxy, "");
    pair.a.ask(&RUN);
    let state = || format!("{:?}", haproxy.server("vm"));
    await_some("a target", state, || (haproxy.answers() == "a").then_some(()));
    // In this mode the guest's memory is sent long before the last block: the target is drained meanwhile.
    let ask = ["vm", "move", "web", "--to", "b", "--mode", "post", "--bandwidth", "200kbit", "--detach"];
    pair.a.ask(&ask);
    await_some("a drain", state, || (haproxy.server("vm").1 == "8").then_some(()));
    assert_eq!([haproxy.answers(), haproxy.answers()], ["other", "other"]);
    assert_eq!(pair.a.run(&["vm", "move", "web", "--cancel"]).code, 0);
    await_some("its return", state, || (haproxy.server("vm").1 == "0").then_some(()));
    await_some("a target", state, || (haproxy.answers() == "a").then_some(()));
    assert_eq!(pair.a.run(&["vm", "stop", "web", "--force"]).code, 0);
}
