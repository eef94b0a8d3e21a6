//! Reading other people's JSON without losing any of it.
//!
//! Two halves: [`Clean`] makes a body readable before the parser sees it (serde_json refuses a whole body for one lone
//! surrogate, PostgreSQL refuses a whole row for one NUL), and the lenient types ([`Text`], [`List`], [`Raw`], [`Flag`],
//! `object!`) accept whatever stands where something else was expected: absent, `null`, a number for a string, a string
//! for an object. None of them ever fails on a wrong type; what they cannot use is simply not there.

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Deepest nesting of a webhook. Real ones have about ten levels.
pub(crate) const MAX_DEPTH: usize = 64;

/// A body that JSON and the databases can hold, and the way back to the bytes it came from.
///
/// Repaired are: a byte-order mark (dropped), invalid UTF-8 (each run becomes U+FFFD), `\u0000` and lone surrogates (become
/// `\ufffd`), raw control characters inside strings (become spaces). All but the first two keep every length, so that an
/// item can still be cut out of the original.
pub(crate) struct Clean<'a> {
    arrived: Cow<'a, str>,
    repaired: Option<String>,
    lossy: bool,
    raw_nul: bool,
    depth: usize,
}

impl fmt::Debug for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clean({} bytes, depth {}, repaired: {})", self.text().len(), self.depth, self.repaired.is_some())
    }
}

impl<'a> Clean<'a> {
    /// Looks at every byte once; copies only when there is something to repair.
    pub(crate) fn new(body: &'a [u8]) -> Self {
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        let arrived = std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed);
        let lossy = matches!(arrived, Cow::Owned(_));
        let scan = Scan::of(arrived.as_bytes());
        // Only ASCII was replaced by ASCII, so the copy is UTF-8 as the original was.
        let repaired = scan.repaired.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self { arrived, repaired, lossy, raw_nul: scan.raw_nul, depth: scan.depth }
    }

    /// What to parse.
    pub(crate) fn text(&self) -> &str {
        self.repaired.as_deref().unwrap_or(&self.arrived)
    }

    /// Deepest nesting of objects and arrays; 1 for `{}`.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The bytes that arrived for `part`, which must be a slice of [`Clean::text`]. A raw NUL byte, which no text column
    /// takes, stays repaired.
    pub(crate) fn as_arrived<'s>(&'s self, part: &'s str) -> &'s str {
        if self.repaired.is_none() || self.raw_nul {
            return part;
        }
        self.range_of(part).and_then(|range| self.arrived.get(range)).unwrap_or(part)
    }

    /// Whether something was replaced inside `part`, which must be a slice of [`Clean::text`].
    pub(crate) fn is_repaired(&self, part: &str) -> bool {
        let replaced = || self.range_of(part).and_then(|range| self.arrived.get(range)).is_some_and(|was| was != part);
        (self.lossy && part.contains('\u{FFFD}')) || (self.repaired.is_some() && replaced())
    }

    fn range_of(&self, part: &str) -> Option<Range<usize>> {
        let start = part.as_ptr().addr().checked_sub(self.text().as_ptr().addr())?;
        Some(start..start.checked_add(part.len())?)
    }
}

/// Nesting of a piece of JSON, strings left out.
pub(crate) fn depth_of(text: &str) -> usize {
    Scan::of(text.as_bytes()).depth
}

/// What one pass over a body finds.
struct Scan {
    depth: usize,
    repaired: Option<Vec<u8>>,
    raw_nul: bool,
}

/// U+FFFD as an escape: as long as what it replaces.
const REPLACEMENT: &[u8; 6] = b"\\ufffd";

