//! A trained network with all that is needed to use it and to judge it: the vocabulary, the unit it speaks of, what it
//! was trained on, its loss curve and its score. One safetensors file.

use gnomon_terms::ErrorKind;
use serde_json::{Value, json};

use super::network::{Cell, Network, PARTS, Shape};
use super::tensors::{Numbers, Tensor, Tensors, TensorsError};
use super::trainer::Epoch;
use super::vocabulary::{Vocabulary, VocabularyError};

/// What a reader of this version reads. Another layout has another number.
const VERSION: &str = "1";

/// A recording that a model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its name, for people.
    pub name: String,
    /// What tells it from others, as the trainer was told it.
    pub digest: String,
    /// The share of it, from its beginning, that was used at all, 0 to 1.
    pub head: f64,
}

/// Where a model comes from, and how good it was found to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// The recordings.
    pub traces: Vec<Source>,
    /// Epoch by epoch.
    pub curve: Vec<Epoch>,
    /// The held-out loss of these weights, nats a token.
    pub loss: f32,
    /// The same of counting alone: what the model has to beat.
    pub plain_loss: f32,
    /// Share of held-out tokens that it thought the likeliest.
    pub right: f32,
    /// The seed of its training.
    pub seed: u64,
}

/// A trained network.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The weights.
    pub network: Network,
    /// Which delta each token is.
    pub vocabulary: Vocabulary,
    /// Blocks in the units of which the deltas are.
    pub blocks_per_unit: u32,
    /// Where it comes from.
    pub about: About,
}

/// Why a file is not a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not a file of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// A file of tensors, but of something else.
    #[error(
        "a file of tensors, but not a model of gnomon's version {VERSION}: '{0}' is missing or means nothing here"
    )]
    Foreign(&'static str),
    /// A part of the weights is not there, or has another shape than the others say.
    #[error("the weights' part '{0}' is missing or of the wrong shape; train the model anew")]
    Part(&'static str),
    /// Weights that are no numbers.
    #[error("the part '{0}' holds values that are no finite numbers; train the model anew")]
    NotFinite(&'static str),
    /// Tokens that cannot be.
    #[error("the vocabulary cannot be: {0}")]
    Vocabulary(#[from] VocabularyError),
    /// A training that is to go on with something else.
    #[error("this training began with other recordings or another plan ({0}); leave --resume away to begin anew")]
    OtherTraining(&'static str),
}

impl ModelError {
    /// Bytes that should be trustworthy are not; or a training that cannot go on as asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ModelError::OtherTraining(_) => ErrorKind::Refused,
            _ => ErrorKind::Corrupt,
        }
    }
}

impl Model {
    /// The file. The same model gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut tensors = Tensors::default();
        self.write(&mut tensors);
        tensors.encode()
    }

    /// Adds it to what else a file holds.
    pub(super) fn write(&self, tensors: &mut Tensors) {
        write_network(tensors, "", &self.network);
        let deltas = self.vocabulary.deltas().to_vec();
        let deltas = Tensor { shape: vec![deltas.len()], numbers: Numbers::I32(deltas) };
        tensors.tensors.insert("vocabulary".to_owned(), deltas);
        let about = &self.about;
        let source = |of: &Source| json!({"name": of.name, "digest": of.digest, "head": of.head});
        let traces: Vec<Value> = about.traces.iter().map(source).collect();
        for (key, text) in [
            ("gnomon", VERSION.to_owned()),
            ("cell", self.network.shape().cell.name().to_owned()),
            ("blocks_per_unit", self.blocks_per_unit.to_string()),
            ("traces", Value::Array(traces).to_string()),
            ("curve", write_curve(&about.curve)),
            ("loss", about.loss.to_string()),
            ("plain_loss", about.plain_loss.to_string()),
            ("right", about.right.to_string()),
            ("seed", about.seed.to_string()),
        ] {
            tensors.metadata.insert(key.to_owned(), text);
        }
    }

    /// Reads a file that nobody vouches for.
    pub fn decode(bytes: &[u8]) -> Result<Model, ModelError> {
        Model::read(&Tensors::decode(bytes)?)
    }

    pub(super) fn read(tensors: &Tensors) -> Result<Model, ModelError> {
        if tensors.metadata.get("gnomon").map(String::as_str) != Some(VERSION) {
            return Err(ModelError::Foreign("gnomon"));
        }
        let deltas = tensors.integers_of("vocabulary").ok_or(ModelError::Foreign("vocabulary"))?;
        let vocabulary = Vocabulary::new(deltas.to_vec())?;
        let network = read_network(tensors, "", vocabulary.tokens())?;
        let blocks_per_unit = number(tensors, "blocks_per_unit")?;
        let about = About {
            traces: traces(tensors)?,
            curve: read_curve(tensors)?,
            loss: number(tensors, "loss")?,
            plain_loss: number(tensors, "plain_loss")?,
            right: number(tensors, "right")?,
            seed: number(tensors, "seed")?,
        };
        Ok(Model { network, vocabulary, blocks_per_unit, about })
    }
}

/// A number of the metadata.
pub(super) fn number<T: std::str::FromStr>(tensors: &Tensors, key: &'static str) -> Result<T, ModelError> {
    tensors.metadata.get(key).and_then(|text| text.parse().ok()).ok_or(ModelError::Foreign(key))
}

pub(super) fn write_network(tensors: &mut Tensors, prefix: &str, network: &Network) {
    let shape = network.shape();
    for ((part, (rows, columns)), range) in PARTS.iter().zip(shape.sizes()).zip(shape.ranges()) {
        tensors.floats(&format!("{prefix}{part}"), &[rows, columns], network.values()[range].to_vec());
    }
}

/// The network of that prefix; its cell is in the metadata and its hidden size in the shape of its first part.
pub(super) fn read_network(tensors: &Tensors, prefix: &str, tokens: usize) -> Result<Network, ModelError> {
    let cell = tensors.metadata.get("cell").and_then(|name| Cell::named(name)).ok_or(ModelError::Foreign("cell"))?;
    let recurrent = tensors.tensors.get(&format!("{prefix}recurrent")).ok_or(ModelError::Part("recurrent"))?;
    let hidden = recurrent.shape.first().copied().unwrap_or_default();
    let shape = Shape { cell, tokens, hidden };
    if shape != shape.bounded() {
        return Err(ModelError::Part("recurrent"));
    }
    let mut values = Vec::with_capacity(shape.weights());
    for (part, (rows, columns)) in PARTS.iter().zip(shape.sizes()) {
        let numbers =
            tensors.floats_of(&format!("{prefix}{part}"), &[rows, columns]).ok_or(ModelError::Part(part))?;
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err(ModelError::NotFinite(part));
        }
        values.extend_from_slice(numbers);
    }
    Network::of(shape, values).ok_or(ModelError::Part("recurrent"))
}

