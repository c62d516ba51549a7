//! qemu-guest-agent in a guest: asked to run a command there, and how that ended.
//!
//! ```text
//!   connect ──sync──► an agent that listens to us ──exec──► a command runs ──status──► … ──status──► it has ended
//! ```
//!
//! The agent belongs to the guest, so nothing of what it says is trusted: lines are bounded, waits have an end, words are
//! made printable ([`Answers`]). A conversation that failed is over: whoever wants to ask again connects anew.

mod answers;
mod error;

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

pub use answers::{ANSWER_LIMIT, Answer, AnswerError, Answers, GuestExit, OUTPUT};
pub use error::GuestAgentError;

use self::answers::MARK;
use crate::{Qemu, spec::PortSpec};

/// The name by which qemu-guest-agent finds its virtio-serial port.
///
/// Source: qemu-ga(8), `--path`.
pub const GUEST_AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// The longest command: less than what QEMU's agent and a socket's buffer take at once.
const LONGEST: usize = 16 << 10;

/// Runs its first argument, and says the end of what that said. Through a file and not a pipe: a service that the command
/// starts and that keeps its output open must not keep us waiting, and what is said without end is never sent.
const SHELL: &str = r#"said=$(mktemp 2>&1) || { echo "$said"; exit 1; }
/bin/sh -c "$1" >"$said" 2>&1 </dev/null
code=$?
tail -c 4096 "$said"
rm -f "$said"
exit $code"#;

/// A conversation with the agent of one guest. Blocks; dropping it leaves the port to others.
#[derive(Debug)]
pub struct GuestAgent {
    stream: UnixStream,
    answers: Answers,
    told: VecDeque<Result<Answer, AnswerError>>,
    patience: Duration,
    /// Since when the answer to `guest-exec-status` is awaited.
    asked: Option<Instant>,
}

/// A command that runs in a guest, by the agent's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestProcess(i64);

impl GuestAgent {
    /// Talks to the agent in the guest of `qemu`, which runs; each answer may take `patience`. QEMU lets one client at a
    /// time talk to a port, and does not tell the next one to wait.
    pub fn of(qemu: &Qemu, patience: Duration) -> Result<GuestAgent, GuestAgentError> {
        let record = qemu.record();
        let port = record.spec.as_ref().and_then(|spec| agent_port(&spec.ports));
        let port = port.ok_or_else(|| GuestAgentError::NoPort { vm: record.name.clone() })?;
        GuestAgent::connect(&port.socket, patience)
    }

    /// Talks to the agent behind a port's socket.
    pub fn connect(socket: &Path, patience: Duration) -> Result<GuestAgent, GuestAgentError> {
        let connected = UnixStream::connect(socket);
        let stream = connected.map_err(|source| GuestAgentError::Connect { path: socket.to_path_buf(), source })?;
        let (answers, told) = (Answers::default(), VecDeque::new());
        let mut agent = GuestAgent { stream, answers, told, patience, asked: None };
        agent.sync()?;
        Ok(agent)
    }

    /// Asks for nothing but an answer.
    pub fn ping(&mut self) -> Result<(), GuestAgentError> {
        self.ask("guest-ping", json!({})).map(drop)
    }

    /// Has the guest's shell run a command, with all that the agent may do there, which is everything as a rule.
    pub fn exec(&mut self, command: &str) -> Result<GuestProcess, GuestAgentError> {
        const ASKED: &str = "guest-exec";
        if command.len() > LONGEST {
            return Err(GuestAgentError::TooLong { length: command.len(), most: LONGEST });
        }
        let words = ["-c", SHELL, "gnomon", command];
        let started = self.ask(ASKED, json!({ "path": "/bin/sh", "arg": words, "capture-output": true }))?;
        let number = started.get("pid").and_then(Value::as_i64).ok_or(AnswerError::Implausible("pid"));
        number.map(GuestProcess).map_err(|source| GuestAgentError::Garbled { asked: ASKED, source })
    }

