//! The W3C header `traceparent` (<https://www.w3.org/TR/trace-context/>): which trace of its sender's a request belongs to.
//! It travels as it came; only one that says something is taken along.

use http::HeaderMap;

/// What version 00 is long, in bytes; a later version may have more after it.
const LENGTH: usize = 55;
/// Longer ones are not taken along, whatever their version.
const MOST: usize = 128;

/// The request's `traceparent`; `None` when there is none, more than one, or one that is not valid.
pub fn of(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next()?.to_str().ok()?;
    (values.next().is_none() && trace_id(value).is_some()).then_some(value)
}

/// The trace's id in a `traceparent`: 32 hex digits, to be put into a log line. `None` when it is not valid.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    if traceparent.len() > MOST || !traceparent.is_ascii() {
        return None;
    }
    let (first, rest) = traceparent.split_at_checked(LENGTH)?;
    let mut fields = first.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let more = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let hex = |field: &str, length| {
        field.len() == length && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let set = |field: &str| field.bytes().any(|byte| byte != b'0');
    let valid = more
        && fields.next().is_none()
        && hex(version, 2)
        && hex(trace, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && set(trace)
        && set(parent);
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use rstest::rstest;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[rstest]
    #[case::the_specifications(VALID)]
    #[case::a_later_version("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case::a_later_version_with_more("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-says")]
    fn a_valid_one_names_its_trace(#[case] text: &str) {
        assert_eq!(trace_id(text), Some(TRACE));
    }

    #[rstest]
    #[case::nothing("")]
    #[case::words("not a traceparent")]
    #[case::no_trace("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    #[case::no_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")]
    #[case::upper_case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")]
    #[case::a_short_trace("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-011")]
    #[case::more_than_version_00_has("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more")]
    #[case::no_version("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case::more_without_a_dash("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more")]
    #[case::other_letters("00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01")]
    fn another_names_none(#[case] text: &str) {
        assert_eq!(trace_id(text), None);
    }

    #[test]
    fn one_that_is_endless_is_not_taken_along() {
        assert_eq!(trace_id(&format!("cc{}-{}", &VALID[2..], "x".repeat(100))), None);
    }

    #[test]
    fn a_request_has_one_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(of(&headers), None);
        headers.append("traceparent", HeaderValue::from_static("rubbish"));
        assert_eq!(of(&headers), None);
        headers.insert("traceparent", HeaderValue::from_static(VALID));
        assert_eq!(of(&headers), Some(VALID));
        headers.append("traceparent", HeaderValue::from_static(VALID));
        assert_eq!(of(&headers), None, "two of them contradict each other");
    }
}
