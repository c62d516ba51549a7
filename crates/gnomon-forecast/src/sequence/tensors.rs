//! Files of weights: the safetensors format, as far as it is needed here.
//!
//! ```text
//!   8 bytes   length of the header, little endian
//!   header    JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets": [from, to]}, …}
//!   data      the tensors' bytes, one after the other, without gaps
//! ```
//! Written here instead of by a crate because bytes of strangers are bounded here before anything is allocated, and
//! because the same tensors must give the same bytes (names are sorted). Tensors are of 32-bit floats or integers.
//!
//! Source: the format's description with the safetensors library, version 0.4.

use std::collections::BTreeMap;

use gnomon_terms::ErrorKind;
use serde_json::{Map, Value, json};

/// The longest header believed, 64 KiB: ours have some 2 KiB and a loss curve.
const LONGEST_HEADER: u64 = 1 << 16;
/// The largest file believed, 16 MiB: the largest network with the trainer's state beside it has 4 MiB.
pub const LARGEST_FILE: usize = 16 << 20;
/// Tensors of a file at most.
const MOST_TENSORS: usize = 64;
const METADATA: &str = "__metadata__";

/// Numbers of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
}

impl Numbers {
    fn dtype(&self) -> &'static str {
        match self {
            Numbers::F32(_) => "F32",
            Numbers::I32(_) => "I32",
        }
    }

    fn len(&self) -> usize {
        match self {
            Numbers::F32(values) => values.len(),
            Numbers::I32(values) => values.len(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Numbers::F32(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Numbers::I32(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        }
    }

    fn read(dtype: &str, bytes: &[u8]) -> Option<Numbers> {
        let (words, _) = bytes.as_chunks::<4>();
        match dtype {
            "F32" => Some(Numbers::F32(words.iter().map(|word| f32::from_le_bytes(*word)).collect())),
            "I32" => Some(Numbers::I32(words.iter().map(|word| i32::from_le_bytes(*word)).collect())),
            _ => None,
        }
    }
}

/// A table of numbers; one row of one column is a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its extent in each direction.
    pub shape: Vec<usize>,
    /// Its numbers, the last direction fastest.
    pub numbers: Numbers,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    /// What is said of it.
    pub metadata: BTreeMap<String, String>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Why a file is no safetensors file, or not one for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorsError {
    /// Larger than anything we write.
    #[error("{0} bytes: a file of weights has at most {LARGEST_FILE}; is it another model's?")]
    TooLarge(usize),
    /// It ends before its header does.
    #[error("the file ends within its header: it was cut off, or is no safetensors file")]
    CutOff,
    /// The header is longer than anything we write.
    #[error("a header of {0} bytes, at most {LONGEST_HEADER} are read: this is no safetensors file of ours")]
    LongHeader(u64),
    /// The header is no JSON object of the format.
    #[error("the header says nothing that is known: {0}; is this a safetensors file?")]
    Header(&'static str),
    /// A tensor is described wrongly.
    #[error("tensor '{name}': {what}; train the model anew")]
    Tensor {
        /// Its name, cut to a readable length.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl TensorsError {
    /// All of them: bytes that should be trustworthy are not.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl Tensors {
    /// Adds a table of floats.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), numbers: Numbers::F32(values) });
    }

    /// The floats called `name`, if it has that shape.
    pub fn floats_of(&self, name: &str, shape: &[usize]) -> Option<&[f32]> {
        match self.tensors.get(name)? {
            Tensor { shape: has, numbers: Numbers::F32(values) } if has == shape => Some(values),
            _ => None,
        }
    }

    /// The integers called `name`.
    pub fn integers_of(&self, name: &str) -> Option<&[i32]> {
        match &self.tensors.get(name)?.numbers {
            Numbers::I32(values) => Some(values),
            Numbers::F32(_) => None,
        }
    }

    /// The file. The same tensors and metadata give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (mut header, mut from) = (Map::new(), 0);
        header.insert(METADATA.to_owned(), json!(self.metadata));
        for (name, tensor) in &self.tensors {
            let to = from + tensor.numbers.len() * 4;
            let dtype = tensor.numbers.dtype();
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [from, to] }));
            from = to;
        }
        let mut text = Value::Object(header).to_string();
        // So that the data begins at a multiple of 8, which readers that map files like.
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        self.tensors.values().for_each(|tensor| tensor.numbers.write(&mut bytes));
        bytes
    }

    /// Reads a file that nobody vouches for.
    pub fn decode(bytes: &[u8]) -> Result<Tensors, TensorsError> {
        if bytes.len() > LARGEST_FILE {
            return Err(TensorsError::TooLarge(bytes.len()));
        }
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or(TensorsError::CutOff)?;
        let length = u64::from_le_bytes(*length);
        if length > LONGEST_HEADER {
            return Err(TensorsError::LongHeader(length));
        }
        let (header, data) = rest.split_at_checked(length as usize).ok_or(TensorsError::CutOff)?;
        let header: Value = serde_json::from_slice(header).map_err(|_| TensorsError::Header("it is no JSON"))?;
        let header = header.as_object().ok_or(TensorsError::Header("it is no object"))?;
        if header.len() > MOST_TENSORS + 1 {
            return Err(TensorsError::Header("it has too many tensors"));
        }
        let mut read = Tensors { metadata: metadata(header.get(METADATA))?, tensors: BTreeMap::new() };
        let mut told = 0;
        for (name, described) in header.iter().filter(|(name, _)| *name != METADATA) {
            let error = |what| TensorsError::Tensor { name: name.chars().take(40).collect(), what };
            let tensor = tensor(described, data).map_err(error)?;
            told += tensor.numbers.len() * 4;
            read.tensors.insert(name.clone(), tensor);
        }
        // Tensors that overlap, or leave something out, add up to something else.
        if told != data.len() {
            return Err(TensorsError::Header("its tensors are not all of the data"));
        }
        Ok(read)
    }
}

