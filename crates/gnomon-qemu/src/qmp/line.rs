//! Cutting a byte stream into bounded lines, and lines into messages.

use std::{
    io::{self, Read},
    time::Duration,
};

use serde_json::Value;

use super::{CloseReason, QmpEvent};

/// The longest line we accept. The longest honest one is the schema (about 300 KB in QEMU 10); ten times that
/// leaves room for years and still bounds what a hostile peer can make us hold.
pub(super) const LINE_LIMIT: usize = 4 << 20;

/// How much of an unreadable line is told.
const QUOTED: usize = 120;

/// Lines of a stream, none longer than a limit.
pub(super) struct Lines<R> {
    from: R,
    limit: usize,
    held: Vec<u8>,
    searched: usize,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(from: R, limit: usize) -> Lines<R> {
        Lines { from, limit, held: Vec::new(), searched: 0 }
    }

    /// The next line without its end. Blocks. A stream that ends within a line has ended: half a message is none.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, CloseReason> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(line);
            }
            if self.held.len() >= self.limit {
                return Err(CloseReason::LineTooLong { limit: self.limit });
            }
            self.fill()?;
        }
    }

    /// Each byte is searched once, however many reads a line takes.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.held[self.searched..].iter().position(|&b| b == b'\n') else {
            self.searched = self.held.len();
            return None;
        };
        let rest = self.held.split_off(self.searched + end + 1);
        let line = std::mem::replace(&mut self.held, rest);
        self.searched = 0;
        Some(line)
    }

    fn fill(&mut self) -> Result<(), CloseReason> {
        let mut chunk = [0u8; 16 << 10];
        let room = chunk.len().min(self.limit - self.held.len());
        match self.from.read(&mut chunk[..room]) {
            Ok(0) => Err(CloseReason::Ended),
            Ok(n) => {
                self.held.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(CloseReason::socket(&e)),
        }
    }
}

/// What QEMU can send.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The first line of a connection; inner: the `QMP` object.
    Greeting(Value),
    /// The command with this id succeeded.
    Return { id: u64, value: Value },
    /// The command with this id (if QEMU could read one) failed.
    Error { id: Option<u64>, class: String, desc: String },
    /// Something happened.
    Event(QmpEvent),
    /// Well-formed, but for nobody we know: a reply without an id of ours.
    Stray,
}

/// Reads one line.
pub(super) fn parse(line: &[u8]) -> Result<Message, CloseReason> {
    let garbled = |why: &str| CloseReason::Garbled { what: format!("{why}: {}", quote(line)) };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(line) else {
        return Err(garbled("not a JSON object"));
    };
    let id = fields.get("id").and_then(Value::as_u64);
    if let Some(greeting) = fields.remove("QMP") {
        return Ok(Message::Greeting(greeting));
    }
    if let Some(value) = fields.remove("return") {
        return Ok(id.map_or(Message::Stray, |id| Message::Return { id, value }));
    }
    if let Some(error) = fields.remove("error") {
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("(not told)").to_string();
        return Ok(Message::Error { id, class: text("class"), desc: text("desc") });
    }
    match fields.remove("event") {
        Some(Value::String(name)) => {
            let (data, at) = (fields.remove("data").unwrap_or(Value::Null), fields.get("timestamp").map(moment));
            Ok(Message::Event(QmpEvent { name, data, at: at.unwrap_or_default() }))
        }
        _ => Err(garbled("neither greeting, reply nor event")),
    }
}

/// `{"seconds": …, "microseconds": …}`; zero for what is no time.
fn moment(timestamp: &Value) -> Duration {
    let number = |name: &str| timestamp.get(name).and_then(Value::as_u64).unwrap_or(0);
    Duration::from_secs(number("seconds")).saturating_add(Duration::from_micros(number("microseconds")))
}

/// The beginning of a line, printable whatever it holds.
fn quote(line: &[u8]) -> String {
    line[..line.len().min(QUOTED)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_line_is_told_apart() {
        let table = [
            (r#"{"QMP": {"version": 1}}"#, Message::Greeting(json!({"version": 1}))),
            (r#"{"return": {}, "id": 7}"#, Message::Return { id: 7, value: json!({}) }),
            (r#"{"return": {}}"#, Message::Stray),
            (r#"{"return": {}, "id": "x"}"#, Message::Stray),
            (
                r#"{"error": {"class": "C", "desc": "D"}, "id": 1}"#,
                Message::Error { id: Some(1), class: "C".into(), desc: "D".into() },
            ),
            (r#"{"error": 3}"#, Message::Error { id: None, class: "(not told)".into(), desc: "(not told)".into() }),
            (r#"{"event": "STOP"}"#, Message::Event(QmpEvent::new("STOP"))),
            (
                r#"{"event": "STOP", "timestamp": {"seconds": 3, "microseconds": 5}}"#,
                Message::Event(QmpEvent { at: Duration::from_micros(3_000_005), ..QmpEvent::new("STOP") }),
            ),
            (r#"{"event": "STOP", "timestamp": {"seconds": -1}}"#, Message::Event(QmpEvent::new("STOP"))),
        ];
        for (line, message) in table {
            assert_eq!(parse(line.as_bytes()), Ok(message), "{line}");
        }
    }

    #[test]
    fn what_is_not_qmp_is_quoted() {
        for line in ["", "hello", "[1]", "{}", "{\"event\": 3}", "\u{7}\u{0}"] {
            let Err(CloseReason::Garbled { what }) = parse(line.as_bytes()) else { panic!("{line:?} was accepted") };
            assert!(what.is_ascii(), "{what:?}");
        }
    }

    #[test]
    fn a_line_too_long_ends_the_stream_before_it_is_held() {
        let mut lines = Lines::new(&[b'x'; 200][..], 100);
        assert_eq!(lines.next(), Err(CloseReason::LineTooLong { limit: 100 }));
        assert!(lines.held.len() <= 100);
    }

    #[test]
    fn half_a_line_is_no_line() {
        let mut lines = Lines::new(&b"one\ntw"[..], 100);
        assert_eq!(lines.next(), Ok(b"one\n".to_vec()));
        assert_eq!(lines.next(), Err(CloseReason::Ended));
    }

    /// Hands out a stream in pieces of a given size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(self.1).min(into.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_lines_are_the_same(
            texts in proptest::collection::vec("[a-z]{0,40}", 0..20), piece in 1usize..64,
        ) {
            let stream: String = texts.iter().map(|t| format!("{t}\n")).collect();
            let mut lines = Lines::new(Pieces(stream.as_bytes(), piece), 64);
            for text in &texts {
                prop_assert_eq!(lines.next(), Ok(format!("{text}\n").into_bytes()));
            }
            prop_assert_eq!(lines.next(), Err(CloseReason::Ended));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
