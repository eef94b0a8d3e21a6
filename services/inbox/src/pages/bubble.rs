//! One message as a bubble.

use super::time::{TimeView, day_name};
use super::words::Words;
use crate::decide::can_go_again;
use crate::views::{is_held, shown_status};
use askama::Template;
use domain::{Direction, MessageType, Origin, SendState, Status, Timestamp};
use std::hash::{DefaultHasher, Hash, Hasher};
use store::thread::{MediaRow, MessageRow};

/// Longest raw item shown on the page, in bytes; the API has all of it.
const RAW_MOST: usize = 20_000;

/// Which side of the thread a message stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// From the person.
    Them,
    /// From us.
    Us,
    /// Among us.
    Note,
}

/// The sign beside a message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tick {
    /// None: it is not ours to deliver.
    None,
    Clock,
    Dots,
    Question,
    One,
    Two,
    Read,
    Bang,
}

/// A file of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileView {
    /// What it is: photo, voice message, …
    pub(crate) what: &'static str,
    /// Its name, kind and size, as far as they are known.
    pub(crate) about: String,
    /// Why it is not shown.
    pub(crate) state: &'static str,
}

/// Something that can be decided about a message, as a button.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Act {
    /// Last part of its address, and its name for tests.
    pub(crate) name: &'static str,
    pub(crate) word: &'static str,
    /// Where the form goes.
    pub(crate) href: String,
    /// Whether it keeps in the background: nothing waits for it.
    pub(crate) quiet: bool,
}

/// Who reads a thread, and where they came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) w: &'static Words,
    /// Whether they may decide about messages.
    pub(crate) may_write: bool,
    /// The list's own query, so that forms come back to the same list.
    pub(crate) query: &'a str,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bubble {
    pub(crate) id: i64,
    pub(crate) side: Side,
    pub(crate) at: TimeView,
    /// The provider's time in microseconds: its place.
    pub(crate) order: i64,
    /// Name of the day it opens, when it is the first of a day.
    pub(crate) new_day: Option<String>,
    pub(crate) author: Option<String>,
    pub(crate) text: Option<String>,
    /// Name of the template it was made from.
    pub(crate) template: Option<String>,
    pub(crate) files: Vec<FileView>,
    /// The type that this version has no word for.
    pub(crate) unsupported: Option<&'static str>,
    pub(crate) raw: Option<String>,
    /// Value of `data-status`.
    pub(crate) status: &'static str,
    /// Value of `data-state`: where its send stands.
    pub(crate) state: &'static str,
    pub(crate) tick: Tick,
    /// The sign in words.
    pub(crate) tick_words: String,
    pub(crate) tick_at: Option<TimeView>,
    /// Why it failed, for a person.
    pub(crate) reason: Option<String>,
    pub(crate) held: bool,
    /// What its reader can decide about it.
    pub(crate) acts: Vec<Act>,
    /// Changes whenever anything of the bubble does.
    pub(crate) rev: String,
}

impl Bubble {
    /// A message; `media` may hold other messages' files too.
    pub(crate) fn of(row: &MessageRow, media: &[MediaRow], reader: Reader<'_>) -> Self {
        let w = reader.w;
        let side = match (row.kind, row.direction) {
            (MessageType::Note, _) => Side::Note,
            (_, Direction::Inbound) => Side::Them,
            (_, Direction::Outbound) => Side::Us,
        };
        let (tick, tick_words, tick_at) =
            if side == Side::Us { tick(row, w) } else { (Tick::None, String::new(), None) };
        let files: Vec<FileView> =
            media.iter().filter(|file| file.message_id == row.id).map(|file| file_view(file, w)).collect();
        let caption = media.iter().find(|file| file.message_id == row.id).and_then(|file| file.caption.clone());
        let text = row.body.clone().or(caption).filter(|text| !text.trim().is_empty());
        let bare = text.is_none() && files.is_empty() && row.template_name.is_none();
        let unsupported = (row.kind == MessageType::Unsupported || (bare && row.kind != MessageType::Text))
            .then_some(row.kind.as_str());
        // What cannot be shown is shown as it arrived.
        let raw = row.raw_payload.as_ref().filter(|_| unsupported.is_some() || bare).map(|raw| shortened(raw));
        let mut bubble = Self {
            id: row.id.get(),
            side,
            at: TimeView::of(row.occurred_at, w),
            order: row.occurred_at.micros(),
            new_day: None,
            author: author(row, w),
            text: text.or_else(|| (bare && unsupported.is_none()).then(|| w.empty_text.to_owned())),
            template: row.template_name.clone(),
            files,
            unsupported,
            raw,
            status: shown_status(row).as_str(),
            state: row.send_state.map_or("", SendState::as_str),
            tick,
            tick_words,
            tick_at: tick_at.map(|at| TimeView::of(at, w)),
            reason: reason(row, w),
            held: is_held(row),
            acts: if side == Side::Us && reader.may_write { acts(row, reader) } else { Vec::new() },
            rev: String::new(),
        };
        bubble.rev = bubble.revision();
        bubble
    }

    fn revision(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.author, &self.text, &self.files, self.unsupported, self.status, self.state, self.tick).hash(&mut hasher);
        (&self.tick_words, self.tick_at.as_ref().map(|at| &at.iso), &self.reason, self.held, self.order)
            .hash(&mut hasher);
        self.acts.hash(&mut hasher);
        format!("{:x}", hasher.finish())
    }

    /// Whether somebody is asked to decide, rather than only may.
    pub(crate) fn has_loud_acts(&self) -> bool {
        self.acts.iter().any(|act| !act.quiet)
    }

    pub(crate) fn is_read(&self) -> bool {
        self.tick == Tick::Read
    }
}

