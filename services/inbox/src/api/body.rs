//! Reading a JSON body by hand: every field that is wrong is named, every field that is unknown is listed, and nothing that
//! can be sent makes us fail.

use crate::problem::{FieldError, Problem};
use serde_json::{Map, Value};

/// A JSON object being read field by field.
#[derive(Debug, Default)]
pub(crate) struct JsonBody {
    fields: Map<String, Value>,
    /// What is wrong so far.
    errors: Vec<FieldError>,
    known: Vec<&'static str>,
}

impl JsonBody {
    /// Takes a body; an empty one is an object without fields.
    /// # Errors
    /// When it is no JSON object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self { fields, ..Self::default() }),
            Ok(_) => Err(Problem::malformed("The body must be a JSON object.")),
            Err(error) => {
                // The position only: the message of the parser may quote the body.
                let (line, column) = (error.line(), error.column());
                Err(Problem::malformed(format!("The body is not JSON: line {line}, column {column}.")))
            }
        }
    }

    /// Notes that a field is wrong.
    pub(crate) fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, `null` included; it counts as known from now on.
    pub(crate) fn has(&mut self, name: &'static str) -> bool {
        self.known.push(name);
        self.fields.contains_key(name)
    }

    /// A text of at most `most` characters. `None`: absent, or wrong (and noted).
    pub(crate) fn text(&mut self, name: &'static str, most: usize) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => self.checked(name.to_owned(), text, most),
            _ => {
                self.wrong(name, "must be a text");
                None
            }
        }
    }

    fn checked(&mut self, path: String, text: String, most: usize) -> Option<String> {
        if text.contains('\0') {
            self.wrong(path, "must not contain the character U+0000");
            return None;
        }
        if text.chars().count() > most {
            self.wrong(path, format!("must have at most {most} characters"));
            return None;
        }
        Some(text)
    }

    /// A list of texts; numbers are taken for their digits, as template parameters often are.
    pub(crate) fn texts(&mut self, name: &'static str, most_items: usize, most: usize) -> Option<Vec<String>> {
        let Value::Array(items) = self.take(name)? else {
            self.wrong(name, "must be a list of texts");
            return None;
        };
        if items.len() > most_items {
            self.wrong(name, format!("must have at most {most_items} entries"));
            return None;
        }
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{name}[{index}]");
            match item {
                Value::String(text) => texts.extend(self.checked(path, text, most)),
                Value::Number(number) => texts.push(number.to_string()),
                _ => self.wrong(path, "must be a text"),
            }
        }
        Some(texts)
    }

    /// A row's id; the CRM sends numbers, forms send texts of digits.
    pub(crate) fn id(&mut self, name: &'static str) -> Option<i64> {
        let id = match self.take(name)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if id.is_none() {
            self.wrong(name, "must be an id: a whole number");
        }
        id
    }

    /// Yes or no.
    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.wrong(name, "must be true or false");
                None
            }
        }
    }

    /// An instant, RFC 3339.
    pub(crate) fn time(&mut self, name: &'static str) -> Option<domain::Timestamp> {
        let time = match self.take(name)? {
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if time.is_none() {
            self.wrong(name, "must be a time such as 2026-11-22T09:30:00Z");
        }
        time
    }

    /// A field that is understood and needs no value.
    pub(crate) fn ignore(&mut self, name: &'static str) {
        self.known.push(name);
        self.fields.remove(name);
    }

    /// Ends the reading.
    /// # Errors
    /// When a field was wrong; unknown fields are then listed with it.
    /// Otherwise returns the unknown fields: they change nothing, and the answer lists them as warnings.
    pub(crate) fn finish(self) -> Result<Vec<FieldError>, Problem> {
        let known = &self.known;
        let unknown = |name: &String| {
            let mut known = known.to_vec();
            known.sort_unstable();
            known.dedup();
            FieldError::new(
                name.chars().take(100).collect::<String>(),
                format!("is unknown and was ignored; known: {}", known.join(", ")),
            )
        };
        let warnings: Vec<FieldError> =
            self.fields.keys().filter(|name| !known.contains(&name.as_str())).map(unknown).collect();
        if self.errors.is_empty() {
            return Ok(warnings);
        }
        let mut errors = self.errors;
        errors.extend(warnings);
        Err(Problem::invalid(errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_field_is_named_and_every_unknown_one_listed() {
        let mut body = JsonBody::parse(br#"{"text": 5, "params": ["a", 7, {}], "id": "x", "colour": 1}"#).unwrap();
        assert_eq!(body.text("text", 10), None);
        assert_eq!(body.texts("params", 5, 5), Some(vec!["a".into(), "7".into()]));
        assert_eq!(body.id("id"), None);
        let problem = body.finish().unwrap_err();
        assert_eq!(
            problem.errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(),
            ["text", "params[2]", "id", "colour"]
        );
    }

    #[test]
    fn null_is_absent_and_unknown_fields_alone_are_only_warnings() {
        let mut body = JsonBody::parse(br#"{"text": null, "colour": 1}"#).unwrap();
        assert_eq!(body.text("text", 10), None);
        assert_eq!(body.finish().unwrap()[0].path, "colour");
        assert!(JsonBody::parse(b"  ").unwrap().finish().unwrap().is_empty());
    }

    #[test]
    fn what_no_database_can_hold_is_refused_with_its_place() {
        let mut body = JsonBody::parse(br#"{"text": "a\u0000b", "long": "abcdef"}"#).unwrap();
        assert_eq!((body.text("text", 10), body.text("long", 5)), (None, None));
        assert_eq!(body.finish().unwrap_err().errors.len(), 2);
        for bad in
            [&b"[1]"[..], b"7", b"{", b"\"\\ud800\"", b"{\"a\":\"\\ud800\"}", b"\xff", "[".repeat(10_000).as_bytes()]
        {
            assert_eq!(JsonBody::parse(bad).unwrap_err().status, 400);
        }
    }
}
