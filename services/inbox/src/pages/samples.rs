//! Samples of every page, and the promise that each of them renders, in both languages, with nothing of what a stranger
//! wrote becoming part of the page.

use super::bubble::{Act, Bubble, BubblePart, FileView, Side, Tick};
use super::context::{
    BubblesPart, Composer, ComposerPart, Frame, Head, HeadPart, InboxPage, List, LoginPage, RefusalPage, Row, RowPart,
    TemplateView, Thread, tabs,
};
use super::look::{Language, Look, Theme};
use super::time::TimeView;
use super::words::Words;
use crate::problem::Problem;
use askama::Template;
use domain::Timestamp;
use http::StatusCode;
use store::inbox_list::Counts;

const NOW: Timestamp = Timestamp::from_seconds(1_795_339_800);

/// What strangers write. Every one of these is a name, a text, a file name and a raw item below.
const HOSTILE: [&str; 14] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</textarea><svg/onload=alert(1)>",
    "</title></style></script><body onload=alert(1)>",
    "javascript:alert(1)",
    "<a href=\"javascript:alert(1)\">x</a>",
    "&lt;b&gt; &amp; &#x3c;i&#x3e;",
    "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7 %>",
    "\u{202E}txt.exe\u{202C} \u{2067}abc",
    "<!-- --><![CDATA[<x>]]>",
    "a\u{0008}b\u{FFFD}\u{FEFF}c\u{2028}d",
    "<iframe srcdoc='<script>1</script>'>",
    "\u{0}\u{1}\u{7f}",
];

/// Every language and theme.
fn looks() -> Vec<Look> {
    let languages = [Language::English, Language::Arabic];
    let themes = [Theme::System, Theme::Light, Theme::Dark];
    languages.into_iter().flat_map(|language| themes.map(|theme| Look { language, theme })).collect()
}

fn at(w: &Words) -> TimeView {
    TimeView::of(NOW, w)
}

impl Row {
    /// A quiet row and one with every mark, both speaking `text`.
    fn samples(text: &str, w: &Words) -> Vec<Row> {
        let quiet = Row {
            id: 7,
            href: "/inbox/7".into(),
            name: text.into(),
            initials: "AH".into(),
            hue: 3,
            channel: "WhatsApp",
            preview: None,
            from_us: false,
            at: at(w),
            order: 1,
            unread: 0,
            needs_reply: false,
            overdue: false,
            failed: false,
            assignee: None,
            selected: false,
        };
        let loud = Row {
            preview: Some(text.into()),
            from_us: true,
            unread: 3,
            needs_reply: true,
            overdue: true,
            failed: true,
            assignee: Some(text.into()),
            selected: true,
            ..quiet.clone()
        };
        vec![quiet, loud]
    }
}

impl Bubble {
    /// Every side, every sign, and a message with everything a message can have.
    fn samples(text: &str, w: &'static Words) -> Vec<Bubble> {
        let plain = Bubble {
            id: 1,
            side: Side::Them,
            at: at(w),
            order: 1,
            new_day: Some("Today".into()),
            author: None,
            text: Some(text.into()),
            template: None,
            files: Vec::new(),
            unsupported: None,
            raw: None,
            status: "RECEIVED",
            state: "",
            tick: Tick::None,
            tick_words: String::new(),
            tick_at: None,
            reason: None,
            held: false,
            acts: Vec::new(),
            rev: "1".into(),
        };
        let act = |name, quiet| Act { name, word: w.it_arrived, href: "/inbox/7?view=mine&search=x".into(), quiet };
        let ticks = [Tick::Clock, Tick::Dots, Tick::Question, Tick::One, Tick::Two, Tick::Read, Tick::Bang];
        let mut samples: Vec<Bubble> = ticks
            .into_iter()
            .map(|tick| Bubble { side: Side::Us, tick, tick_words: text.into(), tick_at: Some(at(w)), ..plain.clone() })
            .collect();
        samples.push(Bubble { side: Side::Note, author: Some(text.into()), ..plain.clone() });
        samples.push(Bubble {
            side: Side::Us,
            author: Some(text.into()),
            template: Some(text.into()),
            files: vec![FileView { what: w.photo, about: text.into(), state: w.not_fetched }],
            unsupported: Some("order"),
            raw: Some(text.into()),
            status: "SENDING",
            state: "HELD",
            tick: Tick::Question,
            tick_words: text.into(),
            reason: Some(text.into()),
            held: true,
            acts: ["it-arrived", "send-again"].map(|name| act(name, false)).into(),
            new_day: None,
            ..plain.clone()
        });
        samples.push(Bubble { side: Side::Us, tick: Tick::Clock, acts: vec![act("cancel", true)], ..plain.clone() });
        samples.push(plain);
        samples
    }
}

