//! What an agent in a guest says: one JSON object a line. Pure; whatever a guest sends is cut, bounded and checked here.
//!
//! A conversation may begin amid what the agent still had to say to somebody else. So the first question is one whose
//! answer begins with a byte that no text holds ([`MARK`]): whatever came before it is dropped.
//!
//! Source: QEMU, qga/qapi-schema.json (`guest-sync-delimited`, `guest-exec-status`) and docs/interop/qmp-spec.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// The longest line that is taken. What we ask for is answered in 6 KB at most: [`OUTPUT`] bytes, written in base64.
pub const ANSWER_LIMIT: usize = 16 << 10;

/// The most that is asked for, and taken, of what a command says: its end.
pub const OUTPUT: usize = 4 << 10;

/// Stands before an answer to `guest-sync-delimited`. No UTF-8 text holds it.
pub const MARK: u8 = 0xff;

/// The most of an agent's own words that is told.
const QUOTED: usize = 200;

/// One answer of an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It did as told, and returns this.
    Return(Value),
    /// It did not.
    Error {
        /// QEMU's class of the error.
        class: String,
        /// Its words, printable.
        desc: String,
    },
}

/// Why a line is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is longer than any answer to what we ask.
    #[error("a line of more than {ANSWER_LIMIT} bytes")]
    TooLong,
    /// It is no JSON object with a `return` or an `error`.
    #[error("a line that is no answer: {0}")]
    Foreign(String),
    /// Something in it is missing, or is not what it has to be.
    #[error("an answer without a plausible '{0}'")]
    Implausible(&'static str),
}

/// Cuts what comes from a port into answers. Holds a line at most, whatever comes.
#[derive(Debug, Default)]
pub struct Answers {
    line: Vec<u8>,
    is_too_long: bool,
}

impl Answers {
    /// Takes in some bytes; what became of each line that they end.
    pub fn take_in(&mut self, bytes: &[u8]) -> Vec<Result<Answer, AnswerError>> {
        let mut told = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => told.push(self.end()),
                MARK => drop(self.begin()),
                _ if self.line.len() == ANSWER_LIMIT => self.is_too_long = true,
                _ => self.line.push(byte),
            }
        }
        told
    }

    /// Begins a line; the one before, unless it was too long.
    fn begin(&mut self) -> Option<Vec<u8>> {
        let (line, was_too_long) = (std::mem::take(&mut self.line), std::mem::take(&mut self.is_too_long));
        (!was_too_long).then_some(line)
    }

    fn end(&mut self) -> Result<Answer, AnswerError> {
        Answer::parse(&self.begin().ok_or(AnswerError::TooLong)?)
    }
}

impl Answer {
    /// Reads a line, without its end.
    pub fn parse(line: &[u8]) -> Result<Answer, AnswerError> {
        let foreign = || AnswerError::Foreign(printable(line, QUOTED));
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else { return Err(foreign()) };
        if let Some(value) = fields.remove("return") {
            return Ok(Answer::Return(value));
        }
        let error = fields.remove("error").ok_or_else(foreign)?;
        let text = |name: &str| {
            let text = error.get(name).and_then(Value::as_str).unwrap_or("(not told)");
            printable(text.as_bytes(), QUOTED)
        };
        Ok(Answer::Error { class: text("class"), desc: text("desc") })
    }
}

/// How a command in a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestExit {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The end of what it said, on both streams: printable, with its line ends, at most [`OUTPUT`] characters.
    pub said: String,
}

impl GuestExit {
    /// Reads what `guest-exec-status` returns; `None` while the command runs.
    pub fn read(status: &Value) -> Result<Option<GuestExit>, AnswerError> {
        let exited = status.get("exited").and_then(Value::as_bool).ok_or(AnswerError::Implausible("exited"))?;
        if !exited {
            return Ok(None);
        }
        let code = match status.get("exitcode") {
            None => None,
            Some(code) => {
                let code = code.as_i64().and_then(|code| i32::try_from(code).ok());
                Some(code.ok_or(AnswerError::Implausible("exitcode"))?)
            }
        };
        let said = match status.get("out-data") {
            None => Vec::new(),
            Some(data) => data
                .as_str()
                .and_then(|text| STANDARD.decode(text).ok())
                .ok_or(AnswerError::Implausible("out-data"))?,
        };
        Ok(Some(GuestExit { code, said: printable(said.trim_ascii(), OUTPUT) }))
    }
}

