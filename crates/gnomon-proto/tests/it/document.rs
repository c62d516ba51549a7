//! docs/protocol.md says what the code does: its table of kinds, its header, its examples.

use gnomon_proto::frame::{Decoder, HEADER_LEN, Kind, MAGIC, Message, Stream, VERSION};
use gnomon_terms::{Epoch, Extent};

const DOCUMENT: &str = include_str!("../../../../docs/protocol.md");

#[test]
fn the_table_of_kinds_is_the_code() {
    let rows: Vec<(u8, String, usize)> = DOCUMENT
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells.as_slice() {
                ["", number, name, _, longest, _, ""] => {
                    Some((number.parse().ok()?, (*name).to_string(), longest.parse().ok()?))
                }
                _ => None,
            }
        })
        .collect();
    let code: Vec<(u8, String, usize)> =
        Kind::ALL.iter().map(|kind| (kind.code(), kind.name().to_string(), kind.max_body())).collect();
    assert_eq!(rows, code);
}

#[test]
fn the_header_is_the_code() {
    assert!(DOCUMENT.contains(&format!("A header of {HEADER_LEN} bytes")));
    assert!(DOCUMENT.contains(&format!("`{}`", String::from_utf8_lossy(&MAGIC))));
    assert!(DOCUMENT.contains(&format!("| 4 | version | {VERSION};")));
}

#[test]
fn the_examples_are_frames() {
    let expected = [
        Message::Ping { seq: 7 },
        Message::Fetch { stream: Stream(1), epoch: Epoch(2), id: 9, extent: Extent::new(32, 16) },
    ];
    let block = DOCUMENT.split("```hex").nth(1).and_then(|rest| rest.split("```").next()).expect("examples");
    let lines: Vec<Vec<u8>> = block.trim().lines().map(bytes_of).collect();
    for (line, message) in lines.iter().zip(&expected) {
        let mut decoder = Decoder::new();
        decoder.feed(line);
        assert_eq!(decoder.next().expect("a frame").as_ref(), Some(message));
        let mut encoded = Vec::new();
        message.encode(&mut encoded).expect("encode");
        assert_eq!(&encoded, line);
    }
    assert_eq!(lines.len(), expected.len());
}

fn bytes_of(line: &str) -> Vec<u8> {
    line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
}