impl Head {
    /// Somebody else's and one's own, open and closed, with and without the right to write.
    fn samples(text: &str) -> Vec<Head> {
        let full = Head {
            id: 7,
            name: text.into(),
            initials: "A".into(),
            hue: 0,
            address: Some(text.into()),
            channel: "WhatsApp",
            account: Some(text.into()),
            account_warning: Some(text.into()),
            assignee: Some(text.into()),
            mine: false,
            closed: true,
            can_write: true,
            people: vec![(1, text.into(), true), (2, text.into(), false)],
            query: "?view=mine".into(),
        };
        let bare = Head {
            address: None,
            account: None,
            account_warning: None,
            assignee: None,
            mine: true,
            closed: false,
            ..full.clone()
        };
        vec![Head { can_write: false, ..full.clone() }, full, bare]
    }
}

impl Composer {
    /// Every mode of the window, each panel, and no right to write.
    fn samples(text: &str) -> Vec<Composer> {
        let open = Composer {
            id: 7,
            mode: "open",
            expires: NOW.to_string(),
            left: "3 h".into(),
            soon: true,
            locked: None,
            key: "k".into(),
            text: text.into(),
            note: text.into(),
            error: Some(text.into()),
            templates: vec![TemplateView { name: text.into(), language: text.into(), text: text.into() }],
            can_write: true,
            panel: "reply",
            query: String::new(),
        };
        let other = |mode, locked: Option<&str>, panel| Composer {
            mode,
            locked: locked.map(str::to_owned),
            panel,
            error: None,
            soon: false,
            expires: String::new(),
            ..open.clone()
        };
        vec![
            other("none", None, "reply"),
            other("closed", Some(text), "template"),
            other("unavailable", Some(text), "note"),
            Composer { can_write: false, ..open.clone() },
            open,
        ]
    }
}

impl InboxPage {
    /// An empty inbox, a list alone, and a list with a thread.
    fn samples(text: &str, look: Look) -> Vec<InboxPage> {
        let w = look.language.words();
        let mut frame = Frame::of(look, None, NOW, text);
        frame.me = Some(text.into());
        let list = List {
            tabs: tabs("mine", Counts { all: 5, mine: 1, unassigned: 0, unread: 2 }, w),
            rows: Row::samples(text, w),
            view: "mine".into(),
            search: text.into(),
            next: Some("/inbox?after=x".into()),
            later_page: true,
            unread: 2,
        };
        let empty = List { rows: Vec::new(), search: String::new(), view: "all".into(), next: None, ..list.clone() };
        let page =
            |list: &List, thread| InboxPage { w, frame: frame.clone(), csrf: "c".into(), list: list.clone(), thread };
        let mut pages = vec![page(&empty, None), page(&list, None)];
        for (head, composer) in Head::samples(text).into_iter().zip(Composer::samples(text)) {
            let thread = |bubbles| Thread {
                head: head.clone(),
                bubbles,
                older: Some("/inbox/7?before=x".into()),
                earlier_page: true,
                composer: composer.clone(),
            };
            pages.push(page(&list, Some(thread(Bubble::samples(text, w)))));
            pages.push(page(&empty, Some(Thread { older: None, earlier_page: false, ..thread(Vec::new()) })));
        }
        pages
    }
}

