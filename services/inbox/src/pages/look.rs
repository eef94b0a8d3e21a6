//! How the reader wants the page: language and theme. A query parameter chooses, a cookie remembers, else the browser says.

use super::words::{AR, EN, Words};
use crate::auth::session::{cookie, preference};
use crate::form::Fields;
use http::HeaderMap;
use http::header::{ACCEPT_LANGUAGE, SET_COOKIE};

const LANGUAGE_COOKIE: &str = "roost_lang";
const THEME_COOKIE: &str = "roost_theme";

/// The page's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Arabic,
}

/// The page's colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// As the system has it.
    System,
    Light,
    Dark,
}

/// How the reader wants the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) language: Language,
    pub(crate) theme: Theme,
}

impl Language {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "en" => Some(Language::English),
            "ar" => Some(Language::Arabic),
            _ => None,
        }
    }

    pub(crate) fn code(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Arabic => "ar",
        }
    }

    pub(crate) fn direction(self) -> &'static str {
        match self {
            Language::English => "ltr",
            Language::Arabic => "rtl",
        }
    }

    pub(crate) fn words(self) -> &'static Words {
        match self {
            Language::English => &EN,
            Language::Arabic => &AR,
        }
    }
}

impl Theme {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "system" => Some(Theme::System),
            "light" => Some(Theme::Light),
            "dark" => Some(Theme::Dark),
            _ => None,
        }
    }

    pub(crate) fn code(self) -> &'static str {
        match self {
            Theme::System => "system",
            Theme::Light => "light",
            Theme::Dark => "dark",
        }
    }
}

impl Look {
    /// What a request wants.
    pub(crate) fn of(query: &str, headers: &HeaderMap) -> Self {
        let query = Fields::of(query.as_bytes());
        let chosen =
            |name: &str, remembered: &str| query.get(name).or_else(|| cookie(headers, remembered)).map(str::to_owned);
        let language = chosen("lang", LANGUAGE_COOKIE).and_then(|text| Language::parse(&text));
        let theme = chosen("theme", THEME_COOKIE).and_then(|text| Theme::parse(&text));
        Self { language: language.unwrap_or_else(|| spoken(headers)), theme: theme.unwrap_or(Theme::System) }
    }

    /// Remembers what the query chose.
    pub(crate) fn remember(self, target: &str, headers: &mut HeaderMap) {
        let Some((_, query)) = target.split_once('?') else { return };
        let query = Fields::of(query.as_bytes());
        if query.get("lang").and_then(Language::parse).is_some() {
            headers.append(SET_COOKIE, preference(LANGUAGE_COOKIE, self.language.code()));
        }
        if query.get("theme").and_then(Theme::parse).is_some() {
            headers.append(SET_COOKIE, preference(THEME_COOKIE, self.theme.code()));
        }
    }
}

/// The first language of `Accept-Language` that the page knows, by the reader's own weights.
fn spoken(headers: &HeaderMap) -> Language {
    let accepted = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut best = (Language::English, 0.0);
    for entry in accepted.split(',') {
        let (tag, parameter) = entry.split_once(';').unwrap_or((entry, ""));
        let weight = parameter.trim().strip_prefix("q=").map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
        if let Some(language) = Language::parse(&primary)
            && weight > best.1
        {
            best = (language, weight);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::COOKIE;

    #[test]
    fn a_choice_beats_the_cookie_and_the_cookie_beats_the_browser() {
        let mut headers = HeaderMap::new();
        assert_eq!(Look::of("", &headers).language, Language::English);
        headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static("fr, ar-AE;q=0.9, en;q=0.5"));
        assert_eq!(Look::of("", &headers).language, Language::Arabic);
        headers.insert(COOKIE, HeaderValue::from_static("roost_lang=en; roost_theme=dark"));
        assert_eq!(Look::of("", &headers), Look { language: Language::English, theme: Theme::Dark });
        assert_eq!(Look::of("lang=ar&theme=rubbish", &headers).language, Language::Arabic);
    }

    #[test]
    fn only_known_choices_are_remembered() {
        let mut headers = HeaderMap::new();
        let look = Look::of("lang=ar", &headers);
        look.remember("/inbox?lang=ar", &mut headers);
        look.remember("/inbox?lang=%0d%0aSet-Cookie:x", &mut headers);
        let set = headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(set, ["roost_lang=ar; Path=/; SameSite=Lax; Max-Age=31536000"]);
    }
}
