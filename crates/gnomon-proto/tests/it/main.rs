//! The protocol's frames: every kind there and back, and damaged.

mod document;
mod frames;