impl LoginPage {
    fn samples(text: &str, look: Look) -> Vec<LoginPage> {
        let w = look.language.words();
        let fresh = LoginPage {
            w,
            frame: Frame::of(look, None, NOW, w.sign_in),
            csrf: String::new(),
            error: None,
            email: String::new(),
            next: "/inbox".into(),
        };
        let again = LoginPage {
            error: Some(w.bad_login),
            email: text.into(),
            next: text.into(),
            frame: fresh.frame.clone(),
            csrf: String::new(),
            w,
        };
        vec![fresh, again]
    }
}

impl RefusalPage {
    fn samples(text: &str, look: Look) -> Vec<RefusalPage> {
        let bare = Problem::new(StatusCode::FORBIDDEN, "csrf", text);
        let hinted = bare.clone().hint(text);
        vec![RefusalPage::of(&bare, look, "r-1"), RefusalPage::of(&hinted, look, text)]
    }
}

/// Every sample of every page and piece, speaking `text`.
fn everything(text: &str, look: Look) -> Vec<String> {
    let w = look.language.words();
    let mut rendered: Vec<String> = Vec::new();
    rendered.extend(LoginPage::samples(text, look).iter().map(|page| page.render().unwrap()));
    rendered.extend(RefusalPage::samples(text, look).iter().map(|page| page.render().unwrap()));
    rendered.extend(InboxPage::samples(text, look).iter().map(|page| page.render().unwrap()));
    rendered.extend(Row::samples(text, w).iter().map(|row| RowPart { w, row }.render().unwrap()));
    let bubbles = Bubble::samples(text, w);
    rendered.extend(bubbles.iter().map(|bubble| BubblePart { w, csrf: "c", bubble }.render().unwrap()));
    rendered.push(BubblesPart { w, csrf: "c", bubbles: &bubbles }.render().unwrap());
    rendered.extend(Head::samples(text).iter().map(|head| HeadPart { w, csrf: "c", head }.render().unwrap()));
    rendered.extend(
        Composer::samples(text).iter().map(|composer| ComposerPart { w, csrf: "c", composer }.render().unwrap()),
    );
    rendered
}

/// How often each character that HTML gives a meaning occurs.
fn markup(html: &str) -> [usize; 4] {
    ['<', '>', '"', '\''].map(|sign| html.chars().filter(|c| *c == sign).count())
}

#[test]
fn every_page_renders_in_every_language_and_theme() {
    for look in looks() {
        for html in everything("Amal Haddad", look) {
            assert!(html.contains('<') && !html.contains("{{ ") && !html.contains("{%"), "{html}");
        }
    }
}

#[test]
fn ac_39_what_strangers_write_never_becomes_part_of_the_page() {
    let look = Look { language: Language::English, theme: Theme::System };
    let harmless: Vec<_> = everything("harmless", look).iter().map(|html| markup(html)).collect();
    for hostile in HOSTILE {
        for (html, want) in everything(hostile, look).iter().zip(&harmless) {
            assert_eq!(markup(html), *want, "{hostile:?} changed the markup of {html}");
        }
    }
}

#[test]
fn ac_39_no_page_needs_an_inline_script_or_style() {
    for html in everything("x", Look { language: Language::Arabic, theme: Theme::Dark }) {
        assert!(!html.contains(" style=") && !html.contains("<style") && !html.contains(" on"), "{html}");
        for script in html.split("<script").skip(1) {
            assert!(script.starts_with(" src=\"/assets/roost-") && script.contains("></script>"), "{script}");
        }
    }
}

#[test]
fn ac_37_arabic_pages_are_mirrored_and_every_text_finds_its_own_direction() {
    let arabic = Look { language: Language::Arabic, theme: Theme::System };
    for page in InboxPage::samples("مرحبا", arabic) {
        assert!(page.render().unwrap().contains("<html lang=\"ar\" dir=\"rtl\""));
    }
    let w = arabic.language.words();
    let bubble = Bubble::samples("مرحبا.", w).pop().unwrap();
    assert!(
        BubblePart { w, csrf: "c", bubble: &bubble }
            .render()
            .unwrap()
            .contains("<p class=\"text\" dir=\"auto\">مرحبا.</p>")
    );
}
