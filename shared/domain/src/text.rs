//! Text for lists and for search.

/// Longest preview of a message in the conversation list, in characters.
const PREVIEW_CHARS: usize = 140;

/// One line for the conversation list: whitespace folded, cut to 140 characters.
pub fn preview(body: &str) -> String {
    let mut line = String::with_capacity(body.len().min(PREVIEW_CHARS * 4));
    let mut chars = 0;
    for word in body.split_whitespace() {
        if chars > 0 {
            line.push(' ');
            chars += 1;
        }
        for c in word.chars() {
            if chars == PREVIEW_CHARS {
                line.push('…');
                return line;
            }
            line.push(c);
            chars += 1;
        }
    }
    line
}

/// The form in which text is searched: lower case, Arabic without tashkeel and tatweel and with one alef, digits Western.
pub fn folded(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '\u{064B}'..='\u{065F}' | '\u{0670}' | '\u{0640}'))
        .flat_map(char::to_lowercase)
        .map(|c| match c {
            'أ' | 'إ' | 'آ' | 'ٱ' => 'ا',
            'ى' => 'ي',
            '\u{0660}'..='\u{0669}' => western_digit(c, 0x0660),
            '\u{06F0}'..='\u{06F9}' => western_digit(c, 0x06F0),
            other => other,
        })
        .collect()
}

fn western_digit(c: char, zero: u32) -> char {
    char::from_digit(u32::from(c).saturating_sub(zero), 10).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(preview("  Hello\n\n  there  "), "Hello there");
        let long = preview(&"مرحبا ".repeat(100));
        assert_eq!(long.chars().count(), PREVIEW_CHARS + 1);
    }

    #[test]
    fn arabic_is_found_however_it_was_typed() {
        assert_eq!(folded("أَهْلًا"), folded("اهلا"));
        assert_eq!(folded("٠١٢٣"), "0123");
        assert_eq!(folded("HÉLLO"), "héllo");
    }
}
