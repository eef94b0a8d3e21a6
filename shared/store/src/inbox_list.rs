//! The list of conversations: filters, search, keyset pages, counts.

use crate::column::rows;
use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::{
    AccountId, Channel, ContactId, ConversationId, ConversationStatus, Direction, IdentityKind, LeadId, MessageId,
    Timestamp, UserId,
};

rows! {
    /// A conversation as the list shows it; the thread's head shows the same.
    pub struct ConversationRow {
        /// The conversation.
        pub id: ConversationId,
        /// Where it takes place.
        pub channel: Channel,
        /// Whether it asks for attention.
        pub status: ConversationStatus,
        /// NONE, HUMAN or AI.
        pub handler: String,
        /// When it last moved, by the provider's clock.
        pub last_message_at: Timestamp,
        /// The message that moved it.
        pub last_message_id: Option<MessageId>,
        /// One line of that message.
        pub last_message_preview: Option<String>,
        /// Whose message that was.
        pub last_message_direction: Option<Direction>,
        /// When the person last wrote.
        pub last_inbound_at: Option<Timestamp>,
        /// When we last wrote.
        pub last_outbound_at: Option<Timestamp>,
        /// When a send last failed.
        pub last_failed_at: Option<Timestamp>,
        /// Since when the person waits.
        pub needs_reply_since: Option<Timestamp>,
        /// When the promised answering time was broken.
        pub sla_breach_at: Option<Timestamp>,
        /// Until when free text may be sent; `None` on a channel with a window: closed.
        pub window_expires_at: Option<Timestamp>,
        /// Messages nobody has looked at yet; the team's counter.
        pub unread_count: i32,
        /// The higher, the more urgent.
        pub priority_score: i16,
        /// Who answers it.
        pub assigned_user_id: Option<UserId>,
        /// Their name.
        pub assigned_user_name: Option<String>,
        /// Their e-mail.
        pub assigned_user_email: Option<String>,
        /// The person.
        pub contact_id: ContactId,
        /// Their name, if known.
        pub contact_name: Option<String>,
        /// Best known phone, for display.
        pub contact_phone: Option<String>,
        /// Best known e-mail, for display.
        pub contact_email: Option<String>,
        /// Their language, if known.
        pub contact_language: Option<String>,
        /// Kind of the address this conversation is with.
        pub identity_kind: Option<IdentityKind>,
        /// That address.
        pub identity_value: Option<String>,
        /// The name its owner gave it.
        pub identity_display_name: Option<String>,
        /// Its user name.
        pub identity_username: Option<String>,
        /// When its owner asked not to be written to.
        pub identity_opted_out_at: Option<Timestamp>,
        /// Our account.
        pub account_id: Option<AccountId>,
        /// The configuration's name of it.
        pub account_name: Option<String>,
        /// What people call it.
        pub account_address: Option<String>,
        /// ACTIVE, PAUSED, BROKEN or DISABLED.
        pub account_status: Option<String>,
        /// Why it is not ACTIVE.
        pub account_status_reason: Option<String>,
        /// The lead it belongs to.
        pub lead_id: Option<LeadId>,
        /// The lead's stage.
        pub lead_stage: Option<String>,
        /// The lead's score.
        pub lead_score: Option<i16>,
        /// When something of the lead's runs out, such as a visa.
        pub lead_expiry_date: Option<Timestamp>,
        /// When somebody promised to come back to it.
        pub lead_next_follow_up_at: Option<Timestamp>,
    }
}

/// The columns of [`ConversationRow`], for every statement that reads one.
macro_rules! conversation_columns {
    () => {
        "c.id, c.channel, c.status, c.handler, c.last_message_at, c.last_message_id, c.last_message_preview,
         c.last_message_direction, c.last_inbound_at, c.last_outbound_at, c.last_failed_at, c.needs_reply_since,
         c.sla_breach_at, c.window_expires_at, c.unread_count, c.priority_score, c.assigned_user_id,
         u.name AS assigned_user_name, u.email AS assigned_user_email, k.id AS contact_id, k.full_name AS contact_name,
         coalesce(k.phone, k.phone_e164) AS contact_phone, k.email AS contact_email, k.language AS contact_language,
         i.kind AS identity_kind, i.value AS identity_value, i.display_name AS identity_display_name,
         i.username AS identity_username, i.opted_out_at AS identity_opted_out_at, a.id AS account_id,
         a.name AS account_name, a.display_address AS account_address, a.status AS account_status,
         a.status_reason AS account_status_reason, l.id AS lead_id, l.stage AS lead_stage, l.ai_score AS lead_score,
         l.expiry_date AS lead_expiry_date, l.next_follow_up_at AS lead_next_follow_up_at"
    };
}
/// What [`conversation_columns`] reads from, with the conversation as `c`.
macro_rules! conversation_joins {
    () => {
        " JOIN contacts k ON k.id = c.contact_id
          LEFT JOIN contact_identities i ON i.id = c.contact_identity_id
          LEFT JOIN channel_accounts a ON a.id = c.channel_account_id
          LEFT JOIN leads l ON l.id = c.lead_id
          LEFT JOIN users u ON u.id = c.assigned_user_id "
    };
}