    /// How a command ended; `None` when it runs, or when the agent took longer than `wait` to say so: then the next call
    /// hears the answer. The agent forgets a command whose end it has told. Nothing else may be asked before that.
    pub fn status(&mut self, process: GuestProcess, wait: Duration) -> Result<Option<GuestExit>, GuestAgentError> {
        const ASKED: &str = "guest-exec-status";
        let asked = match self.asked {
            Some(asked) => asked,
            None => {
                self.send(ASKED, &question_of(ASKED, &json!({ "pid": process.0 })))?;
                *self.asked.insert(Instant::now())
            }
        };
        let over = asked + self.patience;
        let told = match self.next(ASKED, over.min(Instant::now() + wait)) {
            Err(GuestAgentError::Silent { .. }) if Instant::now() < over => return Ok(None),
            told => told?,
        };
        self.asked = None;
        let status = returned(ASKED, told)?;
        GuestExit::read(&status).map_err(|source| GuestAgentError::Garbled { asked: ASKED, source })
    }

    /// Drops what the agent had to say to others: its answer to this begins with a byte that ends everything before.
    fn sync(&mut self) -> Result<(), GuestAgentError> {
        const ASKED: &str = "guest-sync-delimited";
        let number = number_of_now();
        let mut question = vec![MARK];
        question.extend(question_of(ASKED, &json!({ "id": number })));
        let until = Instant::now() + self.patience;
        self.send(ASKED, &question)?;
        // Complaints about what it was sent before, and about the mark itself, come first.
        while self.next(ASKED, until)? != Ok(Answer::Return(json!(number))) {}
        Ok(())
    }

    fn ask(&mut self, asked: &'static str, arguments: Value) -> Result<Value, GuestAgentError> {
        let until = Instant::now() + self.patience;
        self.send(asked, &question_of(asked, &arguments))?;
        returned(asked, self.next(asked, until)?)
    }

    fn send(&mut self, asked: &'static str, question: &[u8]) -> Result<(), GuestAgentError> {
        let sent = self.stream.set_write_timeout(Some(self.patience)).and_then(|()| self.stream.write_all(question));
        sent.map_err(|error| self.failure(asked, error))
    }

    /// The next line, and whether it is an answer.
    fn next(&mut self, asked: &'static str, until: Instant) -> Result<Result<Answer, AnswerError>, GuestAgentError> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(told);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GuestAgentError::Silent { asked, after: self.patience });
            }
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(GuestAgentError::Closed { asked }),
                Ok(len) => self.told.extend(self.answers.take_in(&bytes[..len])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(asked, error)),
            }
        }
    }

    fn failure(&self, asked: &'static str, source: io::Error) -> GuestAgentError {
        match source.kind() {
            // The kernel's two words for a time that is over.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                GuestAgentError::Silent { asked, after: self.patience }
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => GuestAgentError::Closed { asked },
            _ => GuestAgentError::Socket { asked, source },
        }
    }
}

/// What was answered, when that is what was asked for.
fn returned(asked: &'static str, told: Result<Answer, AnswerError>) -> Result<Value, GuestAgentError> {
    match told {
        Ok(Answer::Return(value)) => Ok(value),
        Ok(Answer::Error { class, desc }) => Err(GuestAgentError::Refused { asked, class, desc }),
        Err(source) => Err(GuestAgentError::Garbled { asked, source }),
    }
}

fn agent_port(ports: &[PortSpec]) -> Option<&PortSpec> {
    ports.iter().find(|port| port.name == GUEST_AGENT_PORT)
}

fn question_of(asked: &str, arguments: &Value) -> Vec<u8> {
    let mut question = json!({ "execute": asked, "arguments": arguments }).to_string().into_bytes();
    question.push(b'\n');
    question
}

