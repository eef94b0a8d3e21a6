//! Files of messages: what the provider announced, to be fetched later.

use crate::batch::{json, plain_opt};
use crate::{At, Result, Tx};
use domain::inbound::InboundMedia;
use domain::{MessageId, Timestamp};

/// A file of a stored message, not fetched yet.
#[derive(Clone, Copy, Debug)]
pub struct NewMedia<'a> {
    /// The message it belongs to.
    pub message: MessageId,
    /// Its place among the message's files, from 0.
    pub position: i16,
    /// What the provider says of it.
    pub media: &'a InboundMedia,
}

const MEDIA_INSERT_PG: &str =
    "INSERT INTO message_media (message_id, position, kind, provider_media_id, mime_type, filename, sha256, caption,
           next_attempt_at, created_at)
    SELECT message_id, position, kind, provider_media_id, mime_type, filename, sha256, caption, $9, $9
      FROM unnest($1::bigint[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::text[])
        AS i(message_id, position, kind, provider_media_id, mime_type, filename, sha256, caption)
    ON CONFLICT (message_id, position) DO NOTHING";
const MEDIA_INSERT_SQLITE: &str = "INSERT INTO message_media (message_id, position, kind, provider_media_id, mime_type, filename, sha256, caption,
           next_attempt_at, created_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, unhex(value ->> 6), value ->> 7, $2, $2
      FROM json_each($1) WHERE true
    ON CONFLICT (message_id, position) DO NOTHING";

/// Notes files as PENDING, due at once.
/// # Errors
/// When the database cannot be reached, or refuses a row.
pub async fn insert(tx: &mut Tx, media: &[NewMedia<'_>], now: Timestamp) -> Result<()> {
    if media.is_empty() {
        return Ok(());
    }
    // Arrays on PostgreSQL, JSON on SQLite.
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(MEDIA_INSERT_PG)
                .bind(media.iter().map(|m| m.message.get()).collect::<Vec<_>>())
                .bind(media.iter().map(|m| m.position).collect::<Vec<_>>())
                .bind(media.iter().map(|m| m.media.kind.as_str()).collect::<Vec<_>>())
                .bind(media.iter().map(|m| plain_opt(m.media.provider_media_id.as_deref())).collect::<Vec<_>>())
                .bind(media.iter().map(|m| plain_opt(m.media.mime_type.as_deref())).collect::<Vec<_>>())
                .bind(media.iter().map(|m| plain_opt(m.media.filename.as_deref())).collect::<Vec<_>>())
                .bind(media.iter().map(|m| m.media.sha256.clone()).collect::<Vec<_>>())
                .bind(media.iter().map(|m| plain_opt(m.media.caption.as_deref())).collect::<Vec<_>>())
                .bind(At(now))
                .execute(tx.conn())
                .await?;
        }
        Tx::Sqlite(tx) => {
            let rows: Vec<_> = media
                .iter()
                .map(|m| {
                    (
                        m.message.get(),
                        m.position,
                        m.media.kind.as_str(),
                        plain_opt(m.media.provider_media_id.as_deref()),
                        plain_opt(m.media.mime_type.as_deref()),
                        plain_opt(m.media.filename.as_deref()),
                        m.media.sha256.as_deref().map(hex::encode),
                        plain_opt(m.media.caption.as_deref()),
                    )
                })
                .collect();
            sqlx::query(MEDIA_INSERT_SQLITE).bind(json(&rows)?).bind(At(now)).execute(&mut **tx).await?;
        }
    }
    Ok(())
}