impl Scan {
    fn of(bytes: &[u8]) -> Self {
        let mut scan = Self { depth: 0, repaired: None, raw_nul: false };
        let (mut at, mut open) = (0usize, 0usize);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at = scan.string(bytes, at + 1);
                    continue;
                }
                b'{' | b'[' => {
                    open += 1;
                    scan.depth = scan.depth.max(open);
                }
                b'}' | b']' => open = open.saturating_sub(1),
                _ => {}
            }
            at += 1;
        }
        scan
    }

    /// Walks a string whose first byte is at `at`; returns the place behind its closing quote.
    fn string(&mut self, bytes: &[u8], mut at: usize) -> usize {
        loop {
            while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk)
                && is_plain(*eight)
            {
                at += eight.len();
            }
            let Some(byte) = bytes.get(at) else { return at };
            match byte {
                b'"' => return at + 1,
                b'\\' => at = self.escape(bytes, at),
                0..=0x1F => {
                    self.raw_nul |= *byte == 0;
                    self.replace(bytes, at, b" ");
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Steps over the escape at `at`, after replacing it when it stands for nothing that can be kept.
    fn escape(&mut self, bytes: &[u8], at: usize) -> usize {
        if bytes.get(at + 1) != Some(&b'u') {
            return at + 2;
        }
        match hex4(bytes, at + 2) {
            Some(0xD800..=0xDBFF) if is_low_surrogate(bytes, at + 6) => return at + 12,
            Some(0 | 0xD800..=0xDFFF) => self.replace(bytes, at, REPLACEMENT),
            // Not an escape at all: step over `\u` only, so that a quote behind it still ends the string. The parser refuses it.
            None => return at + 2,
            Some(_) => {}
        }
        at + 6
    }

    fn replace(&mut self, bytes: &[u8], at: usize, with: &[u8]) {
        let copy = self.repaired.get_or_insert_with(|| bytes.to_vec());
        if let Some(place) = copy.get_mut(at..at + with.len()) {
            place.copy_from_slice(with);
        }
    }
}

/// Whether none of eight bytes is a quote, a backslash or a control character, looked at all at once: subtracting borrows
/// from the high bit of a byte that is smaller than what is subtracted, and a byte equal to another is zero after XOR.
fn is_plain(bytes: [u8; 8]) -> bool {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH_BITS: u64 = u64::from_le_bytes([0x80; 8]);
    let word = u64::from_le_bytes(bytes);
    let any_below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & HIGH_BITS;
    let any_equal = |byte: u8| any_below(word ^ (ONES * u64::from(byte)), 1);
    any_below(word, 0x20) | any_equal(b'"') | any_equal(b'\\') == 0
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 4)?;
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

fn is_low_surrogate(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 2) == Some(b"\\u") && matches!(hex4(bytes, at + 2), Some(0xDC00..=0xDFFF))
}

/// Answers every JSON value a visitor does not want with its default.
macro_rules! or_default {
    ($($method:ident: $type:ty),* $(,)?) => {$(
        fn $method<E: Error>(self, _: $type) -> Result<Self::Value, E> { Ok(Default::default()) }
    )*};
    (unit) => {
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> { Ok(Default::default()) }
    };
    (seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
    (map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
}
pub(crate) use or_default;

/// A string, or a number taken as its digits; anything else counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text<'a>(Option<Cow<'a, str>>);

impl Text<'_> {
    /// The text, when there is one that is more than blanks.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| !text.trim().is_empty())
    }

    /// The text as a whole number, such as a unix time or an error code; a fraction is cut off.
    pub(crate) fn integer(&self) -> Option<i64> {
        let text = self.get()?.trim();
        let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
        whole.parse().ok()
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(text.to_owned()))))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(number.to_string()))))
            }
            or_default! { visit_bool: bool }
            or_default! { unit }
            or_default! { seq }
            or_default! { map }
        }
        deserializer.deserialize_any(AnyText)
    }
}

/// A truth value, also as `"true"` or `1`; anything else counts as absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flag(pub(crate) Option<bool>);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyFlag;
        impl<'de> Visitor<'de> for AnyFlag {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E: Error>(self, flag: bool) -> Result<Self::Value, E> {
                Ok(Flag(Some(flag)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Flag(match text {
                    "true" | "1" => Some(true),
                    "false" | "0" => Some(false),
                    _ => None,
                }))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Flag((number <= 1).then_some(number == 1)))
            }
            or_default! { visit_i64: i64, visit_f64: f64 }
            or_default! { unit }
            or_default! { seq }
            or_default! { map }
        }
        deserializer.deserialize_any(AnyFlag)
    }
}

/// The elements of an array, each as its own bytes, to be parsed one by one; `None` when it is not an array.
#[derive(Clone, Debug, Default)]
pub(crate) struct List<'a>(pub(crate) Option<Vec<&'a RawValue>>);

impl<'a> List<'a> {
    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Vec::len)
    }

    /// Whether there is nothing in it, or no array at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements; none when there is no array.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a RawValue> + '_ {
        self.0.iter().flatten().copied()
    }
}

impl<'de> Deserialize<'de> for List<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyList).map(List)
    }
}

/// Like [`List`], for elements that are lenient themselves: one pass instead of two.
#[derive(Clone, Debug)]
pub(crate) struct Each<T>(pub(crate) Option<Vec<T>>);

impl<T> Default for Each<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Each<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyEach(std::marker::PhantomData)).map(Each)
    }
}

struct AnyList;

impl<'de> Visitor<'de> for AnyList {
    type Value = Option<Vec<&'de RawValue>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        AnyEach(std::marker::PhantomData).visit_seq(seq)
    }
    or_default! { visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str }
    or_default! { unit }
    or_default! { map }
}

