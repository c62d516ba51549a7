//! The description at the end of a stream: how long each device's section is.
//!
//! It is read into sums as it is parsed, so that nothing but names is kept of it.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use super::StreamError;

/// What comes before the text: the end of the sections, the description's tag and its length.
const HEAD: usize = 6;

/// The tags of the end of the sections and of the description.
const END_AND_DESCRIPTION: [u8; 2] = [0x00, 0x06];

/// One device.
#[derive(Debug, Deserialize)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) instance_id: u32,
    #[serde(default)]
    fields: Sum<Field>,
    #[serde(default)]
    subsections: Sum<Subsection>,
}

/// A field; an array whose elements are alike is described by one of them.
#[derive(Deserialize)]
struct Field {
    size: u64,
    #[serde(default = "one")]
    array_len: u64,
}

/// Fields that only some devices have at the moment, after a tag, a name and a version of their own.
#[derive(Deserialize)]
struct Subsection {
    vmsd_name: String,
    #[serde(default)]
    fields: Sum<Field>,
    #[serde(default)]
    subsections: Sum<Subsection>,
}

impl Described {
    /// Bytes of its section between head and footer.
    pub(super) fn length(&self) -> u64 {
        self.fields.bytes.saturating_add(self.subsections.bytes)
    }

    pub(super) fn title(&self) -> String {
        format!("'{}' instance {}", self.name, self.instance_id)
    }
}

/// Something with a length in the stream.
trait Part {
    fn bytes(&self) -> u64;
}

impl Part for Field {
    fn bytes(&self) -> u64 {
        self.size.saturating_mul(self.array_len)
    }
}

impl Part for Subsection {
    fn bytes(&self) -> u64 {
        // The tag, the name with its length, and the version.
        let head = 1 + 1 + self.vmsd_name.len() as u64 + 4;
        head.saturating_add(self.fields.bytes).saturating_add(self.subsections.bytes)
    }
}

/// The length of a list, added up while it is parsed. Nesting is limited by the parser (128 deep).
struct Sum<T> {
    bytes: u64,
    of: PhantomData<T>,
}

impl<T> Default for Sum<T> {
    fn default() -> Sum<T> {
        Sum { bytes: 0, of: PhantomData }
    }
}

impl<T> fmt::Debug for Sum<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

impl<'de, T: Deserialize<'de> + Part> Deserialize<'de> for Sum<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sum<T>, D::Error> {
        deserializer.deserialize_seq(Sum::default())
    }
}

impl<'de, T: Deserialize<'de> + Part> Visitor<'de> for Sum<T> {
    type Value = Sum<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of fields or subsections")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Sum<T>, A::Error> {
        while let Some(part) = list.next_element::<T>()? {
            self.bytes = self.bytes.saturating_add(part.bytes());
        }
        Ok(self)
    }
}

fn one() -> u64 {
    1
}

/// Splits what follows the first device into the sections (with the byte that ends them) and their description.
/// `begun` is where it begins in the stream.
pub(super) fn description(rest: &[u8], begun: u64) -> Result<(&[u8], Vec<Described>), StreamError> {
    #[derive(Deserialize)]
    struct Whole {
        devices: Vec<Described>,
    }
    let cut = StreamError::CutShort { at: begun + rest.len() as u64, within: "the devices or their description" };
    let head = find(rest).ok_or(cut)?;
    let whole: Whole =
        serde_json::from_slice(&rest[head + HEAD..]).map_err(|source| StreamError::BadDescription { source })?;
    Ok((&rest[..=head], whole.devices))
}

/// Where the description's head is: the one place whose length leads to the end of the stream, and whose text begins
/// as JSON does. Device state may hold the like by chance; the walk that follows would find that out.
fn find(rest: &[u8]) -> Option<usize> {
    (0..rest.len().saturating_sub(HEAD)).rev().find(|&at| {
        let head = &rest[at..];
        let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
        head[..2] == END_AND_DESCRIPTION && head[HEAD] == b'{' && head.len() - HEAD == length
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(text: &str) -> u64 {
        serde_json::from_str::<Described>(text).expect("a device").length()
    }

    #[test]
    fn lengths_add_up() {
        let table = [
            (r#"{"name":"a","instance_id":0}"#, 0),
            (r#"{"name":"a","instance_id":0,"version":1,"fields":[{"name":"x","type":"u8","size":1}]}"#, 1),
            (r#"{"name":"a","instance_id":0,"fields":[{"size":4,"array_len":256},{"size":2}]}"#, 1026),
            (
                r#"{"name":"a","instance_id":0,"fields":[{"size":9,"struct":{"fields":[{"size":9}]}}],
                    "subsections":[{"vmsd_name":"a/b","version":1,"fields":[{"size":3}],
                        "subsections":[{"vmsd_name":"c","fields":[]}]}]}"#,
                9 + (1 + 1 + 3 + 4) + 3 + (1 + 1 + 1 + 4),
            ),
            (r#"{"name":"a","instance_id":0,"fields":[{"size":18446744073709551615,"array_len":2}]}"#, u64::MAX),
        ];
        for (text, bytes) in table {
            assert_eq!(length(text), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["{}", r#"{"name":"a","instance_id":-1}"#, r#"{"name":"a","instance_id":0,"fields":7}"#] {
            assert!(serde_json::from_str::<Described>(text).is_err(), "{text}");
        }
        let deep = r#"{"vmsd_name":"a","subsections":["#.repeat(1000);
        let text = format!(r#"{{"name":"a","instance_id":0,"subsections":[{deep}"#);
        assert!(serde_json::from_str::<Described>(&text).is_err());
    }

    #[test]
    fn the_description_is_found_from_the_end() {
        let text = br#"{"devices":[]}"#;
        let mut rest = b"\x04\x00\x06\x00\x00\x00\x02{}state\x00\x06".to_vec();
        let sections = rest.len() - 1;
        rest.extend((text.len() as u32).to_be_bytes());
        rest.extend(text);
        let (head, devices) = description(&rest, 0).expect("found");
        assert_eq!((head.len(), devices.len()), (sections, 0));
        for cut in 0..rest.len() {
            assert!(description(&rest[..cut], 0).is_err(), "{cut}");
        }
    }
}
