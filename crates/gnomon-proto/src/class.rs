//! How frames compete for a link: one class, one connection, one queue.

use std::fmt;

/// The class a frame travels in. Each class has its own connection within a session, so that a full one never
/// holds up another. Smaller goes first when the link is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// The link's own: heartbeats and goodbyes. Never handed to users of a session.
    Pulse = 0,
    /// Requests, handovers, acknowledgements: small, and something waits for them.
    Control = 1,
    /// A guest waits for these blocks.
    Demand = 2,
    /// A guest's writes on their way to the second copy; a guest's flush waits for them.
    Mirror = 3,
    /// The memory stream of a guest on the move.
    Ram = 4,
    /// Blocks that are expected to be read within the horizon.
    Prefetch = 5,
    /// Blocks that have to be there in the end.
    Background = 6,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Class; 7] =
        [Class::Pulse, Class::Control, Class::Demand, Class::Mirror, Class::Ram, Class::Prefetch, Class::Background];

    /// How many classes there are: the size of a table indexed by [`Class::index`].
    pub const COUNT: usize = Class::ALL.len();

    /// The number that stands for it on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The class that `code` stands for; `None` if there is none.
    pub fn from_code(code: u8) -> Option<Class> {
        Class::ALL.get(usize::from(code)).copied()
    }

    /// Its place in a table of [`Class::COUNT`] entries.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The word for it in messages, metrics and the API.
    pub fn name(self) -> &'static str {
        match self {
            Class::Pulse => "pulse",
            Class::Control => "control",
            Class::Demand => "demand",
            Class::Mirror => "mirror",
            Class::Ram => "ram",
            Class::Prefetch => "prefetch",
            Class::Background => "background",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_places_in_the_table() {
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), place);
            assert_eq!(Class::from_code(class.code()), Some(class));
        }
        assert_eq!(Class::from_code(7), None);
    }
}