pub(super) fn write_curve(curve: &[Epoch]) -> String {
    let rows: Vec<Value> = curve.iter().map(|epoch| json!([epoch.training, epoch.held_out, epoch.right])).collect();
    Value::Array(rows).to_string()
}

pub(super) fn read_curve(tensors: &Tensors) -> Result<Vec<Epoch>, ModelError> {
    let foreign = || ModelError::Foreign("curve");
    let text = tensors.metadata.get("curve").ok_or_else(foreign)?;
    let rows: Vec<[f32; 3]> = serde_json::from_str(text).map_err(|_| foreign())?;
    Ok(rows.into_iter().map(|[training, held_out, right]| Epoch { training, held_out, right }).collect())
}

fn traces(tensors: &Tensors) -> Result<Vec<Source>, ModelError> {
    let foreign = || ModelError::Foreign("traces");
    let rows: Vec<Value> =
        serde_json::from_str(tensors.metadata.get("traces").ok_or_else(foreign)?).map_err(|_| foreign())?;
    let text = |row: &Value, key: &str| row[key].as_str().map(str::to_owned);
    let source = |row: &Value| {
        Some(Source { name: text(row, "name")?, digest: text(row, "digest")?, head: row["head"].as_f64()? })
    };
    rows.iter().map(source).collect::<Option<_>>().ok_or_else(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is done to a good file.
    type Change = fn(&mut Tensors);

    fn model(cell: Cell) -> Model {
        let vocabulary = Vocabulary::new(vec![1, -1, 300]).unwrap();
        let network = Network::seeded(Shape { cell, tokens: 4, hidden: 3 }, 9);
        let about = About {
            traces: vec![Source { name: "a \"b\".csv".to_owned(), digest: "00ff".to_owned(), head: 0.5 }],
            curve: vec![Epoch { training: 1.5, held_out: 1.25, right: 0.5 }],
            loss: 1.25,
            plain_loss: 2.0,
            right: 0.5,
            seed: u64::MAX,
        };
        Model { network, vocabulary, blocks_per_unit: 16, about }
    }

    #[test]
    fn what_is_written_is_read() {
        for cell in [Cell::Gru, Cell::Lstm] {
            let bytes = model(cell).encode();
            assert_eq!(Model::decode(&bytes), Ok(model(cell)));
            assert_eq!(model(cell).encode(), bytes);
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_are_refused_or_read(flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..8)) {
            let mut bytes = model(Cell::Lstm).encode();
            let len = bytes.len();
            flips.into_iter().for_each(|(at, with)| bytes[at % len] = with);
            if let Ok(model) = Model::decode(&bytes) {
                prop_assert!(model.network.values().iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn foreign_and_damaged_files_are_refused() {
        let with = |change: fn(&mut Tensors)| {
            let mut tensors = Tensors::decode(&model(Cell::Gru).encode()).unwrap();
            change(&mut tensors);
            Model::decode(&tensors.encode()).unwrap_err()
        };
        let table: [(Change, ModelError); 8] = [
            (|t| drop(t.metadata.remove("gnomon")), ModelError::Foreign("gnomon")),
            (|t| drop(t.metadata.insert("gnomon".into(), "2".into())), ModelError::Foreign("gnomon")),
            (|t| drop(t.metadata.insert("cell".into(), "mlp".into())), ModelError::Foreign("cell")),
            (|t| drop(t.metadata.insert("curve".into(), "[[1]]".into())), ModelError::Foreign("curve")),
            (|t| drop(t.tensors.remove("vocabulary")), ModelError::Foreign("vocabulary")),
            (|t| drop(t.tensors.remove("output")), ModelError::Part("output")),
            (|t| t.floats("bias", &[1, 8], vec![0.0; 8]), ModelError::Part("bias")),
            (|t| t.floats("bias", &[1, 9], vec![f32::NAN; 9]), ModelError::NotFinite("bias")),
        ];
        for (change, expected) in table {
            let error = with(change);
            assert_eq!((&error, error.kind()), (&expected, ErrorKind::Corrupt));
        }
        assert!(matches!(Model::decode(b"PK\x03\x04"), Err(ModelError::Tensors(TensorsError::CutOff))));
    }
}