struct AnyEach<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for AnyEach<T> {
    type Value = Option<Vec<T>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Some(elements))
    }
    or_default! { visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str }
    or_default! { unit }
    or_default! { map }
}

/// Any value as its own bytes, for what is read only sometimes; absent and `null` are the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Raw<'a>(Option<&'a RawValue>);

impl<'a> Raw<'a> {
    /// The value's bytes.
    pub(crate) fn get(self) -> Option<&'a str> {
        self.0.map(RawValue::get).filter(|text| *text != "null")
    }

    /// The value read as one of the lenient types; its default when absent or unreadable.
    pub(crate) fn read<T: Deserialize<'a> + Default>(self) -> T {
        self.get().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw)))
    }
}

/// Declares an object of lenient members. Unknown members are skipped, of doubled ones the last counts, and where the
/// value is not an object at all every member is absent.
macro_rules! object {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $kind:ty = $key:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $name<'a> {
            $(pub(crate) $field: $kind,)*
            _bytes: std::marker::PhantomData<&'a ()>,
        }

        impl<'de> serde::de::Deserialize<'de> for $name<'de> {
            fn deserialize<D: serde::de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
                type Members<'a> = $name<'a>;
                struct AnyObject;
                impl<'de> Visitor<'de> for AnyObject {
                    type Value = Members<'de>;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("anything") }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut members = Members::default();
                        while let Some(key) = map.next_key::<$crate::json::Text<'de>>()? {
                            match key.get() {
                                $(Some($key) => members.$field = map.next_value()?,)*
                                _ => { map.next_value::<IgnoredAny>()?; }
                            }
                        }
                        Ok(members)
                    }
                    $crate::json::or_default! {
                        visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str,
                    }
                    $crate::json::or_default! { unit }
                    $crate::json::or_default! { seq }
                }
                deserializer.deserialize_any(AnyObject)
            }
        }
    )*};
}
pub(crate) use object;

