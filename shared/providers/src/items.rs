//! Where a parser puts what it finds: every item with its own bytes, good or bad.

use crate::json::{Clean, MAX_DEPTH, depth_of};
use crate::{BadItem, Malformed};
use domain::{AccountKey, Inbound, Item, Timestamp};

/// Most items of one webhook. Meta sends up to 1000; this only keeps a hostile body from filling the memory.
pub(crate) const MAX_ITEMS: usize = 20_000;

/// The items of one body, in the order in which they stand there.
pub(crate) struct Items<'a> {
    /// The body they are cut from.
    pub(crate) body: &'a Clean<'a>,
    /// When it arrived: what a provider's clock is judged by.
    pub(crate) received_at: Timestamp,
    found: Vec<Result<Item, BadItem>>,
    set_aside_for_depth: bool,
}

impl<'a> Items<'a> {
    /// None yet.
    pub(crate) fn of(body: &'a Clean<'a>, received_at: Timestamp) -> Self {
        Self { body, received_at, found: Vec::new(), set_aside_for_depth: false }
    }

    /// Whether nothing was found so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether `part`, which stands below `outer` levels of the body, is nested too deep; it then becomes a bad item.
    pub(crate) fn too_deep(&mut self, part: &str, outer: usize, account: Option<&AccountKey>) -> bool {
        let deep = self.body.depth() > MAX_DEPTH && depth_of(part) + outer > MAX_DEPTH;
        if deep {
            self.set_aside_for_depth = true;
            self.bad(account, "TOO_DEEP", format!("nested more than {MAX_DEPTH} levels deep"), part);
        }
        deep
    }

    /// Keeps an item that was understood. `part` is its slice of the body.
    pub(crate) fn good(&mut self, account: Option<&AccountKey>, kind: Inbound, part: &str) {
        let raw = Some(self.body.as_arrived(part).to_owned());
        self.found.push(Ok(Item { account: account.cloned(), raw, kind }));
    }

    /// Keeps something about an account or the whole source, which is not a message of anybody's.
    pub(crate) fn event(&mut self, account: Option<&AccountKey>, field: &str, part: Option<&str>) {
        let kind = Inbound::AccountEvent { field: crate::json::cut(field, 100), effect: None };
        let raw = part.map(|part| self.body.as_arrived(part).to_owned());
        self.found.push(Ok(Item { account: account.cloned(), raw, kind }));
    }

    /// Sets an item aside.
    pub(crate) fn bad(
        &mut self,
        account: Option<&AccountKey>,
        code: &'static str,
        reason: impl Into<String>,
        part: &str,
    ) {
        let raw = self.body.as_arrived(part).to_owned();
        self.found.push(Err(BadItem { account: account.cloned(), code, reason: reason.into(), raw }));
    }

    /// Refuses a body with more items than any provider sends.
    /// # Errors
    /// [`Malformed::TooManyItems`].
    pub(crate) fn has_room(&self, more: usize) -> Result<(), Malformed> {
        if self.found.len() + more > MAX_ITEMS { Err(Malformed::TooManyItems { limit: MAX_ITEMS }) } else { Ok(()) }
    }

    /// All of them.
    /// # Errors
    /// [`Malformed::TooDeep`] when the depth lies outside every item, so that nothing could be set aside for it.
    pub(crate) fn finish(self) -> Result<Vec<Result<Item, BadItem>>, Malformed> {
        if self.body.depth() > MAX_DEPTH && !self.set_aside_for_depth {
            return Err(Malformed::TooDeep { depth: self.body.depth() });
        }
        Ok(self.found)
    }
}
