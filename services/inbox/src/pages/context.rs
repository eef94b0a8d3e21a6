//! What each page is made from. A page is a function of one of these; every one has `samples()`, and a test renders them
//! all.

use super::assets;
use super::bubble::{self, Bubble, Side, Tick};
use super::look::{Look, Theme};
use super::time::{TimeView, duration};
use super::words::Words;
use crate::auth::Who;
use crate::guard::Context;
use crate::problem::Problem;
use crate::send::template_body;
use crate::views::{self, Flags};
use askama::Template;
use domain::{Account, Channel, Direction, Role, Timestamp, Window};
use std::sync::Arc;
use std::time::Duration;
use store::inbox_list::{COUNT_UP_TO, ConversationRow, Counts};
use store::thread::TemplateRow;
use store::user::UserRow;

/// Below this the countdown is a warning.
const SOON: Duration = Duration::from_secs(3600);

/// What every page has around its content.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) lang: &'static str,
    pub(crate) dir: &'static str,
    pub(crate) theme: &'static str,
    pub(crate) other_theme: &'static str,
    pub(crate) other_theme_word: &'static str,
    pub(crate) style: String,
    pub(crate) script: String,
    pub(crate) icon: String,
    /// The reader's name; `None`: nobody is signed in.
    pub(crate) me: Option<String>,
    pub(crate) title: String,
    /// The server's clock, so that a countdown does not trust the browser's.
    pub(crate) now: String,
    /// Where the change feed stood when the page was read.
    pub(crate) cursor: String,
}

impl Frame {
    pub(crate) fn of(look: Look, who: Option<&Who>, now: Timestamp, title: &str) -> Self {
        let w = look.language.words();
        let (other_theme, other_theme_word) = match look.theme {
            Theme::Dark => ("light", w.light),
            Theme::System | Theme::Light => ("dark", w.dark),
        };
        Self {
            lang: look.language.code(),
            dir: look.language.direction(),
            theme: look.theme.code(),
            other_theme,
            other_theme_word,
            style: assets::style(),
            script: assets::script(),
            icon: assets::icon(),
            me: who.map(|who| who.name.clone()),
            title: title.to_owned(),
            now: now.to_string(),
            cursor: String::new(),
        }
    }
}

/// Sign in.
#[derive(Debug, Template)]
#[template(path = "login.html")]
pub(crate) struct LoginPage {
    pub(crate) w: &'static Words,
    pub(crate) frame: Frame,
    pub(crate) csrf: String,
    pub(crate) error: Option<&'static str>,
    pub(crate) email: String,
    pub(crate) next: String,
}

/// A refusal, for people.
#[derive(Debug, Template)]
#[template(path = "refusal.html")]
pub(crate) struct RefusalPage {
    pub(crate) w: &'static Words,
    pub(crate) frame: Frame,
    pub(crate) csrf: String,
    pub(crate) status: u16,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
    pub(crate) request_id: String,
}

impl RefusalPage {
    pub(crate) fn of(problem: &Problem, look: Look, request_id: &str) -> Self {
        let w = look.language.words();
        Self {
            w,
            frame: Frame::of(look, None, Timestamp::EPOCH, w.refused),
            csrf: String::new(),
            status: problem.status.as_u16(),
            detail: problem.detail.clone(),
            hint: problem.hint.clone(),
            request_id: request_id.to_owned(),
        }
    }
}

/// A row of the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) href: String,
    pub(crate) name: String,
    pub(crate) initials: String,
    /// 0 to 7: one of the palette's hues, the same for a person everywhere.
    pub(crate) hue: i64,
    pub(crate) channel: &'static str,
    pub(crate) preview: Option<String>,
    pub(crate) from_us: bool,
    pub(crate) at: TimeView,
    /// Its place in microseconds.
    pub(crate) order: i64,
    pub(crate) unread: i32,
    pub(crate) needs_reply: bool,
    pub(crate) overdue: bool,
    pub(crate) failed: bool,
    pub(crate) assignee: Option<String>,
    pub(crate) selected: bool,
}

impl Row {
    pub(crate) fn of(row: &ConversationRow, query: &str, selected: bool, now: Timestamp, w: &Words) -> Self {
        let name = views::best_name(row);
        let flags = Flags::of(row, now);
        Self {
            id: row.id.get(),
            href: format!("/inbox/{}{query}", row.id),
            initials: initials(&name),
            name,
            hue: row.contact_id.get().rem_euclid(8),
            channel: channel_label(row.channel),
            preview: row.last_message_preview.clone(),
            from_us: row.last_message_direction == Some(Direction::Outbound),
            at: TimeView::of(row.last_message_at, w),
            order: row.last_message_at.micros(),
            unread: row.unread_count,
            needs_reply: flags.needs_reply && !flags.sla_breach,
            overdue: flags.sla_breach,
            failed: row.last_failed_at.is_some_and(|failed| row.last_outbound_at.is_none_or(|sent| failed >= sent)),
            assignee: match row.handler.as_str() {
                "AI" => Some(w.assistant.to_owned()),
                _ => row.assigned_user_name.clone(),
            },
            selected,
        }
    }
}