/// At most `max` characters of a provider's words, on one line.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let mut kept: String = text.trim().chars().take(max).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if kept.len() < text.trim().len() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing_to_do(br#"{"a":"plain \u00e4 \ud83d\ude00"}"#, r#"{"a":"plain \u00e4 \ud83d\ude00"}"#)]
    #[case::nul(br#"{"a":"x\u0000y"}"#, r#"{"a":"x\ufffdy"}"#)]
    #[case::lone_high(br#"{"a":"x\uD83Dy"}"#, r#"{"a":"x\ufffdy"}"#)]
    #[case::lone_low(br#"{"a":"\udc00"}"#, r#"{"a":"\ufffd"}"#)]
    #[case::high_before_high(br#"{"a":"\ud83d\ud83d\ude00"}"#, r#"{"a":"\ufffd\ud83d\ude00"}"#)]
    #[case::high_at_the_end(br#"{"a":"\ud83d"}"#, r#"{"a":"\ufffd"}"#)]
    #[case::escaped_backslash_is_no_escape(br#"{"a":"\\u0000"}"#, r#"{"a":"\\u0000"}"#)]
    #[case::escaped_quote_ends_no_string(br#"{"a":"\"\u0000"}"#, r#"{"a":"\"\ufffd"}"#)]
    #[case::raw_control(b"{\"a\":\"x\ny\0\"}", r#"{"a":"x y "}"#)]
    #[case::blanks_between_members(b"{\n\t\"a\": 1}", "{\n\t\"a\": 1}")]
    #[case::byte_order_mark(b"\xEF\xBB\xBF{}", "{}")]
    #[case::not_utf8(b"{\"a\":\"\xFF\"}", "{\"a\":\"\u{FFFD}\"}")]
    #[case::cut_in_an_escape(br#"{"a":"\u00"#, r#"{"a":"\u00"#)]
    #[case::cut_after_a_backslash(br#"{"a":"\"#, r#"{"a":"\"#)]
    fn what_is_parsed(#[case] arrived: &[u8], #[case] parsed: &str) {
        assert_eq!(Clean::new(arrived).text(), parsed);
    }

    #[test]
    fn a_repaired_part_is_still_found_as_it_arrived() {
        let clean = Clean::new(br#"[{"a":"\u0000"},{"b":"\ud800"},{"c":1}]"#);
        let list: List<'_> = serde_json::from_str(clean.text()).unwrap();
        let arrived: Vec<_> = list.iter().map(|part| clean.as_arrived(part.get())).collect();
        assert_eq!(arrived, [r#"{"a":"\u0000"}"#, r#"{"b":"\ud800"}"#, r#"{"c":1}"#]);
        let repaired: Vec<_> = list.iter().map(|part| clean.is_repaired(part.get())).collect();
        assert_eq!(repaired, [true, true, false]);
    }

    #[test]
    fn a_raw_nul_is_never_given_back() {
        let clean = Clean::new(b"[{\"a\":\"x\0y\"}]");
        let list: List<'_> = serde_json::from_str(clean.text()).unwrap();
        let part = list.iter().next().unwrap().get();
        assert_eq!(clean.as_arrived(part), r#"{"a":"x y"}"#);
        assert!(clean.is_repaired(part));
    }

    #[rstest]
    #[case("{}", 1)]
    #[case(r#"{"a":[[{"b":"]]}}[[[["}]]}"#, 4)]
    #[case("1", 0)]
    #[case("}}}[", 1)]
    fn depth_counts_brackets_outside_strings(#[case] json: &str, #[case] depth: usize) {
        assert_eq!(Clean::new(json.as_bytes()).depth(), depth);
    }

    object! {
        struct Sample {
            text: Text<'a> = "text",
            flag: Flag = "flag",
            list: List<'a> = "list",
            raw: Raw<'a> = "raw",
        }
    }

    #[rstest]
    #[case(r#"{"text":"a"}"#, Some("a"))]
    #[case(r#"{"text":"\u0061\/"}"#, Some("a/"))]
    #[case(r#"{"te\u0078t":"a"}"#, Some("a"))]
    #[case(r#"{"text":17841400000000001}"#, Some("17841400000000001"))]
    #[case(r#"{"text":-5}"#, Some("-5"))]
    #[case(r#"{"text":1.5}"#, Some("1.5"))]
    #[case(r#"{"text":null}"#, None)]
    #[case(r#"{"text":true}"#, None)]
    #[case(r#"{"text":{"body":"a"}}"#, None)]
    #[case(r#"{"text":["a"]}"#, None)]
    #[case(r#"{"text":"  "}"#, None)]
    #[case(r#"{"text":"a","text":"b"}"#, Some("b"))]
    #[case("{}", None)]
    #[case("[]", None)]
    #[case("null", None)]
    #[case("\"text\"", None)]
    fn a_text_is_taken_wherever_it_can_be(#[case] json: &str, #[case] want: Option<&str>) {
        assert_eq!(serde_json::from_str::<Sample<'_>>(json).unwrap().text.get(), want);
    }

    #[rstest]
    #[case(r#""1795339800""#, Some(1_795_339_800))]
    #[case("1795339800", Some(1_795_339_800))]
    #[case("1795339800.75", Some(1_795_339_800))]
    #[case(r#"" 5 ""#, Some(5))]
    #[case(r#""99999999999999999999""#, None)]
    #[case(r#""soon""#, None)]
    fn whole_numbers(#[case] json: &str, #[case] want: Option<i64>) {
        assert_eq!(serde_json::from_str::<Text<'_>>(json).unwrap().integer(), want);
    }

    proptest! {
        /// Whatever can be parsed before the repair can be parsed after it, and no length changes.
        #[test]
        fn repairs_keep_lengths(text in r#"("[a-z\\"{}]{0,8}|\\u0000|\\ud[89cd]0[0-9]|[\[\],:]){0,20}"#) {
            let clean = Clean::new(text.as_bytes());
            prop_assert_eq!(clean.text().len(), text.len());
            prop_assert_eq!(clean.as_arrived(clean.text()), &text);
        }

        #[test]
        fn eight_bytes_are_judged_as_one_by_one(bytes in any::<[u8; 8]>()) {
            let plain = bytes.iter().all(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1F));
            prop_assert_eq!(is_plain(bytes), plain);
        }

        #[test]
        fn eight_likely_bytes_are_judged_as_one_by_one(bytes in prop::array::uniform8(prop::sample::select(b"\"\\\x00\x1F\x20\x21a\x7F\x80\xA2\xFF".to_vec()))) {
            let plain = bytes.iter().all(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1F));
            prop_assert_eq!(is_plain(bytes), plain);
        }

        #[test]
        fn what_is_clean_stays_untouched(text in "[ -~äöü😀]{0,40}") {
            let json = serde_json::to_string(&serde_json::json!({ "text": text })).unwrap();
            let clean = Clean::new(json.as_bytes());
            prop_assert_eq!(clean.text(), &json);
            prop_assert!(!clean.is_repaired(clean.text()));
        }

        #[test]
        fn wrong_types_are_never_an_error(members in prop::collection::vec((
            prop::sample::select(vec!["text", "flag", "list", "raw"]),
            prop::sample::select(vec!["null", "true", "1", "-2.5", r#""x""#, "[1,[]]", r#"{"a":{}}"#, "1e300"]),
        ), 0..6)) {
            let body: Vec<String> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
            let json = format!("{{{}}}", body.join(","));
            prop_assert!(serde_json::from_str::<Sample<'_>>(&json).is_ok(), "{json}");
        }
    }
}
