//! Meta's error object, the same in answers, statuses and messages: every member but `code` may be missing.

use crate::json::{Flag, Text, cut, object};

/// Longest words kept of an error, in characters.
const MAX_WORDS: usize = 500;

/// Shortest run of letters and digits that is taken for a token and left out, in bytes.
const TOKEN: usize = 32;

object! {
    struct ErrorObject {
        code: Text<'a> = "code",
        title: Text<'a> = "title",
        message: Text<'a> = "message",
        details: Text<'a> = "details",
        error_data: ErrorData<'a> = "error_data",
        is_transient: Flag = "is_transient",
    }
    struct ErrorData {
        details: Text<'a> = "details",
    }
}

impl ErrorObject<'_> {
    /// Whether Graph spoke at all: a gateway's page, an empty body or somebody else's JSON has none of these.
    pub(super) fn is_there(&self) -> bool {
        self.code.get().is_some() || self.is_transient.0.is_some() || !self.words().is_empty()
    }

    /// The provider's words, from the general to the particular: `Message undeliverable: Recipient is not reachable`. Empty
    /// when it has none.
    pub(crate) fn words(&self) -> String {
        let code = self.code.get().unwrap_or_default();
        let general = self.message.get().or(self.title.get()).unwrap_or_default();
        // Answers repeat the code before the words: `(#131047) Re-engagement message`.
        let general = general.strip_prefix(&format!("(#{code})")).unwrap_or(general).trim();
        let details = self.error_data.details.get().or(self.details.get()).unwrap_or_default().trim();
        let words = match (general, details) {
            (general, "") => general.to_owned(),
            ("", details) => details.to_owned(),
            (general, details) if general == details => general.to_owned(),
            (general, details) => format!("{general}: {details}"),
        };
        cut(&without_tokens(&words), MAX_WORDS)
    }
}

/// Leaves out whatever could be an access token: Graph quotes the token it does not like (`Malformed access token …`).
fn without_tokens(words: &str) -> String {
    let could_be_token = |word: &str| {
        let longest = word.split(|c: char| !c.is_ascii_alphanumeric()).map(str::len).max().unwrap_or(0);
        longest >= TOKEN && !word.contains("wamid.")
    };
    if !words.split_whitespace().any(could_be_token) {
        return words.to_owned();
    }
    let kept: Vec<&str> = words.split_whitespace().map(|word| if could_be_token(word) { "…" } else { word }).collect();
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(
        r#"{"code":131047,"message":"(#131047) Re-engagement message","error_data":{"details":"More than 24 hours"}}"#,
        "Re-engagement message: More than 24 hours"
    )]
    #[case(
        r#"{"code":131026,"title":"Message undeliverable","message":"Message undeliverable"}"#,
        "Message undeliverable"
    )]
    #[case(r#"{"code":470,"title":"Too late","details":"older form"}"#, "Too late: older form")]
    #[case(r#"{"code":1,"message":"same","error_data":{"details":"same"}}"#, "same")]
    #[case(r#"{"code":1,"message":null,"error_data":"words"}"#, "")]
    #[case("[]", "")]
    #[case(
        r#"{"code":190,"message":"Malformed access token EAAGm0PX4ZCpsBAKexampleexampleexampleexample"}"#,
        "Malformed access token …"
    )]
    fn words_of_an_error(#[case] error: &str, #[case] words: &str) {
        assert_eq!(serde_json::from_str::<ErrorObject<'_>>(error).unwrap().words(), words);
    }

    #[test]
    fn words_are_one_short_line() {
        let error = format!(r#"{{"message":"a\n\tb{}"}}"#, " word".repeat(1000));
        let words = serde_json::from_str::<ErrorObject<'_>>(&error).unwrap().words();
        assert_eq!(words.chars().count(), MAX_WORDS + 1);
        assert!(words.starts_with("a  b word"));
    }
}
