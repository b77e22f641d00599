//! Base64 with padding (RFC 4648), for keys: short, strict, and nothing else.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// To text.
pub fn encode(raw: &[u8]) -> String {
    let mut text = String::with_capacity(raw.len().div_ceil(3) * 4);
    for group in raw.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            if i <= group.len() {
                let six = bits >> (18 - 6 * i) & 63;
                text.push(char::from(ALPHABET[six as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// From text; `None` unless it is exactly what [`encode`] would have made.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    let mut raw = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for i in 0..4 {
            let six = match group.get(i) {
                Some(c) => ALPHABET.iter().position(|a| a == c)? as u32,
                None => 0,
            };
            bits = bits << 6 | six;
        }
        let bytes = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        raw.extend_from_slice(&bytes[..group.len().saturating_sub(1)]);
    }
    // Bits that belong to no byte, padding in excess: one key has one text.
    (encode(&raw) == text).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard() {
        let examples = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (raw, text) in examples {
            assert_eq!(encode(raw.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), raw.as_bytes());
        }
        for bad in [
            "Zg",
            "Zg=",
            "Zh==",
            "Zm9v====",
            "====",
            "Z===",
            "Zm 9",
            "Zm9\u{e9}",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