/// A number that nobody else has synchronized by: microseconds since 1970, which 52 bits hold for a century.
fn number_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64 & ((1 << 52) - 1)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixListener,
        thread::{self, JoinHandle},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(120);

    /// An agent that says `before` when it is connected, and to each question what `answer` makes of it.
    struct Fake {
        dir: tempfile::TempDir,
        thread: JoinHandle<()>,
    }

    fn fake(before: &'static [u8], answer: fn(&str, &Value) -> Option<String>) -> Fake {
        let dir = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(dir.path().join("agent.sock")).expect("a socket");
        let thread = thread::spawn(move || {
            let mut stream = listener.accept().expect("a caller").0;
            stream.write_all(before).expect("said");
            let mut lines = BufReader::new(stream.try_clone().expect("a stream"));
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let from = line.iter().rposition(|byte| *byte == MARK).map_or(0, |at| at + 1);
                let question: Value = serde_json::from_slice(&line[from..]).expect("a question");
                let asked = question["execute"].as_str().expect("a word").to_string();
                let said = match asked.as_str() {
                    "guest-sync-delimited" => Some(format!("{}", json!({ "return": question["arguments"]["id"] }))),
                    other => answer(other, &question["arguments"]),
                };
                let mark: &[u8] = if asked == "guest-sync-delimited" { &[MARK] } else { &[] };
                let Some(said) = said else { return };
                if stream.write_all(&[mark, said.as_bytes(), b"\n"].concat()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Fake { dir, thread }
    }

    impl Fake {
        fn talk(&self) -> Result<GuestAgent, GuestAgentError> {
            GuestAgent::connect(&self.dir.path().join("agent.sock"), LONG)
        }
    }

    #[test]
    fn the_shell_says_no_more_than_is_read() {
        assert!(SHELL.contains(&format!("tail -c {OUTPUT} ")));
    }

    #[test]
    fn a_command_is_run_and_its_end_is_read() {
        let fake = fake(b"{\"return\": 12345}\n{\"return\": {\"exited\": tr", |asked, arguments| {
            Some(match asked {
                "guest-exec" => json!({ "return": { "pid": arguments["arg"][3].as_str()?.len() } }).to_string(),
                "guest-exec-status" => {
                    json!({ "return": { "exited": true, "exitcode": arguments["pid"], "out-data": "aWxs" } })
                        .to_string()
                }
                _ => json!({ "return": {} }).to_string(),
            })
        });
        let mut agent = fake.talk().expect("in step, whatever was said before");
        agent.ping().expect("answered");
        let process = agent.exec("seven77").expect("started");
        let exit = agent.status(process, LONG).expect("told");
        assert_eq!(exit, Some(GuestExit { code: Some(7), said: "ill".into() }));
        assert!(matches!(agent.exec(&"x".repeat(LONGEST + 1)), Err(GuestAgentError::TooLong { .. })));
        drop(agent);
        fake.thread.join().expect("ended");
    }

    #[test]
    fn what_is_no_answer_is_an_error_of_its_own() {
        type Case = (fn(&str, &Value) -> Option<String>, fn(&GuestAgentError) -> bool);
        let table: [Case; 4] = [
            (|_, _| Some("hello".into()), |error| matches!(error, GuestAgentError::Garbled { .. })),
            (
                |_, _| Some("x".repeat(2 * ANSWER_LIMIT)),
                |error| matches!(error, GuestAgentError::Garbled { source: AnswerError::TooLong, .. }),
            ),
            (
                |_, _| Some(json!({ "error": { "class": "CommandNotFound", "desc": "disabled" } }).to_string()),
                |error| error.to_string().contains("disabled"),
            ),
            (|_, _| None, |error| matches!(error, GuestAgentError::Closed { .. })),
        ];
        for (number, (answer, is_it)) in table.into_iter().enumerate() {
            let fake = fake(b"", answer);
            let error = fake.talk().expect("in step").ping().expect_err("no answer");
            assert!(is_it(&error), "{number}: {error}");
            fake.thread.join().expect("ended");
        }
    }

    #[test]
    fn whoever_says_nothing_or_too_much_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let connect = || GuestAgent::connect(&socket, Duration::from_millis(50));
        assert!(matches!(connect(), Err(GuestAgentError::Silent { asked: "guest-sync-delimited", .. })));
        drop(listener.accept().expect("a caller"));
        // One that floods its port with lines, as long as somebody listens.
        let flood = thread::spawn(move || {
            let mut caller = listener.accept().expect("a caller").0;
            while caller.write_all(b"{\"return\": 1}\n").is_ok() {}
        });
        assert!(matches!(connect(), Err(GuestAgentError::Silent { .. })));
        flood.join().expect("ended");
        assert!(matches!(
            GuestAgent::connect(&dir.path().join("nothing"), LONG),
            Err(GuestAgentError::Connect { .. })
        ));
    }
}
