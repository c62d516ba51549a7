//! Sessions over real sockets: who is let in, what is carried, and what a wrong or slow peer can do.

mod carrying;
mod fleet;
mod hostile;
mod strangers;