/// Which conversations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Of these statuses; empty: all.
    pub statuses: Vec<ConversationStatus>,
    /// On this channel.
    pub channel: Option<Channel>,
    /// Answered by whom.
    pub assigned: Assigned,
    /// Words to look for in names, addresses and texts.
    pub search: Option<String>,
    /// Just this one, if it fits the rest.
    pub only: Option<ConversationId>,
}

/// Answered by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assigned {
    /// Anybody or nobody.
    #[default]
    Any,
    /// Nobody.
    Nobody,
    /// This person.
    User(UserId),
}

/// A place in the list: the last row of the page before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListCursor {
    /// That row's `last_message_at`.
    pub at: Timestamp,
    /// That row's id.
    pub id: ConversationId,
}

/// 9999-12-31: after everything.
const FAR: Timestamp = Timestamp::from_seconds(253_402_214_400);

/// One arm per status, each along `conv_list_ix` in its order, so that a page costs a page however many conversations
/// there are; the arms of statuses that were not asked for cost nothing.
macro_rules! arm {
    ($status:literal) => {
        concat!(
            "SELECT * FROM (SELECT c.id, c.last_message_at FROM conversations c
               WHERE $1 LIKE '%",
            $status,
            "%' AND c.status = '",
            $status,
            "' AND c.deleted_at IS NULL AND (c.last_message_at, c.id) < ($2, $3)
               AND (CAST($4 AS text) = '' OR c.channel = $4)
               AND ($5 = -1 OR ($5 = 0 AND c.assigned_user_id IS NULL) OR c.assigned_user_id = $5)
               AND ($6 = 0 OR c.id = $6)
               AND (CAST($7 AS text) = '' OR EXISTS (SELECT 1 FROM contacts k
                     LEFT JOIN contact_identities i ON i.id = c.contact_identity_id WHERE k.id = c.contact_id AND (
                       lower(k.full_name) LIKE $7 ESCAPE '!' OR lower(i.display_name) LIKE $7 ESCAPE '!'
                       OR lower(i.username) LIKE $7 ESCAPE '!' OR lower(k.email) LIKE $7 ESCAPE '!'
                       OR k.full_name LIKE $8 ESCAPE '!' OR i.display_name LIKE $8 ESCAPE '!'
                       OR (CAST($9 AS text) <> '' AND (k.phone_e164 LIKE $9 OR i.value LIKE $9))))
                   OR EXISTS (SELECT 1 FROM messages m WHERE m.conversation_id = c.id
                       AND (m.search_text LIKE $7 ESCAPE '!' OR (m.search_text IS NULL AND lower(m.body) LIKE $7 ESCAPE '!'))))
             ORDER BY c.last_message_at DESC, c.id DESC LIMIT $10) AS one"
        )
    };
}

const CONVERSATION_LIST: &str = concat!(
    "WITH page AS (SELECT id, last_message_at FROM (",
    arm!("OPEN"),
    " UNION ALL ",
    arm!("WAITING"),
    " UNION ALL ",
    arm!("SNOOZED"),
    " UNION ALL ",
    arm!("CLOSED"),
    ") AS arms ORDER BY last_message_at DESC, id DESC LIMIT $10) SELECT ",
    conversation_columns!(),
    " FROM page JOIN conversations c ON c.id = page.id ",
    conversation_joins!(),
    " ORDER BY c.last_message_at DESC, c.id DESC"
);

/// Conversations, newest first, at most `limit`, after `after` if given. A conversation that moves while pages are read is
/// shown at its new place or not at all; every other one exactly once.
/// # Errors
/// Only when the database cannot be reached.
pub async fn list(
    tx: &mut Tx,
    filter: &ListFilter,
    after: Option<ListCursor>,
    limit: i64,
) -> Result<Vec<ConversationRow>> {
    let statuses = match filter.statuses.as_slice() {
        [] => ConversationStatus::ALL,
        some => some,
    };
    let statuses = statuses.iter().map(|status| status.as_str()).collect::<Vec<_>>().join(",");
    let after = after.unwrap_or(ListCursor { at: FAR, id: ConversationId::new(i64::MAX) });
    let channel = filter.channel.map_or("", Channel::as_str);
    let assigned = match filter.assigned {
        Assigned::Any => -1,
        Assigned::Nobody => 0,
        Assigned::User(user) => user.get(),
    };
    let only = filter.only.map_or(0, ConversationId::get);
    let words = SearchPatterns::of(filter.search.as_deref().unwrap_or_default());
    Ok(on_backend!(tx, conn => sqlx::query_as(CONVERSATION_LIST)
        .bind(statuses).bind(At(after.at)).bind(after.id.get()).bind(channel).bind(assigned).bind(only)
        .bind(words.folded).bind(words.raw).bind(words.digits).bind(limit).fetch_all(conn).await?))
}

