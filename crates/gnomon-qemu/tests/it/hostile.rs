//! The client against something that only pretends to be a monitor.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
    time::Duration,
};

use gnomon_qemu::{CloseReason, EventError, Qmp, QmpError};
use gnomon_terms::ErrorKind;
use serde_json::json;

use crate::guests::LONG;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}"#;

/// Behaves up to the end of the negotiation, then as told.
fn pretend(then: impl FnOnce(&mut BufReader<UnixStream>, &UnixStream) + Send + 'static) -> (Qmp, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let server = thread::spawn(move || {
        let mut reader = BufReader::new(theirs.try_clone().expect("a clone"));
        writeln!(&theirs, "{GREETING}").expect("sent");
        read_line(&mut reader);
        writeln!(&theirs, r#"{{"return": {{}}, "id": 1}}"#).expect("sent");
        then(&mut reader, &theirs);
    });
    (Qmp::over(ours, LONG).expect("negotiated"), server)
}

fn read_line(reader: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a command");
    line
}

#[test]
fn no_greeting_and_bad_greetings_are_told() {
    type Expected = fn(&QmpError) -> bool;
    let table: [(&[u8], Expected); 4] = [
        (b"", |e| matches!(e, QmpError::Closed { reason: CloseReason::Ended, .. })),
        (b"SSH-2.0-OpenSSH_9.2\r\n", |e| e.kind() == ErrorKind::Corrupt),
        (b"{\"QMP\": {}", |e| matches!(e, QmpError::Closed { reason: CloseReason::Ended, .. })),
        (b"[[[[\n", |e| matches!(e, QmpError::Closed { reason: CloseReason::Garbled { .. }, .. })),
    ];
    for (bytes, expected) in table {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(bytes).expect("sent");
        theirs.shutdown(std::net::Shutdown::Write).expect("shut");
        let error = Qmp::over(ours, LONG).expect_err("that is no monitor");
        assert!(expected(&error), "{bytes:?}: {error:?}");
    }
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let error = Qmp::over(ours, Duration::from_millis(20)).expect_err("silence");
    assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
}

#[test]
fn a_line_without_end_closes_the_connection_for_all() {
    let (qmp, server) = pretend(|reader, mut theirs| {
        read_line(reader);
        let chunk = vec![b' '; 1 << 20];
        // The client closes in the midst of it.
        while theirs.write_all(&chunk).is_ok() {}
    });
    let events = qmp.events();
    let error = qmp.execute("query-status", json!({}), LONG).expect_err("no answer");
    assert!(
        matches!(error, QmpError::Closed { reason: CloseReason::LineTooLong { .. }, .. })
            && error.kind() == ErrorKind::Corrupt,
        "{error:?}"
    );
    assert!(matches!(events.next(LONG), Err(EventError::Closed(CloseReason::LineTooLong { .. }))));
    server.join().expect("ended");
}

#[test]
fn a_cut_answer_is_no_answer() {
    let (qmp, server) = pretend(|reader, mut theirs| {
        read_line(reader);
        theirs.write_all(br#"{"return": {"running": tr"#).expect("sent");
        theirs.shutdown(std::net::Shutdown::Both).expect("shut");
    });
    let error = qmp.query_status().expect_err("half an answer");
    assert!(matches!(error, QmpError::Closed { reason: CloseReason::Ended, .. }), "{error:?}");
    server.join().expect("ended");
}

#[test]
fn answers_for_nobody_are_dropped_and_the_right_one_still_arrives() {
    let (qmp, server) = pretend(|reader, mut theirs| {
        read_line(reader);
        for stray in [r#"{"return": 1, "id": 999}"#, r#"{"return": 2}"#, r#"{"error": {}}"#, GREETING] {
            writeln!(theirs, "{stray}").expect("sent");
        }
        writeln!(theirs, r#"{{"return": {{"status": "running", "running": true}}, "id": 2}}"#).expect("sent");
    });
    assert!(qmp.query_status().expect("answered").running);
    server.join().expect("ended");
}

#[test]
fn an_answer_of_the_wrong_shape_is_refused() {
    let (qmp, server) = pretend(|reader, mut theirs| {
        read_line(reader);
        writeln!(theirs, r#"{{"return": [1, 2], "id": 2}}"#).expect("sent");
    });
    let error = qmp.query_status().expect_err("nonsense");
    assert!(matches!(error, QmpError::Unexpected { .. }), "{error:?}");
    server.join().expect("ended");
}

#[test]
fn a_late_answer_goes_to_nobody() {
    let (qmp, server) = pretend(|reader, mut theirs| {
        read_line(reader);
        read_line(reader);
        writeln!(theirs, r#"{{"return": "late", "id": 2}}"#).expect("sent");
        writeln!(theirs, r#"{{"return": "second", "id": 3}}"#).expect("sent");
    });
    let error = qmp.execute("first", json!({}), Duration::from_millis(20)).expect_err("too slow");
    assert!(matches!(error, QmpError::Timeout { .. }), "{error:?}");
    assert_eq!(qmp.execute("second", json!({}), LONG).expect("in time"), json!("second"));
    server.join().expect("ended");
}

#[test]
fn dropping_the_last_handle_ends_the_connection() {
    let (qmp, server) = pretend(|reader, _| {
        let mut rest = String::new();
        assert_eq!(reader.read_to_string(&mut rest).expect("ended cleanly"), 0);
    });
    let events = qmp.events();
    drop(qmp.clone());
    assert_eq!(qmp.closed(), None);
    drop(qmp);
    assert_eq!(events.next(LONG), Err(EventError::Closed(CloseReason::ByUs)));
    server.join().expect("saw the end");
}