/// The end of what bytes of a guest say, for the eyes of an operator: a terminal obeys what it is shown otherwise.
fn printable(bytes: &[u8], most: usize) -> String {
    let shown = |c: char| if c == '\n' || c == '\t' || !c.is_control() { c } else { '?' };
    let text: Vec<char> = String::from_utf8_lossy(bytes).chars().map(shown).collect();
    text[text.len().saturating_sub(most)..].iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn error(desc: &str) -> Result<Answer, AnswerError> {
        Ok(Answer::Error { class: "GenericError".into(), desc: desc.into() })
    }

    #[test]
    fn lines_are_answers_or_say_why_not() {
        let foreign = |line: &str| Err(AnswerError::Foreign(line.into()));
        let table: [(&str, Result<Answer, AnswerError>); 7] = [
            (r#"{"return": {"pid": 7}}"#, Ok(Answer::Return(json!({"pid": 7})))),
            (r#"{"return": 3, "id": 1}"#, Ok(Answer::Return(json!(3)))),
            (r#"{"error": {"class": "GenericError", "desc": "no\u001b[2J"}}"#, error("no?[2J")),
            (r#"{"error": 3}"#, Ok(Answer::Error { class: "(not told)".into(), desc: "(not told)".into() })),
            ("[]", foreign("[]")),
            ("{}", foreign("{}")),
            ("", foreign("")),
        ];
        for (line, told) in table {
            assert_eq!(Answers::default().take_in(format!("{line}\n").as_bytes()), [told], "{line}");
        }
    }

    #[test]
    fn what_came_before_the_mark_is_dropped() {
        let mut answers = Answers::default();
        let long = vec![b'x'; ANSWER_LIMIT + 5];
        assert!(answers.take_in(b"{\"return\": {\"pi").is_empty() && answers.take_in(&long).is_empty());
        assert_eq!(answers.take_in(b"\xff{\"return\": 5}\n"), [Ok(Answer::Return(json!(5)))]);
        assert!(answers.take_in(&long).is_empty());
        assert_eq!(answers.line.len(), ANSWER_LIMIT, "no more than a line is held");
        assert_eq!(
            answers.take_in(b"\n{\"return\": 6}\n"),
            [Err(AnswerError::TooLong), Ok(Answer::Return(json!(6)))]
        );
    }

    #[test]
    fn an_exit_is_read_with_what_was_said() {
        let exit = |code, said: &str| Ok(Some(GuestExit { code, said: said.into() }));
        let wrong = |what| Err(AnswerError::Implausible(what));
        let table = [
            (json!({"exited": false}), Ok(None)),
            (json!({"exited": true, "exitcode": 0}), exit(Some(0), "")),
            (json!({"exited": true, "exitcode": 7, "out-data": "aWxsChtbMkoK"}), exit(Some(7), "ill\n?[2J")),
            (json!({"exited": true, "signal": 9}), exit(None, "")),
            (json!({"exited": 1}), wrong("exited")),
            (json!({}), wrong("exited")),
            (json!(null), wrong("exited")),
            (json!({"exited": true, "exitcode": 1u64 << 40}), wrong("exitcode")),
            (json!({"exited": true, "exitcode": "0"}), wrong("exitcode")),
            (json!({"exited": true, "out-data": "?"}), wrong("out-data")),
            (json!({"exited": true, "out-data": 3}), wrong("out-data")),
        ];
        for (status, read) in table {
            assert_eq!(GuestExit::read(&status), read, "{status}");
        }
    }

    #[test]
    fn the_end_of_much_is_told() {
        let said = printable(format!("{}the end", "x".repeat(2 * OUTPUT)).as_bytes(), OUTPUT);
        assert!(said.ends_with("the end") && said.len() == OUTPUT);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_so_many_lines(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(MARK), any::<u8>()], 0..400),
            piece in 1usize..50,
        ) {
            let mut answers = Answers::default();
            let told: Vec<_> = bytes.chunks(piece).flat_map(|part| answers.take_in(part)).collect();
            prop_assert_eq!(told.len(), bytes.iter().filter(|byte| **byte == b'\n').count());
            prop_assert_eq!(told, Answers::default().take_in(&bytes));
        }

        #[test]
        fn no_status_makes_the_reader_panic(
            exited: bool, code: i64, data in "[A-Za-z0-9+/=\\n]{0,40}",
        ) {
            let status = json!({"exited": exited, "exitcode": code, "out-data": data});
            if let Ok(Some(exit)) = GuestExit::read(&status) {
                prop_assert!(exited && exit.said.chars().count() <= OUTPUT);
            }
        }
    }
}