/// A stretch of a thread, with the days named where they begin.
pub(crate) fn thread(rows: &[MessageRow], media: &[MediaRow], now: Timestamp, reader: Reader<'_>) -> Vec<Bubble> {
    let mut bubbles: Vec<Bubble> = Vec::with_capacity(rows.len());
    for row in rows {
        let mut bubble = Bubble::of(row, media, reader);
        if bubbles.last().is_none_or(|last| last.at.date() != bubble.at.date()) {
            bubble.new_day = Some(day_name(&bubble.at, now, reader.w));
        }
        bubbles.push(bubble);
    }
    bubbles
}

fn author(row: &MessageRow, w: &Words) -> Option<String> {
    match (row.direction, row.origin) {
        (Direction::Inbound, _) => None,
        (_, Origin::Echo) => Some(w.from_phone.to_owned()),
        (_, Origin::Api | Origin::Automation) => Some(w.from_api.to_owned()),
        (_, Origin::Ai) => Some(w.assistant.to_owned()),
        (_, Origin::Agent | Origin::Contact) => row.created_by_name.clone(),
    }
}

/// What there is to decide where the message stands now.
fn acts(row: &MessageRow, reader: Reader<'_>) -> Vec<Act> {
    let w = reader.w;
    let act = |name, word, quiet| Act {
        name,
        word,
        href: format!("/inbox/{}/messages/{}/{name}{}", row.conversation_id, row.id, reader.query),
        quiet,
    };
    match (row.status, row.send_state) {
        (_, Some(SendState::Held)) => {
            vec![act("it-arrived", w.it_arrived, false), act("send-again", w.send_again, false)]
        }
        (_, Some(SendState::Scheduled | SendState::Waiting | SendState::Dispatched)) => {
            vec![act("cancel", w.take_back, true)]
        }
        (Status::Failed, None) if can_go_again(row.kind) => vec![act("retry", w.try_again, false)],
        _ => Vec::new(),
    }
}

/// The sign, what it says, and since when.
fn tick(row: &MessageRow, w: &Words) -> (Tick, String, Option<Timestamp>) {
    let plain = |tick, words: &str, at| (tick, words.to_owned(), at);
    match (shown_status(row), row.send_state) {
        (_, Some(SendState::Held)) => plain(Tick::Question, w.held, None),
        (_, Some(SendState::Unknown)) => plain(Tick::Dots, w.unknown, None),
        (_, Some(SendState::Scheduled)) => plain(Tick::Clock, w.scheduled, row.send_due_at),
        (Status::Queued, Some(SendState::Waiting)) if row.send_attempt.is_some_and(|attempt| attempt > 0) => {
            plain(Tick::Clock, w.retrying, row.send_due_at)
        }
        (Status::Queued | Status::Received, _) => plain(Tick::Clock, w.queued, None),
        (Status::Sending, _) => plain(Tick::Dots, w.sending, None),
        (Status::Sent, _) => match &row.confirmed_by_name {
            Some(name) => (Tick::One, format!("{} {name}", w.sent_by_word), row.sent_at),
            None => plain(Tick::One, w.sent, row.sent_at),
        },
        (Status::Delivered, _) => plain(Tick::Two, w.delivered, row.delivered_at),
        (Status::Read, _) => plain(Tick::Read, w.read, row.read_at),
        (Status::Failed, _) => plain(Tick::Bang, w.failed, row.failed_at),
    }
}

fn reason(row: &MessageRow, w: &Words) -> Option<String> {
    if row.status != Status::Failed {
        return None;
    }
    let words = match row.error_class.as_deref() {
        Some("CANCELLED") => w.cancelled.to_owned(),
        Some("EXPIRED") => w.expired.to_owned(),
        class => row.error_message.clone().or_else(|| class.map(str::to_owned)).unwrap_or_default(),
    };
    match &row.error_code {
        Some(code) if row.error_class.as_deref() != Some("CANCELLED") => {
            Some(format!("{words} ({} {code})", w.failed_code))
        }
        _ => Some(words),
    }
}

fn file_view(row: &MediaRow, w: &'static Words) -> FileView {
    let what = match row.kind.as_str() {
        "image" => w.photo,
        "audio" => w.audio,
        "video" => w.video,
        "document" => w.document,
        "sticker" => w.sticker,
        _ => w.file,
    };
    let size = row.size_bytes.map(|bytes| format!("{} KB", (bytes + 1023) / 1024));
    let about =
        [row.filename.clone(), row.mime_type.clone(), size].into_iter().flatten().collect::<Vec<_>>().join(" · ");
    FileView { what, about, state: if row.state == "PENDING" { w.not_fetched } else { w.not_available } }
}

fn shortened(raw: &str) -> String {
    match raw.char_indices().find(|(at, _)| *at >= RAW_MOST) {
        Some((at, _)) => format!("{}…", raw.get(..at).unwrap_or_default()),
        None => raw.to_owned(),
    }
}

/// A bubble alone, for replacing one in a page.
#[derive(Debug, Template)]
#[template(path = "bubble.html")]
pub(crate) struct BubblePart<'a> {
    pub(crate) w: &'static Words,
    pub(crate) csrf: &'a str,
    pub(crate) bubble: &'a Bubble,
}
