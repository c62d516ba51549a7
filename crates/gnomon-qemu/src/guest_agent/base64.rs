//! Bytes written as text: four letters for three of them.
//!
//! Source: RFC 4648, section 4, with padding and without line ends, as GLib writes it.

/// What `text` stands for; `None` when it is not base64. As long as the text at most.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let letters = text.as_bytes();
    let data = letters.strip_suffix(b"==").or_else(|| letters.strip_suffix(b"=")).unwrap_or(letters);
    if !letters.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(letters.len() / 4 * 3);
    for group in data.chunks(4) {
        let values: Vec<u32> = group.iter().map(|letter| value(*letter)).collect::<Option<_>>()?;
        let bits = values.iter().enumerate().fold(0, |bits, (at, value)| bits | value << (18 - 6 * at));
        // Two letters carry one byte, three carry two, four carry three.
        bytes.extend_from_slice(bits.to_be_bytes()[1..].get(..group.len() - 1)?);
    }
    Some(bytes)
}

/// The six bits of a letter.
fn value(letter: u8) -> Option<u32> {
    let value = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_vectors_of_the_rfc() {
        let table = [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("Zm9vYg==", Some("foob")),
            ("Zm9vYmE=", Some("fooba")),
            ("Zm9vYmFy", Some("foobar")),
            ("Zg", None),
            ("Zg=", None),
            ("Z===", None),
            ("====", None),
            ("=", None),
            ("Zm=v", None),
            ("Zm9\n", None),
            ("Zm9ü", None),
        ];
        for (text, bytes) in table {
            assert_eq!(decode(text).as_deref(), bytes.map(str::as_bytes), "{text}");
        }
    }

    /// The other direction, for the test only: nothing of ours writes base64.
    fn encode(bytes: &[u8]) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits =
                group.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
            for at in 0..4 {
                let letter = char::from(LETTERS[(bits >> (18 - 6 * at) & 63) as usize]);
                text.push(if at <= group.len() { letter } else { '=' });
            }
        }
        text
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = decode(&text);
        }
    }
}
