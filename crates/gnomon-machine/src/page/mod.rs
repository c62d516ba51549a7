//! A page on its way to the shadow: how little of it has to be said.
//!
//! ```text
//!   all zero ........................ Zero            1–3 bytes with its number
//!   as another page that is there ... Same            3–8 bytes
//!   partly as it was there .......... Delta           runs of changed bytes (see [`delta`])
//!   none of these ................... Raw             4096 bytes
//! ```
//! What the shadow has is known from what was sent to it: [`SentPages`] keeps as much of that as it may, so a coding is
//! never a guess. Records travel in batches, each a frame's body (see [`batch`]), packed
//! on a slow link ([`pack`]).

pub mod batch;
pub mod delta;
pub mod pack;
mod sent;

use gnomon_terms::{PAGE_SIZE, PageNumber};

pub use sent::{Said, SentPages};

/// The content of a page.
pub type Page = [u8; PAGE_SIZE as usize];

/// A page of zeroes.
pub const ZERO_PAGE: Page = [0; PAGE_SIZE as usize];

/// What is said of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding<'a> {
    /// All zero.
    Zero,
    /// As this other page is at this point of the stream.
    Same(PageNumber),
    /// As it was, with these changes.
    Delta(&'a [u8]),
    /// This.
    Raw(&'a Page),
}

/// Whether a page is all zero.
pub fn is_zero(page: &Page) -> bool {
    let (words, _) = page.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64])
}