fn metadata(value: Option<&Value>) -> Result<BTreeMap<String, String>, TensorsError> {
    let Some(value) = value else { return Ok(BTreeMap::new()) };
    let texts = value.as_object().ok_or(TensorsError::Header("its metadata are no object"))?;
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    texts.iter().map(text).collect::<Option<_>>().ok_or(TensorsError::Header("its metadata are not all text"))
}

fn tensor(described: &Value, data: &[u8]) -> Result<Tensor, &'static str> {
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let shape: Option<Vec<usize>> =
        described["shape"].as_array().filter(|shape| shape.len() <= 4).and_then(|s| s.iter().map(number).collect());
    let shape = shape.ok_or("no shape of up to four numbers")?;
    let count = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    let offsets: Option<Vec<usize>> =
        described["data_offsets"].as_array().and_then(|o| o.iter().map(number).collect());
    let [from, to] = offsets.unwrap_or_default()[..] else { return Err("no two offsets") };
    let bytes = data.get(from..to).ok_or("offsets beyond the data")?;
    if count.and_then(|count| count.checked_mul(4)) != Some(bytes.len()) {
        return Err("its shape and its bytes do not agree");
    }
    let numbers = Numbers::read(described["dtype"].as_str().unwrap_or_default(), bytes);
    Ok(Tensor { shape, numbers: numbers.ok_or("neither F32 nor I32")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Tensors {
        let mut tensors = Tensors::default();
        tensors.metadata.insert("who".to_owned(), "a \"test\"".to_owned());
        tensors.floats("weights", &[2, 3], vec![1.0, -2.0, f32::NAN, 0.0, f32::MAX, 1e-40]);
        let deltas = Tensor { shape: vec![2], numbers: Numbers::I32(vec![-7, i32::MAX]) };
        tensors.tensors.insert("deltas".to_owned(), deltas);
        tensors
    }

    fn with_header(header: &str, data: &[u8]) -> Result<Tensors, TensorsError> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        Tensors::decode(&bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = some().encode();
        let read = Tensors::decode(&bytes).unwrap();
        assert_eq!(read.encode(), bytes);
        assert_eq!(
            (read.metadata, read.tensors["deltas"].clone()),
            (some().metadata, some().tensors["deltas"].clone())
        );
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn damage_is_named() {
        let of = |shape: &str, offsets: &str, dtype: &str| {
            let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
            with_header(&header, &[0; 8])
        };
        assert!(of("[2]", "[0,8]", "F32").is_ok());
        let table = [
            (of("[3]", "[0,8]", "F32"), "do not agree"),
            (of("[2]", "[0,9]", "F32"), "beyond the data"),
            (of("[2]", "[8,0]", "F32"), "beyond the data"),
            (of("[1]", "[0,4]", "F32"), "not all of the data"),
            (of("[2]", "[0,8]", "F64"), "neither"),
            (of("[4294967296,4294967296,2]", "[0,8]", "F32"), "do not agree"),
            (of("[1,1,1,1,2]", "[0,8]", "F32"), "no shape"),
            (of("[2]", "[0]", "F32"), "no two offsets"),
            (with_header("[]", &[]), "no object"),
            (with_header("{", &[]), "no JSON"),
            (with_header(r#"{"__metadata__":{"a":1}}"#, &[]), "not all text"),
            (Tensors::decode(&[1, 2, 3]), "ends within"),
            (Tensors::decode(&[255; 20]), "a header of"),
            (Tensors::decode(&vec![0; LARGEST_FILE + 1]), "at most"),
        ];
        for (result, expected) in table {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_or_read(at in 0usize..400, with in any::<u8>(), cut in 0usize..400) {
            let mut bytes = some().encode();
            let len = bytes.len();
            bytes[at % len] = with;
            let _ = Tensors::decode(&bytes);
            let _ = Tensors::decode(&bytes[..cut % len]);
        }

        #[test]
        fn any_header_is_safe(text in "[\\[\\]{}\":,a-z0-9_]{0,120}") {
            let _ = with_header(&text, &[0; 16]);
        }
    }
}
