//! Posted forms and query strings: `a=1&b=2`, percent-encoded.

/// The pairs of a form, in order. Never fails: what is no valid encoding is taken as it stands, invalid UTF-8 replaced.
pub(crate) fn pairs(text: &[u8]) -> Vec<(String, String)> {
    let pairs = text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let middle = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (decode(&pair[..middle]), decode(pair.get(middle + 1..).unwrap_or_default()))
        })
        .collect()
}

fn decode(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = &after[2..];
                }
                _ => bytes.push(b'%'),
            },
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Encodes one value for a query string.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => {
                encoded.push('%');
                for nibble in [byte >> 4, byte & 15] {
                    encoded.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase());
                }
            }
        }
    }
    encoded
}

/// A form or a query by name; the last of a repeated name counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads a form or a query string.
    pub(crate) fn of(text: &[u8]) -> Self {
        Self(pairs(text))
    }

    /// The value of a field, if it is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let fields = Fields::of("text=a%20b+c%0D%0Ad&name=%D9%84%D9%8A&empty=&flag&x=1&x=2".as_bytes());
        assert_eq!(fields.get("text"), Some("a b c\r\nd"));
        assert_eq!(fields.get("name"), Some("لي"));
        assert_eq!((fields.get("empty"), fields.get("flag")), (None, None));
        assert_eq!(fields.get("x"), Some("2"));
    }

    #[test]
    fn rubbish_is_taken_as_it_stands() {
        for text in ["%", "%4", "%zz=%", "&&&", "=", "%ff=%fe", "a=%00"] {
            let _ = Fields::of(text.as_bytes());
        }
        assert_eq!(Fields::of(b"a=%zz%41").get("a"), Some("%zzA"));
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let text = "/inbox/7?search=ليلى & co#1+%";
        assert_eq!(Fields::of(format!("next={}", encode(text)).as_bytes()).get("next"), Some(text));
    }
}
