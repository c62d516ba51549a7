//! gnomon.
fn main() {}