/// The letters in a person's circle: first and last name's first, `#` for a number.
fn initials(name: &str) -> String {
    let words: Vec<&str> = name.split_whitespace().collect();
    let letter = |word: &&str| word.chars().find(|c| c.is_alphabetic());
    let first = words.first().and_then(letter);
    let last = words.last().filter(|_| words.len() > 1).and_then(letter);
    match (first, last) {
        (None, None) => "#".to_owned(),
        (first, last) => first.into_iter().chain(last).flat_map(char::to_uppercase).collect(),
    }
}

/// A channel's name as people know it.
pub(crate) fn channel_label(channel: Channel) -> &'static str {
    match channel {
        Channel::WhatsApp => "WhatsApp",
        Channel::Email => "E-mail",
        Channel::Instagram => "Instagram",
        Channel::Facebook => "Messenger",
        Channel::Webchat => "Web chat",
        Channel::InternalNote => "Notes",
    }
}

/// A row alone.
#[derive(Debug, Template)]
#[template(path = "row.html")]
pub(crate) struct RowPart<'a> {
    pub(crate) w: &'static Words,
    pub(crate) row: &'a Row,
}

/// A tab of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tab {
    pub(crate) key: &'static str,
    pub(crate) word: &'static str,
    pub(crate) count: Option<String>,
    pub(crate) href: String,
    pub(crate) current: bool,
}

/// A count as people read it.
pub(crate) fn count_text(count: i64) -> String {
    if count >= COUNT_UP_TO { format!("{}+", COUNT_UP_TO - 1) } else { count.to_string() }
}

/// The list's tabs, for `view`.
pub(crate) fn tabs(view: &str, counts: Counts, w: &'static Words) -> Vec<Tab> {
    let tab = |key: &'static str, word, count: Option<i64>| Tab {
        key,
        word,
        count: count.map(count_text),
        href: if key == "all" { "/inbox".to_owned() } else { format!("/inbox?view={key}") },
        current: key == view,
    };
    vec![
        tab("all", w.all, Some(counts.all)),
        tab("mine", w.mine, Some(counts.mine)),
        tab("unassigned", w.unassigned, Some(counts.unassigned)),
        tab("closed", w.closed, None),
    ]
}

/// The list beside the thread.
#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) tabs: Vec<Tab>,
    pub(crate) rows: Vec<Row>,
    pub(crate) view: String,
    pub(crate) search: String,
    /// Address of the next page.
    pub(crate) next: Option<String>,
    /// Whether this is not the first page.
    pub(crate) later_page: bool,
    pub(crate) unread: i64,
}

/// The thread's head.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) initials: String,
    pub(crate) hue: i64,
    pub(crate) address: Option<String>,
    pub(crate) channel: &'static str,
    pub(crate) account: Option<String>,
    pub(crate) account_warning: Option<String>,
    pub(crate) assignee: Option<String>,
    pub(crate) mine: bool,
    pub(crate) closed: bool,
    pub(crate) can_write: bool,
    /// Who it can be handed to: id, name, whether it is theirs.
    pub(crate) people: Vec<(i64, String, bool)>,
    /// The list's own query, so that going back finds the same list.
    pub(crate) query: String,
}

impl Head {
    pub(crate) fn of(row: &ConversationRow, who: &Who, people: &[UserRow], query: &str, w: &Words) -> Self {
        let name = views::best_name(row);
        let warning = || row.account_status_reason.clone().unwrap_or_else(|| w.account_paused.to_owned());
        let broken = row.account_status.as_deref().is_some_and(|status| status != "ACTIVE");
        Self {
            id: row.id.get(),
            initials: initials(&name),
            name,
            hue: row.contact_id.get().rem_euclid(8),
            address: views::best_address(row),
            channel: channel_label(row.channel),
            account: row.account_name.clone(),
            account_warning: broken.then(warning),
            assignee: match row.handler.as_str() {
                "AI" => Some(w.assistant.to_owned()),
                _ => row.assigned_user_name.clone(),
            },
            mine: who.user().is_some() && row.assigned_user_id == who.user(),
            closed: row.status == domain::ConversationStatus::Closed,
            can_write: who.role.may(Role::Agent),
            people: people
                .iter()
                .map(|user| (user.id.get(), user.name.clone(), row.assigned_user_id == Some(user.id)))
                .collect(),
            query: query.to_owned(),
        }
    }
}

/// The thread's head alone.
#[derive(Debug, Template)]
#[template(path = "head.html")]
pub(crate) struct HeadPart<'a> {
    pub(crate) w: &'static Words,
    pub(crate) csrf: &'a str,
    pub(crate) head: &'a Head,
}

/// A template that can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateView {
    pub(crate) name: String,
    pub(crate) language: String,
    pub(crate) text: String,
}

