//! Reading rows: which stored type stands behind each of ours, and the macro that writes `FromRow` for both databases.

use crate::At;
use domain::{
    AccountId, AttemptOutcome, Channel, ContactId, ConversationId, ConversationStatus, DeadLetterId, Direction,
    IdentityId, IdentityKind, LeadId, MediaId, MessageId, MessageType, Origin, Role, SendState, Status, Timestamp,
    TokenId, UserId, WebhookEventId,
};
use sqlx::error::BoxDynError;
use sqlx::types::Json;

/// A type that a column can be read as.
pub trait Column: Sized {
    /// What the driver decodes.
    type Raw;
    /// Ours from the driver's.
    /// # Errors
    /// When the column holds a value this binary does not know, such as an enum text of a newer version.
    fn from_raw(raw: Self::Raw) -> Result<Self, BoxDynError>;
}

impl<T: Column> Column for Option<T> {
    type Raw = Option<T::Raw>;
    fn from_raw(raw: Self::Raw) -> Result<Self, BoxDynError> {
        raw.map(T::from_raw).transpose()
    }
}

macro_rules! plain_columns {
    ($($type:ty),*) => {$(
        impl Column for $type {
            type Raw = $type;
            fn from_raw(raw: $type) -> Result<Self, BoxDynError> { Ok(raw) }
        }
    )*};
}
plain_columns!(i16, i32, i64, f64, bool, String, Vec<u8>);

macro_rules! id_columns {
    ($($type:ty),*) => {$(
        impl Column for $type {
            type Raw = i64;
            fn from_raw(raw: i64) -> Result<Self, BoxDynError> { Ok(<$type>::new(raw)) }
        }
    )*};
}
id_columns!(
    AccountId,
    ContactId,
    IdentityId,
    LeadId,
    ConversationId,
    MessageId,
    MediaId,
    WebhookEventId,
    DeadLetterId,
    UserId,
    TokenId
);

macro_rules! text_columns {
    ($($type:ty),*) => {$(
        impl Column for $type {
            type Raw = String;
            fn from_raw(raw: String) -> Result<Self, BoxDynError> {
                <$type>::parse(&raw).ok_or_else(|| format!("`{raw}` is no {}", stringify!($type)).into())
            }
        }
    )*};
}
text_columns!(
    Channel,
    Direction,
    Status,
    MessageType,
    ConversationStatus,
    SendState,
    AttemptOutcome,
    Origin,
    Role,
    IdentityKind
);

impl Column for Timestamp {
    type Raw = At;
    fn from_raw(raw: At) -> Result<Self, BoxDynError> {
        Ok(raw.0)
    }
}

impl Column for serde_json::Value {
    type Raw = Json<serde_json::Value>;
    fn from_raw(raw: Self::Raw) -> Result<Self, BoxDynError> {
        Ok(raw.0)
    }
}

/// Declares structs that a row of either database can be read into, column by field name.
macro_rules! rows {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

        $crate::column::rows!(@from sqlx::postgres::PgRow, $name { $($field: $type,)* });
        $crate::column::rows!(@from sqlx::sqlite::SqliteRow, $name { $($field: $type,)* });
    )*};
    (@from $row:ty, $name:ident { $($field:ident: $type:ty,)* }) => {
        impl<'r> sqlx::FromRow<'r, $row> for $name {
            fn from_row(row: &'r $row) -> Result<Self, sqlx::Error> {
                use sqlx::Row as _;
                Ok(Self { $($field: {
                    let column = stringify!($field);
                    let raw = row.try_get::<<$type as $crate::Column>::Raw, _>(column)?;
                    <$type as $crate::Column>::from_raw(raw)
                        .map_err(|source| sqlx::Error::ColumnDecode { index: column.to_owned(), source })?
                },)* })
            }
        }
    };
}
#[allow(unused_imports, reason = "used by the nouns")]
pub(crate) use rows;
