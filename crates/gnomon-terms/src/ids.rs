//! Ids. They come from an injected source, never from a global, and print with a prefix.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// Something with extents: a volume, a guest's memory, a namespace. Opaque to the loop.
    ResourceId(u64), "r"
);
id!(
    /// One move asked for by the loop; unique within one run of one loop.
    MoveId(u64), "m"
);
id!(
    /// Somewhere a copy can be: a node, as numbered by whoever wires the loop. 0 is "here".
    Place(u32), "p"
);
id!(
    /// Who may write: each handover of a resource raises it by one, and a writer with an older epoch is refused.
    Epoch(u64), "e"
);

impl Epoch {
    /// The epoch after this one. The last there is has none after it: no history of handovers is that long, only a
    /// peer that makes epochs up.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_with_their_prefix() {
        assert_eq!(format!("{} {} {}", Epoch(3), MoveId(9), Place(0)), "e3 m9 p0");
    }

    #[test]
    fn the_next_epoch_is_greater() {
        assert!(Epoch(7).next() > Epoch(7));
    }
}