/// Where a person writes.
#[derive(Clone, Debug)]
pub(crate) struct Composer {
    pub(crate) id: i64,
    /// `open`, `closed`, `none` (no window) or `unavailable`.
    pub(crate) mode: &'static str,
    /// When the window ends; empty when it is not open.
    pub(crate) expires: String,
    /// How long it is open yet, in words.
    pub(crate) left: String,
    pub(crate) soon: bool,
    /// Why free text is locked.
    pub(crate) locked: Option<String>,
    /// The key under which this very text is sent, however often the button is pressed.
    pub(crate) key: String,
    pub(crate) text: String,
    pub(crate) note: String,
    pub(crate) error: Option<String>,
    pub(crate) templates: Vec<TemplateView>,
    pub(crate) can_write: bool,
    /// Which panel is open: `reply`, `template` or `note`.
    pub(crate) panel: &'static str,
    pub(crate) query: String,
}

impl Composer {
    pub(crate) fn of(
        row: &ConversationRow,
        account: Option<&Arc<Account>>,
        templates: &[TemplateRow],
        who: &Who,
        now: Timestamp,
        w: &Words,
    ) -> Self {
        let unavailable = match account {
            None => Some(row.account_status_reason.clone().unwrap_or_else(|| w.account_paused.to_owned())),
            Some(_) if providers::channel_kind(row.channel).is_none() => Some(channel_label(row.channel).to_owned()),
            Some(_) => None,
        };
        let window = views::window_of(row, account.map(Arc::as_ref), now);
        let (mode, locked) = match (&unavailable, window) {
            (Some(why), _) => ("unavailable", Some(format!("{} {why}", w.cannot_send))),
            (None, Window::None) => ("none", None),
            (None, Window::Open(_)) => ("open", None),
            (None, Window::Closed { last_inbound_at: Some(_) }) => ("closed", Some(w.window_closed.to_owned())),
            (None, Window::Closed { last_inbound_at: None }) => ("closed", Some(w.window_never.to_owned())),
        };
        let until = match (mode, window) {
            ("open", Window::Open(until)) => Some(until),
            _ => None,
        };
        let view = |template: &TemplateRow| TemplateView {
            name: template.name.clone(),
            language: template.language.clone(),
            text: template_body(template).unwrap_or_default().to_owned(),
        };
        Self {
            id: row.id.get(),
            mode,
            expires: until.map(|until| until.to_string()).unwrap_or_default(),
            left: until.map(|until| duration(until.since(now), w)).unwrap_or_default(),
            soon: until.is_some_and(|until| until.since(now) < SOON),
            locked,
            key: uuid::Uuid::new_v4().to_string(),
            text: String::new(),
            note: String::new(),
            error: None,
            templates: templates.iter().map(view).collect(),
            can_write: who.role.may(Role::Agent),
            panel: match mode {
                "closed" => "template",
                "unavailable" => "note",
                _ => "reply",
            },
            query: String::new(),
        }
    }
}

/// The composer alone.
#[derive(Debug, Template)]
#[template(path = "composer.html")]
pub(crate) struct ComposerPart<'a> {
    pub(crate) w: &'static Words,
    pub(crate) csrf: &'a str,
    pub(crate) composer: &'a Composer,
}

/// An open conversation.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) head: Head,
    pub(crate) bubbles: Vec<Bubble>,
    /// Address of the older messages.
    pub(crate) older: Option<String>,
    /// Whether these are not the newest.
    pub(crate) earlier_page: bool,
    pub(crate) composer: Composer,
}

/// The inbox: the list, and one thread beside it.
#[derive(Debug, Template)]
#[template(path = "inbox.html")]
pub(crate) struct InboxPage {
    pub(crate) w: &'static Words,
    pub(crate) frame: Frame,
    pub(crate) csrf: String,
    pub(crate) list: List,
    pub(crate) thread: Option<Thread>,
}

impl InboxPage {
    pub(crate) fn frame_of(context: &Context, who: &Who) -> Frame {
        Frame::of(context.look, Some(who), context.now, context.look.language.words().inbox)
    }
}

/// Stretches of a thread alone: older messages.
#[derive(Debug, Template)]
#[template(path = "bubbles.html")]
pub(crate) struct BubblesPart<'a> {
    pub(crate) w: &'static Words,
    pub(crate) csrf: &'a str,
    pub(crate) bubbles: &'a [bubble::Bubble],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initials_are_letters_of_any_script() {
        for (name, want) in
            [("Amal Haddad", "AH"), ("ليلى أحمد", "لأ"), ("+971501234567", "#"), ("x", "X"), ("🙂 Bob", "B"), ("", "#")]
        {
            assert_eq!(initials(name), want, "{name}");
        }
    }

    #[test]
    fn counts_stop_where_nobody_reads_on() {
        assert_eq!([count_text(0), count_text(999), count_text(COUNT_UP_TO)], ["0", "999", "999+"]);
    }
}
