//! A client made of bytes, for what well-behaved clients do not do.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use gnomon_volume::front::nbd::wire::{
    Command, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_LEN, Request,
};

use crate::rig::{NAME, Rig};

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const STARTTLS: u32 = 5;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META_CONTEXT: u32 = 9;
pub const SET_META_CONTEXT: u32 = 10;

pub const ACK: u32 = 1;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_POLICY: u32 = 0x8000_0002;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;

/// A connection whose bytes the test writes by hand.
pub struct Raw(pub UnixStream);

impl Raw {
    /// Connected and greeted; has answered the greeting.
    pub fn new(rig: &Rig) -> Raw {
        let mut raw = Raw(rig.connect());
        let greeting: [u8; 18] = raw.take();
        assert_eq!(greeting[..8], GREETING_MAGIC.to_be_bytes());
        raw.put(&3u32.to_be_bytes());
        raw
    }

    /// In transmission, with simple replies.
    pub fn open(rig: &Rig) -> Raw {
        let mut raw = Raw::new(rig);
        raw.put(&option(GO, &go(NAME)));
        while raw.reply().0 != ACK {}
        raw
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server listens");
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// Kind and data of one option reply.
    pub fn reply(&mut self) -> (u32, Vec<u8>) {
        let head: [u8; 20] = self.take();
        assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(16) as usize];
        self.0.read_exact(&mut data).expect("the server answers");
        (number(12), data)
    }

    /// Error and cookie of one simple reply without data.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        let head: [u8; 16] = self.take();
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        (u32::from_be_bytes(head[4..8].try_into().unwrap()), u64::from_be_bytes(head[8..16].try_into().unwrap()))
    }

    /// Whether the server has nothing more to say and closes.
    pub fn is_closed(&mut self) -> bool {
        !matches!(self.0.read(&mut [0; 1]), Ok(1))
    }
}

/// An option with its data.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Data of GO and INFO that asks for the block sizes.
pub fn go(name: &str) -> Vec<u8> {
    [string(name), 1u16.to_be_bytes().to_vec(), 3u16.to_be_bytes().to_vec()].concat()
}

/// Data of the meta context options.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [string(name), (queries.len() as u32).to_be_bytes().to_vec()].concat();
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// A request without payload.
pub fn request(command: Command, cookie: u64, at: u64, len: u32) -> [u8; REQUEST_LEN] {
    Request { command, flags: 0, cookie, at, len }.encode()
}