/// What is searched for, as `LIKE` patterns; empty ones match nothing and are skipped.
#[derive(Debug, Default, PartialEq, Eq)]
struct SearchPatterns {
    /// As `search_text` is folded.
    folded: String,
    /// As typed: SQLite's lower() knows only ASCII.
    raw: String,
    /// The end of a phone number: `050…`, `+971 50…` and `0097150…` all find +97150….
    digits: String,
}

impl SearchPatterns {
    fn of(words: &str) -> Self {
        let words: String = words.trim().chars().filter(|c| *c != '\0').take(200).collect();
        if words.is_empty() {
            return Self::default();
        }
        let contains = |text: &str| format!("%{}%", text.replace('!', "!!").replace('%', "!%").replace('_', "!_"));
        let digits: String = domain::text::folded(&words).chars().filter(char::is_ascii_digit).collect();
        let phone_like = words.chars().all(|c| c.is_numeric() || " +-()./".contains(c));
        let digits = match digits.trim_start_matches('0') {
            number if phone_like && number.len() >= 3 => format!("%{number}%"),
            _ => String::new(),
        };
        Self { folded: contains(&domain::text::folded(&words)), raw: contains(&words), digits }
    }
}

const CONVERSATION_GET: &str = concat!(
    "SELECT ",
    conversation_columns!(),
    " FROM conversations c ",
    conversation_joins!(),
    " WHERE c.id = $1 AND c.deleted_at IS NULL"
);

/// One conversation; `None` for an unknown or a deleted one.
/// # Errors
/// Only when the database cannot be reached.
pub async fn get(tx: &mut Tx, id: ConversationId) -> Result<Option<ConversationRow>> {
    Ok(on_backend!(tx, conn => sqlx::query_as(CONVERSATION_GET).bind(id.get()).fetch_optional(conn).await?))
}

/// How many conversations that are not closed each tab holds, counted up to [`COUNT_UP_TO`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub all: i64,
    /// Answered by the person asking.
    pub mine: i64,
    /// Answered by nobody.
    pub unassigned: i64,
    /// With something nobody has looked at.
    pub unread: i64,
}

/// Counting stops here: nobody reads the exact number of a thousand.
pub const COUNT_UP_TO: i64 = 1000;

const CONVERSATION_COUNTS: &str = "SELECT
    (SELECT count(*) FROM (SELECT 1 FROM conversations
      WHERE status IN ('OPEN','WAITING','SNOOZED') AND deleted_at IS NULL LIMIT $2) AS x),
    (SELECT count(*) FROM (SELECT 1 FROM conversations
      WHERE assigned_user_id = $1 AND status IN ('OPEN','WAITING','SNOOZED') AND deleted_at IS NULL LIMIT $2) AS x),
    (SELECT count(*) FROM (SELECT 1 FROM conversations
      WHERE assigned_user_id IS NULL AND status IN ('OPEN','WAITING','SNOOZED') AND deleted_at IS NULL LIMIT $2) AS x),
    (SELECT count(*) FROM (SELECT 1 FROM conversations
      WHERE unread_count > 0 AND status IN ('OPEN','WAITING','SNOOZED') AND deleted_at IS NULL LIMIT $2) AS x)";

/// What each tab holds, for `user`.
/// # Errors
/// Only when the database cannot be reached.
pub async fn counts(tx: &mut Tx, user: Option<UserId>) -> Result<Counts> {
    let (all, mine, unassigned, unread): (i64, i64, i64, i64) = on_backend!(tx, conn => sqlx::query_as(CONVERSATION_COUNTS)
        .bind(user.map_or(-1, UserId::get)).bind(COUNT_UP_TO).fetch_one(conn).await?);
    Ok(Counts { all, mine, unassigned, unread })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_is_found_however_it_was_typed() {
        for typed in ["050 123 4567", "0501234567", "(050) 123-4567", "٠٥٠١٢٣٤٥٦٧"] {
            assert_eq!(SearchPatterns::of(typed).digits, "%501234567%", "{typed}");
        }
        assert_eq!(SearchPatterns::of("+971 50 123 4567").digits, "%971501234567%");
        assert_eq!(SearchPatterns::of("visa 2026").digits, "");
    }

    #[test]
    fn wildcards_and_nul_in_a_search_are_plain_text() {
        assert_eq!(SearchPatterns::of("100%_\0!").folded, "%100!%!_!!%");
        assert_eq!(SearchPatterns::of("  \0 "), SearchPatterns::default());
    }
}
