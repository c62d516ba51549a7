//! The protocol's frames: every kind there and back, and damaged. Handovers with a partner who lies. Guards, walked whole.

mod document;
mod frames;
mod guard;
mod handover;
