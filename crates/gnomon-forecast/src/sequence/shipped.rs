//! The network that new volumes begin with: trained on recordings of the project's own guests, which are beside it in
//! `data/`. `cargo xtask model` makes it anew; nothing of anybody else's is in it.

use super::model::Model;

/// The file, 38 KB.
const FILE: &[u8] = include_bytes!("../../data/default.safetensors");

/// The network that is shipped.
pub fn shipped() -> Model {
    Model::decode(FILE).expect("the file is part of the program, and a test reads it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_BLOCKS_PER_UNIT;

    #[test]
    fn it_is_small_speaks_of_our_units_and_knows_more_than_counting() {
        let model = shipped();
        assert_eq!(model.blocks_per_unit, DEFAULT_BLOCKS_PER_UNIT);
        assert!(FILE.len() < 100 << 10 && model.about.loss < model.about.plain_loss, "{:?}", model.about);
    }
}
