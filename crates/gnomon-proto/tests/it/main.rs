//! The protocol's frames: every kind there and back, and damaged. Handovers with a partner who lies.

mod document;
mod frames;
mod handover;
